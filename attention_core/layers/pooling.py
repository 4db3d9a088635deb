"""From tokens to one vector for each sample."""

from __future__ import annotations

from functools import partial
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.checks import (
    check_choice,
    check_kind,
    check_number,
    check_tokens,
    check_whole,
    may_look,
)
from attention_core.layers.attention import AttentionOptions, MultiheadAttention
from attention_core.layers.feed_forward import Activation, FeedForward, check_activation
from attention_core.layers.residual import Residual
from attention_core.spaces import Sequence, Space
from attention_core.spaces.origin import made_elsewhere


class AttentionPool(nn.Module):
    """Learned queries that attend to all tokens of a sample (Lee et al., Set Transformer, 2019).

    Special tokens have no part, as in `pool`. With `hidden`, what the queries found is passed on
    through x + f(norm(x)), f a feed-forward network (Zhai et al., Scaling Vision Transformers,
    2022; SigLIP).

    Args:
        dim: size of a token.
        heads: number of heads.
        queries: how many learned queries.
        hidden: width of the feed-forward network; without it there is none.
        activation, eps: of the feed-forward network and its normalisation.
        attention: options of `MultiheadAttention`.
    """

    @checked
    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        queries: int = 1,
        hidden: int | None = None,
        activation: Activation = "gelu",
        eps: float = 1e-6,
        **attention: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        check_whole(dim=dim, queries=queries)
        check_number(least=0, eps=eps)
        check_activation(activation)
        self.queries = nn.Parameter(torch.empty(queries, dim))
        nn.init.trunc_normal_(self.queries, std=dim**-0.5)
        self.attention = MultiheadAttention(dim, heads, **attention)
        self.feed_forward_residual: Residual | None = None
        if hidden is not None:
            self.feed_forward_residual = Residual(dim, eps=eps)
            self.feed_forward = FeedForward(dim, hidden, activation=activation)

    def forward(self, x: Tensor, space: Space | None = None) -> Tensor:
        """Pool (B, L, D), or (T, D) packed, to (samples, D); (samples, queries, D) if several.

        A sample without tokens gives 0.
        """
        check_tokens(self.attention.key_value, "(B, L, D), or (T, D) packed", x=x)
        check_kind(Space, space=space)
        space = Sequence(x.shape[-2]) if space is None else space
        # Unless they stand in front, they are looked for, which a program cannot; and each sample
        # of a batch may have kept another number of them
        special = space.special if space.size is None else None
        if special is not None and (is_exporting() or special.ndim == 2):
            space = space.special_as_padding()
        else:
            x, space = space.without_special(x)
        count, dim = self.queries.shape
        segments = space.segments
        if x.ndim == 2:
            queries = self.queries.repeat(space.num_segments, 1)
        elif segments is None:
            queries = self.queries.expand(x.shape[0], -1, -1)
        else:
            raise ValueError("pool packed samples as (T, D), without a batch dimension")
        where = _nowhere(count, None if segments is None else space.num_segments, space.device)
        pooled = self.attention(queries, x, space=(where, space))
        if self.feed_forward_residual is not None:
            pooled = self.feed_forward_residual(pooled, self.feed_forward, where)
        pooled = pooled.reshape(-1, count, dim)
        # The projection's bias would otherwise stand for a sample that has no tokens
        sample, present = _samples(x, space.to(x.device))
        if segments is None:
            empty = ~present.any(1)
        else:
            empty = _tokens(sample, present, space.num_segments) == 0
        pooled = pooled.masked_fill(empty[:, None, None], 0)
        return pooled.squeeze(1) if count == 1 else pooled


def _nowhere(count: int, samples: int | None, device: torch.device) -> Space:
    """The space of `count` learned queries for each of the packed samples; None: for one row."""
    segments = None
    if samples is not None:
        segments = torch.arange(samples * count, device=device) // count
    samples = 1 if samples is None else samples
    special = torch.ones(samples * count, dtype=torch.bool, device=device)
    space = Space(samples * count, segments=segments, special=special, num_segments=samples)
    if made_elsewhere(device):
        packed = None if segments is None else samples
        space.keep_host(partial(_nowhere, count, packed, torch.device("cpu")))
    return space


Pooling = Literal["class", "mean", "sum", "max", "special", "attention", "map"]


#: Those that `pool` computes.
_COMPUTED = ("class", "mean", "sum", "max", "special")


def make_pool(
    pooling: Pooling, dim: int, heads: int, *, like: FeedForward, eps: float = 1e-6
) -> AttentionPool | Pool:
    """Return the module of a pooling: an `AttentionPool` for "attention" and "map", else a `Pool`.

    Args:
        pooling: "attention", a learned query (Lee et al., Set Transformer, 2019); "map", the same
            followed by a residual feed-forward network (Zhai et al., Scaling ViT, 2022); or one of
            those that `pool` computes.
        dim, heads, eps: of the pool.
        like: a feed-forward network, whose width and activation that of "map" has.

    Raises:
        ValueError: there is no such pooling.
    """
    check_choice(get_args(Pooling), pooling=pooling)
    if pooling not in ("attention", "map"):
        return Pool(pooling)
    hidden = like.down.in_features if pooling == "map" else None
    return AttentionPool(dim, heads, hidden=hidden, activation=like.activation, eps=eps)


class Pool(nn.Module):
    """`pool` as a module, which learns nothing.

    Args:
        pooling: as of `pool`.
    """

    def __init__(self, pooling: Pooling = "mean") -> None:
        super().__init__()
        check_choice(_COMPUTED, pooling=pooling)
        self.pooling = pooling

    def forward(self, x: Tensor, space: Space) -> Tensor:
        """Pool (B, L, D), or (T, D) packed, to (samples, D)."""
        return pool(x, space, self.pooling)

    def extra_repr(self) -> str:
        return f"{self.pooling!r}"


@checked
def pool(x: Tensor, space: Space, pooling: Pooling = "mean") -> Tensor:
    """Pool (B, L, D), or (T, D) packed, to one vector for each sample, (samples, D).

    Args:
        x: tokens.
        space: where they sit; padding has no part.
        pooling: "mean", "sum" or "max" over the tokens that sit somewhere; "special" for the mean
            of the special ones; or "class" for the first of these, whatever others (registers)
            there are, in a `Sequence` without any for its first token. A sample without such
            tokens gives 0.

    Raises:
        ValueError: nothing is there to pool; or a sample of a `Sequence` has no first token.
    """
    if x.ndim not in (2, 3) or not x.is_floating_point() or x.is_sparse:
        got = f"{x.layout} {x.dtype} {tuple(x.shape)}"
        raise ValueError(f"x must be float (B, L, D), or (T, D) packed, got {got}")
    if x.shape[-2] != space.length:
        raise ValueError(f"x is {tuple(x.shape)}, but its space is {space.describe()}")
    check_choice(_COMPUTED, pooling=pooling)
    space = space.to(x.device)
    of_special = pooling in ("special", "class")
    if pooling == "class" and space.special is None and isinstance(space, Sequence):
        return _first(x, space)
    if of_special and space.special is None:
        raise ValueError(f"{space.describe()} has no special tokens to pool")
    if space.size is not None and space.length:  # one sample a row, special tokens in front
        first = space.num_special
        last = 1 if pooling == "class" else first
        tokens = x[..., :last, :] if of_special else x[..., first:, :]
        tokens = tokens.reshape(-1, tokens.shape[-2], x.shape[-1])
        if tokens.shape[1]:
            if pooling == "max":
                return tokens.amax(1)
            return tokens.sum(1) if pooling == "sum" else tokens.mean(1)
    sample, counted = _samples(x, space)
    if space.special is not None:
        counted = counted & (space.special if of_special else ~space.special)
    if pooling == "class":
        counted = counted & (space.special_rank == 0)
    if space.segments is None:  # one sample a row: nothing has to be gathered
        return _pool_rows(x if x.ndim == 3 else x[None], counted[..., None], pooling)
    count, index = sample.shape[0] * space.num_segments, sample.flatten()
    rows = x.reshape(-1, x.shape[-1])
    rows = rows.to(torch.promote_types(x.dtype, torch.float32))  # halves would overflow in a sum
    # What does not count stays where it is: to take it away would be to look at values
    none = -torch.inf if pooling == "max" else 0.0
    rows = rows.masked_fill(~counted.flatten()[:, None], none)
    pooled, tokens = rows.new_zeros(count, x.shape[-1]), _tokens(index, counted, count)[:, None]
    if pooling == "max":
        index = index[:, None].expand_as(rows)
        pooled = pooled.scatter_reduce(0, index, rows, "amax", include_self=False)
        return pooled.masked_fill(tokens == 0, 0).to(x.dtype)
    pooled = pooled.index_add(0, index, rows)
    return (pooled if pooling == "sum" else pooled / tokens.clamp(min=1)).to(x.dtype)


def _tokens(sample: Tensor, counted: Tensor, count: int) -> Tensor:
    """How many tokens of each sample count, (count,)."""
    found = counted.flatten().long()
    return found.new_zeros(count).index_add(0, sample.flatten(), found)


def _first(x: Tensor, space: Sequence) -> Tensor:
    """Return the first token of each sample, (samples, D)."""
    sample, present = _samples(x, space)
    count = sample.shape[0] * space.num_segments  # len() would fix the batch of a program
    if space.segments is None:
        first = present & (present.cumsum(1) == 1)
    else:
        before = torch.cat([sample[:, :1] - 1, sample[:, :-1]], dim=1)
        first = present & (sample != before)
    if may_look(first) and int(first.sum()) < count:
        empty = torch.bincount(sample[first], minlength=count).argmin()
        raise ValueError(f"pooling='class' needs a first token: sample {empty} has length 0")
    if space.segments is None:
        return _pool_rows(x if x.ndim == 3 else x[None], first[..., None], "sum")
    rows, at = x.reshape(-1, x.shape[-1]), first.flatten()
    if x.device.type == "cpu":
        rows, sample = rows[at], sample[first]
    else:  # where to take them away would be to look at values
        rows = rows.masked_fill(~at[:, None], 0)
    return rows.new_zeros(count, x.shape[-1]).index_add(0, sample.flatten(), rows)


def _pool_rows(x: Tensor, counted: Tensor, pooling: str) -> Tensor:
    """`pool` of (B, L, D) over the tokens that `counted` (B, L, 1) says."""
    if pooling == "max":
        if not x.shape[1]:
            return x.sum(1)
        most = x.masked_fill(~counted, -torch.inf).amax(1)
        return most.masked_fill(~counted.any(1), 0)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # halves would overflow in a sum
    total = wide.masked_fill(~counted, 0).sum(1)
    return (total if pooling == "sum" else total / counted.sum(1).clamp(min=1)).to(x.dtype)


def _samples(x: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    """(B, L): the sample of each token of x, and whether it is none of the padding."""
    batch = x.shape[0] if x.ndim == 3 else 1
    present = torch.ones(batch, space.length, dtype=torch.bool, device=x.device)
    if space.valid is not None:
        present = present & space.valid
    sample = torch.arange(batch, device=x.device)[:, None] * space.num_segments
    if space.segments is not None:
        sample = sample + space.segments
    return sample.expand(present.shape), present
