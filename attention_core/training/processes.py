"""The other processes of a distributed run: each is told the run folder, and nothing else.

Lightning's launcher repeats the command line in every process. Under a Hydra sweep each of them
would run the whole sweep again, and a sweeper that draws values would draw others in each. Here a
process continues one folder, whose resolved configuration is written before any is started.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from attention_core.training.own import served

T = TypeVar("T")

_LEADER = "ATTENTION_CORE_LEADER"


def gather(value: T) -> list[T]:
    """Gather `value` of every process, by rank; in a single process, a list of one."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    values: list[T] = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def joins_another() -> bool:
    """Return whether this process was started to join another one, which leads the run."""
    return any(int(os.environ.get(name, 0)) > 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def started_from_outside() -> str:
    """Name what started this process as one of several, torchrun or srun; "" where nothing did."""
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return "torchrun"
    if "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "srun"
    return ""


def end_with_leader() -> None:
    """Let this process be killed with the one that started it by `joined_by_others`: it would wait
    for it forever. Linux alone can do this."""
    leader = os.environ.get(_LEADER)
    if leader is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(leader):
        sys.exit("attn: the process that leads this run has ended.")


class _Watch(threading.Thread):
    """Ends this process where one of the others has failed and this one goes on waiting for it.

    Mostly it need not: what this process waits in fails, too, with an error that can be reported.
    """

    def __init__(self, others: list[subprocess.Popen[bytes]]) -> None:
        super().__init__(daemon=True)
        self.others, self.over = others, threading.Event()

    def run(self) -> None:
        while not self.over.wait(1.0):
            codes = [code for process in self.others if (code := process.poll())]
            if codes and not self.over.wait(60.0):
                print(f"attn: another process of this run ended with {codes[0]}.", file=sys.stderr)
                os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def joined_by_others(trainer: Trainer, folder: Path, allow: Iterable[str] = ()) -> Iterator[None]:
    """Start the processes that `trainer` wants beside this one, as `attn train run=<folder>`. They
    trust the packages in `allow` as this one does, and look for them in the same folders.

    Does nothing where it wants none, or where they are started from outside (torchrun, SLURM).
    Afterwards they have ended and the process group is gone: another run can follow, as in a sweep.
    """
    strategy = trainer.strategy
    launcher = strategy.launcher
    environment = getattr(strategy, "cluster_environment", None)
    if (
        environment is None
        or environment.creates_processes_externally
        or not isinstance(launcher, _SubprocessScriptLauncher)
    ):
        try:
            yield
        finally:
            _leave()  # what follows is done by one process alone
        return
    ours = {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": str(environment.node_rank()),
        "WORLD_SIZE": str(launcher.num_processes * launcher.num_nodes),
        "LOCAL_RANK": "0",  # which also tells Lightning that nothing is left to start
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    search = os.pathsep.join(filter(None, sys.path))  # as of a script that has called `train`
    command = [sys.executable, "-P", "-m", __package__, "train", f"run={folder.resolve()}"]
    command += [f"allow=[{','.join(allow)}]"]
    for place in served()[:-1]:  # the last one is the current folder, theirs, too
        command += ["--config-dir", str(place)]
    launcher.procs = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                "LOCAL_RANK": str(rank),
                "PYTHONPATH": search,
                _LEADER: str(os.getpid()),
            },
        )
        for rank in range(1, launcher.num_processes)
    ]
    watch = _Watch(launcher.procs)
    watch.start()
    try:
        yield
        codes = [_ended(process) for process in launcher.procs]
        if any(codes):
            raise RuntimeError(f"the other processes of this run ended with {codes}")
    finally:
        watch.over.set()
        for process in launcher.procs:
            process.kill()
        _leave()
        for name, value in before.items():
            os.environ.pop(name, None)  # Lightning has removed some
            if value is not None:
                os.environ[name] = value


def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a process that has done its part of the run.

    0 also for one that hangs as its interpreter ends: nothing of it is needed any more.
    """
    try:
        return process.wait(timeout=60.0)
    except subprocess.TimeoutExpired:
        return 0


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
