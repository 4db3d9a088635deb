"""Attention over a list of pairs as one differentiable operator; `edge_attention` is its face.

Forward and backward are operators of `torch.library`, so that `torch.compile` sees each as one
node of its graph. What is kept between them is q, k, v, the output, three numbers of a query and
head (log-sum-exp, the largest score, the sum of their exp) and what was given per pair (bias,
dropout's bool); no scores and no features of pairs. Second derivatives are those of the same
attention in torch's own operations, `composite`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_core.backends.derivatives import of_backward, refuse_batched, refuse_transforms
from attention_core.backends.edges import composite
from attention_core.backends.edges.pair_scores import pair_scores
from attention_core.backends.edges.pairs import Pairs
from attention_core.backends.edges.plain import Gradients, Inputs, Outputs
from attention_core.backends.edges.products import edge_scores
from attention_core.backends.edges.terms import NOTHING, cheapest, terms_of
from attention_core.backends.edges.ways import drawn, taken
from attention_core.edge_projection import EdgeFeatures, apart
from attention_core.scores import Score
from attention_core.spaces.csr import CSR

_INPUTS = (
    "Tensor[] pairs, Tensor[] by_key, int columns, str score, Tensor? q, Tensor? k, Tensor v, "
    "Tensor? weight, Tensor? bias, Tensor? allowed, Tensor? keep, Tensor? seed, "
    "Tensor? sink, Tensor? edge_key, Tensor? edge_value, Tensor? edge_attr, "
    "Tensor? edge_query, Tensor? edge_weight, bool edge_sums, bool edge_attr_grad, int heads, "
    "float scale, float? softcap, float slope, float grow"
)


def edge_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    csr: CSR,
    *,
    score: Score | None = None,
    modify: Callable[[Tensor], Tensor] | None = None,
    bias: Tensor | None = None,
    edge_key: EdgeFeatures | None = None,
    edge_value: EdgeFeatures | None = None,
    edge: Tensor | None = None,
    allowed: Tensor | None = None,
    keep: Tensor | None = None,
    seed: Tensor | None = None,
    sink: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend over the pairs of `csr`, in float32 or float64, in time and memory that follow them.

    Args:
        q: (H, Lq, D), in float32 or float64, as k and v; or in what `reads` allows.
        k: (Hkv, Lk, D), with H a multiple of Hkv.
        v: (Hkv, Lk, Dv).
        csr: the E pairs.
        score: another score than the dot product.
        modify: what score mods make of scores (H, E), scaled and capped, before the bias.
        bias: (H, E) or broadcastable to it, in the order of the sorted pairs.
        edge_key: (M, Hkv, D), of which one row is added to the key of each pair; a projection of
            features (M, F) is never computed for all of them.
        edge_value: (M, Hkv, Dv), of which one row is added to the value of each pair, likewise.
        edge: (E,) the row in them of each sorted pair; `csr.item` by default.
        allowed: (H, E) bool where heads allow different pairs, in the order of the sorted pairs.
        keep: (H, E) bool, the weights that dropout keeps.
        seed: (1,) int64, from which they are drawn where they are asked for, in place of `keep`.
        sink: (H,) logits of a key without value.
        scale, softcap: as in `attend`.
        dropout_p: the chance with which weights are dropped; by what it leaves, weights grow.

    Returns: the output (H, Lq, Dv) and the log-sum-exp (H, Lq), sink aside.
    """
    exact = torch.promote_types(v.dtype, torch.float32)
    heads, lists = len(q), [*csr.tensors, csr.item if edge is None else edge]
    edge_key, edge_value = cheapest(edge_key, edge_value, score)
    parts = apart(edge_key, edge_value)
    of_attr = parts.attr is not None and parts.attr.requires_grad and torch.is_grad_enabled()
    terms, scores = terms_of(q, k, score, parts), None
    if terms is None:
        scores = pair_scores(q, k, csr, score, edge_key, edge)
    elif modify is not None:
        refuse_transforms("edges", (x for x in terms.tensors if x is not None))
        by_key = list(csr.transpose) if torch.is_grad_enabled() else []
        scores = edge_scores(
            lists, by_key, csr.columns, terms.name, terms.slope, of_attr, *terms.tensors
        )
    if scores is not None:  # as a bias of pairs that score 0
        scores = scale * scores
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if modify is not None:
            scores = modify(scores)
        bias = scores if bias is None else scores + bias
        terms, scale, softcap = None, 1.0, None  # and their score is 0
    if bias is not None:
        bias = bias.to(exact).expand(heads, len(csr))
    name, slope, tensors = NOTHING if terms is None else terms
    left, right, weight, of_edges, attr, edge_query, edge_weight = tensors
    if parts.of_values is not None:
        attr = parts.attr
    learned = (v, bias, sink, parts.edge_value, parts.attr, *tensors)
    refuse_transforms("edges", (x for x in learned if x is not None))
    grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learned)
    out, lse, _, _, edge_sum = _forward(
        lists,
        list(csr.transpose) if grad else [],
        csr.columns,
        name,
        left,
        right,
        v,
        weight,
        bias,
        allowed,
        keep,
        seed,
        None if sink is None else sink.to(exact),
        of_edges,
        parts.edge_value,
        attr,
        edge_query,
        edge_weight,
        parts.of_values is not None,
        of_attr and attr is not None,
        heads,
        scale,
        softcap,
        slope,
        1 / (1 - dropout_p),
    )
    out = out.transpose(0, 1)
    if parts.of_values is not None:
        # The sum of p · (W e) is W times the sum of p · e
        sums = edge_sum.transpose(0, 1).unflatten(0, (len(v), -1))
        out = out + (sums @ parts.of_values[:, None].to(sums.dtype).mT).flatten(0, 1)
    return out, lse


def _unpack(args: tuple[Any, ...]) -> tuple[Pairs, Inputs]:
    (start, row, column, item), by_key, columns, *inputs = args
    key_start, key_row, pair = by_key or (None, None, None)
    return Pairs(start, row, column, item, columns, key_start, key_row, pair), Inputs(*inputs)


@torch.library.custom_op(
    "attention_core::edges",
    mutates_args=(),
    schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(*args: Any) -> tuple[Tensor, ...]:
    pairs, x = _unpack(args)
    way, given = taken(x, pairs)
    with torch.autocast(x.v.device.type, enabled=False):
        out, lse, top, total, edge_sum = way.forward(given, pairs)
    edge_sum = lse.new_empty(0) if edge_sum is None else edge_sum
    return out.to(x.v.dtype), lse, top, total, edge_sum


@_forward.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    pairs, x = _unpack(args)
    exact = torch.promote_types(x.v.dtype, torch.float32)
    lse = x.v.new_empty(x.heads, pairs.rows, dtype=exact)
    edge_sum = lse.new_empty(0)
    if x.edge_sums and x.edge_attr is not None:
        edge_sum = lse.new_empty(pairs.rows, x.heads, x.edge_attr.shape[1])
    out = x.v.new_empty(pairs.rows, x.heads, x.v.shape[-1])
    return out, lse, torch.empty_like(lse), torch.empty_like(lse), edge_sum


@torch.library.custom_op(
    "attention_core::edges_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor out, Tensor lse, Tensor top, Tensor total, Tensor edge_sum, "
    "Tensor of_out, Tensor? of_lse, Tensor? of_edge_sum, bool of_bias) -> Tensor[]",
)
def _backward(*args: Any) -> list[Tensor]:
    *inputs, out, lse, top, total, edge_sum, of_out, of_lse, of_edge_sum, of_bias = args
    pairs, x = _unpack(tuple(inputs))
    if not len(pairs.row):
        return [
            torch.zeros_like(tensor) for tensor in _with_gradient(x, of_bias) if tensor is not None
        ]
    found = Outputs(out, lse, top, total, edge_sum if x.edge_sums else None)
    way, given = taken(x, pairs)
    if given.v.dtype != x.v.dtype:
        found, of_out = found._replace(out=out.to(lse.dtype)), of_out.to(lse.dtype)
    with torch.autocast(x.v.device.type, enabled=False):
        gradients = way.backward(given, pairs, found, of_out, of_lse, of_edge_sum, of_bias)
    return [
        _laid_out(gradient, like)
        for gradient, like in zip(gradients, _with_gradient(x, of_bias), strict=True)
        if gradient is not None and like is not None
    ]


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Return x with dtype and strides of `empty_like`, which programs that are compiled rely on."""
    strides, x = torch.empty_like(like, device="meta").stride(), x.to(like.dtype)
    return x if x.stride() == strides else x.new_empty_strided(x.shape, strides).copy_(x)


@_backward.register_fake
def _(*args: Any) -> list[Tensor]:
    x = _unpack(args[:-9])[1]
    return [
        torch.empty_like(tensor) for tensor in _with_gradient(x, args[-1]) if tensor is not None
    ]


def _with_gradient(x: Inputs, of_bias: bool) -> Gradients:
    found = {name: getattr(x, name) for name in Gradients._fields}
    if not of_bias:
        found["bias"] = None
    if not x.edge_attr_grad:
        found["edge_attr"] = None
    return Gradients(**found)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    lists, rest = [*inputs[0], *inputs[1]], inputs[2:]
    tensors = [x for x in rest if isinstance(x, Tensor)]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*lists, *tensors, *output)
    ctx.plain = [None if isinstance(x, Tensor) else (x,) for x in rest]
    ctx.by_key = len(inputs[1])


def _differentiate(
    ctx: Any, of_out: Tensor | None, of_lse: Tensor | None, *others: Tensor | None
) -> Any:
    of_edge_sum = others[-1]
    saved = iter(ctx.saved_tensors)
    pairs, by_key = ([next(saved) for _ in range(n)] for n in (4, ctx.by_key))
    rest = [next(saved) if known is None else known[0] for known in ctx.plain]
    out, *found = saved
    refuse_batched("edges", of_out, of_lse, of_edge_sum)
    of_out = torch.zeros_like(out) if of_out is None else of_out
    of_bias = ctx.needs_input_grad[3 + Inputs._fields.index("bias")]
    x = Inputs(*rest[1:])
    of_inputs = iter(
        _backward(pairs, by_key, *rest, out, *found, of_out, of_lse, of_edge_sum, of_bias)
    )
    gradients = {
        name: next(of_inputs)
        for name, tensor in _with_gradient(x, of_bias)._asdict().items()
        if tensor is not None
    }
    return (
        [None] * len(pairs),
        [None] * len(by_key),
        None,
        *(gradients.get(name) for name in Inputs._fields),
    )


_forward.register_autograd(_differentiate, setup_context=_keep)


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    pairs, by_key, *rest = inputs
    ctx.save_for_backward(*pairs, *by_key, *(x for x in rest if isinstance(x, Tensor)))
    ctx.plain = [None if isinstance(x, Tensor) else (x,) for x in rest]
    ctx.by_key = len(by_key)
    ctx.set_materialize_grads(False)


def _differentiate_twice(ctx: Any, of_gradients: list[Tensor | None]) -> Any:
    saved = iter(ctx.saved_tensors)
    lists, by_key = ([next(saved) for _ in range(n)] for n in (4, ctx.by_key))
    *rest, of_out, of_lse, of_edge_sum, of_bias = (
        next(saved) if known is None else known[0] for known in ctx.plain
    )
    pairs, x = _unpack((lists, by_key, *rest[:-5]))  # outputs are computed anew
    variables = {
        name: tensor
        for name, tensor in _with_gradient(x, of_bias)._asdict().items()
        if tensor is not None
    }
    every = of_out, of_lse, of_edge_sum
    given = [at for at, of in enumerate(every) if of is not None]

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        replaced: dict[str, Any] = dict(zip(variables, inputs, strict=True))
        out, *rest = composite.forward(drawn(x._replace(**replaced), pairs), pairs)
        outputs = out.to(x.v.dtype), *rest
        return tuple(y for at in given if (y := outputs[at]) is not None)

    of_outputs = [of for of in every if of is not None]
    found, of_given = of_backward(forward, list(variables.values()), of_outputs, of_gradients)
    gradients = dict(zip(variables, found, strict=True))
    by_output = dict(zip(given, of_given, strict=True))
    return (
        [None] * len(lists),
        [None] * len(by_key),
        None,
        *(gradients.get(name) for name in Inputs._fields),
        *[None] * 5,
        *(by_output.get(at) for at in range(3)),
        None,
    )


_backward.register_autograd(_differentiate_twice, setup_context=_keep_all)
