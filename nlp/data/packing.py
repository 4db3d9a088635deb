"""From texts of token ids to batches: packed end to end, or padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Sample = dict[str, Tensor]

#: The target of a token of which nothing is asked, as in `torch.nn.functional.cross_entropy`.
IGNORED = -100


class Texts(torch.utils.data.Dataset[Sample]):
    """Texts as token ids, in one row of memory.

    Args:
        ids: of each text.
        targets: one per text, or None.
        objective: makes the sample of a text's ids, (n,), anew whenever it is drawn.

    Attributes:
        sizes: the tokens of each text.
        longest: the most tokens that a sample has.
    """

    def __init__(
        self,
        ids: Sequence[Sequence[int]],
        targets: Sequence[int] | None = None,
        objective: Callable[[Tensor], Sample] | None = None,
    ) -> None:
        self.sizes = [len(row) for row in ids]
        self._ids = torch.tensor([token for row in ids for token in row], dtype=torch.long)
        self._ends = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        self._targets = None if targets is None else torch.tensor(targets)
        self.objective = objective
        most = max(range(len(self.sizes)), key=self.sizes.__getitem__, default=None)
        self.longest = 0 if most is None else len(self[most]["ids"])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} texts, no text {index}")
        ids = self._ids[self._ends[index] : self._ends[index + 1]]
        sample = {"ids": ids} if self.objective is None else self.objective(ids)
        return sample if self._targets is None else {**sample, "target": self._targets[index]}


def collate(samples: Sequence[Sample], *, padded: bool = False) -> dict[str, Any]:
    """Make a batch of B samples.

    - Of each `ids` (n,), and `target_ids` where there are any: packed as `ids` (T,), all texts end
      to end, or padded on the right as `ids` (B, L); with `lengths` (B,), or `target_lengths`.
    - Of each `at` (m,), places in a text: places in the flattened `ids`, all texts' end to end.
    - Of each `target`: (B,) where it is a number; end to end where it belongs to `at`; else, one
      per token, packed or padded as tokens are, with `IGNORED` on padding.
    """
    batch: dict[str, Any] = {}
    for name, count in (("ids", "lengths"), ("target_ids", "target_lengths")):
        if name in samples[0]:
            rows = [sample[name] for sample in samples]
            batch[name] = pad_sequence(rows, batch_first=True) if padded else torch.cat(rows)
            batch[count] = torch.tensor([len(row) for row in rows])
    if "at" in samples[0]:
        lengths = batch["lengths"]
        starts = lengths.cumsum(0) - lengths
        if padded:
            starts = torch.arange(len(lengths)) * batch["ids"].shape[1]
        batch["at"] = torch.cat(
            [sample["at"] + start for sample, start in zip(samples, starts, strict=True)]
        )
    if "target" in samples[0]:
        targets = [sample["target"] for sample in samples]
        if targets[0].ndim == 0:
            batch["target"] = torch.stack(targets)
        elif padded and "at" not in batch:
            batch["target"] = pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        else:
            batch["target"] = torch.cat(targets)
    return batch


def unpack(ids: Tensor, lengths: Tensor) -> list[Tensor]:
    """Unpack the ids of each text of a batch, packed or padded."""
    sizes = lengths.tolist()
    if ids.ndim == 1:
        return list(ids.split(sizes))
    return [row[:size] for row, size in zip(ids, sizes, strict=True)]
