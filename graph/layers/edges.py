"""The edges that a layer is called with: checked, sorted once, and with self-loops."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, MutableMapping, Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.weak import WeakIdKeyDictionary

from attention_core.checks import check_dense, may_look
from attention_core.spaces.edge_list import EdgeList

#: PyG's name of each way to make the features of a self-loop, and torch's.
REDUCTIONS = {"add": "sum", "mean": "mean", "min": "amin", "max": "amax", "mul": "prod"}

#: What was computed for an `edge_index`, as long as that lives.
_known: MutableMapping[Tensor, dict[object, EdgeList]] = WeakIdKeyDictionary()
#: What that was computed from, where it is on a device and cannot be compared.
_stamps: MutableMapping[EdgeList, _Stamp] = weakref.WeakKeyDictionary()


def check_edge_index(edge_index: Tensor, name: str = "edge_index") -> Tensor:
    """Return `edge_index` as a plain tensor (2, E) of int64.

    Raises:
        TypeError: it is no dense tensor, or does not hold integers.
        ValueError: it has another shape.
    """
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        got = edge_index.layout if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise TypeError(f"{name} must be a dense tensor (2, E) of integers, got {got}")
    # PyG's EdgeIndex, a subclass whose operations would sort and check along
    check_dense(**{name: edge_index})  # type: ignore[arg-type]
    plain: Tensor = getattr(edge_index, "as_tensor", lambda: edge_index)()
    if plain.is_floating_point() or plain.is_complex() or plain.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {plain.dtype}")
    if plain.ndim != 2 or plain.shape[0] != 2:
        raise ValueError(f"{name} must have shape (2, E), got {tuple(plain.shape)}")
    return plain.long()


def check_finite(x: Tensor, name: str) -> None:
    """Raise ValueError where x (rows, ...) holds NaN or an infinity."""
    # One sum tells nearly always, without a tensor of bools
    if may_look(x) and x.is_floating_point() and not bool(x.detach().sum().isfinite()):
        wrong = (~x.detach().isfinite()).flatten(1).any(1).nonzero()
        if len(wrong):
            raise ValueError(f"{name} has a feature that is not finite, first in row {wrong[0, 0]}")


def keeps_sorted(edge_index: Tensor) -> bool:
    """Return whether `sorted_once` knows this tensor again: not in a program that is compiled, nor
    on a device, which would have to be waited for, if it has no version: one of inference mode."""
    return not is_compiling() and (may_look(edge_index) or not edge_index.is_inference())


def sorted_once(
    edge_index: Tensor,
    num_sources: int,
    num_targets: int | None = None,
    *,
    given: Sequence[Tensor] = (),
    layout: Hashable = None,
) -> EdgeList:
    """Return the edges for this and all further layers and passes that are given the same tensors.

    A graph is sorted once: that takes about as long as a layer. The sorted edges live as long as
    the tensor, and are dropped where its numbers have changed: on a CPU they are compared, while
    on another device its version tells, as of all but what is done to its `.data`.

    Args:
        edge_index: (2, E) int64.
        num_sources: number of nodes, or of sources where targets are a set of their own.
        num_targets: number of targets, if they are.
        given: the tensors that callers hold, where those are others.
        layout: what else `edge_index` was made of.
    """
    given = given or (edge_index,)
    if not all(map(keeps_sorted, given)):
        return EdgeList(edge_index, num_sources, num_targets=num_targets)
    found = _known.setdefault(given[0], {})
    key = num_sources, num_targets, edge_index.device
    edges = found.get(key)
    if edges is not None and may_look(edge_index):
        same = all(map(torch.equal, (edges.source, edges.target), edge_index))
    else:
        same = edges is not None and _stamps[edges].fits(given, layout)
    if edges is None or not same:
        # A copy of its own, so that a change in place is seen
        edges = EdgeList(edge_index.clone(), num_sources, num_targets=num_targets)
        if not may_look(edge_index):
            _stamps[edges] = _Stamp(given, layout)
        found[key] = edges
    return edges


class _Stamp:
    """Which tensors there were, and in which version."""

    def __init__(self, tensors: Sequence[Tensor], layout: Hashable) -> None:
        # An address alone may be that of a later tensor
        self.tensors = [weakref.ref(x) for x in tensors]
        self.versions, self.layout = [_version(x) for x in tensors], layout

    def fits(self, tensors: Sequence[Tensor], layout: Hashable) -> bool:
        return (
            layout == self.layout
            and len(tensors) == len(self.tensors)
            and all(ref() is x for ref, x in zip(self.tensors, tensors, strict=True))
            and self.versions == [_version(x) for x in tensors]
        )


def _version(x: Tensor) -> tuple[object, ...]:
    """What differs once the numbers of a tensor have been changed in place."""
    if x.layout == torch.strided:
        parts = [x]
    elif x.layout == torch.sparse_coo:
        parts = [x._indices()]
    elif x.layout == torch.sparse_csr:
        parts = [x.crow_indices(), x.col_indices()]
    else:
        parts = [x.ccol_indices(), x.row_indices()]
    return x._version, *((part._version, part.data_ptr(), part.shape) for part in parts)


def loop_features(
    attr: Tensor, target: Tensor, count: int, fill_value: float | Tensor | str
) -> Tensor:
    """Make features (count, ...) of the self-loops of nodes 0 to count - 1, as PyG does.

    Args:
        attr: (E, ...) of the other edges.
        target: (E,) their targets.
        fill_value: a number or a tensor (...), or how the features of the edges into a node are
            brought together: "add", "mean", "min", "max" or "mul".

    Raises:
        ValueError: `attr` holds types, and `fill_value` is none.
    """
    shape = (count, *attr.shape[1:])
    if isinstance(fill_value, Tensor):
        return fill_value.to(attr).expand(shape)
    if not attr.is_floating_point() and not isinstance(fill_value, int):
        raise ValueError(
            f"self-loops need a type where edge_attr holds types ({attr.dtype}): give an integer "
            f"fill_value, got {fill_value!r}"
        )
    if not isinstance(fill_value, str):
        return attr.new_full(shape, fill_value)
    reduction = REDUCTIONS[fill_value]
    # One row more takes what leads to other nodes: to choose the rest would be to ask how many
    shape = (count + 1, *attr.shape[1:])
    start = attr.new_ones(shape) if reduction == "prod" else attr.new_zeros(shape)
    index = target.clamp(max=count).view(-1, *[1] * (attr.ndim - 1)).expand_as(attr)
    return start.scatter_reduce(0, index, attr, reduction, include_self=False)[:count]


def in_input_order(edge_index: Tensor, kept: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Bring edges with self-loops into the order in which they came in.

    Args:
        edge_index: (2, E) the input.
        kept: (K,) which of its edges are no self-loops.
        nodes: how many nodes have one loop each.

    Returns: edges (2, E + A), first all that came in, then the loops of the A nodes that came
        without one; and (K + nodes,) where among these the kept edges and then the loops are. Where
        a loop came more than once, that is the first; attention leaves the others out.
    """
    count = edge_index.shape[1]
    loop = (edge_index[0] == edge_index[1]).nonzero().squeeze(-1)
    first = edge_index.new_full((nodes,), count).scatter_reduce(
        0, edge_index[0, loop], loop, "amin"
    )
    added = (first == count).nonzero().squeeze(-1)
    first[added] = torch.arange(count, count + len(added), device=first.device)
    return torch.cat([edge_index, added.expand(2, -1)], dim=1), torch.cat([kept, first])
