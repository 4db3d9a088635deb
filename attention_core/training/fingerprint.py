"""What a run trains on, in a few lines: a checkpoint has them, and whoever continues it compares.

In memory, a data set is what it holds: every tensor, number and text that its attributes lead to.
Of files that it opens only when a sample is drawn, their names, sizes and, as far as they are not
too many, contents count; not the folder they lie in, so that data and run may move.
"""

import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from attention_core.errors import UsageError
from attention_core.training.instantiate import nodes

# What of a configuration decides how weights change. How long it trains is not among it.
DECIDING = (
    *("seed", "data", "model", "task", "optimizer", "schedule", "freeze"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_algorithm"),
    *("trainer.gradient_clip_val", "trainer.limit_train_batches"),
)
FREE = ("data.workers",)
MOST_BYTES = 2**28  # that are read of files

SETS = {"train_set": "training", "val_set": "validation", "test_set": "test"}


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that decide what is trained, by their dotted names.

    What names a file or folder is left out: it may move, and what it holds is looked at itself.
    """
    found = {}
    for key, value in nodes(config):
        if isinstance(value, Mapping | list | tuple):
            continue
        chosen = any(key == name or key.startswith((f"{name}.", f"{name}[")) for name in DECIDING)
        if chosen and key not in FREE and not _is_path(value):
            found[key] = value
    return found


def fingerprint(data: Any) -> dict[str, Any]:
    """Return number and digest of the samples of the three data sets of a `DataModule`."""
    found = {}
    for name in SETS:
        dataset = getattr(data, name)
        if dataset is not None:
            digest = _Digest()
            digest.add(dataset)
            length = len(dataset) if hasattr(dataset, "__len__") else None
            found[name] = [length, digest.hash.hexdigest()]
    return found


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what a run was trained on with what it would be trained on now.

    Raises:
        UsageError: naming all that has changed.
    """
    changed = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if key not in SETS:
            changed.append(f"{key} is {new!r}, was {old!r}")
        elif old is None or new is None or old[0] != new[0]:
            counts = [None if found is None else found[0] for found in (new, old)]
            changed.append(f"there are {counts[0]} {SETS[key]} samples, were {counts[1]}")
        else:
            changed.append(f"{SETS[key]} samples are not what they were")
    if changed:
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UsageError(
            f"run: it would go on with something else than it began with: {'; '.join(changed[:5])}"
            f"{more}. Put back what it was, or train anew in another folder."
        )


class _Digest:
    """A hash of whatever an object leads to, the same in every process."""

    def __init__(self) -> None:
        self.hash = blake2b(digest_size=16)
        self._seen: dict[int, Any] = {}  # kept alive, or an address could come twice
        self._left = MOST_BYTES

    def add(self, value: Any) -> None:
        named = isinstance(value, Path) or (isinstance(value, str) and os.sep in value)
        if named and _is_path(value):
            self._add_file(Path(value))
        elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
            self._note(type(value).__name__, repr(value))
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, numpy.ndarray) and value.dtype != object:
            self._note("array", str(value.dtype), repr(value.shape))
            self.hash.update(numpy.ascontiguousarray(value).tobytes())
        elif id(value) not in self._seen:  # or it leads back to itself
            self._seen[id(value)] = value
            self._add_parts(value)

    def _add_parts(self, value: Any) -> None:
        self._note(type(value).__qualname__)
        if isinstance(value, Mapping):
            for key, item in value.items():
                self.add(key)
                self.add(item)
        elif isinstance(value, list | tuple):
            self._note(str(len(value)))
            for item in value:
                self.add(item)
        elif isinstance(value, set | frozenset):
            for item in sorted(map(repr, value)):
                self._note(item)
        elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
            for name, item in vars(value).items():
                self._note(name)
                self.add(item)

    def _add_tensor(self, value: Tensor) -> None:
        self._note("tensor", str(value.dtype), repr(tuple(value.shape)))
        if value.layout is torch.strided:
            flat = value.detach().cpu().contiguous().reshape(-1)
            self.hash.update(flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"")
        else:
            self.add(value.to_dense())

    def _add_file(self, path: Path) -> None:
        if path.is_dir():
            return
        size = path.stat().st_size
        self._note("file", path.name, str(size))
        if size <= self._left:
            self._left -= size
            self.hash.update(path.read_bytes())

    def _note(self, *texts: str) -> None:
        for text in texts:
            encoded = text.encode("utf-8", "surrogatepass")
            self.hash.update(len(encoded).to_bytes(8, "big") + encoded)


def _is_path(value: Any) -> bool:
    try:
        return isinstance(value, str | Path) and bool(str(value)) and Path(value).exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False
