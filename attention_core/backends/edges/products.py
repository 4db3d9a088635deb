"""Scores of pairs by themselves, as an operator: for what modifies them before their softmax.

Forward and backward are those of `scores`, without features of pairs, and second derivatives those
of `composite`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attention_core.backends.derivatives import of_backward, refuse_batched
from attention_core.backends.edges import composite, plain
from attention_core.backends.edges.pairs import Pairs
from attention_core.backends.edges.plain import Inputs

_LISTS = "Tensor[] pairs, Tensor[] by_key, int columns, str score, float slope, bool edge_attr_grad"
#: How many arguments come before the tensors.
_FIRST = len(_LISTS.split(", "))
_NAMES = ("q", "k", "weight", "edge_key", "edge_attr", "edge_query", "edge_weight")
_TENSORS = f"Tensor q, Tensor k, {', '.join(f'Tensor? {name}' for name in _NAMES[2:])}"


@torch.library.custom_op(
    "attention_core::edge_scores", mutates_args=(), schema=f"({_LISTS}, {_TENSORS}) -> Tensor"
)
def edge_scores(*args: Any) -> Tensor:
    """Compute scores (H, E) of queries (H, Lq, D) and keys (Hkv, Lk, D), not scaled.

    Arguments are those of the same names in `plain.Inputs` and `Pairs`.
    """
    x, pairs = _unpack(*args)
    with torch.autocast(x.v.device.type, enabled=False):
        return plain.scores_of(x, pairs).values()


@edge_scores.register_fake
def _(*args: Any) -> Tensor:
    x, pairs = _unpack(*args)
    return x.v.new_empty(x.heads, len(pairs.row))


@torch.library.custom_op(
    "attention_core::edge_scores_backward",
    mutates_args=(),
    schema=f"({_LISTS}, {_TENSORS}, Tensor of_scores) -> Tensor[]",
)
def edge_scores_backward(*args: Any) -> list[Tensor]:
    """Compute the gradients of those tensors that are given, that of `edge_attr` if asked for."""
    *inputs, of_scores = args
    x, pairs = _unpack(*inputs)
    variables = _variables(x)
    if not len(pairs.row):
        return [torch.zeros_like(tensor) for tensor in variables.values()]
    with torch.autocast(x.v.device.type, enabled=False):
        scores = plain.scores_of(x, pairs)
        scores.values()
        of_attr = torch.zeros_like(variables["edge_attr"]) if "edge_attr" in variables else None
        found = scores.gradients(of_scores.contiguous(), of_attr)._asdict() | {"edge_attr": of_attr}
    return [found[name].contiguous() for name in variables]


@edge_scores_backward.register_fake
def _(*args: Any) -> list[Tensor]:
    return [torch.empty_like(x) for x in _variables(_unpack(*args[:-1])[0]).values()]


def _unpack(
    lists: list[Tensor],
    by_key: list[Tensor],
    columns: int,
    score: str,
    slope: float,
    edge_attr_grad: bool,
    *tensors: Tensor | None,
) -> tuple[Inputs, Pairs]:
    given = dict.fromkeys(Inputs._fields) | dict(zip(_NAMES, tensors, strict=True))
    q, k = given["q"], given["k"]
    assert q is not None
    x = Inputs(
        **given
        | {"score": score, "v": k, "edge_sums": False, "heads": len(q), "scale": 1.0}
        | {"slope": slope, "grow": 1.0, "edge_attr_grad": edge_attr_grad}
    )
    start, row, column, item = lists
    key_start, key_row, pair = by_key or (None, None, None)
    return x, Pairs(start, row, column, item, columns, key_start, key_row, pair)


def _variables(x: Inputs) -> dict[str, Tensor]:
    """What has a gradient, by name."""
    names = (name for name in _NAMES if name != "edge_attr" or x.edge_attr_grad)
    found = {name: getattr(x, name) for name in names}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    lists, by_key, *ctx.plain = inputs[:_FIRST]
    ctx.save_for_backward(*lists, *by_key, *inputs[_FIRST:])
    ctx.counts = len(lists), len(by_key)


def _kept(ctx: Any) -> tuple[Any, ...]:
    first, second = ctx.counts
    saved = ctx.saved_tensors
    lists, by_key, tensors = saved[:first], saved[first : first + second], saved[first + second :]
    return (list(lists), list(by_key), *ctx.plain, *tensors)


def _in_place(ctx: Any, x: Inputs, found: list[Any]) -> tuple[Any, ...]:
    """Gradients for all arguments, from those of the variables in order."""
    given = dict(zip(_variables(x), found, strict=True))
    first, second = ctx.counts
    nothing = [None] * len(ctx.plain)
    return [None] * first, [None] * second, *nothing, *(given.get(name) for name in _NAMES)


def _differentiate(ctx: Any, of_scores: Tensor) -> tuple[Any, ...]:
    refuse_batched("edges", of_scores)
    kept = _kept(ctx)
    return _in_place(ctx, _unpack(*kept)[0], edge_scores_backward(*kept, of_scores))


edge_scores.register_autograd(_differentiate, setup_context=_keep)


def _differentiate_twice(ctx: Any, of_gradients: list[Tensor | None]) -> tuple[Any, ...]:
    *kept, of_scores = _kept(ctx)
    x, pairs = _unpack(*kept)
    variables = _variables(x)

    def forward(*inputs: Tensor) -> list[Tensor]:
        given: dict[str, Any] = dict(zip(variables, inputs, strict=True))
        return [composite.scores_of(x._replace(**given), pairs)]

    found, of_given = of_backward(forward, list(variables.values()), [of_scores], of_gradients)
    return *_in_place(ctx, x, found), of_given[0]


edge_scores_backward.register_autograd(_differentiate_twice, setup_context=_keep)
