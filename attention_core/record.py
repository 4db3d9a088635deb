"""Exact attention weights out of a model, while it stays on its fused path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeVar, cast, overload

from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.layers.recorded import RecordedAttention, recorders, uncompiled
from attention_core.spaces import Space
from attention_core.weights import PairWeights

W = TypeVar("W", Tensor, PairWeights)


class AttentionMaps(Generic[W]):
    """Weights of recorded layers, in the order asked for, of the latest forward.

    They are tensors (B, H, Lq, Lk), or where `pairs` is true `PairWeights`.
    """

    def __init__(self, layers: list[tuple[str, RecordedAttention]], pairs: bool = False) -> None:
        self.names = [name for name, _ in layers]
        self.pairs = pairs
        self._modules = [module for _, module in layers]
        self._recorded: dict[nn.Module, tuple[W, tuple[Space, Space]]] = {}

    def wants(self, module: nn.Module) -> bool:
        return module in self._modules

    def add(
        self, module: nn.Module, weights: Tensor | PairWeights, spaces: tuple[Space, Space]
    ) -> None:
        if isinstance(weights, PairWeights) and not self.pairs:
            weights = weights.dense()
        self._recorded[module] = cast(W, weights.detach()), spaces

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> W:
        return self._of(index)[0]

    def spaces(self, index: int) -> tuple[Space, Space]:
        """Return where the queries and the keys of the weights `self[index]` sit."""
        return self._of(index)[1]

    def _of(self, index: int) -> tuple[W, tuple[Space, Space]]:
        module = self._modules[index]
        if module not in self._recorded:
            raise LookupError(f"{self.names[index]} has not run inside record_attention yet")
        return self._recorded[module]

    def __iter__(self) -> Iterator[W]:
        return (self[i] for i in range(len(self)))


@overload
@contextmanager
def record_attention(
    model: nn.Module, layers: Sequence[int] | None = None, *, pairs: Literal[False] = False
) -> Iterator[AttentionMaps[Tensor]]: ...


@overload
@contextmanager
def record_attention(
    model: nn.Module, layers: Sequence[int] | None = None, *, pairs: Literal[True]
) -> Iterator[AttentionMaps[PairWeights]]: ...


@contextmanager
@checked
def record_attention(
    model: nn.Module, layers: Sequence[int] | None = None, *, pairs: bool = False
) -> Iterator[AttentionMaps[Any]]:
    """Record the attention weights of `model`'s layers, before dropout.

    The output still comes from the backend that the plan chose; the weights are computed beside it
    from the same queries and keys. Inside of one another, or in one `with`, each records its own.
    What is compiled runs uncompiled meanwhile.

    Args:
        model: any module that holds attention layers, `MultiheadAttention` or another
            `RecordedAttention`.
        layers: indices into these layers, in the order the model defines them; negative ones count
            from the end. All of them by default.
        pairs: record `PairWeights`, those of the allowed pairs alone: for graphs and sequences
            that are too large for a table of all pairs.

    Example::

        with record_attention(model, layers=[-1]) as maps:
            model(images)
        maps[-1]  # (B, H, L, L)

    Raises:
        ValueError: the model has no such layer.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, RecordedAttention)
    ]
    wanted = range(len(found)) if layers is None else layers
    for layer in wanted:
        if not -len(found) <= layer < len(found):
            raise ValueError(
                f"the model has {len(found)} attention layers, there is no layer {layer}"
            )
    maps: AttentionMaps[Any] = AttentionMaps([found[layer] for layer in wanted], pairs)
    token = recorders.set((*recorders.get(), maps))
    try:
        with uncompiled():
            yield maps
    finally:
        recorders.reset(token)
