"""Which edges a prediction rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn
from torch_geometric.explain import Explanation
from torch_geometric.explain.algorithm import ExplainerAlgorithm
from torch_geometric.explain.config import MaskType, ModelMode, ModelReturnType

from attention_core import Graph
from attention_core.annotated import Unchecked, checked
from attention_core.checks import check_dense, check_whole
from attention_core.edge_projection import EdgeFeatures, rows as rows_of
from attention_core.interpret.maps import check_eval
from attention_core.layers.recorded import around, uncompiled
from attention_core.spaces import Pairs
from attention_core.spaces.edge_list import EdgeList
from attention_core.weights import PairWeights

Mode = Literal["classification", "regression"]


@checked
def explain_prediction(
    model: nn.Module,
    x: Unchecked[Tensor],
    edge_index: Unchecked[Tensor],
    *,
    target: Tensor | int | None = None,
    index: Tensor | int | None = None,
    mode: Mode = "classification",
    steps: int = 16,
    **inputs: Any,
) -> Tensor:
    """Return what each edge adds to a prediction, (E,), by the attention along it in all layers.

    Of each layer's messages, attention weight times value, those along an edge are multiplied by a
    gate of that edge, and the gradient with respect to the gates is integrated from all closed to
    all open (integrated gradients: Sundararajan et al., 2017). So what the edges are said to add
    sums up to what the prediction is with all messages along edges less what it is without any. The
    gradient at open gates alone, attention times its gradient, misses edges of whose messages there
    are more than enough.

    It tells of messages. What a model knows of edges in other ways, by degrees, hops, or tables of
    pairs, stays as it is, and so does attention between nodes without an edge; of a model that
    attends to all nodes it tells how much passes between neighbours.

    Args:
        model: in eval mode; any whose layers are those of `attention_core` or `graph.layers`,
            called as ``model(x, edge_index, **inputs)``.
        x: (N, ...) nodes.
        edge_index: (2, E).
        target: classes to explain, one for all or as many as outputs; by default the predicted
            ones.
        index: which rows of the output to explain, such as the nodes in question; all by default.
            Of a batch of graphs each output rests on the edges of its graph alone.
        mode: "classification" explains the log-odds of the target, of logits (M, C), or of logits
            (M,) or (M, 1) of the second of two classes; "regression" the outputs themselves.
        steps: number of points of the integral (Gauss-Legendre).
        inputs: the model's other arguments.

    Returns: (E,): positive where the edge speaks for the target, in log-odds or in units of the
        output, summed over what is explained.

    Raises:
        TypeError: `x` or `edge_index` is no tensor: the graph is of several types of nodes.
        ValueError: the model is in training mode or attends along none of these edges; `steps` is
            less than 1; or `target` does not fit the output.
    """
    _check(model, x, edge_index, steps)
    if mode not in ("classification", "regression"):
        raise ValueError(f"mode must be 'classification' or 'regression', got {mode!r}")

    def asked(output: Tensor) -> Tensor:
        return output if index is None else output[_rows(index, output)]

    if target is None and mode == "classification":
        with torch.no_grad():  # what is predicted may be another class where gates are closed
            target = _by_class(asked(model(x, edge_index, **inputs))).argmax(1)

    def explained(output: Tensor) -> Tensor:
        return asked(output) if target is None else log_odds(asked(output), target)

    return _integrated(model, x, edge_index, explained, steps, inputs)


class EdgeAttribution(ExplainerAlgorithm):
    """`explain_prediction` for PyG's `Explainer`, as `edge_mask`.

    Its numbers are signed: an edge may speak against what is explained. PyG's thresholds and
    subgraphs take the positive ones.

    Args:
        steps: number of points of the integral.

    Example::

        explainer = Explainer(
            model,
            EdgeAttribution(),
            explanation_type="model",
            edge_mask_type="object",
            model_config=dict(
                mode="multiclass_classification", task_level="graph", return_type="raw"
            ),
        )
        explainer(x, edge_index).edge_mask  # (E,)
    """

    @checked
    def __init__(self, steps: int = 16) -> None:
        super().__init__()
        check_whole(steps=steps)
        self.steps = steps

    def forward(
        self,
        model: nn.Module,
        x: Tensor,
        edge_index: Tensor,
        *,
        target: Tensor,
        index: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Explanation:
        """Explain one prediction; `Explainer` calls it."""
        _check(model, x, edge_index, self.steps)

        def explained(output: Tensor) -> Tensor:
            asked = slice(None) if index is None else torch.as_tensor(index).reshape(-1)
            if self.model_config.mode == ModelMode.regression:
                return output[asked]
            if self.model_config.return_type == ModelReturnType.probs:
                binary = self.model_config.mode == ModelMode.binary_classification
                output = output.logit() if binary else output.log()
            return log_odds(output[asked], target[asked])

        edge_mask = _integrated(model, x, edge_index, explained, self.steps, kwargs)
        return Explanation(edge_mask=edge_mask)

    def supports(self) -> bool:
        """Return whether a number per edge is asked for, and none per node."""
        config = self.explainer_config
        return config.node_mask_type is None and config.edge_mask_type == MaskType.object


@checked
def log_odds(output: Tensor, target: Tensor | int) -> Tensor:
    """Return the log-odds (M,) of a class against all others.

    Unlike its logit they do not change where all logits grow, and unlike its probability they do
    not saturate.

    Args:
        output: logits (M, C), or (M,) or (M, 1) of the second of two classes.
        target: (M,) classes, or one for all.

    Raises:
        ValueError: `target` is of another shape, or names a class that there is none of.
    """
    check_dense(output=output)
    if not output.is_floating_point():
        raise TypeError(f"output must hold floats, got {output.dtype}")
    output = _by_class(output)
    count, classes = output.shape
    target = _integers("target", target, output)
    target = target.expand(count) if len(target) == 1 else target
    if len(target) != count:
        raise ValueError(
            f"target must be an integer or integers ({count},), got {target.dtype} "
            f"{tuple(target.shape)}"
        )
    if count and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(
            f"target names classes {int(target.min())} to {int(target.max())}, but the output has "
            f"{classes}"
        )
    own = target[:, None]
    others = output.scatter(1, own, -torch.inf).logsumexp(1)
    return output.gather(1, own).squeeze(1) - others


def _integers(name: str, values: Tensor | int, like: Tensor) -> Tensor:
    """An integer or several as a tensor (M,)."""
    if isinstance(values, Tensor):
        check_dense(**{name: values})  # type: ignore[arg-type]
    else:
        check_whole(None, **{name: values})  # type: ignore[arg-type]
    values = torch.as_tensor(values, device=like.device).reshape(-1)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, got {values.dtype}")
    return values.long()


def _rows(index: Tensor | int, output: Tensor) -> Tensor:
    rows = _integers("index", index, output)
    count = len(output)
    if rows.numel() and not -count <= int(rows.min()) <= int(rows.max()) < count:
        raise ValueError(f"index names rows {rows.tolist()!r:.80}, but the output has {count}")
    return rows


def _by_class(output: Tensor) -> Tensor:
    """Logits (M, C), of two classes also where only the second had one."""
    output = output[:, None] if output.ndim == 1 else output
    if output.ndim != 2:
        raise ValueError(f"output must be logits (M, C) or (M,), got {tuple(output.shape)}")
    return nn.functional.pad(output, (1, 0)) if output.shape[1] == 1 else output


def _check(model: nn.Module, x: Any, edge_index: Any, steps: int) -> None:
    check_whole(steps=steps)
    check_eval(model)
    if not isinstance(x, Tensor) or not isinstance(edge_index, Tensor):
        raise TypeError(
            "x and edge_index must be tensors, of a graph with one type of nodes, got "
            f"{type(x).__name__} and {type(edge_index).__name__}"
        )


def _integrated(
    model: nn.Module,
    x: Tensor,
    edge_index: Tensor,
    explained: Callable[[Tensor], Tensor],
    steps: int,
    inputs: dict[str, Any],
) -> Tensor:
    edges = EdgeList(edge_index, len(x))
    total = torch.zeros(edges.num_edges, device=x.device)
    for point, share in zip(*leggauss(steps), strict=True):  # of the integral from -1 to 1
        gate = torch.full_like(total, (point + 1) / 2).requires_grad_()
        with torch.enable_grad(), _gated(edges, gate):
            value = explained(model(x, edge_index, **inputs)).sum()
        (gradient,) = torch.autograd.grad(value, gate, allow_unused=True)
        if gradient is None:
            raise ValueError(f"no layer of {type(model).__name__} attends along an edge given")
        total += gradient * (share / 2)
    return total


@contextmanager
def _gated(edges: EdgeList, gate: Tensor) -> Iterator[None]:
    """Messages along edges are multiplied by their gates (E,)."""
    known: dict[EdgeList, Tensor] = {}

    def attend(
        attending: Callable[..., tuple[Tensor, PairWeights | None]],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        weights: bool,
        **options: Any,
    ) -> tuple[Tensor, PairWeights | None]:
        queries, space = options["plan"].job.spaces
        if not isinstance(queries, Graph) or not isinstance(space, Graph):
            return attending(q, k, v, weights=weights, **options)  # such as attention pooling
        out, found = attending(q, k, v, weights=True, **options)
        assert found is not None
        if space.edges not in known:
            # One more, where pairs without an edge, -1, look
            same = _same_edges(space.edges, edges)
            known[space.edges] = torch.cat([same, same.new_full((1,), -1)])
        edge = known[space.edges][found.pairs.edge]
        along = (edge >= 0).nonzero().squeeze(-1)
        closed = 1 - gate[edge[along]]
        out = out - _messages(found, along, closed, v, options.get("edge_value")).to(out.dtype)
        return out, found if weights else None

    token = around.set(attend)
    try:
        with uncompiled():
            yield
    finally:
        around.reset(token)


def _messages(
    weights: PairWeights, along: Tensor, factor: Tensor, v: Tensor, edge_value: EdgeFeatures | None
) -> Tensor:
    """(B, H, Lq, Dv): for each query the sum of its messages from the pairs `along` (A,), each
    times its factor (A,)."""
    pairs: Pairs = weights.pairs
    batch, heads, length, _ = pairs.shape
    at, query, key, edge = (
        index[along] for index in (pairs.batch, pairs.query, pairs.key, pairs.edge)
    )
    value = v[at, :, key]  # (A, Hkv, Dv)
    if edge_value is not None:
        value = value + rows_of(edge_value, edge)
    value = value.repeat_interleave(heads // v.shape[1], dim=1)
    message = (weights.values[along] * factor[:, None])[..., None] * value
    rows = message.new_zeros(batch * length, heads, v.shape[-1])
    rows = rows.index_add(0, at * length + query, message)
    return rows.unflatten(0, (batch, length)).transpose(1, 2)


def _same_edges(own: EdgeList, given: EdgeList) -> Tensor:
    """For each edge of a layer, which of those given it is, -1 for none: layers add edges, such as
    self-loops, or leave some out. Of an edge that is listed repeatedly, the n-th is the n-th."""
    nodes = max(own.num_nodes, own.num_targets, given.num_nodes)
    (own_keys, own_order), (keys, order) = (
        (edges.target * nodes + edges.source).sort(stable=True) for edges in (own, given)
    )
    rank = torch.arange(len(own_keys), device=keys.device)
    nth = rank - torch.searchsorted(own_keys, own_keys)
    at = torch.searchsorted(keys, own_keys) + nth
    inside = at.clamp(max=max(len(keys) - 1, 0))
    same = (at < len(keys)) & (keys[inside] == own_keys) if len(keys) else at < 0
    found = torch.full_like(own_order, -1)
    found[own_order[same]] = order[inside[same]]
    return found
