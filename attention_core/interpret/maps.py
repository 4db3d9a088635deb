"""Record what chosen layers of a model attend to, and compute maps from that.

A domain says how its model is run, which of its layers are meant and where tokens sit; what is the
same for images, texts and graphs is here. All is exact: the model runs on its fused path, and the
weights are recorded beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from attention_core.checks import check_choice
from attention_core.layers import Encoder, Pool
from attention_core.models import Model
from attention_core.record import record_attention
from attention_core.spaces import Pairs, Space
from attention_core.weights import PairWeights


class LayerAttention(NamedTuple):
    """The attention of one layer in one input.

    Attributes:
        name: what the model calls the layer.
        weights: (H, Lq, Lk) of the chosen heads, float32 or wider, with rows that sum to 1, or to
            less where the layer attends to a sink; or those (P, H) of the pairs that may attend.
        heads: which heads, counted from 0.
        queries, keys: where both sides sit.
    """

    name: str
    weights: Tensor | PairWeights
    heads: list[int]
    queries: Space
    keys: Space

    @property
    def pairs(self) -> PairWeights:
        """The weights of the pairs that may attend, where those were recorded."""
        assert isinstance(self.weights, PairWeights)
        return self.weights

    @property
    def table(self) -> Tensor:
        """(H, Lq, Lk) weights, made from the pairs where those were recorded."""
        return self.weights if isinstance(self.weights, Tensor) else self.weights.dense()[0]


def check_eval(model: nn.Module) -> None:
    """Raise ValueError where a model is in training mode: what it attends to would be chance."""
    if model.training:
        raise ValueError("model must be in eval mode, so that all it does is seen: model.eval()")


def record(
    model: nn.Module,
    run: Callable[[], object],
    part: nn.Module | dict[int, nn.Module] | None = None,
    *,
    heads: Sequence[int] | None = None,
    pairs: bool = False,
) -> list[LayerAttention]:
    """Return the attention of all layers of `part`, while `run()` runs the model on one input.

    Args:
        model: in eval mode.
        run: calls the model.
        part: holds the layers, or are `attention_layers`; the whole model by default.
        heads: which ones, negative numbers count from the last; all by default.
        pairs: record the pairs that may attend, and no table of all pairs.

    Raises:
        ValueError: the model is in training mode, or there is no such head.
    """
    check_eval(model)
    part = nn.ModuleList(part.values()) if isinstance(part, dict) else part or model
    with record_attention(part, pairs=pairs) as maps, torch.no_grad():  # type: ignore[call-overload]
        run()
    found = []
    for index, (name, recorded) in enumerate(zip(maps.names, maps, strict=True)):
        values = recorded.values.T if pairs else recorded[0]
        chosen = choose("head", heads, len(values))
        values = values[chosen]
        # Shares are added up, and compared: in float32 where they are narrower
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        weights = recorded._replace(values=values.T) if pairs else values
        found.append(LayerAttention(name, weights, chosen, *maps.spaces(index)))
    return found


def record_to_pool(
    model: Model,
    run: Callable[[], object],
    layers: nn.Module | dict[int, nn.Module],
    space: Space | None = None,
    *,
    pairs: bool = False,
) -> tuple[list[LayerAttention], LayerAttention | Tensor]:
    """Return the attention of all layers, and what pools their tokens after the last: the attention
    of a learned query, or the shares (L,) of `pooled_shares`.

    Args:
        layers: the `part` of `record`, which holds no pool.
        space: where the tokens of the last layer sit, by default its queries'.
    """
    layers = nn.ModuleList(layers.values()) if isinstance(layers, dict) else layers
    found = record(model, run, nn.ModuleList([layers, model.pool]), pairs=pairs)
    recorded = [layer for layer in found if layer.name.split(".")[0] == "0"]
    if isinstance(model.pool, Pool):
        return recorded, pooled_shares(model.pool.pooling, space or recorded[-1].queries)
    return recorded, found[-1]


def attention_layers(
    *stacks: Encoder, part: str = "attention", wanted: Sequence[int] | None = None
) -> dict[int, nn.Module]:
    """Return the attention of the layers wanted, by their numbers, counted through all stacks.

    Where blocks serve several layers (ALBERT), a recording holds the last use of each: the layers
    before are not told apart from it.

    Args:
        part: of the blocks, "attention" or "cross_attention".
        wanted: which layers, in this order, negative ones from the last; all that are told apart
            by default.

    Raises:
        ValueError: there is no such layer, or it is not told apart from others.
    """
    layers: dict[int, nn.Module] = {}
    start = 0
    for stack in stacks:
        uses = len(stack.masks) // len(stack.blocks)
        for number, block in enumerate(stack.blocks, start=1):
            layers[start + number * uses - 1] = getattr(block, part)
        start += len(stack.masks)
    numbers = list(layers) if wanted is None else choose("layer", wanted, start)
    for number in numbers:
        if number not in layers:
            raise ValueError(
                f"layer {number} shares its block with layers after it, and is not told apart from "
                f"them: give some of {', '.join(map(str, layers))}"
            )
    return {number: layers[number] for number in numbers}


def all_layers(*stacks: Encoder) -> dict[int, nn.Module]:
    """Return the `attention_layers` of a model whose layers are all told apart.

    Raises:
        ValueError: some blocks serve several layers.
    """
    layers = attention_layers(*stacks)
    if len(layers) < sum(len(stack.masks) for stack in stacks):
        raise ValueError(
            "model has blocks that serve several layers (num_groups=), whose weights are not told "
            "apart"
        )
    return layers


def choose(name: str, wanted: Sequence[int] | None, count: int) -> list[int]:
    """Return which of `count` things are wanted, counted from 0: all by default, and negative
    numbers count from the last.

    Raises:
        ValueError: there is no such thing, or none is wanted.
    """
    if wanted is None:
        return list(range(count))
    if not len(wanted):
        raise ValueError(f"{name}s must name at least one {name}, got {wanted!r}")
    for one in wanted:
        if not -count <= one < count:
            raise ValueError(f"there are {count} {name}s, no {name} {one}")
    return [one % count for one in wanted]


def pooled_shares(pooling: str, space: Space) -> Tensor:
    """Return the share (L,) of each token in what its sample is pooled to, without a learned query.

    "sum" and "max" are taken for a mean, as there is no share in them.

    Args:
        pooling: one of `attention_core.layers.Pooling`.
        space: where the tokens of one row sit.
    """
    zeros = torch.zeros(space.length, dtype=torch.long, device=space.device)
    special = zeros.bool() if space.special is None else space.special.view(-1)
    segments = zeros if space.segments is None else space.segments.view(-1)
    if pooling == "class":  # the first token of each sample
        chosen = segments.diff(prepend=segments.new_full((1,), -1)) > 0
    else:
        chosen = special if pooling == "special" else ~special
    count = torch.zeros(space.num_segments, device=space.device)
    count = count.index_add(0, segments, chosen.float())
    return chosen / count.clamp(min=1)[segments]


def received(layer: LayerAttention, shares: Tensor | None = None) -> Tensor:
    """Return the attention (H, Lk) that each key gets from all queries, which count by `shares`
    (Lq,); by default as 1 each."""
    if isinstance(layer.weights, Tensor):
        table = layer.table
        shares = table.new_ones(table.shape[1]) if shares is None else shares.to(table)
        return torch.einsum("q,hqk->hk", shares, table)
    pairs, values = layer.weights
    if shares is not None:
        values = values * shares.to(values)[pairs.query, None]
    return values.new_zeros(layer.keys.length, values.shape[1]).index_add(0, pairs.key, values).T


def reaching(
    layers: Sequence[LayerAttention], pooled: LayerAttention | Tensor
) -> tuple[Tensor, LayerAttention]:
    """Return how much of each token reaches the pooled vector in the last step, (H, Lk), and the
    layer whose keys these are: the pool; or the last layer, whose tokens count by their shares.
    Both arguments are of `record_to_pool`."""
    if isinstance(pooled, LayerAttention):
        return received(pooled), pooled
    return received(layers[-1], pooled), layers[-1]


HeadFusion = Literal["mean", "max", "min"]


class RolloutOptions(TypedDict, total=False):
    """Options of `rollout`, which the domains pass on."""

    residual: float
    head_fusion: HeadFusion
    discard: float


def rollout(
    layers: Sequence[LayerAttention],
    pooled: LayerAttention | Tensor,
    *,
    residual: float = 0.5,
    head_fusion: HeadFusion = "mean",
    discard: float = 0.0,
) -> Tensor:
    """Return how much of each token is in the pooled vector, (L,), going back through all layers
    (Abnar & Zuidema, Quantifying Attention Flow, 2020).

    A layer mixes tokens as residual · I + (1 − residual) · W, with the rows of W made to sum to 1;
    the mixings of all layers are multiplied. Values, projections and feed-forward networks have no
    part in it, so it says where information may have come from.

    Args:
        layers, pooled: as of `record_to_pool`: all layers of a model, with the same tokens.
        residual: share of a token that stays where it is in a layer, from 0 to 1.
        head_fusion: what W is of the weights of the heads.
        discard: share of each token's smallest weights in W that are taken for noise, in [0, 1).

    Raises:
        ValueError: a number out of range.
    """
    check_choice(("mean", "max", "min"), head_fusion=head_fusion)
    if not 0 <= residual <= 1:
        raise ValueError(f"residual must be between 0 and 1, got {residual}")
    if not 0 <= discard < 1:
        raise ValueError(f"discard must be in [0, 1), got {discard}")

    def normalised(rows: Tensor) -> Tensor:  # those of zeros stay
        return rows / rows.sum(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)

    def fused(layer: LayerAttention) -> Tensor:  # (Lq, Lk)
        table = layer.table
        one = table.mean(0) if head_fusion == "mean" else getattr(table, f"a{head_fusion}")(0)
        noise = one.topk(int(one.shape[-1] * discard), largest=False).indices
        return normalised(one.scatter(-1, noise, 0.0))

    space = layers[0].queries
    like = layers[0].table
    if isinstance(pooled, LayerAttention):
        shares = fused(pooled).sum(0)  # each sample has one query: only zeros are added up
        if space.special is not None:
            shares = like.new_zeros(space.length).masked_scatter(~space.special.view(-1), shares)
    else:
        shares = pooled.to(like)
    for layer in reversed(layers):
        stays = residual * torch.eye(space.length).to(like)
        shares = shares @ normalised(stays + (1 - residual) * fused(layer))
    return shares


def mean_distance(layer: LayerAttention, distance: Callable[[Pairs], Tensor]) -> Tensor:
    """Return how far each head looks, (H,): the mean of a distance, weighted by attention.

    Pairs with a special token, which sits nowhere, have no part in it.

    Args:
        distance: of pairs, in their shape; those that are not finite are left out.
    """
    if isinstance(layer.weights, Tensor):
        pairs, weights = Pairs.all((layer.queries, layer.keys)), layer.weights
    else:
        pairs, weights = layer.weights.pairs, layer.weights.values.T
    far = distance(pairs)
    counted = far.isfinite()
    if pairs.special is not None:
        counted = counted & ~pairs.special
    weights = weights * counted.view(counted.shape[-weights.ndim + 1 :])
    far = far.to(weights).masked_fill(~counted, 0).view(counted.shape[-weights.ndim + 1 :])
    return (weights * far).flatten(1).sum(1) / weights.flatten(1).sum(1)


def occlusion(
    score: Callable[[list[Tensor]], Tensor],
    tokens: Tensor,
    parts: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
) -> Tensor:
    """Return how a score changes where a part of the tokens is left out, (G,): below 0 where the
    part speaks for what is scored (Zeiler & Fergus, 2014; Li et al., 2016).

    A part that is all there is cannot be left out: its change is NaN.

    Args:
        score: from n inputs (l, ...), of any lengths, to their scores (n,).
        tokens: (L, ...) the whole input.
        parts: indices of the tokens of each of G parts.
        batch_size: inputs that are scored at a time.
    """
    kept = tokens.new_ones(len(parts) + 1, len(tokens), dtype=torch.bool)
    for number, part in enumerate(parts, start=1):
        kept[number, list(part)] = False
    inputs = [tokens[row] for row in kept if row.any()]
    with torch.no_grad():
        batches = range(0, len(inputs), batch_size)
        scores = torch.cat([score(inputs[at : at + batch_size]) for at in batches])
    changes = scores.new_full((len(parts),), torch.nan)
    changes[kept[1:].any(1)] = scores[1:] - scores[0]
    return changes
