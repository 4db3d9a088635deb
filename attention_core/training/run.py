"""One run, from a resolved configuration to a finished folder.

`train` needs nothing but a plain dict and a folder: no Hydra, no command line. What a run did can
therefore be repeated, resumed or evaluated from its folder alone, and a process of a distributed
run can be given the folder and nothing else.

A configuration that is given to `train` is the caller's own. One that lies in a run folder may be
somebody else's, whose `allow` is a wish: the functions that take a folder take `allow`, too, the
packages that the caller trusts with running their code.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from attention_core.errors import UsageError, did_you_mean
from attention_core.escape import on_one_line
from attention_core.files import replace_file
from attention_core.interpret.plots import Format, save_figure
from attention_core.training.before import check_accelerator, check_monitors, check_trainer
from attention_core.training.callbacks import FiniteLoss, StepLog, StepSeed
from attention_core.training.card import write_card
from attention_core.training.checkpoint import Checkpoint, load_checkpoint
from attention_core.training.console import rich_text
from attention_core.training.finetune import find_weights, start_from
from attention_core.training.fingerprint import deciding
from attention_core.training.folder import (
    RunFolder,
    read_results,
    write_config,
    write_json,
)
from attention_core.training.inputs import whole_path
from attention_core.training.instantiate import (
    build,
    check,
    check_arguments,
    locate,
    targets,
)
from attention_core.training.loggers import build_loggers, logged
from attention_core.training.longer import how_to, prolong
from attention_core.training.loops import settle_checkpoints
from attention_core.training.matmul import check_matmul_precision, matmul_precision
from attention_core.training.metrics import CSVMetrics, read_metrics
from attention_core.training.parallel import FSDP2
from attention_core.training.parts import Parts, alone, data_and_task, look, of_every_trainer
from attention_core.training.plots import learning_curves
from attention_core.training.processes import (
    end_with_leader,
    joined_by_others,
    joins_another,
    started_from_outside,
)
from attention_core.training.targets import PARTS
from attention_core.training.trust import again, trusted_config

Config = dict[str, Any]

# The whole vocabulary of a configuration's top level.
KEYS = {
    "experiment": "name of the experiment",
    "about": "title, needs, gives: what `attn list` shows",
    "allow": "packages of the user's own that targets may come from",
    "seed": "keys every random number",
    "data": "a DataModule",
    "model": "a module; data and task may be interpolated into it",
    "init": "arguments of attention_core.training.finetune.start_from: weights to start from",
    "freeze": "parts of the model, by name, that do not train",
    "task": "a Task; gets the model, the optimizer and the schedule",
    "optimizer": "a partial of a torch.optim class",
    "schedule": "a partial of a function of attention_core.training.optim",
    "trainer": "a lightning.Trainer",
    "checkpoint": "arguments of attention_core.training.checkpoint.Checkpoint",
    "activation_checkpointing": "compute each block again in the backward pass, to save memory",
    "compile": "compile each block with torch.compile",
    "float32_matmul_precision": "of products of float32: highest, high (TF32) or medium",
    "profiler": "a Lightning profiler; writes to the folder profile/ of the run",
    "callbacks": "Lightning callbacks by name",
    "logger": "Lightning loggers by name, beside metrics.csv",
    "figures": "format: of the figures, png, svg or pdf",
}
TYPES: dict[str, tuple[type, str]] = {
    "about": (dict, "a mapping"),
    "allow": (list, "a list of package names"),
    "seed": (int, "an integer"),
    "init": (dict, "a mapping"),
    "freeze": (list, "a list of parts of the model"),
    "checkpoint": (dict, "a mapping"),
    "activation_checkpointing": (bool, "true or false"),
    "compile": (bool, "true or false"),
    "callbacks": (dict, "a mapping of names to callbacks"),
    "logger": (dict, "a mapping of names to loggers"),
    "figures": (dict, "a mapping"),
}


def train(config: Config, path: Path) -> dict[str, float]:
    """Train from scratch in the folder `path`; return the results.

    Args:
        config: resolved, and yours: the packages in its `allow` are trusted.

    Raises:
        UsageError: the configuration is wrong, or the folder holds a run already.
    """
    launcher = started_from_outside()
    if launcher:
        raise UsageError(
            f"{launcher} starts several processes, and each would choose a folder of its own. "
            "Write the folder first, in one process, with `attn prepare` and the same arguments; "
            f"then start with {launcher}: attn train run=FOLDER"
        )
    folder = RunFolder(path)
    check_config(config)
    with folder.locked(), matmul_precision(config):
        _write_config(config, folder)
        return _fit_and_test(config, folder)


def prepare(config: Config, path: Path) -> None:
    """Write the folder of a run that `resume` then starts, in one process or in many.

    Raises:
        UsageError: as `train`.
    """
    folder = RunFolder(path)
    check_config(config)
    with folder.locked():
        _write_config(config, folder)
    _say(f"Prepared. To start: {again('train', path, config.get('allow'))}")


def _write_config(config: Config, folder: RunFolder) -> None:
    if folder.config.exists():
        raise UsageError(
            f"{str(folder.path)!r} holds a run already. To continue it: "
            f"{again('train', folder.path, config.get('allow'))}"
        )
    write_config(_located(config), folder)


def _located(config: Config) -> Config:
    """Make the paths to what is there whole: a run may be continued from another folder."""
    data, model, init = (config.get(key) or {} for key in ("data", "model", "init"))
    kind = locate(data["_target_"], "data", config.get("allow") or ())
    located = {**config, "data": getattr(kind, "located", dict)(data)}
    weights = model.get("weights")
    if isinstance(weights, str) and Path(weights).expanduser().exists():
        located["model"] = {**model, "weights": whole_path(weights)}
    if init:
        find_weights(run=init.get("run"), weights=init.get("weights"))
        paths = {key: str(Path(init[key]).resolve()) for key in ("run", "weights") if init.get(key)}
        located["init"] = {**init, **paths}
    return located


def resume(
    path: Path,
    allow: Sequence[str] = (),
    *,
    max_epochs: int | None = None,
    max_steps: int | None = None,
) -> dict[str, float]:
    """Continue the run in the folder `path` to its end, bit for bit as if never interrupted.

    Args:
        allow: packages that you trust with running their code, where the run uses any.
        max_epochs: how many epochs to train in all, from now on; a finished run trains on. None
            leaves what is configured.
        max_steps: likewise, of optimizer steps.

    Raises:
        UsageError: `path` is no run folder, or uses a package that is not in `allow`; or the run
            has trained for so long already.
    """
    end_with_leader()
    folder = RunFolder(path).existing()
    config = trusted_config(folder, allow, "train")
    given = {"max_epochs": max_epochs, "max_steps": max_steps}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    if limits:
        launcher = started_from_outside()
        if launcher or joins_another():
            raise UsageError(
                f"{launcher or 'A launcher'} starts several processes, which must find the run as "
                "it is to be. To train it longer: set it in config.yaml, remove results.json, and "
                "give nothing but run=FOLDER."
            )
        config = {**config, "trainer": {**config["trainer"], **limits}}
        check_config(config)
        with folder.locked():
            prolong(folder, limits)
    if folder.results.exists():
        results = read_results(folder)
        _say(f"Finished already; nothing is left to train in {on_one_line(path)}.")
        _print_results(results, folder, title="what it came to")
        _say(how_to(folder, config["allow"]))
        return results
    check_config(config)
    with nullcontext() if joins_another() else folder.locked(), matmul_precision(config):
        return _fit_and_test(config, folder)


def evaluate(path: Path, allow: Sequence[str] = ()) -> dict[str, float]:
    """Test the best checkpoint of the run in `path` again and compare with its `results.json`.

    Args:
        allow: packages that you trust with running their code, where the run uses any.

    Raises:
        UsageError: `path` is no run folder, holds no best checkpoint, or uses a package that is not
            in `allow`.
    """
    folder = RunFolder(path).existing()
    config = trained_config(folder, allow, "evaluate")
    recorded = read_results(folder) if folder.results.exists() else {}
    parts = look(config, folder)
    with matmul_precision(config):
        results = _test(parts, folder, load_checkpoint(folder.best)["epoch"])
    _print_results(results, folder, title="evaluated")
    _print_comparison(results, recorded)
    return results


def trained_config(folder: RunFolder, allow: Sequence[str], command: str) -> Config:
    """Read the checked configuration of a run that has a best checkpoint, as of `trusted_config`.

    Raises:
        UsageError: it has none yet; or as of `trusted_config` and `check_config`.
    """
    config = trusted_config(folder, allow, command)
    if not folder.best.exists():
        raise UsageError(
            f"run: {str(folder.path)!r} has no best checkpoint yet. To train on: "
            f"{again('train', folder.path, config['allow'])}"
        )
    check_config(config)
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Check the keys of the top level and every target, before anything is built.

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
    check_trainer(config["trainer"])
    strategy = config["trainer"].get("strategy", "auto")
    if isinstance(strategy, str) and not re.fullmatch("auto|single_device|ddp(_.+)?", strategy):
        raise UsageError(
            f"trainer.strategy: {strategy!r} is refused: it reads checkpoints in a way of its own, "
            "which could run code. There are 'auto' and 'ddp'; trainer=fsdp2 shards a model."
        )
    for key, (kind, wanted) in TYPES.items():
        value = config.get(key)
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if value is not None and wrong:
            raise UsageError(f"{key}: {wanted} is needed, got {value!r}.")
    check_matmul_precision(config)
    for key in ("callbacks", "logger"):
        for name, part in (config.get(key) or {}).items():
            if part is not None and (not isinstance(part, dict) or "_target_" not in part):
                raise UsageError(
                    f"{key}.{name}: a mapping with a _target_ is needed, or null; got {part!r}."
                )
    check_arguments(figure_format, config.get("figures") or {}, "figures", "figures")
    check_arguments(Checkpoint, config.get("checkpoint") or {}, "checkpoint", "checkpoint")
    check_arguments(start_from, config.get("init") or {}, "init", "init")
    allow = config.get("allow") or ()
    for key, value in config.items():
        if key in ("callbacks", "logger"):
            for name, part in (value or {}).items():
                check(part, key, place=f"{key}.{name}", allow=allow)
        elif key in PARTS:
            check(value, key, place=key, allow=allow)
        else:
            for place, node in targets(value, key):
                raise UsageError(
                    f"{place}._target_: {node['_target_']!r} is refused: nothing is built there."
                )


def figure_format(format: Format = "png") -> Format:
    """Return the format of figures, given `figures` of a configuration."""
    return format


def assemble(config: Config, folder: RunFolder, *, log: bool = True) -> Parts:
    """Build all that a training needs: data, model, task and trainer.

    Args:
        log: False to try something out: nothing is written, and one process does it all.
    """
    allow = config.get("allow") or ()
    check_accelerator(config["trainer"])
    seed: int = config.get("seed", 1)
    optimizer = build(config["optimizer"], "optimizer", allow=allow)
    given = config.get("schedule")
    schedule = build(given, "schedule", allow=allow) if given else None
    data, task = data_and_task(config, optimizer=optimizer, schedule=schedule)
    task.settings = deciding(config)
    watch = FiniteLoss()
    checkpoint = Checkpoint(folder, **(config.get("checkpoint") or {}), watch=watch, allow=allow)
    parts = (config.get("callbacks") or {}).values()
    callbacks = [build(part, "callbacks", allow=allow) for part in parts if part is not None]
    if log:
        check_monitors(task, callbacks)
    header = LambdaCallback(on_fit_start=lambda trainer, task: _print_header(config, trainer, task))
    loggers: list[Logger] = []
    if log:
        loggers = [CSVMetrics(folder.metrics), *build_loggers(config, folder.path)]
    profiler = None
    if log and config.get("profiler"):
        where = {"dirpath": folder.path / "profile", "filename": "profile"}
        profiler = build(config["profiler"], "profiler", allow=allow, **where)
    trainer = build(
        config["trainer"] if log else {**config["trainer"], **alone(config["trainer"])},
        "trainer",
        allow=allow,
        profiler=profiler,
        # The seed last: what other callbacks draw at a step makes no difference to it.
        callbacks=[header, *callbacks, StepSeed(seed), StepLog(), watch, checkpoint] if log else [],
        logger=loggers or False,
        enable_checkpointing=log,
        **of_every_trainer(folder),
    )
    if log:
        settle_checkpoints(trainer, checkpoint)
    return Parts(data, task, trainer, checkpoint)


def _fit_and_test(config: Config, folder: RunFolder) -> dict[str, float]:
    start = time.monotonic()
    parts = assemble(config, folder)
    newest = next(iter(folder.resumable), None)
    if newest is None:
        _print_start(start_from(parts.task.model, **(config.get("init") or {})))
        for logger in parts.trainer.loggers:
            if isinstance(logger, CSVMetrics):
                logger.truncate(0)
    allow = config.get("allow") or ()
    with joined_by_others(parts.trainer, folder.path, allow), logged(parts.trainer, config):
        try:
            parts.trainer.fit(
                parts.task, datamodule=parts.data, ckpt_path=newest, weights_only=True
            )
        except MisconfigurationException as error:
            raise UsageError(f"trainer: {error}") from error
        except SystemExit:
            if not parts.trainer.interrupted:
                raise
            # Lightning turns Ctrl-C into a silent exit.
            raise KeyboardInterrupt(f"To continue: {again('train', folder.path, allow)}") from None
        assert parts.checkpoint is not None
        results = _test(parts, folder, parts.checkpoint.best_epoch)
    if parts.trainer.is_global_zero:
        trainer = parts.trainer
        if isinstance(trainer.strategy, FSDP2):
            # A sharded model computes nothing in one process alone: draw with it put together
            parts = look(config, folder)
            _test(parts, folder, int(results["best_epoch"]))
        _draw(parts, folder, config, int(results["best_epoch"]))
        write_card(
            config,
            folder,
            results,
            trainer,
            seconds=time.monotonic() - start,
            resumed=newest is not None,
        )
        write_json(results, folder.results)  # last: it says that all is done
        has_trained = getattr(trainer.fit_loop, "has_run", True)
        if not has_trained:
            _say("Nothing was left to train: the run had come to its end, and was tested.")
        title = "trained" if has_trained else "tested"
        _print_results(results, folder, title=title, seconds=time.monotonic() - start)
    return results


def _test(parts: Parts, folder: RunFolder, best_epoch: int | None) -> dict[str, float]:
    """Tests the best weights: results by name, with the epoch that they are from."""
    if best_epoch is None or not folder.best.exists():
        raise UsageError(
            "trainer: no validation was run, so there is no best checkpoint to test. At least one "
            "epoch with one validation batch is needed (max_epochs, limit_val_batches)."
        )
    (values,) = parts.trainer.test(
        parts.task, datamodule=parts.data, ckpt_path=folder.best, verbose=False, weights_only=True
    )
    return {**{name: float(value) for name, value in values.items()}, "best_epoch": best_epoch}


def _draw(parts: Parts, folder: RunFolder, config: Config, best_epoch: int) -> None:
    title, kind = str(config.get("experiment") or ""), figure_format(**config.get("figures") or {})
    curves = learning_curves(read_metrics(folder.metrics), title=title, best_epoch=best_epoch)
    # What came from the data is float32, whatever trainer.precision has made of the weights
    task = parts.task.float().eval()
    batch = next(iter(parts.data.test_dataloader()))
    batch = parts.data.transfer_batch_to_device(batch, task.device, 0)
    with torch.no_grad():
        figures, pages = task.figures(batch), task.pages(batch)
    if curves is not None:
        figures = {"learning_curves": curves, **figures}
    for name, figure in figures.items():
        save_figure(figure, folder.figures / f"{name}.{kind}")
    for name, page in pages.items():
        with replace_file(folder.figures / f"{name}.html", "w") as file:
            file.write(page)


@rank_zero_only
def _print_start(taken: str) -> None:
    if taken:
        _say(f"Starting with {taken}")


def _say(text: str) -> None:
    Console().print(rich_text(text), soft_wrap=True)


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
    name = rich_text(on_one_line(config.get("experiment") or "run"), "bold")
    console.print(name.append(f"  {on_one_line(about.get('title', ''))}", "not bold"))
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
            table.add_row(rich_text(on_one_line(name)), f"{value:.4f}")
    console.print(table)
    _say(f"run folder: {on_one_line(folder.path)}")


def _print_comparison(results: Mapping[str, float], recorded: Mapping[str, float]) -> None:
    both = [name for name in results if name in recorded]
    if not both:
        return
    console = Console(highlight=False)
    # What is not finite is null in results.json
    both = [name for name in both if math.isfinite(results[name]) or math.isfinite(recorded[name])]
    changed = [n for n in both if not math.isclose(results[n], recorded[n], rel_tol=1e-5)]
    if changed:
        difference = ", ".join(f"{name} was {recorded[name]!r}" for name in changed)
        console.print("[yellow]differs from results.json:[/]", rich_text(on_one_line(difference)))
    elif all(results[name] == recorded[name] for name in both):
        console.print("[green]the same as results.json, digit for digit[/]")
    else:
        # As where several processes have summed what one sums now
        console.print("[green]the same as results.json, but for rounding[/]")
