"""Biases of place as a table: a score for each head and each offset, with its gradient.

What a learned bias computes of an offset, such as a bucket of a logarithm or a small network, it
then computes once for each offset instead of for each pair, and the gradient of a bucket is not
added up by all pairs at one address.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from attention_core.biases import Bias
from attention_core.score_mods import Multiplier
from attention_core.spaces import BlockKey, Pairs, Space

#: Numbers of a table.
_MOST = 1 << 25


class Offsets(NamedTuple):
    """All offsets from a query to a key, numbered from 0: that of a pair is ``key[k] - query[q]``.

    Attributes:
        spaces: one query at 0, and a key at each offset.
        least, strides: (A,), for ``((offset - least) * strides).sum()`` where the offset is known.
        query, key: (L,) or (rows, L) int32; None where samples wrap at different places, so that
            only the offset tells.
    """

    spaces: tuple[Space, Space]
    least: Tensor
    strides: Tensor
    query: Tensor | None
    key: Tensor | None


def offsets_of(spaces: tuple[Space, Space], heads: int) -> Offsets | None:
    """Number the offsets between two spaces; None where they are no whole numbers, or too many."""
    query, key = (space.coordinates for space in spaces)
    if query is None or key is None or query.is_floating_point() or key.is_floating_point():
        return None
    if query.shape[-1] != key.shape[-1] or not query.numel() or not key.numel():
        return None
    ends = [(x.flatten(0, -2).amin(0), x.flatten(0, -2).amax(0)) for x in (query, key)]
    least, most = ends[1][0] - ends[0][1], ends[1][1] - ends[0][0]
    differ = any(space.period is not None and space.period.ndim > 1 for space in spaces)
    if differ:  # nearest images may be on either side
        most = torch.maximum(most, -least)
        least = -most
    sizes = (most - least + 1).tolist()
    if math.prod(sizes) * heads > _MOST:
        return None
    steps = [torch.arange(size, device=query.device) for size in sizes]
    all_offsets = torch.cartesian_prod(*steps).reshape(-1, len(sizes)) + least
    strides = torch.tensor(
        [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))], device=query.device
    )
    places = (
        _only_at(spaces[0], torch.zeros_like(all_offsets[:1]), wrap=not differ),
        _only_at(spaces[1], all_offsets, wrap=not differ),
    )
    if differ:
        return Offsets(places, least, strides, None, None)
    of_query, of_key = ((query + least) * strides).sum(-1), (key * strides).sum(-1)
    return Offsets(places, least, strides, of_query.int(), of_key.int())


def _only_at(space: Space, places: Tensor, *, wrap: bool) -> Space:
    """A space of this kind whose tokens sit at `places` (M, A), and are nothing else."""
    new = space._copy()
    for name in ("segments", "valid", "special", "special_rank", "nodes", "edges"):
        setattr(new, name, None)
    new.coordinates, new.length, new.size, new.num_segments = places, len(places), None, 1
    if not wrap:
        new.wrap = ()
    return new


def has_table(bias: Bias, spaces: tuple[Space, Space]) -> bool:
    """Return whether a bias is looked up by offset, if these are few enough: one that learns, or
    runs a network, and whose score of two tokens that are not special the offset alone decides."""
    if isinstance(bias, Multiplier):
        return has_table(bias.bias, spaces)
    if len(bias.leaves()) > 1:
        return any(has_table(leaf, spaces) for leaf in bias.leaves())
    return bool(bias.tensors()) and _is_of_place(bias, spaces)


def _is_of_place(bias: Bias, spaces: tuple[Space, Space]) -> bool:
    for space in spaces:
        key, place = bias.block_key(space), BlockKey.of_place(space)
        if key is None or place is None or key.of_query or len(key.relative) != 1:
            return False
        if key.relative[0] is not space.coordinates or len(key.absolute) != len(place.absolute):
            return False
        if not all(map(torch.equal, key.absolute, place.absolute)):
            return False
    return True


def table_of(bias: Bias, offsets: Offsets, heads: int) -> Tensor:
    """Compute the score of each offset, (H, offsets), differentiable in what the bias learns."""
    device = offsets.strides.device
    pairs = Pairs.all(offsets.spaces, heads=heads, device=device)
    bias.check_heads(pairs)
    scores = bias.score(pairs)
    return scores.expand(1, heads, 1, offsets.spaces[1].length)[0, :, 0]
