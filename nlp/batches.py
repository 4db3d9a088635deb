"""Batches of texts as tensors: packed, end to end in one row, or padded."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core import Sequence
from attention_core.annotated import checked

Side = Literal["right", "left"]


@checked
def token_space(ids: Tensor, lengths: Tensor | None = None, side: Side = "right") -> Sequence:
    """Where the tokens of `ids` sit.

    Args:
        ids: (T,) packed, all texts end to end; or (B, L) padded.
        lengths: (B,) tokens of each text; without it, packed ids are one text and padded ids have
            no padding.
        side: of padded ids, where the padding is.

    Raises:
        ValueError: ids and lengths do not fit, or there is no such side.
    """
    if side not in get_args(Side):
        raise ValueError(f"side must be 'right' or 'left', got {side!r}")
    if ids.ndim not in (1, 2):
        raise ValueError(f"ids must be (T,) packed or (B, L) padded, got {tuple(ids.shape)}")
    if lengths is None:
        return Sequence(ids.shape[-1], device=ids.device)
    if lengths.ndim != 1 or lengths.is_floating_point():
        raise ValueError(
            f"lengths must hold an integer per text, shape (B,), got {lengths.dtype} "
            f"{tuple(lengths.shape)}"
        )
    if ids.ndim == 1:
        if int(lengths.sum()) != len(ids):
            raise ValueError(
                f"packed ids hold {len(ids)} tokens, but lengths sum to {int(lengths.sum())}"
            )
        return Sequence.packed(lengths, device=ids.device)
    if lengths.shape[0] != ids.shape[0]:  # len() would fix the batch of an exported program
        raise ValueError(f"padded ids hold {len(ids)} texts, but there are {len(lengths)} lengths")
    return Sequence.padded(lengths, ids.shape[1], side=side, device=ids.device)


def first_tokens(tokens: Tensor, lengths: Tensor | None = None, side: Side = "right") -> Tensor:
    """The first token of each text, (B, D), of tokens (T, D) or (B, L, D).

    Raises:
        ValueError: a text has no token.
    """
    if lengths is None and not is_exporting() and not tokens.shape[-2]:
        lengths = torch.zeros(len(tokens) if tokens.ndim == 3 else 1)
    if lengths is None:
        return tokens[:, 0] if tokens.ndim == 3 else tokens[:1]
    if not is_exporting() and bool((lengths < 1).any()):
        text = int((lengths < 1).nonzero()[0])
        raise ValueError(f"pooling='first' needs a first token: text {text} has length 0")
    if not tokens.shape[-2]:  # of no text
        return tokens.flatten(0, -2)
    lengths = lengths.to(tokens.device)
    if tokens.ndim == 2:
        return tokens[lengths.cumsum(0) - lengths]
    if side == "right":
        return tokens[:, 0]
    return tokens[torch.arange(len(lengths), device=tokens.device), tokens.shape[1] - lengths]


@checked
def pad(
    packed: Tensor,
    lengths: Tensor,
    value: int = 0,
    *,
    side: Side = "right",
    length: int | None = None,
) -> Tensor:
    """Packed ids (T,), or tokens (T, ...), as padded ones (B, L, ...), with `value` on the `side`.

    L is that of the longest text, or `length`.
    """
    longest = int(lengths.max()) if length is None and len(lengths) else length or 0
    valid = Sequence.padded(lengths, longest, side=side, device=packed.device).valid
    padded = packed.new_full((len(lengths), longest, *packed.shape[1:]), value)
    padded[valid] = packed
    return padded


@checked
def unpad(padded: Tensor, lengths: Tensor, side: Side = "right") -> Tensor:
    """Padded ids (B, L), or tokens (B, L, ...), as packed ones (T, ...)."""
    valid = Sequence.padded(lengths, padded.shape[1], side=side, device=padded.device).valid
    packed: Tensor = padded[valid]
    return packed


def window_lengths(lengths: Tensor, size: int) -> Tensor:
    """The lengths of texts cut into windows of `size` tokens, the last of each text shorter."""
    counts = (lengths + size - 1) // size
    cut = torch.full((int(counts.sum()),), size, dtype=lengths.dtype, device=lengths.device)
    last = counts.cumsum(0)[counts > 0] - 1
    cut[last] = (lengths - (counts - 1) * size)[counts > 0]
    return cut
