"""One run, from a resolved configuration to a finished folder.

`train` needs nothing but a plain dict and a folder: no Hydra, no command line. What a run did can
therefore be repeated, resumed or evaluated from its folder alone, and a process of a distributed
run can be given the folder and nothing else.
"""

import json
import logging
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LambdaCallback
from rich.console import Console
from rich.table import Table

from attention_core.training.callbacks import StepLog, StepSeed
from attention_core.training.checkpoint import Checkpoint, PlainCheckpointIO, load_checkpoint
from attention_core.training.data import DataModule
from attention_core.training.errors import UsageError, did_you_mean
from attention_core.training.figures import learning_curves, save_figure
from attention_core.training.folder import RunFolder, replace_file
from attention_core.training.instantiate import build, check
from attention_core.training.metrics import CSVMetrics, read_metrics
from attention_core.training.processes import joined_by_others
from attention_core.training.task import Task

Config = dict[str, Any]

# The whole vocabulary of a configuration's top level.
KEYS = {
    "experiment": "name of the experiment",
    "about": "title, needs, gives: what `attn list` shows",
    "allow": "packages of the user's own that targets may come from",
    "seed": "keys every random number",
    "data": "a DataModule",
    "model": "a module; data and task may be interpolated into it",
    "task": "a Task; gets the model, the optimizer and the schedule",
    "optimizer": "a partial of a torch.optim class",
    "schedule": "a partial of a function of attention_core.training.optim",
    "trainer": "a lightning.Trainer",
    "checkpoint": "arguments of attention_core.training.checkpoint.Checkpoint",
    "callbacks": "Lightning callbacks by name",
    "logger": "Lightning loggers by name, beside metrics.csv",
}


@dataclass
class Parts:
    """What a configuration builds."""

    data: DataModule
    task: Task
    trainer: Trainer
    checkpoint: Checkpoint


def train(config: Config, path: Path) -> dict[str, float]:
    """Trains from scratch in the folder `path`; returns the results.

    Raises:
        UsageError: the configuration is wrong, or the folder holds a run already.
    """
    folder = RunFolder(path)
    if folder.config.exists():
        raise UsageError(
            f"{str(path)!r} holds a run already. To continue it: attn train run={path}"
        )
    check_config(config)
    with replace_file(folder.config, "w") as file:
        yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
    return _fit_and_test(config, folder)


def resume(path: Path) -> dict[str, float]:
    """Continues the run in the folder `path` to its end, bit for bit as if never interrupted.

    Raises:
        UsageError: `path` is no run folder.
    """
    folder = RunFolder(path).existing()
    config = read_config(folder)
    if folder.results.exists():
        results: dict[str, float] = json.loads(folder.results.read_text())
        Console().print(f"Finished already; nothing is left to train in {path}.")
        _print_results(results, folder)
        return results
    check_config(config)
    return _fit_and_test(config, folder)


def evaluate(path: Path) -> dict[str, float]:
    """Tests the best checkpoint of the run in `path` again and compares with its `results.json`.

    Raises:
        UsageError: `path` is no run folder, or holds no best checkpoint.
    """
    folder = RunFolder(path).existing()
    config = read_config(folder)
    if not folder.best.exists():
        raise UsageError(
            f"run: {str(path)!r} has no best checkpoint yet. To train on: attn train run={path}"
        )
    check_config(config)
    parts = assemble(config, folder, log=False)
    results = _test(parts, folder)
    _print_results(results, folder, title="evaluated")
    recorded = json.loads(folder.results.read_text()) if folder.results.exists() else {}
    changed = [name for name in results if name in recorded and recorded[name] != results[name]]
    if changed:
        difference = ", ".join(f"{name} was {recorded[name]!r}" for name in changed)
        Console().print(f"[yellow]differs from results.json:[/] {difference}", highlight=False)
    elif recorded:
        Console().print("[green]the same as results.json, digit for digit[/]", highlight=False)
    return results


def read_config(folder: RunFolder) -> Config:
    config = yaml.safe_load(folder.config.read_text())
    if not isinstance(config, dict):
        raise UsageError(f"run: {str(folder.config)!r} holds no configuration.")
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Checks the keys of the top level and every target, before anything is built.

    Raises:
        UsageError: naming the key, what came and what was expected.
    """
    for key in config:
        if key not in KEYS:
            raise UsageError(
                f"{key}: not a key of a configuration.{did_you_mean(str(key), KEYS)}"
                f" The keys are {', '.join(KEYS)}."
            )
    for key in ("data", "model", "task", "optimizer", "trainer"):
        if not isinstance(config.get(key), dict) or "_target_" not in config[key]:
            raise UsageError(
                f"{key}: a mapping with a _target_ is needed, got {config.get(key)!r}."
            )
    if not isinstance(config.get("seed", 1), int):
        raise UsageError(f"seed: an integer is needed, got {config['seed']!r}.")
    check(dict(config), allow=config.get("allow") or ())


def assemble(config: Config, folder: RunFolder, *, log: bool = True) -> Parts:
    """Builds data, model, task and trainer. The seed is set first: the same configuration gives
    the same weights."""
    allow = config.get("allow") or ()
    seed: int = config.get("seed", 1)
    _quiet()
    seed_everything(seed, verbose=False)
    # Deterministic algorithms would otherwise also fill every empty tensor with NaN.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    data = build(config["data"], allow=allow)
    model = build(config["model"], allow=allow)
    optimizer = build(config["optimizer"], allow=allow)
    schedule = build(config["schedule"], allow=allow) if config.get("schedule") else None
    task = build(config["task"], allow=allow, model=model, optimizer=optimizer, schedule=schedule)
    for name, part, kind in (("data", data, DataModule), ("task", task, Task)):
        if not isinstance(part, kind):
            raise UsageError(f"{name}: a {kind.__name__} is needed, got {type(part).__name__}.")
    checkpoint = Checkpoint(folder, **(config.get("checkpoint") or {}))
    callbacks = [build(part, allow=allow) for part in (config.get("callbacks") or {}).values()]
    header = LambdaCallback(on_fit_start=lambda trainer, task: _print_header(config, trainer, task))
    loggers = []
    if log:
        loggers = [CSVMetrics(folder.metrics)]
        for part in (config.get("logger") or {}).values():
            loggers.append(build(part, allow=allow, save_dir=folder.path))
    trainer = build(
        config["trainer"],
        allow=allow,
        callbacks=[StepSeed(seed), StepLog(), header, *callbacks, checkpoint] if log else [],
        logger=loggers or False,
        plugins=[PlainCheckpointIO()],
        default_root_dir=folder.path,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=log,
    )
    return Parts(data, task, trainer, checkpoint)


def _fit_and_test(config: Config, folder: RunFolder) -> dict[str, float]:
    start = time.monotonic()
    parts = assemble(config, folder)
    last = folder.last if folder.last.exists() else None
    if last is None:
        for logger in parts.trainer.loggers:
            if isinstance(logger, CSVMetrics):
                logger.truncate(0)
    with joined_by_others(parts.trainer, folder.path):
        try:
            parts.trainer.fit(parts.task, datamodule=parts.data, ckpt_path=last, weights_only=True)
        except SystemExit:
            if not parts.trainer.interrupted:
                raise
            # Lightning turns Ctrl-C into a silent exit.
            raise KeyboardInterrupt(f"To continue: attn train run={folder.path}") from None
        results = _test(parts, folder)
    if parts.trainer.is_global_zero:
        with replace_file(folder.results, "w") as file:
            json.dump(results, file, indent=2)
        _draw(parts, folder, str(config.get("experiment") or ""))
        _print_results(results, folder, seconds=time.monotonic() - start)
    return results


def _test(parts: Parts, folder: RunFolder) -> dict[str, float]:
    """Tests the best weights: results by name, with the epoch that they are from."""
    if not folder.best.exists():
        raise UsageError(
            "trainer: no validation was run, so there is no best checkpoint to test. At least one "
            "epoch with one validation batch is needed (max_epochs, limit_val_batches)."
        )
    best = load_checkpoint(folder.best)
    (values,) = parts.trainer.test(
        parts.task, datamodule=parts.data, ckpt_path=folder.best, verbose=False, weights_only=True
    )
    return {**{name: float(value) for name, value in values.items()}, "best_epoch": best["epoch"]}


def _draw(parts: Parts, folder: RunFolder, experiment: str) -> None:
    curves = learning_curves(
        read_metrics(folder.metrics), title=experiment, best_epoch=parts.checkpoint.best_epoch
    )
    save_figure(curves, folder.figures / "learning_curves.png")
    task = parts.task.eval()
    batch = next(iter(parts.data.test_dataloader()))
    batch = parts.data.transfer_batch_to_device(batch, task.device, 0)
    with torch.no_grad():
        figures = task.figures(batch)
    for name, figure in figures.items():
        save_figure(figure, folder.figures / f"{name}.png")


def _print_header(config: Config, trainer: Trainer, task: LightningModule) -> None:
    if not trainer.is_global_zero:
        return
    console = Console()
    about = config.get("about") or {}
    data = trainer.datamodule  # type: ignore[attr-defined]
    sizes = " / ".join(
        f"{len(dataset):,} {name}"
        for name, dataset in (
            ("training", data.train_set),
            ("validation", data.val_set),
            ("test", data.test_set),
        )
    )
    parameters = sum(p.numel() for p in task.parameters() if p.requires_grad)
    console.print(f"[bold]{config.get('experiment', 'run')}[/]  {about.get('title', '')}")
    console.print(f"  data        {sizes} samples", highlight=False)
    console.print(f"  parameters  {parameters:,}, on {task.device}", highlight=False)


def _print_results(
    results: Mapping[str, float],
    folder: RunFolder,
    *,
    title: str = "trained",
    seconds: float | None = None,
) -> None:
    console = Console()
    took = f" in {seconds:.0f} s" if seconds is not None else ""
    table = Table(title=f"{title}{took}", title_justify="left", show_header=False)
    for name, value in results.items():
        if name == "best_epoch":
            table.add_row("weights of epoch", str(int(value) + 1))
        else:
            table.add_row(name, f"{value:.4f}")
    console.print(table)
    console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)


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
