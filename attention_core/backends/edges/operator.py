"""Attention over a list of pairs as one differentiable operator; `edge_attention` is its face.

Forward and backward are operators of `torch.library`, so that `torch.compile` sees each as one
node of its graph. What is kept between them is q, k, v, the output, two log-sum-exps and what was
given per pair (bias, dropout's bool); no scores and no features of pairs. Second derivatives are
those of the same attention in torch's own operations, `composite`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from attention_core.backends.derivatives import of_backward, refuse_batched, refuse_transforms
from attention_core.backends.edges import composite, plain
from attention_core.backends.edges.pairs import Pairs
from attention_core.backends.edges.plain import Gradients, Inputs
from attention_core.backends.edges.products import edge_scores
from attention_core.scores import Additive, AdditiveV2, Score
from attention_core.spaces.csr import CSR

#: Numbers in the features of the pairs of a chunk, for scores of the user's own.
_CHUNK = 1 << 22

_INPUTS = (
    "Tensor[] pairs, Tensor[] by_key, int columns, str score, Tensor? q, Tensor? k, Tensor v, "
    "Tensor? weight, Tensor? bias, Tensor? allowed, Tensor? keep, Tensor? sink, "
    "Tensor? edge_key, Tensor? edge_value, int heads, float scale, float? softcap, float slope, "
    "float grow"
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
    edge_key: Tensor | None = None,
    edge_value: Tensor | None = None,
    edge: Tensor | None = None,
    allowed: Tensor | None = None,
    keep: Tensor | None = None,
    sink: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend over the pairs of `csr`, in float32 or float64, in time and memory that follow them.

    Args:
        q: (H, Lq, D).
        k: (Hkv, Lk, D), with H a multiple of Hkv.
        v: (Hkv, Lk, Dv).
        csr: the E pairs.
        score: another score than the dot product.
        modify: what score mods make of scores (H, E), scaled and capped, before the bias.
        bias: (H, E) or broadcastable to it, in the order of the sorted pairs.
        edge_key: (M, Hkv, D), of which one row is added to the key of each pair.
        edge_value: (M, Hkv, Dv), of which one row is added to the value of each pair.
        edge: (E,) the row in them of each sorted pair; `csr.item` by default.
        allowed: (H, E) bool where heads allow different pairs, in the order of the sorted pairs.
        keep: (H, E) bool, the weights that dropout keeps.
        sink: (H,) logits of a key without value.
        scale, softcap: as in `attend`.
        dropout_p: the chance with which `keep` was drawn; by what it leaves, weights grow.

    Returns: the output (H, Lq, Dv) and the log-sum-exp (H, Lq), sink aside.
    """
    heads, weight, slope, name = len(q), None, 0.0, "dot"
    left: Tensor | None = q
    right: Tensor | None = k
    scores: Tensor | None = None
    lists = [*csr.tensors, csr.item if edge is None else edge]
    if isinstance(score, Additive):
        # The score is a sum, so each token, and each edge, has one number per head in it
        name, slope = "additive", score.negative_slope
        by_group = score.key.to(k.dtype).unflatten(0, (len(k), -1))
        left = (q * score.query[:, None].to(q.dtype)).sum(-1, keepdim=True)
        right = (k @ by_group.mT).mT.flatten(0, 1)[..., None]
        if edge_key is not None:
            by_group = score.edge_weight.to(k.dtype).unflatten(0, (len(k), -1))
            # One product for all heads makes no copy of the features, nor of their gradient
            edge_key = linear(edge_key.flatten(1), torch.block_diag(*by_group))[..., None]
    elif isinstance(score, AdditiveV2):
        name, slope, weight = "additive_v2", score.negative_slope, score.weight.to(q.dtype)
    elif score is not None:
        scores = pair_scores(q, k, csr, score, edge_key, edge)
    if modify is not None and scores is None:
        refuse_transforms("edges", (x for x in (left, right, weight, edge_key) if x is not None))
        by_key = list(csr.transpose) if torch.is_grad_enabled() else []
        scores = edge_scores(lists, by_key, csr.columns, name, slope, left, right, weight, edge_key)
    if scores is not None:  # as a bias of pairs that score 0
        scores = scale * scores
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if modify is not None:
            scores = modify(scores)
        bias = scores if bias is None else scores + bias
        name, left, right, edge_key, scale, softcap = "none", None, None, None, 1.0, None
        weight = None
    if bias is not None:
        bias = bias.to(v.dtype).expand(heads, len(csr))
    learned = (left, right, v, weight, bias, sink, edge_key, edge_value)
    refuse_transforms("edges", (x for x in learned if x is not None))
    grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learned)
    out, lse, _ = _forward(
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
        None if sink is None else sink.to(v.dtype),
        edge_key,
        edge_value,
        heads,
        scale,
        softcap,
        slope,
        1 / (1 - dropout_p),
    )
    return out.transpose(0, 1), lse


def pair_scores(
    q: Tensor,
    k: Tensor,
    csr: CSR,
    score: Score | None,
    edge_key: Tensor | None,
    edge: Tensor | None,
) -> Tensor:
    """Compute scores (H, E) of any kind, the dot product for None, with a gradient by autograd.

    Features of pairs are made a chunk at a time, and again in backward, so none are kept.
    Arguments are those of `edge_attention`.
    """
    share = len(q) // len(k)
    head = torch.arange(len(q), device=q.device)[:, None]

    def some(row: Tensor, column: Tensor, edge: Tensor) -> Tensor:
        queries = q.index_select(1, row)
        keys = k.index_select(1, column).repeat_interleave(share, dim=0)
        if edge_key is None:
            return (queries * keys).sum(-1) if score is None else score(queries, keys, head)
        features = edge_key.index_select(0, edge).transpose(0, 1).repeat_interleave(share, dim=0)
        if score is None:
            return (queries * (keys + features)).sum(-1)
        return score.with_edge(queries, keys, features, head)

    rows = max(_CHUNK // max(len(q) * q.shape[-1], 1), 1)
    edge = csr.item if edge is None else edge
    chunks = zip(*(x.split(rows) for x in (csr.row, csr.column, edge)), strict=True)
    return torch.cat([checkpoint(some, *chunk, use_reentrant=False) for chunk in chunks], dim=-1)


def _unpack(args: tuple[Any, ...]) -> tuple[Pairs, Inputs]:
    (start, row, column, item), by_key, columns, *inputs = args
    key_start, key_row, pair = by_key or (None, None, None)
    return Pairs(start, row, column, item, columns, key_start, key_row, pair), Inputs(*inputs)


def _way(x: Inputs) -> ModuleType:
    """The module that does this: Triton kernels on a GPU where they can, else plain torch."""
    features = x.edge_key is not None or x.edge_value is not None
    if not x.v.is_cuda or x.score != "dot" or features or find_spec("triton") is None:
        return plain
    from attention_core.backends.edges import kernels

    return kernels


@torch.library.custom_op(
    "attention_core::edges",
    mutates_args=(),
    schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    pairs, x = _unpack(args)
    with torch.autocast(x.v.device.type, enabled=False):
        return _way(x).forward(x, pairs)


@_forward.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    pairs, x = _unpack(args)
    lse = x.v.new_empty(x.heads, pairs.rows)
    return x.v.new_empty(pairs.rows, x.heads, x.v.shape[-1]), lse, torch.empty_like(lse)


@torch.library.custom_op(
    "attention_core::edges_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor out, Tensor lse, Tensor norm, Tensor of_out, Tensor? of_lse, "
    "bool of_bias) -> Tensor[]",
)
def _backward(*args: Any) -> list[Tensor]:
    *inputs, out, lse, norm, of_out, of_lse, of_bias = args
    pairs, x = _unpack(tuple(inputs))
    if not len(pairs.row):
        return [
            torch.zeros_like(tensor) for tensor in _with_gradient(x, of_bias) if tensor is not None
        ]
    with torch.autocast(x.v.device.type, enabled=False):
        found = _way(x).backward(x, pairs, out, lse, norm, of_out, of_lse, of_bias)
    return [gradient for gradient in found if gradient is not None]


@_backward.register_fake
def _(*args: Any) -> list[Tensor]:
    x = _unpack(args[:-6])[1]
    return [
        torch.empty_like(tensor) for tensor in _with_gradient(x, args[-1]) if tensor is not None
    ]


def _with_gradient(x: Inputs, of_bias: bool) -> Gradients:
    bias = x.bias if of_bias else None
    return Gradients(x.q, x.k, x.v, x.weight, bias, x.sink, x.edge_key, x.edge_value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    lists, rest = [*inputs[0], *inputs[1]], inputs[2:]
    tensors = [x for x in rest if isinstance(x, Tensor)]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*lists, *tensors, *output)
    ctx.plain = [None if isinstance(x, Tensor) else (x,) for x in rest]
    ctx.by_key = len(inputs[1])


def _differentiate(ctx: Any, of_out: Tensor | None, of_lse: Tensor | None, _: None) -> Any:
    saved = iter(ctx.saved_tensors)
    pairs, by_key = ([next(saved) for _ in range(n)] for n in (4, ctx.by_key))
    rest = [next(saved) if known is None else known[0] for known in ctx.plain]
    out, lse, norm = saved
    refuse_batched("edges", of_out, of_lse)
    of_out = torch.zeros_like(out) if of_out is None else of_out
    needed = ctx.needs_input_grad
    of_bias = needed[3 + Inputs._fields.index("bias")]
    x = Inputs(*rest[1:])
    found = iter(_backward(pairs, by_key, *rest, out, lse, norm, of_out, of_lse, of_bias))
    gradients = {
        name: next(found)
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
    *rest, of_out, of_lse, of_bias = (
        next(saved) if known is None else known[0] for known in ctx.plain
    )
    pairs, x = _unpack((lists, by_key, *rest[:-3]))  # out, lse and norm are computed anew
    variables = {
        name: tensor
        for name, tensor in _with_gradient(x, of_bias)._asdict().items()
        if tensor is not None
    }
    of_outputs = [of_out] if of_lse is None else [of_out, of_lse]

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        given: dict[str, Any] = dict(zip(variables, inputs, strict=True))
        return composite.forward(x._replace(**given), pairs)[: len(of_outputs)]

    found, of_given = of_backward(forward, list(variables.values()), of_outputs, of_gradients)
    gradients = dict(zip(variables, found, strict=True))
    return (
        [None] * len(lists),
        [None] * len(by_key),
        None,
        *(gradients.get(name) for name in Inputs._fields),
        *[None] * 3,
        of_given[0],
        None if of_lse is None else of_given[1],
        None,
    )


_backward.register_autograd(_differentiate_twice, setup_context=_keep_all)
