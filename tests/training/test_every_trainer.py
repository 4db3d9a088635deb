"""Every experiment takes a step with every trainer, recomputed, compiled or in half the bits.

Two processes are two forks of one that has imported all and read the data. They find themselves in
the environment of processes that belong together, as those do that `joined_by_others` starts.
"""

from __future__ import annotations

import copy
import faulthandler
import importlib.util
import multiprocessing
import os
import socket
import traceback
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attention_core.training import parts, run
from attention_core.training.compose import about, config_roots, run_hydra
from attention_core.training.folder import RunFolder
from tests.command_line import IMPORTED

TIMEOUT = 600
ABOUT = about(config_roots(None))
#: As small as they get: a `_tiny` experiment is the one that it names, but for its sizes.
EXPERIMENTS = [
    name
    for name, section in ABOUT.items()
    if section.get("packaged", True) and f"{name}_tiny" not in ABOUT
]
SMALL = {"limit": 200, "batch_size": 4, "tokens": 256}
#: A single graph is one batch, which two processes cannot share: an error says so.
ALONE = {"graph/digits_knn"}
#: One experiment for each kind of block, or of what a block is given: compiled with every trainer,
#: the others with one process.
COMPILED = {
    *["vision/digits", "vision/digits_swin", "vision/digits_neighborhood", "graph/mutag"],
    *["graph/umls", "nlp/sentiment_tiny", "nlp/bbc_gpt_tiny", "nlp/translate_de_tiny"],
}
#: By trainer; small texts, images and graphs.
COMPILED_ALONE = {
    "cpu": {"graph/digits_knn", "nlp/bbc_gpt_tiny"},
    "ddp": {"vision/mnist5k_100"},
    "fsdp2": {"vision/mnist5k"},
}
TRAINERS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "ddp": {"devices": 2, "strategy": "ddp", "deterministic": "warn"},
    "fsdp2": {
        "devices": 2,
        "strategy": {"_target_": "attention_core.training.parallel.FSDP2"},
        "deterministic": "warn",
    },
}
#: What may be asked of a trainer.
OPTIONS: dict[str, dict[str, Any]] = {
    "compiled": {"compile": True},
    "recomputed": {"activation_checkpointing": True},
    "narrow": {"precision": "bf16-mixed"},
}


def asked(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """Trainer and what is asked of it, for every run of an experiment.

    With each trainer it runs with nothing asked and with all. One option alone goes round: each
    experiment has it with one trainer, each trainer with a third of the experiments. Only what
    takes longest, a block that is compiled and not recomputed, has one or two experiments a
    trainer.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    for place, trainer in enumerate(TRAINERS):
        turn = (EXPERIMENTS.index(name) + place) % len(TRAINERS)
        here = list(OPTIONS) if name in ALONE else [list(OPTIONS)[turn]]
        compiled = name in COMPILED or trainer == "cpu"
        found.append((trainer, ()))
        found.append((trainer, tuple(o for o in OPTIONS if o != "compiled" or compiled)))
        found += [(trainer, (option,)) for option in here if option != "compiled"]
        if name in COMPILED_ALONE[trainer]:
            found.append((trainer, ("compiled",)))
        if name in ALONE:
            break
    return found


def test_the_runs_have_every_pair() -> None:
    runs = {(name, *run) for name in EXPERIMENTS for run in asked(name)}
    assert {(trainer, o) for _, trainer, o in runs if len(o) == 1} == {
        (trainer, (option,)) for trainer in TRAINERS for option in OPTIONS
    }
    for name in EXPERIMENTS:
        trainers = ["cpu"] if name in ALONE else list(TRAINERS)
        assert {trainer for n, trainer, o in runs if n == name and not o} == set(trainers)
        for option in OPTIONS:
            assert any(n == name and option in o for n, _, o in runs), (name, option)
            if option != "compiled":
                assert {t for n, t, o in runs if n == name and option in o} == set(trainers)
                assert any(n == name and o == (option,) for n, _, o in runs), (name, option)


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["graph", "nlp", "vision"])
def test_every_experiment_takes_a_step_with_every_trainer(domain: str, tmp_path: Path) -> None:
    names = [
        name
        for name in EXPERIMENTS
        if name.startswith(domain)
        and all(map(importlib.util.find_spec, ABOUT[name].get("needs", [])))
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_train_all, args=(names, tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        process.start()
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        pytest.fail("it hung: " + (tmp_path / "said").read_text()[-5000:])
    assert process.exitcode == 0, (tmp_path / "said").read_text()[-10000:]
    assert (tmp_path / "failed").read_text() == "", (tmp_path / "said").read_text()[-10000:]


def _train_all(names: list[str], folder: Path) -> None:
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # type: ignore[assignment]  # what a run writes is not proved here
    build, compiled = parts.build, nn.Module.compile
    # Inductor's C++ takes ten seconds a block, and is torch's; the graphs before it are ours
    nn.Module.compile = lambda module: compiled(module, backend="aot_eager")  # type: ignore
    run._draw = run.write_card = lambda *_, **__: None
    with (folder / "failed").open("w", buffering=1) as failed:
        for name in names:
            alone, together = [], []
            for config in _configs(name, folder):
                (alone if config["trainer"].get("devices", 1) == 1 else together).append(config)
            parts.build = partial(_build, build, {})
            for label in _trained(alone, folder, [0] * len(alone)):
                print(label, file=failed)
            for label in _by_two(together, folder):
                print(label, file=failed)


def _configs(name: str, folder: Path) -> list[dict[str, Any]]:
    """The experiment with every trainer, and what is asked of each."""
    found: list[dict[str, Any]] = []
    overrides = [f"experiment={name}", "debug=fast_dev_run", f"hydra.run.dir={folder}"]
    run_hydra(lambda config, _: found.append(config), overrides, flags=[], config_dir=None)
    configs = []
    for trainer, options in asked(name):
        config = copy.deepcopy(found[0])
        for key, most in SMALL.items():
            if isinstance(config["data"].get(key), int) and name not in ALONE:
                config["data"][key] = min(config["data"][key], most)
        config["trainer"] |= {"accelerator": "cpu", "precision": "32-true", **TRAINERS[trainer]}
        config |= {"activation_checkpointing": False, "compile": False}
        for option in options:
            home = config["trainer"] if option == "narrow" else config
            home |= OPTIONS[option]
        if trainer == "fsdp2":
            config["callbacks"].pop("ema", None)  # refused, see test_averaging
        config["experiment"] = " ".join([name, trainer, *options])
        configs.append(config)
    return configs


def _trained(configs: list[dict[str, Any]], folder: Path, ports: list[int]) -> list[str]:
    """Trains with each in turn; the names of those that failed."""
    failed = []
    for config, port in zip(configs, ports, strict=True):
        if port:
            os.environ["MASTER_PORT"] = str(port)
        label = config["experiment"]
        try:
            results = run._fit_and_test(config, RunFolder(folder / label.replace("/", "-")))
            assert any(key.startswith("test/") for key in results)
        except BaseException:
            print(f"\n== {label} ==", flush=True)
            traceback.print_exc()
            failed.append(label)
    return failed


def _by_two(configs: list[dict[str, Any]], folder: Path) -> list[str]:
    """Trains with each in two processes; the names of those that failed."""
    ports = [_free_port() for _ in configs]
    ranks = []
    for rank in range(2 if configs else 0):
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(TIMEOUT / 2, exit=True)
            os.environ |= {
                "MASTER_ADDR": "127.0.0.1",
                "NODE_RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": str(rank),
            }
            failed = _trained(configs, folder, ports)
            (folder / f"failed-{rank}").write_text("\n".join(failed))
            os._exit(0)
        ranks.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    if any(codes):
        return [f"{configs[0]['experiment']} or one after it: exit {codes}"]
    texts = [(folder / f"failed-{rank}").read_text() for rank in range(len(ranks))]
    return sorted({label for text in texts for label in text.splitlines()})


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def _build(build: Any, known: dict[str, Any], given: Any, place: str, **more: Any) -> Any:
    """As `build`, but data is read once for all trainers."""
    if place != "data":
        return build(given, place, **more)
    key = repr(given)
    if key not in known:
        known[key] = build(given, place, **more)
        known[key].setup("fit")
    data = copy.copy(known[key])
    data._loaders = weakref.WeakSet()
    return data
