"""What is asked of pairs: the same answer whichever way they are laid out, and for kept tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from attention_core.spaces import Pairs, Space

T = TypeVar("T")
Spaces = tuple[Space, Space]
#: What is asked of pairs, in their broadcast shape.
Asked = Callable[[Pairs], Tensor]


def called(what: str, function: Callable[[], T]) -> T:
    """Return what a function of the user's returns.

    Raises:
        AssertionError: it raises anything; the message says what was called.
    """
    try:
        return function()
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}: {error}") from error


def check_given(space: Space) -> None:
    """Raise TypeError or ValueError unless this is a space with values to look at."""
    if not isinstance(space, Space):
        raise TypeError(f"space must be a Space, got {type(space).__name__}")
    if space.device.type != "cpu":
        raise ValueError(f"space must be on the CPU to be checked, got one on {space.device}")


def batch_of(spaces: Spaces) -> int:
    """Return the batch size of spaces, 2 where they serve any."""
    return next((space.batch for space in spaces if space.batch is not None), 2)


def answers(name: str, ask: Asked, spaces: Spaces, heads: int = 1) -> Tensor:
    """Return what is asked of all pairs, (B, H, Lq, Lk).

    Raises:
        AssertionError: the shape does not broadcast to the pairs, or another layout of the same
            pairs gets another answer.
    """
    batch, (queries, keys) = batch_of(spaces), (space.length for space in spaces)
    shape = (batch, heads, queries, keys)
    whole = _fitting(name, ask, Pairs.all(spaces, batch=batch, heads=heads), shape)
    if not whole.numel():
        return whole
    generator = torch.Generator().manual_seed(0)
    at = torch.randint(whole[:, 0].numel(), (64,), generator=generator)
    b, q, k = at // (queries * keys), at // keys % queries, at % keys
    head = torch.arange(heads)
    listed = Pairs(spaces, shape=shape, batch=b, head=head[:, None], query=q, key=k)
    _compare(name, "a list of pairs (E,), as backend edges has them", ask, listed, whole)
    b, q, k = b[:4], q.view(4, 16), k.view(4, 16)
    blocks = Pairs(
        spaces,
        shape=shape,
        batch=b[:, None, None, None],
        head=head[:, None, None],
        query=q[:, None, :, None],
        key=k[:, None, None, :],
    )
    _compare(name, "blocks of pairs (P, 1, Q, K), as backend blocks has them", ask, blocks, whole)
    return whole


def _compare(name: str, layout: str, ask: Asked, pairs: Pairs, whole: Tensor) -> None:
    indices = torch.broadcast_tensors(pairs.batch, pairs.head, pairs.query, pairs.key)
    some = _fitting(f"{name} in {layout}", ask, pairs, tuple(indices[0].shape))
    wanted = whole[indices]
    wrong = ~close(some, wanted)
    if bool(wrong.any()):
        b, _, q, k = (int(index[wrong][0]) for index in indices)
        raise AssertionError(
            f"{name} depends on how pairs are laid out: {pair(b, q, k)} has "
            f"{number(wanted[wrong][0])} among all pairs and {number(some[wrong][0])} in {layout}; "
            "compute it with broadcasting, from what `pairs` has"
        )


def _fitting(name: str, ask: Asked, pairs: Pairs, shape: tuple[int, ...]) -> Tensor:
    found = called(name, lambda: ask(pairs))
    if not isinstance(found, Tensor):
        raise AssertionError(f"{name} must return a tensor, got {type(found).__name__}")
    try:
        return found.detach().expand(shape)
    except RuntimeError:
        raise AssertionError(
            f"{name} must return a tensor that broadcasts to the shape of the pairs, {shape}, got "
            f"{tuple(found.shape)}"
        ) from None


def kept(
    name: str,
    ask: Asked,
    spaces: Spaces,
    whole: Tensor,
    *,
    hint: str,
    special: bool = False,
    permuted: bool = False,
    refused: tuple[type[Exception], ...] = (),
) -> None:
    """Check that pairs of tokens have the same answer once others are dropped, packed or padded.

    Args:
        whole: the answers (B, H, Lq, Lk) for all pairs of `spaces`.
        hint: what to do about it, for the message.
        special: ask about special tokens, too.
        permuted: drop none, for an answer that depends on how many tokens there are.
        refused: what may be raised instead of an answer.

    Raises:
        AssertionError: naming the pair whose answer changes.
    """
    for what, there, index in remade(spaces, permuted):
        try:
            found = answers(f"{name} after {what}", ask, there, whole.shape[1])
        except AssertionError as error:
            if isinstance(error.__cause__, refused):
                continue
            raise
        query, key = (of[:, :, None] if side == 0 else of[:, None] for side, of in enumerate(index))
        real = (query >= 0) & (key >= 0) & ordinary(there, special)[:, 0]
        rows = torch.arange(len(found))[:, None, None].clamp(max=len(whole) - 1)
        wanted = whole[rows, :, query.clamp(min=0), key.clamp(min=0)].movedim(-1, 1)
        wrong = ~close(found, wanted) & real[:, None]
        if bool(wrong.any()):
            b, h, q, k = wrong.nonzero()[0].tolist()
            old = pair(b, *(int(side.expand(real.shape)[b, q, k]) for side in (query, key)))
            raise AssertionError(
                f"{what} changes {name}: {old} had {number(wanted[b, h, q, k])}, and has "
                f"{number(found[b, h, q, k])} now; {hint}"
            )


def remade(spaces: Spaces, permuted: bool) -> Iterator[tuple[str, Spaces, tuple[Tensor, Tensor]]]:
    """Yield other spaces of the same tokens: how they came about, themselves, and the tokens.

    Tokens are (B, Lq) and (B, Lk), -1 where they are padding or of another sample.
    """
    query, key = spaces
    batch = batch_of(spaces)
    generator = torch.Generator().manual_seed(1)

    def some(space: Space) -> Tensor:
        count = space.length if permuted else max(space.length * 2 // 3, 1)
        return torch.randperm(space.length, generator=generator)[:count]

    if not query.length or not key.length:
        return
    one, other = some(query), some(key)
    each = torch.stack([some(query) for _ in range(batch)])
    both = (one.expand(batch, -1), other.expand(batch, -1))
    if query is key:
        new = query.keep(one)
        yield "keep(index)", (new, new), (both[0], both[0])
        new = query.keep(each)
        yield "keep(index) of other tokens in each sample", (new, new), (each, each)
        half = torch.arange(query.length) < query.length // 2
        new = called("append", lambda: query.keep(half).append(query.keep(~half)))
        every = torch.arange(query.length).expand(batch, -1)
        yield "append", (new, new), (every, every)
    yield "keep(index) of queries and of keys", (query.keep(one), key.keep(other)), both
    if query is not key or query.batch is not None:
        return
    kind, few = type(query), query.keep(one)
    new = called("pack", lambda: kind.pack([few, query]))
    nothing = torch.full_like(one, -1)
    every = torch.arange(query.length)
    for what, tokens in (
        ("pack of several spaces", torch.cat([one, torch.full_like(every, -1)])),
        ("pack of several spaces", torch.cat([nothing, every])),
    ):
        yield what, (new, new), (tokens.expand(batch, -1),) * 2
    if query.segments is None:
        padded = called("pad", lambda: kind.pad([few, query]))
        row = torch.nn.functional.pad(one, (0, query.length - len(one)), value=-1)
        yield "pad of several spaces", (padded, padded), (torch.stack([row, every]),) * 2


def ordinary(spaces: Spaces, special: bool = False) -> Tensor:
    """Return the pairs of one sample without padding and, unless `special`, without special tokens,
    (B, 1, Lq, Lk) bool."""
    pairs = Pairs.all(spaces, batch=batch_of(spaces))
    shape = (pairs.shape[0], 1, *pairs.shape[2:])
    found = torch.ones(shape, dtype=torch.bool)
    for part in (pairs.same_sample, pairs.valid):
        if part is not None:
            found = found & part
    return found if special or pairs.special is None else found & ~pairs.special


def close(one: Tensor, two: Tensor) -> Tensor:
    """Return where two tensors are equal to rounding, infinities included."""
    if one.dtype == torch.bool or not (one.is_floating_point() or two.is_floating_point()):
        return one == two
    return torch.isclose(one.double(), two.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def pair(batch: int, query: int, key: int) -> str:
    """Return words for a pair of tokens."""
    return f"query {query}, key {key}" + (f" of sample {batch}" if batch else "")


def number(value: Tensor) -> str:
    """Return a value as a reader wants it."""
    plain = value.item()
    return f"{plain:.6g}" if isinstance(plain, float) else str(plain)
