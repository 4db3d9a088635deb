"""Checkpoints of plain data, written so that a kill or a full disk cannot damage the last one."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer, callbacks
from rich.console import Console

from attention_core.errors import Damaged, UsageError, reading
from attention_core.files import replace_file
from attention_core.pretrained.serialization import load_torch, save_torch
from attention_core.training.callbacks import FiniteLoss
from attention_core.training.console import rich_text
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import CSVMetrics
from attention_core.training.processes import gather
from attention_core.training.trust import again

PLAIN = (str, bytes, int, float, bool, type(None), torch.dtype, torch.Size)

# A sharded tensor in a process's file: {SHAPE: of the whole, "local": this process's rows}.
SHAPE = "shape of the whole"


class PlainCheckpointIO(TorchCheckpointIO):
    """Writes atomically and reads with `weights_only=True`, whatever the caller asks for.

    A checkpoint that a run continues from and that is damaged is reported, and the one before it
    is read instead; all processes agree on which.
    """

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        _check_plain(checkpoint, "checkpoint")
        with replace_file(Path(path)) as file:
            save_torch(checkpoint, file)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return _newest_whole(Path(path), lambda found: load_checkpoint(found, map_location))

    def load_shard(self, path: Path, rank: int) -> dict[str, Any]:
        """Read what process `rank` wrote into the sharded checkpoint `path`, or the first process
        where fewer wrote it."""
        return _newest_whole(path, lambda found: _load_shard(found, rank))


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of plain data, every byte of it checked; code inside is refused, not run.

    Where it is a folder, written by several processes, their shards are put together.

    Raises:
        UsageError: it is damaged, or holds anything but plain data.
    """
    if not path.is_dir():
        content: dict[str, Any] = load_torch(
            path, "checkpoint", ours=True, map_location=map_location
        )
        return content
    parts = [load_checkpoint(part, map_location) for part in _shard_paths(path)]
    _check_number(path, parts[0], len(parts))
    with reading(path, "checkpoint"):
        content = _put_together(parts)
    return content


def _load_shard(path: Path, rank: int) -> dict[str, Any]:
    paths = _shard_paths(path)
    content = load_checkpoint(paths[rank if rank < len(paths) else 0])
    _check_number(path, content, len(paths))
    return content


def _check_number(path: Path, content: Mapping[str, Any], number: int) -> None:
    written = content.get("processes")
    if written != number:
        raise Damaged(f"checkpoint: {str(path)!r} is damaged: it has {number} of {written} files.")


def shard_path(path: Path, rank: int) -> Path:
    """Return the file of one process in the folder of a sharded checkpoint."""
    return path / f"rank-{rank:05}.ckpt"


def _shard_paths(path: Path) -> list[Path]:
    names = sorted(path.glob("rank-*.ckpt"))
    if not names:
        raise Damaged(f"checkpoint: {str(path)!r} is damaged: it is a folder without shards.")
    return names


def _put_together(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        if SHAPE in first:
            whole = torch.cat([part["local"] for part in parts])
            return whole.reshape(first[SHAPE])
        return {key: _put_together([part[key] for part in parts]) for key in first}
    if isinstance(first, list):
        return [_put_together(list(items)) for items in zip(*parts, strict=True)]
    return first


def _newest_whole(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Read `path` or, where it is damaged, the newest one before it that is not."""
    folder = RunFolder(path.parent.parent)
    if path not in (folder.next, folder.last, folder.previous):
        return read(path)  # the best one has no predecessor
    damages: list[str] = []
    for candidate in gather(folder.resumable)[0]:  # a shared file system may show others to others
        content: dict[str, Any] | None = None
        error: UsageError | None = None
        try:
            content = read(candidate)
        except UsageError as raised:
            error = raised
        errors = [one for one in gather(error) if one is not None]
        for refused in (one for one in errors if not isinstance(one, Damaged)):
            raise refused
        if content is not None and not errors:
            if damages:
                _warn(f"{' '.join(damages)} Continuing from {candidate.name}, the one before.")
            return content
        damages.append(str(errors[0]).removeprefix("checkpoint: "))
    raise Damaged(
        f"run: no checkpoint in {str(path.parent)!r} can be read: {' '.join(damages)} To train "
        "the same again, copy config.yaml into an empty folder and continue that."
    )


def _warn(message: str) -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    console = Console(stderr=True, soft_wrap=True)
    console.print("[yellow]checkpoint:[/]", rich_text(message))


def _check_plain(value: Any, place: str) -> None:
    """Refuses, by its place, what `torch.load(weights_only=True)` would not read back."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {place}")
            _check_plain(item, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{place}[{index}]")
    # Exact types: a numpy.float64 is a float, too, and is not read back
    elif type(value) not in PLAIN and not isinstance(value, torch.Tensor):
        raise UsageError(
            f"{place} is a {type(value).__name__}; a checkpoint holds only dicts, lists, numbers, "
            "strings and tensors, so that reading one never runs code."
        )


class Checkpoint(callbacks.Checkpoint):
    """Keeps `best.ckpt` (weights, by the task's `monitor`), `last.ckpt` (everything) and the one
    before it, `previous.ckpt`.

    The last checkpoint is written at the end of every epoch and, between, every `every_steps`
    optimizer steps. It knows how many rows of `metrics.csv` precede it, so that a resumed run
    continues the file where the checkpoint was taken.

    Args:
        folder: where both are written; given by the run.
        every_steps: optimizer steps between two writes inside an epoch; None for none.
        watch: says whether the weights are lost, and so not written; given by the run.
        allow: the packages that the run trusts, for what to say; given by the run.
    """

    def __init__(
        self,
        folder: RunFolder,
        every_steps: int | None = None,
        *,
        watch: FiniteLoss | None = None,
        allow: Iterable[str] = (),
    ) -> None:
        if every_steps is not None and every_steps < 1:
            raise UsageError(f"checkpoint.every_steps must be at least 1, got {every_steps}.")
        self.folder = folder
        self.watch = watch
        self.allow = allow
        self.every_steps = every_steps
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.validated_batch: int | None = None  # the last before the newest validation

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["metrics_rows"] = sum(logger.sync() for logger in _csv(trainer))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for logger in _csv(trainer):
            logger.truncate(checkpoint["metrics_rows"])

    def after_batch(self, trainer: Trainer) -> None:
        """Write what is due between two batches; `EpochLoop` calls it."""
        # Not between two steps: gradients half accumulated are in no checkpoint
        step = trainer.global_step
        due = self.every_steps and step % self.every_steps == 0
        if due and not trainer.fit_loop._should_accumulate():
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.validated_batch = trainer.fit_loop.total_batch_idx
        monitor, mode = str(pl_module.monitor), str(pl_module.mode)
        if monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UsageError(f"{type(pl_module).__name__}.monitor is {monitor!r}; logged: {known}.")
        score = float(trainer.callback_metrics[monitor])
        best = self.best_score
        # A tie goes to the later epoch: on a small validation set many tie, and the learning rate
        # has come down further
        better = (
            best is None or math.isnan(best) or (score >= best if mode == "max" else score <= best)
        )
        if better:
            self.best_score, self.best_epoch = score, trainer.current_epoch
            self._save(trainer, self.folder.best, weights_only=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning calls checkpoints last: whether training goes on is decided
        trainer.fit_loop.validate_if_last()  # type: ignore[attr-defined]

    def _save_last(self, trainer: Trainer) -> None:
        """Called by the loops of a fit where nothing is half done."""
        if self.watch is not None and self.watch.broken(trainer.lightning_module):
            return  # the one before is the last to go on from
        # Complete before any other moves: whenever a kill comes, one of the three is whole.
        self._save(trainer, self.folder.next)
        if trainer.is_global_zero:
            self.folder.advance()

    def _save(self, trainer: Trainer, path: Path, weights_only: bool = False) -> None:
        try:
            trainer.save_checkpoint(path, weights_only=weights_only)
        except (OSError, RuntimeError) as error:  # torch may turn the one into the other
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise UsageError(
                f"checkpoint: {str(path)!r} could not be written: {reason.strerror}. The one "
                "before is intact. Once there is room, continue with: "
                f"{again('train', self.folder.path, self.allow)}"
            ) from error


def _csv(trainer: Trainer) -> list[CSVMetrics]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVMetrics)]
