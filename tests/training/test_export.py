"""`attn export`: what is written is read back by its own library and gives what the model gives."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from attention_core.training import UsageError, export, load_model
from attention_core.training.checkpoint import PlainCheckpointIO, load_checkpoint
from attention_core.training.folder import RunFolder, write_config
from attention_core.training.run import assemble
from tests.training.conftest import CONF, Compose

Make = Callable[..., Path]


@pytest.fixture
def run(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A run folder with a best checkpoint of weights that no training has seen."""
    monkeypatch.syspath_prepend(str(CONF))

    def make(*overrides: str, **changes: Any) -> Path:
        config = {**compose(*overrides), **changes}
        folder = RunFolder(tmp_path / "run")
        task = assemble(config, folder, log=False).task
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))  # not what the seed gives
        write_config(config, folder)
        PlainCheckpointIO().save_checkpoint(
            {"state_dict": task.state_dict(), "epoch": 0}, folder.best
        )
        return folder.path

    return make


def weights(run: Path) -> dict[str, Tensor]:
    state = torch.load(RunFolder(run).best, weights_only=True)["state_dict"]
    return {name[6:]: value for name, value in state.items() if name.startswith("model.")}


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "export").rglob("*"))


def test_load_model_has_the_best_weights_and_is_in_eval_mode(run: Make) -> None:
    folder = run("experiment=toy")
    model = load_model(folder, ["toy_domain"])
    assert not model.training
    points = torch.randn(4, 2)
    assert torch.equal(model(points), model(points))  # no dropout
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights(folder)[name])


def test_load_model_names_what_differs(run: Make) -> None:
    folder = run("experiment=toy")
    state = load_checkpoint(RunFolder(folder).best)
    state["state_dict"]["model.layers.9.weight"] = state["state_dict"].pop("model.layers.0.weight")
    PlainCheckpointIO().save_checkpoint(state, RunFolder(folder).best)
    with pytest.raises(UsageError, match=r"layers\.0\.weight"):
        load_model(folder, ["toy_domain"])


def test_safetensors_holds_every_weight_and_says_what_it_is(
    run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    safetensors = pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    folder = run("experiment=toy")
    export.export(folder, "safetensors", None, ["toy_domain"])
    read = load_file(folder / "export" / "model.safetensors")
    with safetensors.safe_open(folder / "export" / "model.safetensors", framework="pt") as file:
        about = file.metadata()
    assert read.keys() == weights(folder).keys()
    assert all(torch.equal(read[name], value) for name, value in weights(folder).items())
    assert about["experiment"] == "toy"
    assert json.loads(about["classes"]) == ["inner", "outer"]
    assert json.loads(about["model"])["_target_"] == "toy_domain.MLP"
    assert about["torch"] == torch.__version__
    assert "read back equal" in capsys.readouterr().out
    assert files(folder) == ["model.safetensors"]


def test_tied_weights_are_written_under_both_names(
    run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    export._write_weights(model, tmp_path / "tied.safetensors", {})
    read = load_file(tmp_path / "tied.safetensors")
    assert torch.equal(read["0.weight"], read["1.weight"])
    assert read.keys() == model.state_dict().keys()


def test_torch_export_runs_at_every_batch_size(
    run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("experiment=toy")
    export.export(folder, "torch_export", None, ["toy_domain"])
    program = torch.export.load(folder / "export" / "model.pt2").module()
    model = load_model(folder, ["toy_domain"])
    for batch in (1, 2, 33):
        points = torch.randn(batch, 2)
        torch.testing.assert_close(program(points=points), model(points))
    assert "takes points (batch, 2); within " in capsys.readouterr().out
    assert files(folder) == ["model.pt2"]


def test_onnx_runs_at_every_batch_size(run: Make, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = run("experiment=toy")
    export.export(folder, "onnx", tmp_path / "rings.onnx", ["toy_domain"])
    stored = onnx.load(tmp_path / "rings.onnx")
    onnx.checker.check_model(stored)
    about = {entry.key: entry.value for entry in stored.metadata_props}
    assert json.loads(about["classes"]) == ["inner", "outer"]
    session = onnxruntime.InferenceSession(tmp_path / "rings.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("points", ["batch", 2])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("output", ["batch", 2])]
    model = load_model(folder, ["toy_domain"])
    for batch in (1, 2, 33):
        points = torch.randn(batch, 2)
        (output,) = session.run(None, {"points": points.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), model(points).detach())


@pytest.mark.parametrize("format", ["torch_export", "onnx"])
def test_a_program_that_differs_is_not_written(
    format: str, run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    folder = run("experiment=toy")
    export.export(folder, "torch_export", None, ["toy_domain"])
    before = (folder / "export" / "model.pt2").read_bytes()

    def biased(model: nn.Module, inputs: Any, open_dims: Any) -> Any:
        other = load_model(folder, ["toy_domain"])
        with torch.no_grad():
            other.layers[0].weight[0, 0] += 0.1
        return traced(other, inputs, open_dims)

    traced = export._traced
    monkeypatch.setattr(export, "_traced", biased)
    with pytest.raises(UsageError, match="differs from the model by .* Nothing was written"):
        export.export(folder, format, None, ["toy_domain"])
    assert files(folder) == ["model.pt2"]
    assert (folder / "export" / "model.pt2").read_bytes() == before


def test_a_program_that_gives_nan_differs(run: Make) -> None:
    folder = run("experiment=toy")
    model = load_model(folder, ["toy_domain"])
    with pytest.raises(UsageError, match="nan"):
        export._difference(
            lambda inputs: [torch.full((3, 2), torch.nan)], model, {"points": torch.randn(3, 2)}
        )


class Branches(nn.Module):
    """What no fixed program computes: it asks for a value."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        return self.layer(points) if points.sum() > 0 else self.layer(-points)


def test_a_model_that_cannot_be_traced_says_why_and_what_works(run: Make) -> None:
    folder = run(
        "experiment=toy",
        model={"_target_": f"{__name__}.Branches", "num_classes": 2},
        allow=["toy_domain", __name__.split(".")[0]],
    )
    with pytest.raises(
        UsageError,
        match=r"Branches cannot be written.*points.sum\(\) > 0.*torch.where.*safetensors",
    ):
        export.export(folder, "torch_export", None, ["toy_domain", __name__.split(".")[0]])
    assert files(folder) == []


def test_bad_arguments(run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run("experiment=toy")
    with pytest.raises(UsageError, match=r"'safetensor' is none. Did you mean safetensors\?"):
        export.export(folder, "safetensor", None, ["toy_domain"])
    with pytest.raises(UsageError, match=r"'.*x.bin' must end in .pt2 for format=torch_export"):
        export.export(folder, "torch_export", tmp_path / "x.bin", ["toy_domain"])
    with pytest.raises(UsageError, match="no folder"):
        export.export(folder, "torch_export", tmp_path / "none" / "x.pt2", ["toy_domain"])
    (tmp_path / "x.pt2").write_text("mine")
    with pytest.raises(UsageError, match="never overwritten"):
        export.export(folder, "torch_export", tmp_path / "x.pt2", ["toy_domain"])
    with pytest.raises(UsageError, match="not a run folder"):
        export.export(tmp_path, "torch_export", None, ["toy_domain"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"'onnx' is needed .*attention-core\[export\]"):
        export.export(folder, "onnx", None, ["toy_domain"])


def test_inputs_that_no_program_takes_are_named(run: Make) -> None:
    task = assemble(
        yaml.safe_load((run("experiment=toy") / "config.yaml").read_text()),
        RunFolder(Path("unused")),
        log=False,
    ).task
    inputs, open_dims = task.export_inputs({"points": torch.zeros(3, 2), "target": torch.zeros(3)})
    assert (list(inputs), open_dims) == (["points"], {"points": {0: "batch"}})
    with pytest.raises(UsageError, match=r"'sizes' is no tensor.*RingsTask.export_inputs"):
        task.export_inputs({"sizes": [1, 2], "target": torch.zeros(2)})


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch_export", "onnx"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.depth=1"],
        ["model.depth=1", "compile=true", "activation_checkpointing=true"],
        ["model.depth=1", "model.pooling=attention", "model.positions=learned"],
        [
            "model.depth=2",
            "model.positions=rotary",
            "model.mask={_target_: attention_core.Neighborhood, radius: 1}",
        ],
    ],
)
def test_images(overrides: list[str], format: str, run: Make) -> None:
    for package in ("sklearn", *export.PACKAGES[format]):
        pytest.importorskip(package)
    export.export(run("experiment=vision/digits", *overrides), format, None)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch_export", "onnx"])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.positions=t5", "model.pooling=max"],
        ["model.positions=learned", "model.pooling=class"],
        [
            "model.positions=alibi",
            "model.pooling=attention",
            "model.mask=[null, {_target_: attention_core.Neighborhood, radius: 2}]",
        ],
    ],
)
def test_texts_of_any_length(overrides: list[str], format: str, run: Make) -> None:
    for package in ("tokenizers", *export.PACKAGES[format]):
        pytest.importorskip(package)
    small = ["data.limit=200", "data.vocab_size=300"]
    folder = run("experiment=nlp/sentiment_tiny", *small, *overrides)
    export.export(folder, format, None)
    model = load_model(folder)
    ids, lengths = torch.randint(300, (2, 41)), torch.tensor([41, 17])
    with torch.no_grad():
        expected = model(ids, lengths)
    file = folder / "export" / f"model{export.SUFFIXES[format]}"
    if format == "torch_export":
        got = torch.export.load(file).module()(ids=ids, lengths=lengths)
    else:
        import onnxruntime

        arrays = {"ids": ids.numpy(), "lengths": lengths.numpy()}
        got = torch.from_numpy(onnxruntime.InferenceSession(file).run(None, arrays)[0])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_graphs_have_programs_and_weights(run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """Packed samples: nodes and edges of any number, hops searched within the program."""
    pytest.importorskip("grakel"), pytest.importorskip("safetensors")
    folder = run("experiment=graph/mutag", "model.depth=1")
    export.export(folder, "torch_export", None)
    assert re.search(r"edge_index \(2, edges\).*; within \d", capsys.readouterr().out)
    export.export(folder, "safetensors", None)
    assert files(folder) == ["model.pt2", "model.safetensors"]
