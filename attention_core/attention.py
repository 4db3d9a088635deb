"""The attention function: a softmax over pairs of tokens, whatever the space they sit in."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_core.backends import edges
from attention_core.backends.derivatives import untouched
from attention_core.biases import Bias, DenseBias, as_bias
from attention_core.checks import check_chance, check_flag, check_kind, check_number
from attention_core.edge_projection import (
    EdgeFeatures,
    EdgeProjection,
    changed,
    tensors_of,
    widened,
)
from attention_core.errors import BackendError
from attention_core.finite import all_finite
from attention_core.isolation import isolated
from attention_core.job import Options, Plan
from attention_core.masks import DenseMask, Mask
from attention_core.planning import BACKENDS, explain, plan
from attention_core.precision import product_dtype
from attention_core.score_mods import has_score_mod
from attention_core.scores import Score
from attention_core.spaces import Sequence, Space
from attention_core.weights import PairWeights

__all__ = ["BackendError", "attend", "explain", "plan"]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    space: Space | tuple[Space, Space] | None = None,
    mask: Mask | Tensor | None = None,
    bias: Bias | Tensor | None = None,
    score: Score | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    edge_key: Tensor | EdgeProjection | None = None,
    edge_value: Tensor | EdgeProjection | None = None,
    dropout_p: float = 0.0,
    return_weights: bool | Literal["pairs"] = False,
    return_lse: bool = False,
    backend: str | None = None,
    plan: Plan | None = None,
) -> Any:
    """Compute the attention of queries to keys: softmax(scores) · values over the allowed pairs.

    The order on a score is scale, softcap, bias, mask, sink, softmax, dropout. A query with no
    allowed key, such as padding, gives output 0, weights 0, log-sum-exp -inf and no gradient. NaN
    or infinity in a query, or in a key or value that it may attend to, makes its row NaN, and no
    row of another sample.

    Args:
        q: (B, Hq, Lq, D).
        k: (B, Hkv, Lk, D), with Hq a multiple of Hkv: query head h uses key head h // (Hq / Hkv).
        v: (B, Hkv, Lk, Dv).
        space: where the tokens sit, or (space of the queries, space of the keys). Without it, keys
            are `Sequence(Lk)` and queries its last Lq places, as in decoding.
        mask: which pairs are allowed; a bool tensor (True: may attend) becomes a `DenseMask`.
        bias: what is added to their scores, or with a `ScoreMod` modifies them; a float tensor
            becomes a `DenseBias`.
        score: another score than the dot product.
        scale: factor on the score; 1/√D for the dot product, 1 for another score.
        softcap: c limits a score to (-c, c) by c · tanh(score / c) (Gemma 2, 2024).
        sink: (Hq,) logits of a key without value, which takes weight and gives nothing
            (Xiao et al., StreamingLLM, 2023; as trained in gpt-oss, 2025).
        edge_key: (E, Hkv, D) features of the edges of the keys' Graph, in the order of its
            `edge_index`, for every sample of the batch: the key of a pair along edge e is
            ``k + edge_key[e]`` (Shi et al., UniMP, 2021). A pair without an edge gets nothing.
            `Additive` and `AdditiveV2` say what they make of it. An `EdgeProjection` of features
            (E, F) means the same, in the time and memory of the features.
        edge_value: (E, Hkv, Dv), added likewise to the values.
        dropout_p: chance that a weight is dropped; layers pass 0 in eval mode.
        return_weights: also return the weights before dropout: (B, Hq, Lq, Lk), or for "pairs"
            those of the allowed pairs alone, as `PairWeights`.
        return_lse: also return the log-sum-exp (B, Hq, Lq) of the allowed scores, sink aside.
        backend: "reference", "dense", "blocks", "flex" or "edges" instead of the plan's choice.
        plan: a plan made before, which then replaces space, mask and backend.

    Returns: (B, Hq, Lq, Dv), or a tuple of it with the weights and the log-sum-exp asked for.

    Raises:
        ValueError: shapes do not fit, or a plan is for others or another device; it names them.
        TypeError: a mask that is not bool; a mask or bias that the space cannot serve.
        BackendError: `backend` cannot do this job.
    """
    _check(q, k, v, score, scale, softcap, sink, dropout_p)
    if return_lse is not False:
        check_flag(return_lse=return_lse)
    if plan is not None:
        check_kind(Plan, plan=plan)
    if return_weights is not False and (
        not isinstance(return_weights, bool | str) or return_weights not in (False, True, "pairs")
    ):
        raise ValueError(f"return_weights must be a bool or 'pairs', got {return_weights!r}")
    bias = None if bias is None else as_bias(bias)
    if plan is None:
        plan = plan_attention(
            _spaces(space, q, k, mask, bias),
            mask,
            bias,
            score=score,
            heads=q.shape[1],
            head_dim=q.shape[-1],
            batch=q.shape[0],
            device=q.device,
            grad=torch.is_grad_enabled(),
            weights=return_weights is True,
            softcap=softcap,
            edge_features=edge_key is not None or edge_value is not None,
            dtype=product_dtype(q),
            backend=backend,
        )
    elif space is not None or mask is not None or backend is not None:
        raise ValueError("a plan has its space, mask and backend; give either them or plan=")
    _check_plan(plan, q, k, bias, score, softcap)
    _check_edges(plan, k, v, edge_key, edge_value)
    query_space, key_space = plan.job.spaces
    # Zero weight times NaN is NaN, so what lies in padding must not take part at all
    q, k, v = query_space.zero_heads(q), key_space.zero_heads(k), key_space.zero_heads(v)
    if torch.is_autocast_enabled(q.device.type):

        def cast(x: Tensor) -> Tensor:
            return x.to(product_dtype(x))

        # As autocast does for SDPA, so that every backend starts from the same numbers
        q, k, v = (cast(x) for x in (q, k, v))
        edge_key, edge_value = changed(edge_key, edge_value, cast, cast)
    # Kernels want features: a head without any scores 0, and one without values has none to give
    head_dim, value_dim = max(q.shape[-1], 1), v.shape[-1]
    if not q.shape[-1]:
        q, k = pad(q, (0, 1)), pad(k, (0, 1))
        edge_key = None if edge_key is None else widened(edge_key)
    if not value_dim:
        v = pad(v, (0, 1))
        edge_value = None if edge_value is None else widened(edge_value)
    options = Options(
        bias=bias,
        score=score,
        scale=(head_dim**-0.5 if score is None else 1.0) if scale is None else scale,
        softcap=softcap,
        sink=sink,
        edge_key=edge_key,
        edge_value=edge_value,
        dropout_p=dropout_p,
        weights=return_weights is True,
        lse=return_lse,
    )
    run = BACKENDS[plan.backend].run
    if all_finite(q, k, v):
        result = run(plan, q, k, v, options)
    else:
        result = isolated(run, plan, q, k, v, options)
    output = result.output if value_dim else result.output[..., :0]
    if not plan.job.all_pairs:
        learned = [*(bias.tensors() if bias else ()), *(score.parameters() if score else ())]
        output = untouched(output, q, k, v, sink, *tensors_of(edge_key, edge_value), *learned)
    asked: list[Any] = []
    if return_weights:
        by_pair = return_weights == "pairs"
        asked.append(_pair_weights(plan, q, k, options) if by_pair else result.weights)
    if return_lse:
        asked.append(result.lse)
    return (output, *asked) if asked else output


plan_attention = plan  # `attend` has a parameter of that name


def _pair_weights(plan: Plan, q: Tensor, k: Tensor, options: Options) -> PairWeights:
    """The weights of the pairs of any plan, computed beside the output that its backend gave."""
    job = plan.job
    if plan.backend != "edges":
        # A plan of its own, as what biases gave for all pairs is no answer for a list of them
        plan = plan.memo("pairs", lambda: Plan(job, "edges", edges.prepare(job)))
    return edges.pair_weights(plan, q, k, options)


def _spaces(
    space: Space | tuple[Space, Space] | None,
    q: Tensor,
    k: Tensor,
    mask: Mask | Tensor | None,
    bias: Bias | None,
) -> tuple[Space, Space]:
    queries, keys = q.shape[2], k.shape[2]
    if space is None:
        positional = (isinstance(mask, Mask) and not isinstance(mask, DenseMask)) or (
            bias is not None and not isinstance(bias, DenseBias)
        )
        if queries > keys and positional:
            raise ValueError(
                f"there are more queries ({queries}) than keys ({keys}), so a mask or bias cannot "
                "tell where the queries are: give space=(space of queries, space of keys)"
            )
        key = Sequence(keys, device=q.device)
        if queries == keys:
            return key, key
        return Sequence(queries, start=max(keys - queries, 0), device=q.device), key
    return space if isinstance(space, tuple) else (space, space)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score: Score | None,
    scale: float | None,
    softcap: float | None,
    sink: Tensor | None,
    dropout_p: float,
) -> None:
    if not _are_plain(q, k, v):
        _check_tensors(q, k, v)
    if score is not None:
        check_kind(Score, score=score)
        if score.heads not in (None, q.shape[1]):
            raise ValueError(
                f"score has heads={score.heads}, but q has {q.shape[1]} heads: {_shapes(q, k, v)}"
            )
    if sink is not None:
        check_kind(Tensor, sink=sink)
    if softcap is not None:
        check_number(above=0, softcap=softcap)
    if scale is not None:
        check_number(scale=scale)
    if sink is not None and (sink.shape != (q.shape[1],) or not sink.is_floating_point()):
        raise ValueError(
            f"sink must have shape ({q.shape[1]},), got {tuple(sink.shape)}"
            f"{'' if sink.is_floating_point() else f' of {sink.dtype}, which is not float'}"
        )
    if type(dropout_p) is not float or dropout_p:
        check_chance(dropout_p=dropout_p)


def _are_plain(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether these are right at a glance, as nearly always: what is not is looked at closely."""
    if not type(q) is type(k) is type(v) is Tensor or not q.dtype is k.dtype is v.dtype:
        return False
    if q.ndim != 4 or k.ndim != 4 or not q.is_floating_point():
        return False
    shape = k.shape
    return (
        shape == v.shape
        and q.shape[0] == shape[0]
        and q.shape[1] == shape[1] > 0
        and q.shape[3] == shape[3]
        and q.layout is k.layout is v.layout is torch.strided
        and not (q.is_meta or k.is_meta or v.is_meta)
    )


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor (B, H, L, D), got {type(x).__name__}")
        if x.ndim != 4 or not x.is_floating_point() or x.is_sparse:
            sparse = "sparse " if x.is_sparse else ""
            raise ValueError(
                f"{name} must be float (B, H, L, D), got {sparse}{x.dtype} {tuple(x.shape)}"
            )
        if x.is_meta:
            raise ValueError(f"{name} must hold numbers, got a tensor on the meta device")
    shapes = _shapes(q, k, v)
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q must be (B, Hq, Lq, D), k (B, Hkv, Lk, D), v (B, Hkv, Lk, Dv); got {shapes}"
        )
    if not k.shape[1] or not q.shape[1]:
        raise ValueError(f"attention needs at least one head, got none: {shapes}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"the heads of q must be a multiple of those of k, got {q.shape[1]} and {k.shape[1]}: "
            f"{shapes}"
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1 and not torch.is_autocast_enabled(q.device.type):
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")


def _check_plan(
    plan: Plan,
    q: Tensor,
    k: Tensor,
    bias: Bias | None,
    score: Score | None,
    softcap: float | None,
) -> None:
    if plan.job.device != q.device:
        raise ValueError(f"the plan is for {plan.job.device}, but q is on {q.device}")
    if (plan.job.bias is None) != (bias is None):
        made, given = ("without" if b is None else "with" for b in (plan.job.bias, bias))
        raise ValueError(f"the plan was made {made} a bias, but attention is called {given} one")
    if has_score_mod(bias) and not plan.job.modifies:
        raise ValueError(
            "the plan was made for a bias that is added to scores, but attention is called with "
            "one that modifies them"
        )
    if plan.job.softcap != softcap or type(plan.job.score) is not type(score):
        raise ValueError(
            f"the plan is for softcap={plan.job.softcap} and score={plan.job.score}, got "
            f"softcap={softcap} and score={score}"
        )
    query, key = plan.job.spaces
    if (query.length, key.length) != (q.shape[2], k.shape[2]):
        raise ValueError(
            f"the space has {query.length} queries and {key.length} keys, but q is "
            f"{tuple(q.shape)} and k is {tuple(k.shape)}"
        )
    if plan.job.batch != q.shape[0] or plan.job.heads != q.shape[1]:
        raise ValueError(
            f"the plan is for batch {plan.job.batch} and {plan.job.heads} heads, but q is "
            f"{tuple(q.shape)}"
        )


def _check_edges(
    plan: Plan,
    k: Tensor,
    v: Tensor,
    edge_key: EdgeFeatures | None,
    edge_value: EdgeFeatures | None,
) -> None:
    given = edge_key is not None or edge_value is not None
    if plan.job.edge_features != given:
        made, called = ("with" if known else "without" for known in (not given, given))
        raise ValueError(
            f"the plan was made {made} edge_features, but attention is called {called} edge_key= "
            "or edge_value="
        )
    space = plan.job.spaces[1]
    for name, x, like in (("edge_key", edge_key, k), ("edge_value", edge_value, v)):
        if x is None:
            continue
        assert space.edges is not None
        shape = (space.edges.num_edges, like.shape[1], like.shape[-1])
        if isinstance(x, EdgeProjection):
            x.check(name)
        elif not isinstance(x, Tensor):
            raise TypeError(
                f"{name} must be a tensor (E, Hkv, {'D' if like is k else 'Dv'}) or an "
                f"EdgeProjection, got {type(x).__name__}"
            )
        if x.shape != shape or not x.dtype.is_floating_point:
            raise ValueError(
                f"{name} must be float (E, Hkv, {'D' if like is k else 'Dv'}) = {shape} for "
                f"{space.describe()}, got {x.dtype} {tuple(x.shape)}"
            )
        if x.dtype != like.dtype and not torch.is_autocast_enabled(k.device.type):
            raise ValueError(f"{name} must have the dtype of q, {like.dtype}, got {x.dtype}")
