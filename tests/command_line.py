"""The command line `attn` in a process of its own, without its eight seconds of imports.

One process for each pytest process imports torch, Lightning and the domains once; every command is
a fork of it, and so are the processes that a run of several starts beside it. What a fork cannot
show (what is on `sys.path`, entry points, an installed wheel, torchrun, joblib) starts cold.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from matplotlib.figure import Figure

from attention_core.files import replace_file

TIMEOUT = 300
STANDING_BY = 2  # a sweep of two jobs has as many processes beside it as a run of three
IMPORTED = [
    *["attention_core.training.cli", "attention_core.training.compose"],
    *["attention_core.training.export", "attention_core.training.predict"],
    *["attention_core.training.sweep", "hydra", "vision", "graph", "nlp"],
]


def attn(
    *arguments: str,
    cwd: Path,
    under: Sequence[str] = (),
    cold: bool = False,
    renders: bool = True,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, `under` a module that starts it, if any.

    It is started `cold` where it must be all that a user's command is, down to how it ends: joblib
    joins its workers when an interpreter ends, which a fork does in another order, and hangs.
    Where it `renders` none, figures are as `figure_as_file` writes them.
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
            code = _forked(arguments, cwd, environment, printed, renders)
        output, errors = (path.read_text() for path in printed)
    if code is None:
        pytest.fail(f"{' '.join(command)} hung:\n{output}\n{errors}")
    return subprocess.CompletedProcess(command, code, output, errors)


def figure_as_file(figure: Any, path: Path) -> None:
    """In place of `save_figure`, which takes two thirds of a small run: an empty file."""
    assert isinstance(figure, Figure)
    with replace_file(path):
        pass


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
    arguments: Sequence[str],
    cwd: Path,
    environment: dict[str, str],
    printed: list[Path],
    renders: bool,
) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)  # heeded by the first process alone
    process = context.Process(target=_command, args=(arguments, cwd, environment, printed, renders))
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
    arguments: Sequence[str],
    cwd: Path,
    environment: dict[str, str],
    printed: list[Path],
    renders: bool,
) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as the command line finds it
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    faulthandler.enable()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    from attention_core.training import processes, run
    from attention_core.training.cli import main

    if not renders:
        run.save_figure = figure_as_file

    standing_by = [_StandBy() for _ in range(STANDING_BY)]

    def start(command: list[str], env: dict[str, str]) -> "_StandBy | subprocess.Popen[bytes]":
        if not standing_by:
            return subprocess.Popen(command, env=env)
        return standing_by.pop().start(command, env)

    processes.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
        Popen=start, TimeoutExpired=subprocess.TimeoutExpired
    )
    sys.argv = ["attn", *arguments]
    main(list(arguments))


class _StandBy:
    """A fork of this process as it is before its command, which is told later what it is to run:
    in place of a `Popen` of another `attn`, which would import all anew.

    It ends with this process where it is told nothing.
    """

    def __init__(self) -> None:
        told, self._tell = os.pipe()
        self.pid = os.fork()
        self.returncode: int | None = None
        if self.pid == 0:
            os.close(self._tell)
            self._run(told)
        os.close(told)

    def start(self, command: list[str], env: dict[str, str]) -> "_StandBy":
        python, safe_path, m, package, *arguments = command
        assert (python, safe_path, m) == (sys.executable, "-P", "-m")
        assert package == "attention_core.training"
        with open(self._tell, "wb") as pipe:
            pickle.dump((arguments, env), pipe)
        return self

    def _run(self, told: int) -> NoReturn:
        code = 1
        try:
            with open(told, "rb") as pipe:
                given = pipe.read()
            if not given:
                os._exit(0)
            arguments, environment = pickle.loads(given)
            os.environ.clear()
            os.environ.update(environment)
            sys.path[:] = environment["PYTHONPATH"].split(os.pathsep)
            sys.argv = ["attn", *arguments]
            from attention_core.training import cli, own

            if own.TOLD in environment:
                own.serve_as_parent()
            cli.main(arguments)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("attn", timeout)
            time.sleep(0.05)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _end(leader: int) -> None:
    """Lets all processes of a session say where they hang, and ends them."""
    os.killpg(leader, signal.SIGABRT)
    time.sleep(3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
