"""The check of a space: its distance, what it promises about it, and what becomes of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attention_core.biases import ALiBi
from attention_core.masks import DenseMask, Neighborhood
from attention_core.spaces import Pairs, Space
from attention_core.spaces.edge_list import EdgeList
from attention_core.testing.agreement import agree
from attention_core.testing.pairs import (
    answers,
    batch_of,
    called,
    check_given,
    close,
    kept,
    number,
    ordinary,
    pair,
    remade,
)

#: Tokens of the spaces that backends are compared on; a check of all pairs of more takes too long.
_MOST = 600


def check_space(space: Space) -> None:
    """Check that a space keeps its promises, on the tokens that it has.

    Its `distance` is the same however pairs are laid out, and after `keep`, `append`, `pack`, `pad`
    and `to`; `norm` is that distance and rises; `reach`, `reach_bound` and `distance_along` leave
    out no pair; and every backend gives the outputs, weights and gradients of `reference`, with
    masks and biases of distance. Give one of a few hundred tokens as your data have them: what
    only some tokens show, others do not.

    Raises:
        AssertionError: naming the promise that is broken, and tokens that break it.
    """
    check_given(space)
    if not 2 <= space.length <= _MOST:
        raise ValueError(f"space must have 2 to {_MOST} tokens to be checked, got {space.length}")
    spaces = (space, space)
    called("describe()", space.describe)
    _check_moved(space)
    if space.has_norm or type(space).distance is not Space.distance:
        _check_distance(space)
    for name in space.tokenwise:
        _check_taken(space, name)
    if space.edges is not None and space.edges.repeated is None:
        name, ask = "whether there is an edge(pairs)", lambda pairs: pairs.edge >= 0
        kept(name, ask, spaces, answers(name, ask, spaces), hint="nodes must follow tokens")
    agree(f"{space.describe()}, without a mask", space)


def _check_distance(space: Space) -> None:
    name, spaces = f"{type(space).__name__}.distance", (space, space)
    found = answers(name, lambda pairs: pairs.distance, spaces)
    real = ordinary(spaces)
    if found.is_complex() or found.dtype == torch.bool:
        raise AssertionError(f"{name} must return numbers, got {found.dtype}")
    wrong = ~(found >= 0) & real
    if bool(wrong.any()):
        b, h, q, k = wrong.nonzero()[0].tolist()
        value = number(found[b, h, q, k])
        raise AssertionError(f"{name} is {value} at {pair(b, q, k)}, and must be at least 0")
    if space.has_norm:
        _check_norm(space, found, real)
    if space.chebyshev:
        _check_chebyshev(space, found, real)
    _check_reach(space, found, real)
    _check_along(space, found, real)
    kept(
        name,
        lambda pairs: pairs.distance,
        spaces,
        found,
        hint="what distance reads of a token must be in tokenwise={...} and be read by "
        "pairs.take(name, side), for pairs.query and pairs.key are other tokens then",
    )
    for what, others, _ in remade(spaces, permuted=False):
        if others[0] is others[1]:
            there = answers(name, lambda pairs: pairs.distance, others)
            _check_reach(others[0], there, ordinary(others), f"after {what}, ")
    near = _radius(found, real)
    for mask in (Neighborhood(near), ~Neighborhood(near)):
        agree(f"{space.describe()}, mask {mask}", space, mask)
    some = torch.rand(space.length, space.length, generator=torch.Generator().manual_seed(3)) < 0.5
    agree(
        f"{space.describe()}, mask {Neighborhood(near)} & DenseMask, bias ALiBi",
        space,
        Neighborhood(near) & DenseMask(some),
        ALiBi(2),
    )
    index = torch.arange(space.length).repeat_interleave(2)[: space.length]
    twice = space.keep(index)
    agree(f"{space.describe()} after keep(index), mask {mask}", twice, Neighborhood(near))


def _radius(distance: Tensor, real: Tensor) -> float:
    """A radius that some pairs are within and some are not, between two distances."""
    values = distance.double()[real.expand(distance.shape) & distance.isfinite()].unique()
    if not len(values):
        return 1.0
    middle = len(values) // 3
    return float((values[middle] + values[min(middle + 1, len(values) - 1)]) / 2)


def _offsets(space: Space) -> Tensor:
    pairs = Pairs.all((space, space), batch=batch_of((space, space)))
    return pairs.offset


def _check_norm(space: Space, distance: Tensor, real: Tensor) -> None:
    name = f"{type(space).__name__}.norm(offset)"
    offset = called("pairs.offset", lambda: _offsets(space))
    norm = called(name, lambda: space.norm(offset))
    if norm.shape != offset.shape[:-1]:
        raise AssertionError(
            f"{name} must return {tuple(offset.shape[:-1])} for offsets {tuple(offset.shape)}, got "
            f"{tuple(norm.shape)}"
        )
    wrong = ~close(norm, distance) & real
    if bool(wrong.any()):
        b, _, q, k = wrong.nonzero()[0].tolist()
        of_pair = norm.expand(distance.shape)[b, 0, q, k]
        raise AssertionError(
            f"{name} must be the distance, of which it bounds that of blocks of tokens: "
            f"{pair(b, q, k)} are {number(distance[b, 0, q, k])} apart, and their offset has the "
            f"norm {number(of_pair)}. Where no function of the offset is the distance, define "
            "distance(pairs) alone"
        )
    flat = offset.abs().reshape(-1, offset.shape[-1])
    generator = torch.Generator().manual_seed(4)
    factor = torch.rand(flat.shape, generator=generator)
    factor = torch.where(torch.rand(flat.shape, generator=generator) < 0.3, 0.0, factor)
    less = (flat * factor).to(flat.dtype)
    small, large = space.norm(less).double(), space.norm(flat).double()
    rounding = max(1e-5, 4 * torch.finfo(norm.dtype).eps) if norm.is_floating_point() else 0.0
    wrong = small > large * (1 + rounding) + 1e-6
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise AssertionError(
            f"{name} must rise with each component: it is {number(small[at])} of "
            f"{less[at].tolist()} and {number(large[at])} of {flat[at].tolist()}"
        )
    mirrored = space.norm(-flat).double()
    wrong = ~close(mirrored, large)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise AssertionError(
            f"{name} must not ask for signs: it is {number(large[at])} of {flat[at].tolist()} and "
            f"{number(mirrored[at])} of its negative"
        )


def _check_chebyshev(space: Space, distance: Tensor, real: Tensor) -> None:
    greatest = _offsets(space).abs().amax(-1)
    if greatest.is_floating_point() or bool((~close(greatest, distance) & real).any()):
        raise AssertionError(
            f"{type(space).__name__}.chebyshev is True, but the distance is not the greatest "
            "difference of whole-number coordinates"
        )


def _check_reach(space: Space, distance: Tensor, real: Tensor, after: str = "") -> None:
    name = f"{after}{type(space).__name__}.reach"
    values = distance.double()[real.expand(distance.shape) & distance.isfinite()].unique()
    places = {0, len(values) // 8, len(values) // 3, len(values) - 1}
    for at in sorted(places) if len(values) else []:
        # Just above a distance: that a pair is at the radius itself may be a matter of rounding
        radius = float(values[at]) * (1 + 1e-4)
        within = (distance <= radius) & real
        most = int(within.sum((-1, -2)).max())
        bound = called(f"{name}_bound({radius:g})", partial(space.reach_bound, radius))
        if most > bound:
            raise AssertionError(
                f"{name}_bound({radius:g}) is {bound}, but {most} pairs are at most so far apart"
            )
        listed = called(f"{name}({radius:g})", partial(space.reach, radius))
        if listed is None:
            continue
        query, key = listed.query, listed.key
        if len(query) and not 0 <= int(torch.cat([query, key]).min()) <= int(
            torch.cat([query, key]).max()
        ) < len(space):
            raise AssertionError(
                f"{name}({radius:g}) lists tokens beyond the {len(space)} there are"
            )
        rows = torch.arange(len(within))[:, None] if listed.batch is None else listed.batch
        held = torch.zeros(len(within), len(space), len(space), dtype=torch.bool)
        held[rows, query, key] = True
        wrong = within & ~held[:, None]
        if bool(wrong.any()):
            b, _, q, k = wrong.nonzero()[0].tolist()
            raise AssertionError(
                f"{name}({radius:g}) leaves out {pair(b, q, k)}, which are "
                f"{number(distance[b, 0, q, k])} apart"
            )
        if listed.distance is None:
            continue
        of_list = real.expand(len(within), -1, -1, -1)[rows, 0, query, key]
        whole = distance.expand(len(within), -1, -1, -1)[rows, 0, query, key]
        wrong = ~close(listed.distance, whole) & of_list
        if bool(wrong.any()):
            e = int(wrong.nonzero()[0, -1])
            b = int(wrong.nonzero()[0, 0] if listed.batch is None else listed.batch[e])
            q, k = int(query[e]), int(key[e])
            raise AssertionError(
                f"{name}({radius:g}) gives {pair(b, q, k)} the distance "
                f"{number(listed.distance[e])}, but they are {number(whole.flatten()[e])} apart"
            )


def _check_along(space: Space, distance: Tensor, real: Tensor) -> None:
    if space.edges is None:
        return
    edge = torch.arange(space.edges.num_edges)
    along = called("distance_along(edge)", lambda: space.distance_along(edge))
    if along is None or space.edges.repeated is not None:
        return
    found = Pairs.all((space, space), batch=batch_of((space, space))).edge.expand(distance.shape)
    wrong = (found >= 0) & real & ~close(along[found.clamp(min=0)], distance)
    if bool(wrong.any()):
        b, _, q, k = wrong.nonzero()[0].tolist()
        raise AssertionError(
            f"distance_along(edge) is {number(along[found[b, 0, q, k]])} along the edge of "
            f"{pair(b, q, k)}, but they are {number(distance[b, 0, q, k])} apart"
        )


def _check_taken(space: Space, name: str) -> None:
    if space._tokenwise[name] > 1:  # rows of several numbers follow as those of one do
        return
    for side in ("query", "key"):
        what = f"pairs.take({name!r}, {side!r})"
        ask = partial(_take, name=name, side=side)
        kept(what, ask, (space, space), answers(what, ask, (space, space)), hint="it must follow")


def _take(pairs: Pairs, name: str, side: str) -> Tensor:
    return pairs.take(name, side)


def _check_moved(space: Space) -> None:
    moved = called("to(device)", lambda: space.to("meta"))
    behind = next(_behind(moved), None)
    if behind is not None:
        raise AssertionError(
            f"to(device) leaves {behind} behind: it moves tensors that are attributes of the space "
            "or in tokenwise, also in tuples, lists and dicts; what holds them elsewhere overrides "
            "`to`"
        )


def _behind(space: Space) -> Iterator[str]:
    """Names of attributes that hold a tensor that is not on the meta device."""

    def tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            for inner in value.values():
                yield from tensors(inner, depth + 1)
        elif isinstance(value, list | tuple | set):
            for inner in value:
                yield from tensors(inner, depth + 1)
        elif hasattr(value, "__dict__") and depth < 3 and not isinstance(value, EdgeList | type):
            yield from tensors(vars(value), depth + 1)

    for name, value in vars(space).items():
        if any(tensor.device.type != "meta" for tensor in tensors(value)):
            yield name
