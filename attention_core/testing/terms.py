"""What the checks of masks and of biases share: the spaces to ask on, and block keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Listing

import torch
from torch import Tensor

from attention_core.biases import Bias
from attention_core.masks import Mask
from attention_core.spaces import Graph, Grid, Pairs, Points, Sequence, Space
from attention_core.testing.pairs import Asked, batch_of, called, check_given, close, number, pair

#: What a mask or a bias raises about a space that it cannot serve.
REFUSED = (TypeError, ValueError)


def small_spaces() -> list[Space]:
    """Return a space of every kind: whole, packed and padded, with special tokens and edges."""
    generator = torch.Generator().manual_seed(5)
    edge_index = torch.randint(24, (2, 60), generator=generator).unique(dim=1)
    types = torch.arange(edge_index.shape[1]) % 3
    return [
        Sequence(70),
        Sequence.packed([9, 0, 14], special=1),
        Sequence.padded([4, 9]),
        Grid(6, 12, special=1),
        Grid.packed([(3, 4), (5, 2)]),
        Graph(edge_index, 24, edge_attr=types),
        Graph(edge_index, 30, special=2, edge_attr=types),
        Points(torch.randn(40, 3, generator=generator)),
        Points(torch.randn(2, 12, 2, generator=generator), special=1),
    ]


def on_each_space(
    term: Mask | Bias,
    spaces: Listing[Space],
    ask: Callable[[Pairs], Tensor],
    heads: int,
    check: Callable[[Space], None],
) -> None:
    """Check a mask or bias on each space given, or on the small ones that it serves.

    Raises:
        AssertionError: it serves none, or not one of those given.
    """
    for space in spaces:
        check_given(space)
    refusal: Exception | None = None
    served = 0
    for space in spaces or small_spaces():
        both = (space, space)
        try:
            ask(Pairs.all(both, batch=batch_of(both), heads=heads))
        except REFUSED as error:
            if spaces:
                raise AssertionError(f"{term} refuses {space.describe()}: {error}") from error
            refusal = error
            continue
        except Exception as error:
            raise AssertionError(
                f"{term}, asked about {heads} heads on {space.describe()}, raises "
                f"{type(error).__name__}: {error}"
            ) from error
        check(space)
        served += 1
    if not served:
        raise AssertionError(
            f"{term} serves no space that was tried; give one that it does. It said: {refusal}"
        )


def check_end(
    term: Mask | Bias, name: str, ask: Asked, space: Space, answers: Tensor, heads: int
) -> None:
    """Check that what comes later on a Sequence changes no answer (B, H, L, L), or that `needs_end`
    says so.

    Raises:
        AssertionError: naming a pair.
    """
    if not isinstance(space, Sequence) or space.size is None or term.needs_end:
        return
    length, special = space.size[0] * 2 // 3, space.length - space.size[0]
    shorter = Sequence(length, start=space.start[0], special=special)
    count = length + special
    shape = (len(answers), heads, count, count)
    try:
        found = ask(Pairs.all((shorter, shorter), batch=len(answers), heads=heads)).expand(shape)
    except (*REFUSED, IndexError, RuntimeError):  # it speaks of places that are not there
        return
    wrong = ~close(found, answers[:, :, :count, :count])
    if bool(wrong.any()):
        b, _, q, k = wrong.nonzero()[0].tolist()
        raise AssertionError(
            f"{name} of {pair(b, q, k)} changes when tokens come behind them, so that decoding "
            f"with a cache would be wrong: let {type(term).__name__}.needs_end be True"
        )


def check_block_key(
    term: Mask | Bias, verb: str, space: Space, answers: Tensor, real: Tensor
) -> None:
    """Check that pairs with equal block keys have equal answers (B, H, L, L), where `real`.

    Raises:
        AssertionError: naming two pairs.
    """
    name = f"{type(term).__name__}.block_key"
    key = called(name, lambda: term.block_key(space))
    if key is None:
        return
    parts = []
    for tensors, relative in ((key.relative, True), (key.absolute, False)):
        for tensor in tensors:
            values = tensor.expand(len(answers), *tensor.shape[-2:])
            query, of_key = values[:, :, None], values[:, None]
            parts += [of_key - query] if relative else [query, of_key]
    for tensor in key.of_query:
        parts.append(tensor.expand(len(answers), *tensor.shape[-2:])[:, :, None])
    at = real[:, 0].expand(len(answers), -1, -1).nonzero()
    if not len(at):
        return
    b, q, k = at.unbind(-1)
    rows = [part.expand(len(answers), *real.shape[2:], -1)[b, q, k].double() for part in parts]
    codes = torch.cat(rows, dim=-1) if rows else at.new_zeros(len(at), 1)
    _, group = codes.unique(dim=0, return_inverse=True)
    number_of = torch.arange(len(at))
    first = number_of.new_full((int(group.max()) + 1,), len(at))
    first = first.scatter_reduce(0, group, number_of, "amin")[group]
    found = answers[b, :, q, k].double()
    wrong = ~torch.isclose(found, found[first], rtol=1e-4, atol=1e-5).all(-1)
    if bool(wrong.any()):
        two = int(wrong.nonzero()[0])
        one = int(first[two])
        head = int((~torch.isclose(found[one], found[two], rtol=1e-4, atol=1e-5)).nonzero()[0])
        named = [pair(*at[n].tolist()) for n in (one, two)]
        raise AssertionError(
            f"{name} is alike for {named[0]} and {named[1]}, but {term} {verb} "
            f"{number(found[one, head])} and {number(found[two, head])}: blocks of tokens would "
            "take one for the other"
        )
