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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import (
    _launch_process_observer,
    _SubprocessScriptLauncher,
)

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """`value` of every process, by rank; in a single process, a list of one."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    values: list[T] = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def joins_another() -> bool:
    """Whether this process was started to join another one, which leads the run."""
    return any(int(os.environ.get(name, 0)) > 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def started_from_outside() -> str:
    """The name of what started this process as one of several, torchrun or srun; or ""."""
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return "torchrun"
    if "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "srun"
    return ""


def keep_freed_memory() -> None:
    """Lets a process that trains on a CPU keep the memory that a step frees for the next step.

    glibc hands it back to the system, which then has to map and clear it again: a few percent of
    a small model's step. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)  # the most that it takes


def _end_with_parent() -> None:
    # A killed parent must not leave children that wait for it forever. Linux alone has this.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextmanager
def joined_by_others(trainer: Trainer, folder: Path) -> Iterator[None]:
    """Starts the processes that `trainer` wants beside this one, as `attn train run=<folder>`.

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
        yield
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
    search = os.pathsep.join(filter(None, sys.path))  # where the user's packages were found
    launcher.procs = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", __package__, "train", f"run={folder.resolve()}"],
            env={**os.environ, "LOCAL_RANK": str(rank), "PYTHONPATH": search},
            preexec_fn=_end_with_parent,
        )
        for rank in range(1, launcher.num_processes)
    ]
    _launch_process_observer(launcher.procs)  # ends this process where one of them fails
    try:
        yield
        for process in launcher.procs:
            process.wait()
    finally:
        for process in launcher.procs:
            process.kill()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)  # Lightning has removed some
            if value is not None:
                os.environ[name] = value
