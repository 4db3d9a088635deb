"""What is refused before the first step, as it would fail later or be said in words of others."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback

from attention_core.checks import gpus
from attention_core.errors import UsageError, did_you_mean
from attention_core.training.task import Task


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Check the arguments of a trainer that would leave nothing to validate or test.

    Raises:
        UsageError: naming the argument, what came and what was expected.
    """
    for key, instead, why in (
        ("fast_dev_run", "fast_dev_run", "leaves out checkpoints, loggers and the test"),
        ("overfit_batches", "overfit", "validates on other samples than it trains on"),
    ):
        if settings.get(key):
            raise UsageError(f"trainer.{key}: Lightning's own {why}. Use debug={instead}.")
    for key, what in (
        ("limit_train_batches", "train on"),
        ("limit_val_batches", "choose the best weights by"),
        ("limit_test_batches", "test the best weights on"),
        ("max_epochs", "train for"),
        ("max_steps", "train for"),
    ):
        value = settings.get(key)
        if value == 0 and not isinstance(value, bool):
            raise UsageError(f"trainer.{key} is 0: a run needs something to {what}.")
    epochs, each = (settings.get(key) for key in ("max_epochs", "check_val_every_n_epoch"))
    if isinstance(epochs, int) and isinstance(each, int) and 0 < epochs < each:
        raise UsageError(
            f"trainer.max_epochs={epochs} ends before the first validation, after epoch {each}: "
            "set trainer.check_val_every_n_epoch, too."
        )


def check_accelerator(settings: Mapping[str, Any]) -> None:
    """Check that there is a GPU where the arguments of a trainer ask for one.

    Raises:
        UsageError: there is none on this machine.
    """
    asked = settings.get("accelerator")
    if asked not in ("gpu", "cuda") or (asked == "gpu" and torch.backends.mps.is_available()):
        return
    count, has = gpus()
    if not count:
        raise UsageError(
            f"trainer.accelerator={asked}: torch sees no GPU here, it sees {has}. Train with "
            "trainer=cpu, or on a machine that has one."
        )


def check_monitors(task: Task, callbacks: Iterable[Callback]) -> None:
    """Check that what `callbacks` wait for, as early stopping does, is logged by `task`.

    Raises:
        UsageError: it is not, and nothing here logs values of its own.
    """
    callbacks = list(callbacks)
    names = [
        f"{stage}/{name}"
        for stage in ("train", "val")
        for name in ("loss", *dict(task.measures[f"{stage}_metrics"].items()))  # type: ignore[operator]
    ]
    if any(map(_logs, [task, *callbacks])):
        return
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and getattr(callback, "strict", True) and monitor not in names:
            raise UsageError(
                f"callbacks: {type(callback).__name__} waits for {monitor!r}, which "
                f"{type(task).__name__} does not log.{did_you_mean(monitor, names)} It logs "
                f"{', '.join(names)}."
            )


def _logs(part: Any) -> bool:
    """Whether its class, as far as neither Lightning nor this package wrote it, calls `log`."""
    return any(
        {"log", "log_dict"} & set(function.__code__.co_names)
        for home in type(part).__mro__
        if home is not Task and not home.__module__.startswith(("lightning.", "torch."))
        for function in vars(home).values()
        if hasattr(function, "__code__")
    )
