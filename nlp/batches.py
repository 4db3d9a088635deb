"""Batches of texts as tensors: packed, end to end in one row, or padded."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core import Sequence
from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole
from attention_core.transfer import moved, on_host

Side = Literal["right", "left"]


@checked
def token_space(
    ids: Tensor, lengths: Tensor | None = None, side: Side = "right", *, of: str = ""
) -> Sequence:
    """Return where the tokens of `ids` sit.

    Args:
        ids: (T,) packed, all texts end to end; or (B, L) padded.
        lengths: (B,) tokens of each text, best on the CPU, as from elsewhere they are copied, and
            that is waited for; without it, packed ids are one text and padded ids have no padding.
        side: of padded ids, where the padding is.
        of: what an error puts in front of these names.

    Raises:
        ValueError: ids and lengths do not fit, or there is no such side.
    """
    if side not in get_args(Side):
        raise ValueError(f"{of}side must be 'right' or 'left', got {side!r}")
    check_dense(or_meta=lengths is None, **{f"{of}ids": ids})
    if ids.ndim not in (1, 2):
        raise ValueError(f"{of}ids must be (T,) packed or (B, L) padded, got {tuple(ids.shape)}")
    if lengths is None:
        return Sequence(ids.shape[-1], device=ids.device)
    lengths = on_host(lengths)
    _check_lengths(lengths, f"{of}lengths")
    if ids.ndim == 1:
        if int(lengths.sum()) != len(ids):
            raise ValueError(
                f"packed {of}ids hold {len(ids)} tokens, but {of}lengths sum to "
                f"{int(lengths.sum())}"
            )
        return Sequence.packed(lengths, device=ids.device)
    if lengths.shape[0] != ids.shape[0]:  # len() would fix the batch of an exported program
        raise ValueError(
            f"padded {of}ids hold {len(ids)} texts, but there are {len(lengths)} {of}lengths; "
            f"packed {of}ids, all texts end to end in one row, are (T,), got {tuple(ids.shape)}"
        )
    if not is_exporting() and len(lengths) and int(lengths.max()) > ids.shape[1]:
        raise ValueError(
            f"padded {of}ids of length={ids.shape[1]} is shorter than {of}lengths, which go up to "
            f"{int(lengths.max())}"
        )
    return Sequence.padded(lengths, ids.shape[1], side=side, device=ids.device)


def _check_lengths(lengths: Tensor, name: str = "lengths") -> None:
    check_dense(**{name: lengths})  # type: ignore[arg-type]
    integers = not (lengths.is_floating_point() or lengths.is_complex())
    if lengths.ndim != 1 or not integers or lengths.dtype == torch.bool:
        raise ValueError(
            f"{name} must hold an integer per text, shape (B,), got {lengths.dtype} "
            f"{tuple(lengths.shape)}"
        )
    if not is_exporting() and lengths.numel() and int(lengths.min()) < 0:
        raise ValueError(f"{name} must be at least 0, got {int(lengths.min())}")


@checked
def pad(
    packed: Tensor,
    lengths: Tensor,
    value: int = 0,
    *,
    side: Side = "right",
    length: int | None = None,
) -> Tensor:
    """Pad packed ids (T,), or tokens (T, ...), to (B, L, ...), with `value` on the `side`.

    L is that of the longest text, or `length`.
    """
    lengths = on_host(lengths)
    _check_lengths(lengths)
    check_dense(packed=packed)
    check_whole(None, value=value)
    check_whole(0, length=length, or_none=True)
    if packed.ndim < 1 or len(packed) != int(lengths.sum()):
        raise ValueError(
            f"packed must have a row for each of {int(lengths.sum())} tokens of lengths, got "
            f"{tuple(packed.shape)}"
        )
    longest = int(lengths.max()) if length is None and len(lengths) else length or 0
    padded = packed.new_full((len(lengths) * longest, *packed.shape[1:]), value)
    at = moved(_places(lengths, longest, side), packed.device)
    return padded.index_copy(0, at, packed).unflatten(0, (len(lengths), longest))


@checked
def unpad(padded: Tensor, lengths: Tensor, side: Side = "right") -> Tensor:
    """Pack padded ids (B, L), or tokens (B, L, ...), to (T, ...)."""
    lengths = on_host(lengths)
    _check_lengths(lengths)
    check_dense(padded=padded)
    longest = int(lengths.max()) if len(lengths) else 0
    if padded.ndim < 2 or len(padded) != len(lengths) or longest > padded.shape[1]:
        raise ValueError(
            f"padded must be ({len(lengths)}, {longest} or more, ...), as lengths say, got "
            f"{tuple(padded.shape)}"
        )
    at = moved(_places(lengths, padded.shape[1], side), padded.device)
    return padded.flatten(0, 1).index_select(0, at)


def _places(lengths: Tensor, length: int, side: Side) -> Tensor:
    """(T,): where the tokens of padded texts are in the rows of a batch, end to end."""
    valid = Sequence.padded(lengths, length, side=side).valid
    assert valid is not None
    return valid.flatten().nonzero().squeeze(-1)


def window_lengths(lengths: Tensor, size: int) -> Tensor:
    """Return the lengths of texts cut into windows of `size` tokens, each text's last shorter."""
    lengths = on_host(lengths)
    counts = (lengths + size - 1) // size
    cut = torch.full((int(counts.sum()),), size, dtype=lengths.dtype, device=lengths.device)
    last = counts.cumsum(0)[counts > 0] - 1
    cut[last] = (lengths - (counts - 1) * size)[counts > 0]
    return cut
