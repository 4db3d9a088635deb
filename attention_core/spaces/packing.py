"""Samples end to end in one row, with special tokens first in each."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from attention_core.checks import check_dense, is_whole, may_look
from attention_core.finite import all_finite
from attention_core.spaces.csr import count_each
from attention_core.transfer import on_host


def first_special(count: int, length: int, device: torch.device | str) -> Tensor | None:
    return torch.arange(length, device=device) < count if count else None


def whole_lengths(lengths: Iterable[int] | Tensor, device: torch.device | str = "cpu") -> Tensor:
    if isinstance(lengths, Tensor):
        check_dense(lengths=lengths)
    else:
        lengths = list(lengths)
        if not all(is_whole(length) and not isinstance(length, bool) for length in lengths):
            raise ValueError(f"lengths must be whole numbers of at least 0, got {lengths!r:.80}")
    if isinstance(lengths, Tensor) and torch.device(device).type == "cpu":
        lengths = on_host(lengths)
    counts = torch.as_tensor(lengths, device=device).reshape(-1)
    if counts.numel() == 0:
        return counts.long()
    # An exported program cannot look at values; it takes a negative length for 0
    negative = may_look(counts) and not counts.is_complex() and bool((counts < 0).any())
    if counts.is_floating_point() or counts.is_complex() or negative:
        raise ValueError(f"lengths must be whole numbers of at least 0, got {counts.tolist()}")
    return counts.long()


def packed(counts: Tensor, special: int, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the segment of each token of a packed row, and its rank among those located.

    Special tokens come first in their segment and have negative ranks. `size`, where it is known,
    is the length of the row.
    """
    totals = counts + special
    segments = torch.repeat_interleave(totals, output_size=size)
    starts = totals.cumsum(0) - totals
    rank = torch.arange(segments.shape[0], device=counts.device)
    return segments, rank - starts[segments] - special


def check_coordinates(coordinates: Tensor, count: int) -> None:
    """Raise unless coordinates (N, A) or (B, N, A) are of `count` tokens, and finite.

    Only a CPU is asked for their values, as another device would have to be waited for.

    Raises:
        ValueError: naming what came.
    """
    check_dense(coordinates=coordinates)
    if coordinates.ndim not in (2, 3) or coordinates.shape[-2] != count:
        raise ValueError(
            f"coordinates must be ({count}, A), perhaps with a batch in front, got "
            f"{tuple(coordinates.shape)}"
        )
    if coordinates.is_floating_point() and not all_finite(coordinates):
        wrong = (~coordinates.isfinite()).any(-1).nonzero()
        if len(wrong):
            at = wrong[0].tolist()
            raise ValueError(f"coordinates must be finite, got NaN or infinity at token {at}")


def unravel(rank: Tensor, extent: Tensor) -> Tensor:
    """Return row-major coordinates of the `rank`-th place of a grid of `extent`, (A,) or one per
    rank; 0 for special tokens (rank < 0)."""
    rank = rank.clamp(min=0)
    axes = []
    for axis in reversed(range(extent.shape[-1])):
        axes.append(rank % extent[..., axis])
        rank = rank // extent[..., axis]
    return torch.stack(axes[::-1], dim=-1)


def insert_special(
    segments: Tensor | None,
    count: int,
    special: int,
    samples: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Segments, source row (-1 at special tokens) and special flag of `count` tokens once
    `special` more stand in front of each of `samples` segments, the last of which may be empty; on
    the device of the segments, or on `device` where there are none."""
    look = segments is not None and may_look(segments)
    if (
        segments is not None
        and look
        and bool((segments.diff(prepend=segments.new_zeros(1)) < 0).any())
    ):
        if int(segments.min()) < 0:
            raise ValueError(f"segments must be at least 0, got {int(segments.min())}")
        raise ValueError("segments must not decrease: keep the tokens of a sample together")
    if segments is None:
        source = torch.arange(-special, count, device=device).clamp(min=-1)
        return None, source, source < 0 if special else None
    if special == 0:
        return segments, torch.arange(count, device=segments.device), None
    if samples is None:
        token_segments, within = packed(torch.bincount(segments), special)
    else:
        token_segments, within = packed(
            count_each(segments, samples), special, None if look else count + special * samples
        )
    is_special = within < 0
    source = torch.where(is_special, -1, (~is_special).cumsum(0) - 1)
    return token_segments, source, is_special


def rows(tensor: Tensor, source: Tensor, dims: int, fill: float | bool) -> Tensor:
    """Take rows of a per-token tensor, `fill` where `source` is -1."""
    rows = tensor.index_select(tensor.ndim - dims, source.clamp(min=0))
    missing = (source < 0).reshape(-1, *(1,) * (dims - 1))
    return rows.masked_fill(missing, fill)


def count_samples(segments: Tensor, known: int | None) -> int:
    """Return how many samples there are, of which those without tokens have to be `known`."""
    if known is not None and not may_look(segments):
        return known
    named = int(segments.max()) + 1 if segments.numel() else 0
    if known is not None and known < named:
        raise ValueError(f"num_segments={known}, but segments name {named} samples")
    return named if known is None else known


def ranks_of_special(special: Tensor, segments: Tensor | None, num_segments: int | None) -> Tensor:
    """Return the rank of each special token among those of its segment."""
    running = special.long().cumsum(-1) - 1
    if segments is None or not segments.numel():
        return running
    if segments.ndim < special.ndim:
        segments = segments.expand_as(special)
    count = running.new_zeros(*segments.shape[:-1], count_samples(segments, num_segments))
    count = count.scatter_add(-1, segments, special.long().expand_as(segments))
    return running - (count.cumsum(-1) - count).gather(-1, segments)
