"""Training a run for longer than it was configured for."""

from collections.abc import Iterable, Mapping

from attention_core.errors import UsageError
from attention_core.training.folder import RunFolder, read_config, write_config
from attention_core.training.metrics import read_metrics
from attention_core.training.trust import again

#: What says how long a run trains and may be given anew, with the column that counts it.
LIMITS = {"max_epochs": "epoch", "max_steps": "step"}


def read_limits(overrides: Iterable[str]) -> dict[str, int]:
    """Read the `trainer.max_epochs=N` and `trainer.max_steps=N` that stand beside `run=FOLDER`.

    Raises:
        UsageError: another key, or no number of at least 1.
    """
    limits = {}
    for override in overrides:
        key, _, value = override.partition("=")
        name = key.removeprefix("trainer.")
        if name == key or name not in LIMITS:
            raise UsageError(
                f"{key}: run=FOLDER continues a run exactly as it was configured. With it can be "
                "given how long to train, trainer.max_epochs=N or trainer.max_steps=N, and "
                "allow=[...], the packages that you trust. For other settings start a new run, "
                "from its weights with init.run=FOLDER."
            )
        if not value.isascii() or not value.isdigit() or not int(value):
            raise UsageError(f"{key} must be a whole number of at least 1, got {value!r}.")
        limits[name] = int(value)
    return limits


def prolong(folder: RunFolder, limits: Mapping[str, int]) -> None:
    """Write into the configuration of a run how long it is to train in all, and forget that it has
    finished. The folder must be locked.

    Args:
        limits: by name, of `LIMITS`.

    Raises:
        UsageError: it has trained for as long already; or its last checkpoint is gone.
    """
    rows = read_metrics(folder.metrics) if folder.metrics.exists() else []
    rows = [row for row in rows if "test/loss" not in row]  # whose epoch is one more
    for name, column in LIMITS.items():
        done = max((int(row[column]) + 1 for row in rows if column in row), default=0)
        if name in limits and limits[name] <= done and folder.results.exists():
            raise UsageError(
                f"trainer.{name}={limits[name]}: the run has finished, after {done} {column}s. "
                f"To train longer, give more than {done}, the number in all."
            )
    if folder.results.exists() and not folder.resumable:
        raise UsageError(
            f"run: {str(folder.path)!r} has no checkpoint to train on from. To start a new run "
            "from its best weights: attn train experiment=... init.run=FOLDER"
        )
    config = read_config(folder)
    write_config({**config, "trainer": {**config["trainer"], **limits}}, folder)
    folder.results.unlink(missing_ok=True)  # last: killed before it, the run is finished as it was


def how_to(folder: RunFolder, allow: Iterable[str]) -> str:
    """Return a sentence on what trains a finished run longer."""
    return (
        "What config.yaml says by now changes nothing of it. To train longer, to N epochs in all: "
        f"{again('train', folder.path, allow)} trainer.max_epochs=N"
    )
