"""What a mask, a bias or a score mod computes of one pair, as a graph of operations.

They are asked about one pair, whose four indices, and whose score, are `Traced`: tensors that say
where they are, how large and of which type, and hold no number. Each operation on one gives another
and is noted. `torch.fx` would do, at two hundred times the cost of asking; this is asked for each
batch that is packed anew.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from attention_core.errors import BackendError
from attention_core.job import Job
from attention_core.spaces import Pairs, Space


class Unmappable(BackendError):
    """Say what cannot be a score_mod or mask_mod, and why."""


@dataclass(eq=False)
class Node:
    """One operation, or one of the inputs `b`, `h`, `q`, `k` and `score`.

    Attributes:
        function: the operator; None for an input.
        args, kwargs: what it is applied to: nodes, tensors and numbers.
        depends: the inputs that decide it.
        like: a tensor of the shape and type that it has for one pair, (1, ...), or a list of them;
            its numbers mean nothing.
        name: of an input.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    depends: frozenset[str]
    like: Any
    name: str = ""

    @property
    def trailing(self) -> tuple[int, ...]:
        """Its shape, that of pairs aside."""
        return tuple(self.like.shape[1:])

    def children(self) -> Iterator[Node]:
        """Yield the nodes that it is computed from."""
        stack = [self.args, self.kwargs]
        while stack:
            one = stack.pop()
            if isinstance(one, Node):
                yield one
            elif isinstance(one, tuple | list):
                stack += one
            elif isinstance(one, dict):
                stack += one.values()


class Traced(Tensor):
    """A value of one pair, that is not known yet."""

    node: Node

    @staticmethod
    def __new__(cls, node: Node, device: torch.device) -> Traced:
        made: Traced = Tensor._make_wrapper_subclass(
            cls, node.like.shape, dtype=node.like.dtype, device=device
        )
        made.node = node
        return made

    def __init__(self, node: Node, device: torch.device) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _noted(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"<a value of one pair, {self.dtype} {tuple(self.shape)}>"


#: What makes a constant in the shape of another tensor.
_MADE_ALIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}


def name_of(function: Any) -> str:
    """Return the name of an operator without its overload."""
    packet = getattr(function, "overloadpacket", function)
    return str(getattr(packet, "__name__", packet))


def _noted(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = name_of(function)
    if name == "detach" and isinstance(args[0], Traced):
        return Traced(args[0].node, args[0].device)
    if function._schema.is_mutable:
        raise Unmappable(f"it changes a tensor in place ({name}); give a new one instead")
    if not _LOOKS.isdisjoint(function.tags) and not (name == "index" and _by_number(args[1])):
        raise Unmappable(f"it looks at values of pairs ({name})")
    found: list[Traced] = []

    def node(x: Any) -> Any:
        if isinstance(x, Traced):
            found.append(x)
            return x.node
        return x

    node_args, node_kwargs = mapped(node, args), mapped(node, kwargs)
    device = found[0].device

    def like(x: Any) -> Any:
        if isinstance(x, Traced):
            return x.node.like
        if isinstance(x, Tensor):
            return x if device.type == "cpu" else x.detach().to("meta")
        return torch.device("meta") if isinstance(x, torch.device) and device.type != "cpu" else x

    try:
        with torch.no_grad():
            result = function(*mapped(like, args), **mapped(like, kwargs))
    except (RuntimeError, NotImplementedError, IndexError) as error:
        raise Unmappable(f"it computes what FlexAttention cannot ({name}: {error})") from error
    depends = frozenset[str]().union(*(x.node.depends for x in found))
    if name in _MADE_ALIKE:
        depends = frozenset()
    made = Node(function, node_args, node_kwargs, depends, result)
    if isinstance(result, Tensor):
        return Traced(made, device)
    return [
        Traced(Node(operator.getitem, (made, n), {}, depends, one), device)
        for n, one in enumerate(result)
    ]


#: Tags of operators that give numbers, or shapes that depend on numbers.
_LOOKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def _by_number(index: Any) -> bool:
    return all(one is None or one.dtype != torch.bool for one in index)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Return nested arguments with `function` applied to each that is no tuple, list or dict."""
    if isinstance(value, tuple | list):
        return type(value)([mapped(function, one) for one in value])
    if isinstance(value, dict):
        return {key: mapped(function, one) for key, one in value.items()}
    return function(value)


@dataclass(frozen=True)
class Links:
    """The edges between tokens, and the pairs that a mask lists with their distance.

    They are sorted by place, to be searched, with a last one that is nobody's.

    Attributes:
        edge_places, edges: of each edge target · nodes + source, and which it is.
        table: the edge of each pair of nodes inside a graph, -1 where there is none; None where
            that would be many.
        places, distances: of each listed pair query · keys + key, and how far apart they are; all
            others are forbidden. None where the mask lists none.
    """

    edge_places: Tensor
    edges: Tensor
    table: Tensor | None
    places: Tensor | None = None
    distances: Tensor | None = None

    @classmethod
    def of(cls, job: Job) -> Links | None:
        """Return those of a job on the host; None without edges, or where one is listed twice."""
        query, key = job.spaces
        edges = key.edges
        if edges is None or query.edges is not edges or edges.repeated is not None:
            return None
        places, order = edges._sorted
        table = None
        many = edges.bipartite or int((edges.sizes**2).sum()) > _FEW * edges.num_nodes
        if edges.num_nodes and not many:
            table = edges.memo("edge_of_pair", lambda: edges.find(*edges.all_pairs()))
        found = cls(_ended(places, torch.iinfo(places.dtype).max), _ended(order, -1), table)
        listed = job.mask.candidates(job.spaces) if job.mask is not None and key.searched else None
        if listed is None or listed.distance is None or listed.batch is not None:
            return found
        places, order = (listed.query * key.length + listed.key).sort()
        return replace(
            found,
            places=_ended(places, torch.iinfo(places.dtype).max),
            distances=_ended(listed.distance[order], torch.inf),
        )


#: Pairs of nodes inside graphs, for each node, of which a table is kept.
_FEW = 64


def _ended(x: Tensor, last: float) -> Tensor:
    return torch.cat([x, x.new_full((1,), last)])


def _searched(places: Tensor, values: Tensor, wanted: Tensor, missing: float) -> Tensor:
    """The value of each place that is wanted, `missing` where there is none."""
    at = torch.searchsorted(places, wanted)
    return torch.where(places[at] == wanted, values[at], missing)


class OnePair(Pairs):
    """One pair, whose indices are `Traced`. Edges and hops are searched in such a way that the code
    is the same for other edges."""

    links: Links | None = None

    @property
    def edge(self) -> Tensor:
        links, space = self.links, self.spaces[1]
        if links is None or space.edges is None:
            return super().edge
        if links.table is not None:
            row = self.pair
            return torch.where(row < 0, -1, links.table[row.clamp(min=0)])
        target, source = (self.take("nodes", side) for side in ("query", "key"))
        place = target * space.edges.num_nodes + source
        found = _searched(links.edge_places, links.edges, place, -1)
        return torch.where((target >= 0) & (source >= 0), found, -1)

    @property
    def distance(self) -> Tensor:
        links = self.links
        if links is None or links.places is None or links.distances is None:
            return super().distance
        place = self.query * self.spaces[1].length + self.key
        return _searched(links.places, links.distances, place, torch.inf)


@dataclass
class Tracer:
    """Ask masks and biases about one pair of a job.

    Args:
        spaces: where queries and keys sit.
        shape: (B, H, Lq, Lk).
        rows: rows of tokens: the batch where its samples sit in different places, else 1.
        device: where the tensors of the spaces are.
        links: their edges.
    """

    spaces: tuple[Space, Space]
    shape: tuple[int, int, int, int]
    rows: int
    device: torch.device
    links: Links | None = None
    pairs: OnePair = field(init=False)

    def __post_init__(self) -> None:
        of_row = {"b"} if self.rows > 1 else set()
        index = self._like(torch.long)
        batch, head, query, key = (
            self._input(name, depends, index)
            for name, depends in (
                ("b", {"b"}), ("h", {"h"}), ("q", {"q"} | of_row), ("k", {"k"} | of_row)
            )
        )  # fmt: skip
        self.pairs = OnePair(
            self.spaces, shape=self.shape, batch=batch, head=head, query=query, key=key
        )
        self.pairs.links = self.links

    def _like(self, dtype: torch.dtype) -> Tensor:
        # On a CPU that is quicker than on the meta device, whose operators are Python
        return torch.zeros(1, dtype=dtype, device="cpu" if self.device.type == "cpu" else "meta")

    def _input(self, name: str, depends: set[str], like: Tensor) -> Traced:
        return Traced(Node(None, (), {}, frozenset(depends), like, name), self.device)

    def score(self, name: str, dtype: torch.dtype) -> Traced:
        """Return the score of the pair, which is called so in the code, before it is modified."""
        return self._input(name, {"score"}, self._like(dtype))

    def trace(self, what: Callable[[Pairs], Any]) -> Node | Tensor | None:
        """Return what is computed of the pair: a node, a tensor that is alike for all pairs, or
        None.

        Raises:
            Unmappable: it looks at values, or is of other operations than FlexAttention has.
        """
        # A mode that looks at each tensor, such as a counter of memory, would find no memory
        with _disable_current_modes():
            found = what(self.pairs)
        return found.node if isinstance(found, Traced) else found
