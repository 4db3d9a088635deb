"""The parts of a run that training it and looking at what it has trained have in common."""

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.plugins.environments import LightningEnvironment

from attention_core.errors import UsageError
from attention_core.memory import keep_freed_memory
from attention_core.training.checkpoint import Checkpoint, PlainCheckpointIO
from attention_core.training.data import DataModule
from attention_core.training.finetune import freeze
from attention_core.training.folder import RunFolder
from attention_core.training.instantiate import build
from attention_core.training.parallel import checkpoint_activations, compile_blocks
from attention_core.training.task import Task

Config = dict[str, Any]

# What of a trainer counts where a trained model is looked at
LOOKING = ("accelerator", "precision", "deterministic", "limit_test_batches")


@dataclass
class Parts:
    """The parts of a run that a configuration builds."""

    data: DataModule
    task: Task
    trainer: Trainer
    checkpoint: Checkpoint | None = None  # of a training


def look(config: Config, folder: RunFolder) -> Parts:
    """Build what it takes to look at a trained model: data, model and task, and a plain trainer in
    one process. Nothing is written, and what the configuration says of training is left out."""
    data, task = data_and_task(config, optimizer=_no_training, schedule=None)
    given = config["trainer"]
    plain = {key: given[key] for key in LOOKING if isinstance(given.get(key), str | int | float)}
    trainer = build(
        {"_target_": "lightning.pytorch.Trainer", **plain, **alone(plain)},
        "trainer",
        callbacks=[],
        logger=False,
        enable_checkpointing=False,
        **of_every_trainer(folder),
    )
    return Parts(data, task, trainer)


def _no_training(*args: Any, **kwargs: Any) -> Any:
    raise UsageError("optimizer: this task was built to be looked at, and cannot be trained.")


def data_and_task(config: Config, **training: Any) -> tuple[DataModule, Task]:
    """Build data and task. The seed is set first: the same configuration gives the same weights."""
    allow = config.get("allow") or ()
    _quiet()
    keep_freed_memory()
    seed_everything(config.get("seed", 1), verbose=False)
    # Deterministic algorithms would otherwise also fill every empty tensor with NaN.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    data = build(config["data"], "data", allow=allow)
    model = build(config["model"], "model", allow=allow)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"model: a module is needed, got {type(model).__name__}.")
    freeze(model, config.get("freeze") or ())
    if config.get("activation_checkpointing"):
        checkpoint_activations(model)
    if config.get("compile"):
        compile_blocks(model)
    task = build(config["task"], "task", allow=allow, model=model, **training)
    for name, part, kind in (("data", data, DataModule), ("task", task, Task)):
        if not isinstance(part, kind):
            raise UsageError(f"{name}: a {kind.__name__} is needed, got {type(part).__name__}.")
    return data, task


def of_every_trainer(folder: RunFolder) -> Config:
    plugins: list[Any] = [PlainCheckpointIO()]
    if os.environ.get("SLURM_NTASKS") == "1":
        plugins.append(LightningEnvironment())  # SLURM started one task; the others are ours
    return {
        "plugins": plugins,
        "default_root_dir": folder.path,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def alone(trainer: Mapping[str, Any]) -> Config:
    """Return the arguments that make it one process, on a CPU where there is no other device."""
    alone = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    if trainer.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        alone["accelerator"] = "cpu"
    return alone


def _quiet() -> None:
    """Silences what Lightning says of every run and no user can act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r"The `srun` command is available on your system",
        r".*smaller than the logging interval.*",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        # What is logged are torchmetrics, which have been computed over all processes already.
        r"It is recommended to use `self\.log\(.*sync_dist=True\)`",
    ):
        warnings.filterwarnings("ignore", message=message)
