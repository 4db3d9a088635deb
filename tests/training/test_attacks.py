"""Run folders and experiments that somebody else has made up, and what they would set off.

Each attack would make a file, its canary. It is refused in a sentence that names what is wrong, and
the file is not there.
"""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from torch_geometric.data import Data
from torch_geometric.loader import ClusterData

from attention_core.interpret.plots import save_figure
from attention_core.training import UsageError, evaluate, load_model, own, resume, train
from attention_core.training.compose import run_hydra
from attention_core.training.export import _traced, export
from attention_core.training.finetune import start_from
from attention_core.training.folder import RunFolder
from attention_core.training.instantiate import build, check
from attention_core.training.loggers import build_loggers
from attention_core.training.predict import predict
from tests.command_line import attn

Config = dict[str, Any]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of an experiment of ours."""
    path = tmp_path_factory.mktemp("honest") / "run"
    found: list[Config] = []
    run_hydra(
        lambda config, folder: found.append(config),
        [
            *["experiment=vision/digits", "debug=fast_dev_run", "model.depth=1", "model.dim=16"],
            f"hydra.run.dir={path.parent}/composed",
        ],
        flags=[],
        config_dir=None,
    )
    train(found[0], path)
    return RunFolder(path)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that must not be there in the end; the installed package `evil` makes it when it is
    imported, and `evil.touch` when it is called."""
    path = tmp_path / "canary"
    package = tmp_path / "site" / "evil"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from pathlib import Path\n"
        "def touch(*args, **kwargs):\n"
        f"    Path({str(path)!r}).touch()\n"
        "touch()\n"
    )
    (package / "sub" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield path
    for name in [name for name in sys.modules if name.partition(".")[0] == "evil"]:
        del sys.modules[name]


class Pickled:
    """What makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def code(canary: Path) -> str:
    return f"__import__('os').mkdir({str(canary)!r})"


def pyg_folder(folder: Path, canary: Path) -> Path:
    """The folder of a TU data set whose processed file is a pickle."""
    for part in ("raw", "processed"):
        (folder / "EVIL" / part).mkdir(parents=True)
    for name in ("A", "graph_indicator"):
        (folder / "EVIL" / "raw" / f"EVIL_{name}.txt").touch()
    torch.save((Pickled(canary), {}, {}), folder / "EVIL" / "processed" / "data.pt")
    return folder


def zinc_folder(folder: Path, canary: Path) -> Path:
    """The raw files of ZINC, pickles that are no arrays."""
    raw = folder / "subset" / "raw"
    (folder / "raw").mkdir(parents=True)
    raw.mkdir(parents=True)
    for place in (raw, folder / "raw"):
        for part in ("train", "val", "test"):
            (place / f"{part}.pickle").write_bytes(pickle.dumps(Pickled(canary)))
            (place / f"{part}.index").write_text("0\n")
    return folder


def weights_file(folder: Path, canary: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": Pickled(canary)}, folder / "evil.ckpt")
    return folder / "evil.ckpt"


class Evaluated(Pickled):
    """The same by a module that torch, which knows four by name, does not refuse for good."""

    def __reduce__(self) -> Any:
        return eval, (code(self.canary),)


class Clusters:
    """A call that PyG has added to what `torch.load(weights_only=True)` may call: it reads a file,
    with `weights_only=False` where it has to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return ClusterData, (Graph(), 2, False, str(self.folder), "evil.ckpt")


class Graph:
    def __reduce__(self) -> Any:
        return Data, (None, 1)


def clusters_file(folder: Path, canary: Path) -> Path:
    (folder / "part_2").mkdir(parents=True)
    torch.save(Evaluated(canary), folder / "part_2" / "evil.ckpt")
    torch.save(Clusters(folder), folder / "clusters.bin")
    return folder / "clusters.bin"


Change = Callable[[Config, Path, Path], None]


def at(place: str, make: Callable[[Path, Path], Any], allow: list[str] | None = None) -> Change:
    """A change of a configuration: `make(folder, canary)` at a dotted `place`, and its `allow`."""

    def change(config: Config, folder: Path, canary: Path) -> None:
        *parents, last = place.split(".")
        for key in parents:
            if not isinstance(config.get(key), dict):
                config[key] = {}
            config = config[key]
        config[last] = make(folder, canary)

    def changed(config: Config, folder: Path, canary: Path) -> None:
        change(config, folder, canary)
        config["allow"] = allow or []

    return changed


def target(name: str, /, **arguments: Any) -> Callable[[Path, Path], Any]:
    return lambda folder, canary: {"_target_": name, **arguments}


def sequential(folder: Path, canary: Path) -> Any:
    arguments = {"input_args": f"x: {code(canary)}", "modules": []}
    return {"_target_": "torch_geometric.nn.Sequential", **arguments}


def graphs(name: str, /, **more: Any) -> Callable[[Path, Path], Any]:
    return lambda folder, canary: {
        "_target_": "graph.data.PyGDataset",
        "name": name,
        "batch_size": 2,
        **more,
        "root": more.get("root") or str(folder),
    }


def nested_loggers(folder: Path, canary: Path) -> Any:
    inner = {"logger": {"x": {"_target_": "evil.touch"}}, "allow": ["evil"]}
    return {
        "_target_": "attention_core.training.loggers.build_loggers",
        "config": {
            "_target_": "attention_core.pretrained.renaming.without_prefix",
            "weights": inner,
        },
        "folder": str(folder),
    }


def pretrained(weights: str) -> Callable[[Path, Path], Any]:
    return target("nlp.TextEncoder.from_pretrained", weights=weights)


def metric(name: str, /, **arguments: Any) -> Callable[[Path, Path], Any]:
    return lambda folder, canary: {"x": {"_target_": name, **arguments}}


def loaded(name: str) -> Callable[[Path, Path], Any]:
    return lambda folder, canary: {
        "_target_": name,
        "checkpoint_path": str(weights_file(folder, canary)),
        "weights_only": False,
    }


EVIL = {"_target_": "evil.touch"}
ATTACKS: dict[str, tuple[Change, str]] = {
    # What evaluates, unpickles or downloads, wherever it stands
    "text that is evaluated, as a callback": (at("callbacks.x", sequential), "evaluates the texts"),
    "text that is evaluated, in the model": (
        at("model", lambda f, c: {"_target_": "torch.nn.Sequential", "_args_": [sequential(f, c)]}),
        r"model._args_\[0\]._target_: 'torch_geometric.nn.Sequential' is refused",
    ),
    "text that is evaluated, in a list of lists": (
        at("model.mask", lambda f, c: [[None, [sequential(f, c)]]]),
        r"model.mask\[0\]\[1\]\[0\]._target_",
    ),
    "text that is evaluated, in a mapping of the data": (
        at("data.augment", lambda f, c: {"a": {"b": sequential(f, c)}}),
        "data.augment.a.b._target_",
    ),
    "summary": (at("callbacks.x", target("torch_geometric.nn.summary")), "refused"),
    "a data set of PyG": (
        at(
            "data",
            lambda f, c: {
                "_target_": "torch_geometric.datasets.TUDataset",
                "root": str(pyg_folder(f, c)),
                "name": "EVIL",
            },
        ),
        "graph.data.PyGDataset reads",
    ),
    "a pickle as a processed file": (
        at(
            "data",
            lambda f, c: graphs("TUDataset", options={"name": "EVIL"})(pyg_folder(f, c), c),
        ),
        r"TUDataset in .* is refused: .*mkdir",
    ),
    "a pickle as a raw file": (
        at("data", lambda f, c: graphs("ZINC")(zinc_folder(f, c), c)),
        r"ZINC in .* is refused: .*mkdir",
    ),
    "a data set at a URL": (
        at("data", graphs("TUDataset", root="memory://x", options={"name": "EVIL"})),
        "data.root must be a folder of this machine",
    ),
    "a data set behind a chain of file systems": (
        at("data", graphs("TUDataset", root="simplecache::x", options={"name": "EVIL"})),
        "data.root must be a folder of this machine",
    ),
    "a data set that evaluates its cells": (
        at("data", graphs("CornellTemporalHyperGraphDataset")),
        "'CornellTemporalHyperGraphDataset' is refused",
    ),
    "a data set with a language model": (
        at("data", graphs("WebQSPDataset")),
        "'WebQSPDataset' is refused",
    ),
    "a data set of torchvision with a loader": (
        at("data", target("torchvision.datasets.DatasetFolder", root="x", loader=EVIL)),
        "data.loader._target_|torchvision.datasets.DatasetFolder' is refused",
    ),
    "a data set of torchvision by name that takes a loader": (
        at(
            "data",
            target(
                "vision.data.TorchvisionImages",
                name="DatasetFolder",
                root="x",
                size=8,
                batch_size=2,
            ),
        ),
        "'DatasetFolder' is refused",
    ),
    "a data set of torchvision with a pickled index": (
        at(
            "data",
            target("vision.data.TorchvisionImages", name="LSUN", root="x", size=8, batch_size=2),
        ),
        "'LSUN' is refused",
    ),
    "a download": (
        at("data", target("torchvision.datasets.MNIST", root="x", download=True)),
        "torchvision.datasets.MNIST' is refused",
    ),
    "a reader of pickles": (
        at("data", target("nlp.data.HubTexts", name="pandas", batch_size=2, vocab_size=300)),
        "data.name: 'pandas' is refused",
    ),
    "a reader that imports": (
        at("data", target("nlp.data.HubTexts", name="iceberg", batch_size=2, vocab_size=300)),
        "data.name: 'iceberg' is refused",
    ),
    "code of a data set": (
        at(
            "data",
            target(
                "nlp.data.HubTexts",
                name="a/b",
                batch_size=2,
                vocab_size=300,
                options={"trust_remote_code": True},
            ),
        ),
        "trust_remote_code is refused",
    ),
    "weights of a hub": (
        at("model", target("torch_geometric.nn.model_hub.PyGModelHubMixin.from_pretrained")),
        "refused",
    ),
    "weights by a method of a model": (
        at("model", target("torch_geometric.nn.DimeNet.from_qm9_pretrained")),
        "refused",
    ),
    "a metric with a model of anybody's": (
        at("task.metrics", metric("torchmetrics.multimodal.CLIPScore")),
        "downloads models with their code",
    ),
    "a metric with a language model": (
        at("task.metrics", metric("torchmetrics.text.BERTScore")),
        "downloads models",
    ),
    "a metric of a function": (
        at("task.metrics", metric("torchmetrics.CompositionalMetric", operator=EVIL)),
        "refused|not allowed",
    ),
    "a checkpoint of Lightning's, of ours": (
        at("task", loaded("attention_core.training.ClassificationTask.load_from_checkpoint")),
        "'attention_core.training.ClassificationTask.load_from_checkpoint' is refused",
    ),
    "a checkpoint of Lightning's": (
        at("task", loaded("lightning.pytorch.LightningModule.load_from_checkpoint")),
        "refused",
    ),
    "a checkpoint as a data module": (
        at("data", loaded("vision.data.Digits.load_from_checkpoint")),
        "refused",
    ),
    # What takes a configuration of its own, in which another allow could hide
    "loggers inside a configuration": (at("callbacks.x", nested_loggers), "refused"),
    "a training inside a training": (
        at("callbacks.x", target("attention_core.training.train", config=EVIL, path="x")),
        "reads and runs whole configurations",
    ),
    "the command line": (
        at("callbacks.x", target("attention_core.training.cli.main", argv=["list"])),
        "reads and runs whole configurations",
    ),
    "a run folder": (
        at("model", target("attention_core.training.load_model", path="x")),
        "reads and runs whole configurations",
    ),
    "what builds": (
        at("model", target("attention_core.training.instantiate.build", config=EVIL)),
        "reads and runs whole configurations",
    ),
    "a file of any name": (
        at(
            "logger.x",
            lambda f, c: {"_target_": "attention_core.training.metrics.CSVMetrics", "path": str(c)},
        ),
        "refused",
    ),
    # What calls the functions that it is given
    "workers": (
        at("data", target("torch.utils.data.DataLoader", dataset=[], worker_init_fn=EVIL)),
        "torch.utils.data.DataLoader' is refused",
    ),
    "a function to collate with": (
        at("data.collate_fn", lambda f, c: {**EVIL, "_partial_": True}, ["evil"]),
        "evil.touch' is code of the package 'evil'",
    ),
    "Lambda of torchvision": (
        at("data.augment", lambda f, c: {"x": {"_target_": "torchvision.transforms.v2.Lambda"}}),
        "v2.Lambda' is refused",
    ),
    "a callback of functions": (
        at("callbacks.x", target("lightning.pytorch.callbacks.LambdaCallback", on_fit_start=EVIL)),
        "LambdaCallback' is refused",
    ),
    "a callback that writes where it likes": (
        at(
            "callbacks.x",
            lambda f, c: {
                "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                "dirpath": str(c),
            },
        ),
        "ModelCheckpoint' is refused",
    ),
    "another that writes where it likes": (
        at(
            "callbacks.x",
            target("lightning.pytorch.callbacks.SpikeDetection", exclude_batches_path="/x.json"),
        ),
        "SpikeDetection' is refused",
    ),
    "a strategy that unpickles checkpoints": (
        at("trainer.strategy", target("lightning.pytorch.strategies.FSDPStrategy")),
        "trainer.strategy._target_: .*FSDPStrategy' is refused",
    ),
    "a strategy that unpickles checkpoints, by name": (
        at("trainer.strategy", lambda f, c: "fsdp_cpu_offload"),
        "trainer.strategy: 'fsdp_cpu_offload' is refused",
    ),
    "a strategy with a configuration": (
        at("trainer.strategy", target("lightning.pytorch.strategies.DeepSpeedStrategy")),
        "trainer.strategy._target_: .*DeepSpeedStrategy' is refused",
    ),
    "a handler of traces": (
        at(
            "profiler",
            target("lightning.pytorch.profilers.PyTorchProfiler", on_trace_ready=EVIL),
        ),
        "profiler.on_trace_ready._target_",
    ),
    "a part of functools": (
        at("model", target("functools.partial", _args_=[EVIL])),
        "'functools.partial' is refused",
    ),
    "what Hydra has": (at("model", target("hydra.utils.get_method", path="os.mkdir")), "refused"),
    # Packages: of the folder's own choosing, and in the guise of ours
    "the folder's own word": (at("callbacks.x", lambda f, c: EVIL, ["evil"]), r"allow=\[evil\]"),
    "no word at all": (at("callbacks.x", lambda f, c: EVIL), "'evil.touch' is not allowed"),
    "a word for all": (at("callbacks.x", lambda f, c: EVIL, ["evil", "*", ""]), "allow="),
    "allow: [yaml]": (
        at(
            "callbacks.x",
            lambda f, c: {
                "_target_": "yaml.unsafe_load",
                "stream": f"!!python/object/apply:os.mkdir [{str(c)!r}]",
            },
            ["yaml"],
        ),
        "'yaml.unsafe_load' is refused",
    ),
    "allow: [numpy]": (
        at(
            "callbacks.x",
            lambda f, c: {
                "_target_": "numpy.load",
                "allow_pickle": True,
                "file": str(weights_file(f, c)),
            },
            ["numpy"],
        ),
        "'numpy.load' is refused",
    ),
    "allow: [torch]": (
        at("callbacks.x", target("torch.ops.load_library", path="x.so"), ["torch"]),
        "'torch.ops.load_library' is refused",
    ),
    "allow: [PIL.Image]": (
        at("callbacks.x", target("PIL.Image.open", fp="x"), ["PIL.Image"]),
        "'PIL.Image.open' is refused",
    ),
    "allow: [os]": (at("callbacks.x", target("os.system", command="true"), ["os"]), "refused"),
    "a module that one of ours has imported": (
        at("model", target("vision.models.torch.hub.load", repo_or_dir="x"), ["vision"]),
        "refused",
    ),
    "a class that a module of ours has imported": (
        at("model", target("graph.models.torch.jit.ScriptModule")),
        "'graph.models.torch.jit.ScriptModule' is refused",
    ),
    "a callback that one of ours has imported": (
        at("callbacks.x", target("attention_core.training.run.LambdaCallback", on_fit_start=EVIL)),
        "run.LambdaCallback' is refused",
    ),
    "a data set that one of ours has imported": (
        at(
            "data.x", target("vision.data.torchvision_datasets.datasets.DatasetFolder", loader=EVIL)
        ),
        "datasets.DatasetFolder' is refused",
    ),
    "what a module of ours has imported": (
        at("model", target("attention_core.training.parts.os.mkdir"), ["attention_core"]),
        "refused",
    ),
    "what a class has": (
        at("model", target("torch.nn.Linear.__init__.__globals__")),
        "never safe as a target",
    ),
    "a method of a class": (at("model", target("torch.nn.Module.apply", fn=EVIL)), "refused"),
    "a function of a tokenizer": (
        at("model", target("nlp.Tokenizer.load", path="x")),
        "'nlp.Tokenizer.load' is refused",
    ),
    "a package to look into, for weights": (
        at("model", pretrained("package:evil.sub/x")),
        r"weights: '.*evil/sub/x' is no file|no file",
    ),
    "a file beside a package": (
        at("model", pretrained("package:evil/../../canary")),
        "a file inside the package 'evil' is needed",
    ),
    "a file at the root": (
        at("model", pretrained("package:evil//etc/passwd")),
        "a file inside the package 'evil' is needed",
    ),
    "a package to look into, for messages": (
        at(
            "data",
            target(
                "nlp.data.MessageCatalogs",
                language="de",
                package="evil.sub",
                batch_size=2,
                vocab_size=300,
            ),
        ),
        "no catalog of 'de'|polib",
    ),
    "weights that are a pickle": (
        at("model", lambda f, c: pretrained(str(weights_file(f, c)))(f, c)),
        "could run code",
    ),
    "weights that call what a package has listed": (
        at("model", lambda f, c: pretrained(str(clusters_file(f, c)))(f, c)),
        "could run code .*ClusterData",
    ),
    # Places and forms
    "a part of another kind": (
        at("profiler", target("vision.data.Digits", batch_size=2)),
        "profiler._target_: 'vision.data.Digits' is refused",
    ),
    "a part inside another kind": (
        at("optimizer.params", target("vision.data.Digits", batch_size=2)),
        "optimizer.params._target_",
    ),
    "a target where nothing is built": (at("about.title", lambda f, c: EVIL), "nothing is built"),
    "a target among what to start from": (at("init.new", lambda f, c: [EVIL]), "nothing is built"),
    "a target among the arguments of checkpoints": (
        at("checkpoint.every_steps", lambda f, c: EVIL),
        "refused|expects",
    ),
    "positional arguments that are none": (
        at("model", target("torch.nn.Sequential", _args_="abc")),
        "model._args_ must be a list",
    ),
    "a partial that is none": (
        at("model", target("torch.nn.Sequential", _partial_=EVIL)),
        "model._partial_|not allowed",
    ),
    "a module that is not made": (
        at("model", target("torch.nn.Sequential", _partial_=True)),
        "model: a module is needed, got partial",
    ),
    "a resolver": (
        at("model.dim", lambda f, c: "${direction:evil.touch,[evil]}"),
        "model.dim: vision.VisionTransformer expects int",
    ),
}


def written(honest: RunFolder, folder: Path, config: Config) -> Path:
    """A copy of an honest run with another configuration."""
    shutil.copytree(honest.path / "checkpoints", folder / "checkpoints")
    (folder / "config.yaml").write_text(f"{yaml.safe_dump(config)}...\n")
    return folder


def read_by(reader: str, folder: Path) -> None:
    if reader == "evaluate":
        evaluate(folder)
    elif reader == "predict":
        (folder.parent / "inputs").mkdir()
        predict(folder, folder.parent / "inputs", folder.parent / "rows.csv")
    elif reader == "export":
        export(folder, "safetensors")
    elif reader == "load_model":
        load_model(folder)
    else:
        resume(folder)


READERS = ("evaluate", "predict", "export", "load_model", "resume")


def refused(attack: str, reader: str, honest: RunFolder, tmp_path: Path, canary: Path) -> None:
    change, message = ATTACKS[attack]
    config = yaml.safe_load(honest.config.read_text())
    change(config, tmp_path / "given", canary)
    folder = written(honest, tmp_path / "run", config)
    with pytest.raises(UsageError, match=message):
        read_by(reader, folder)
    assert not canary.exists()


# What shows only when data are read; load_model reads none
LATE = {name for name in ATTACKS if name.startswith(("a pickle", "a reader", "a package to look"))}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_it_runs(attack: str, honest: RunFolder, tmp_path: Path, canary: Path) -> None:
    number = list(ATTACKS).index(attack)
    reader = "evaluate" if attack in LATE else READERS[number % len(READERS)]
    refused(attack, reader, honest, tmp_path, canary)


def test_no_name_of_a_part_becomes_code(canary: Path) -> None:
    """torch writes them into the code of an exported program, also where nothing uses the part."""
    code = f"__import__('os').mkdir({str(canary)!r})".encode()
    name = f'a", exec(bytes({list(code)}))) or getattr(input, "b'
    hidden = {"_target_": "torch.nn.ModuleDict", "modules": {name: {"_target_": "torch.nn.PReLU"}}}
    model = build({"_target_": "torch.nn.ReLU", "inplace": hidden}, "model")
    inputs = {"input": torch.ones(2, 2)}
    with pytest.raises(UsageError, match="which can be no code"):
        _traced(model, inputs, {}).module()(**inputs)
    assert not canary.exists()


def test_a_training_writes_into_its_folder_alone(tmp_path: Path) -> None:
    """Whatever names and links somebody else has put there."""
    (tmp_path / "run" / "figures").mkdir(parents=True)
    folder, other = RunFolder(tmp_path / "run"), tmp_path / "other"
    other.write_text("of the user")
    for name, target in (
        ("name", "lightning.pytorch.loggers.CSVLogger"),
        ("version", "lightning.pytorch.loggers.CSVLogger"),
        ("name", "lightning.pytorch.loggers.TensorBoardLogger"),
        ("sub_dir", "lightning.pytorch.loggers.TensorBoardLogger"),
    ):
        logger = {"_target_": target, name: f"{tmp_path}/elsewhere"}
        with pytest.raises(UsageError, match=r"logger.x: .*elsewhere.* is not in the run folder"):
            build_loggers({"logger": {"x": logger}}, folder.path)
    (folder.path / ".lock").symlink_to(other)
    with pytest.raises(UsageError, match="lock' is a link"), folder.locked():
        pass
    (folder.figures / "x.png").symlink_to(other)
    save_figure(Figure(), folder.figures / "x.png")
    assert other.read_text() == "of the user"


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_wants_the_users_word(
    reader: str, honest: RunFolder, tmp_path: Path, canary: Path
) -> None:
    refused("the folder's own word", reader, honest, tmp_path, canary)


def test_the_word_of_the_user_is_heard(honest: RunFolder, tmp_path: Path, canary: Path) -> None:
    """Which shows, too, that the canary is one."""
    config = yaml.safe_load(honest.config.read_text())
    config |= {"model": EVIL, "allow": ["evil"]}
    folder = written(honest, tmp_path / "run", config)
    with pytest.raises(UsageError, match=r"allow=\[evi,evil.sub,evil\]"):
        evaluate(folder, ["evi", "evil.sub"])
    assert not canary.exists()
    with pytest.raises(UsageError, match="model: a module is needed, got NoneType"):
        evaluate(folder, ["evil"])
    assert canary.exists()


def test_its_own_configuration_is_no_program(honest: RunFolder, canary: Path) -> None:
    """And what else is in it that is not what a run has written."""
    for text, message in (
        ("a: &a {b: [*a]}", "config.yaml' is damaged: a part of it holds itself"),
        (f"a: !!python/object/apply:os.mkdir [{str(canary)!r}]", "config.yaml' is damaged"),
        ("a: [", "config.yaml' is damaged"),
        ("[]", "holds no configuration"),
    ):
        folder = written(honest, canary.parent / f"run{len(text)}", {})
        (folder / "config.yaml").write_text(f"{text}\n...\n")
        with pytest.raises(UsageError, match=message):
            evaluate(folder)
    assert not canary.exists()


def test_a_run_to_start_from_gives_weights_alone(
    honest: RunFolder, tmp_path: Path, canary: Path
) -> None:
    config = yaml.safe_load(honest.config.read_text())
    config |= {"callbacks": {"x": EVIL}, "allow": ["evil"]}
    other = written(honest, tmp_path / "other", config)
    assert "tensors from" in start_from(load_model(honest.path), run=str(other))
    assert not canary.exists()


def test_the_message_can_be_copied(honest: RunFolder, tmp_path: Path) -> None:
    """What a folder asks for becomes part of a command line, so it is a name or nothing."""
    config = yaml.safe_load(honest.config.read_text())
    bad = "x]; touch canary; echo [x"
    config |= {"callbacks": {"x": {"_target_": f"{bad}.y"}}, "allow": [bad]}
    folder = written(honest, tmp_path / "run", config)
    with pytest.raises(UsageError, match="never safe as a target") as refusal:
        evaluate(folder)
    assert "attn evaluate" not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["os", "yaml", "numpy", "torch.ops", "PIL", "hydra", "tqdm", "pip"]
)
def test_no_word_reaches_what_does_anything(name: str, honest: RunFolder) -> None:
    with pytest.raises(UsageError, match=f"allow: '{name}' cannot be allowed"):
        evaluate(honest.path, [name])


# In experiments: what Hydra calls before any code of ours
HANDLERS = {"version": 1, "root": {"handlers": ["x"]}, "handlers": {"x": {"()": "evil.touch"}}}
EXPERIMENTS: dict[str, tuple[Config, list[str], str]] = {
    "a handler of logs": (
        {"hydra": {"job_logging": HANDLERS}},
        [],
        r"handlers.x.\(\): 'evil.touch'",
    ),
    "a class of handlers": (
        {"hydra": {"hydra_logging": {**HANDLERS, "handlers": {"x": {"class": "evil.touch"}}}}},
        [],
        "handlers.x.class: 'evil.touch' is refused",
    ),
    "a stream of a handler": (
        {"hydra": {"job_logging": {**HANDLERS, "handlers": {"x": {"stream": "ext://evil.touch"}}}}},
        [],
        "handlers.x.stream: 'ext://evil.touch' is refused",
    ),
    "another place": (
        {
            "hydra": {"job_logging": {**HANDLERS, "handlers": "${about.x}"}},
            "about": {"x": HANDLERS},
        },
        [],
        "job_logging.handlers: .* is refused",
    ),
    "a callback of Hydra's": (
        {"hydra": {"callbacks": {"x": EVIL}}},
        [],
        "hydra.callbacks.x._target_: 'evil.touch' is refused",
    ),
    "a callback in another place": (
        {"hydra": {"callbacks": {"x": "${about.x}"}}, "about": {"x": EVIL}},
        [],
        "hydra.callbacks: .* is refused",
    ),
    "a launcher": (
        {"hydra": {"launcher": {"_target_": "evil.touch"}}},
        [],
        "hydra.launcher._target_: 'evil.touch' is refused",
    ),
    "a sweeper": (
        {"hydra": {"sweeper": {"_target_": "hydra.utils.get_method"}}},
        ["seed=1,2"],
        "hydra.sweeper._target_: 'hydra.utils.get_method' is refused",
    ),
    "variables for all that is started": (
        {"hydra": {"job": {"env_set": {"LD_PRELOAD": "x.so"}}}},
        [],
        "hydra.job.env_set: .* is refused",
    ),
    "what each job of a sweep is": (
        {"hydra": {"job_logging": HANDLERS}},
        ["--multirun", "seed=1,2"],
        r"handlers.x.\(\): 'evil.touch'",
    ),
    "the packages of a direction": (
        {"about": {"title": "${direction:evil.touch}"}},
        [],
        "'evil.touch' is not allowed",
    ),
}


def composed(tmp_path: Path, experiment: Config, *overrides: str, name: str = "evil_one") -> Any:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    head = "# @package _global_\ndefaults: [/experiment/vision/digits, _self_]\n"
    (folder / f"{name}.yaml").write_text(head + yaml.safe_dump(experiment))
    (folder / "honest_one.yaml").write_text(head)
    place = tmp_path / "outputs"
    flags = [o for o in overrides if o.startswith("--")]
    given = [o for o in overrides if not o.startswith("--")]
    if not any(o.startswith("experiment=") for o in given):
        given.append(f"experiment={name}")
    return run_hydra(
        lambda config, folder: None,
        [*given, f"hydra.run.dir={place}", f"hydra.sweep.dir={place}"],
        flags=flags,
        config_dir=tmp_path / "conf",
        sweeps=True,
    )


@pytest.mark.parametrize("attack", EXPERIMENTS)
def test_an_experiment_tells_hydra_nothing_to_call(
    attack: str, tmp_path: Path, canary: Path
) -> None:
    experiment, overrides, message = EXPERIMENTS[attack]
    with pytest.raises(UsageError, match=message):
        composed(tmp_path, experiment, *overrides)
    assert not canary.exists()


def test_an_experiment_that_a_sweep_chooses_does_not_either(tmp_path: Path, canary: Path) -> None:
    """What is composed first has none of it."""
    with pytest.raises(UsageError, match="evil.touch"):
        composed(
            tmp_path,
            {"hydra": {"job_logging": HANDLERS}},
            *["--multirun", "experiment=evil_one,honest_one"],
        )
    assert not canary.exists()


def test_a_space_to_search_is_no_function(tmp_path: Path, canary: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    for sweeper, message in (
        ({"custom_search_space": "evil.touch"}, "custom_search_space: 'evil.touch' is refused"),
        ({"sampler": {"_target_": "hydra.utils.get_class"}}, "sampler._target_: 'hydra.utils.get_"),
        ({"search_space": {"x": EVIL}}, "search_space.x._target_: 'evil.touch' is refused"),
    ):
        with pytest.raises(UsageError, match=message):
            composed(tmp_path, {"hydra": {"sweeper": sweeper}}, "sweep=optuna", "+x=1")
    assert not canary.exists()


def test_parameters_of_a_job_set_no_variables(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = {"additional_parameters": {"export": "ALL,LD_PRELOAD=x.so"}}
    more = ["launcher=submitit", "--multirun"]
    with pytest.raises(UsageError, match="additional_parameters: .* is refused in a file"):
        composed(tmp_path, {"hydra": {"launcher": launcher}}, *more)


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        ("about: [", "is damaged"),
        ("[1]", "it holds no configuration"),
        ("about: {needs: pandas}", "its needs a list"),
        ("about: {title: t, needs: [__main__, '..', '']}", ""),
    ],
)
def test_a_list_of_damaged_experiments(
    experiment: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # which run_hydra sets
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "odd.yaml").write_text(experiment)
    ran = attn("list", "--config-dir", str(tmp_path), cwd=tmp_path)
    assert (ran.returncode, said in ran.stderr) == (2 if said else 0, True), ran.stderr
    assert len(ran.stderr.splitlines()) == bool(said)


HERE = "hydra_plugins/x accelerate librosa yaml torch lightning evil rich wandb audio numpy"


@pytest.mark.slow
def test_the_current_folder_serves_no_name_that_is_not_allowed(tmp_path: Path) -> None:
    """In a process of its own: what some library tries to import, and what all of them do."""
    canary = tmp_path / "canary"
    for name in HERE.split():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("PYTHONSAFEPATH", own.TOLD):
        environment.pop(name, None)
    command = [sys.executable, "-m", "attention_core.training", "train", "hydra.run.dir=run"]
    small = ["debug=fast_dev_run", "model.depth=1", "model.dim=16", "data.workers=1"]
    ran = subprocess.run(
        [*command, *small],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not canary.exists()
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "run" / "results.json").exists()


def test_a_neighbour_of_an_allowed_module_is_allowed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, and not on sys.path, where the folder would serve any name."""
    (tmp_path / "soil.py").write_text("import soil_horizons\nclass Pit: pass\n")
    (tmp_path / "soil_horizons.py").touch()
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    own.serve([tmp_path])
    part = {"_target_": "soil.Pit"}
    with pytest.raises(UsageError, match="needs the package 'soil_horizons'.*add it to allow"):
        check(part, allow=["soil"])
    check(part, allow=["soil", "soil_horizons"])
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_are_not_forked_find_what_is_allowed(method: str, tmp_path: Path) -> None:
    """Such as those that load data: they are handed sys.path, and what is served is not on it."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "soil.py").write_text("def dig(): print('dug')\n")
    (tmp_path / "attn").write_text(
        "import multiprocessing, pathlib\n"
        "from attention_core.training.cli import main\n"
        "if __name__ == '__main__':\n"
        "    from attention_core.training import own\n"
        "    own.serve([pathlib.Path('own')])\n"
        "    own.trust(['soil'])\n"
        "    import soil\n"
        f"    process = multiprocessing.get_context({method!r}).Process(target=soil.dig)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "attn"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.stdout == "dug\n", ran.stderr
