"""The command line `attn` in a process of its own, without its eight seconds of imports.

One process for each pytest process imports torch, Lightning and the domains once; every command is
a fork of it. What a fork cannot show (what is on `sys.path`, entry points, an installed wheel, what
starts and ends processes itself) starts cold.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

TIMEOUT = 300
IMPORTED = [
    *["attention_core.training.cli", "attention_core.training.compose"],
    *["attention_core.training.export", "attention_core.training.predict"],
    *["attention_core.training.sweep", "hydra", "vision", "graph", "nlp"],
]


def attn(
    *arguments: str, cwd: Path, under: Sequence[str] = (), cold: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, `under` a module that starts it, if any.

    It is started `cold` where it must be all that a user's command is, down to how it ends: joblib
    joins its workers when an interpreter ends, which a fork does in another order, and hangs.
    Where it hangs, every process of it says where before it is ended.
    """
    # A test that has called `run_hydra` in this process has set it
    inherited = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    environment = {**inherited, "OMP_NUM_THREADS": "1", **environment}
    launcher = ["-m", *under] if under else []
    command = [sys.executable, *launcher, "-m", "attention_core.training", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("output", "errors")]
        if under or cold or environment.get("PYTHONPATH") != os.environ.get("PYTHONPATH"):
            code = _started(command, cwd, environment, printed)
        else:
            code = _forked(arguments, cwd, environment, printed)
        output, errors = (path.read_text() for path in printed)
    if code is None:
        pytest.fail(f"{' '.join(command)} hung:\n{output}\n{errors}")
    return subprocess.CompletedProcess(command, code, output, errors)


def _started(
    command: list[str], cwd: Path, environment: dict[str, str], printed: list[Path]
) -> int | None:
    with printed[0].open("w") as output, printed[1].open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, "PYTHONFAULTHANDLER": "1"},
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    try:
        return process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        _end(process.pid)
        return None


def _forked(
    arguments: Sequence[str], cwd: Path, environment: dict[str, str], printed: list[Path]
) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)  # heeded by the first process alone
    process = context.Process(target=_command, args=(arguments, cwd, environment, printed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # read when torch is imported
        process.start()
    process.join(TIMEOUT)
    if process.exitcode is None and process.pid is not None:
        _end(process.pid)
        process.join()
        return None
    return process.exitcode


def _command(
    arguments: Sequence[str], cwd: Path, environment: dict[str, str], printed: list[Path]
) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as the command line finds it
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    faulthandler.enable()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["attn", *arguments]
    from attention_core.training.cli import main

    main(list(arguments))


def _end(leader: int) -> None:
    """Lets all processes of a session say where they hang, and ends them."""
    os.killpg(leader, signal.SIGABRT)
    time.sleep(3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
