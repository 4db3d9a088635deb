"""What a mask, a bias or a score mod computes of one pair, as a graph of operations.

They are asked about one pair, whose four indices, and whose score, are `Traced`: tensors that say
where they are, how large and of which type, and hold no number. Each operation on one gives another
and is noted. `torch.fx` would do, at two hundred times the cost of asking; this is asked for each
batch that is packed anew.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attention_core.errors import BackendError
from attention_core.spaces import Pairs, Space

#: Entries of a table of all pairs inside the graphs of a batch, in which edges are looked up.
_MOST_PAIRS = 1 << 24


class Unmappable(BackendError):
    """What cannot be a score_mod or mask_mod; the message says what and why."""


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


class OnePair(Pairs):
    """One pair, whose indices are `Traced`. Edges are looked up in a table of pairs, where that is
    small, so that the code is the same for other edges."""

    @property
    def edge(self) -> Tensor:
        space = self.spaces[1]
        table = _edge_table(space)
        if table is None or self.spaces[0].edges is not space.edges:
            return super().edge
        row = self.pair
        return torch.where(row < 0, -1, table[row.clamp(min=0)])


def _edge_table(space: Space) -> Tensor | None:
    """The edge of each pair inside a graph, -1 where there is none; None if that is too much."""
    edges = space.edges
    if edges is None or edges.bipartite or not edges.num_nodes or edges.repeated is not None:
        return None
    if int((edges.sizes**2).sum()) > _MOST_PAIRS:
        return None
    return edges.memo("edge_of_pair", lambda: edges.find(*edges.all_pairs()))


@dataclass
class Tracer:
    """Ask masks and biases about one pair of a job.

    Args:
        spaces: where queries and keys sit.
        shape: (B, H, Lq, Lk).
        rows: rows of tokens: the batch where its samples sit in different places, else 1.
        device: where the tensors of the spaces are.
    """

    spaces: tuple[Space, Space]
    shape: tuple[int, int, int, int]
    rows: int
    device: torch.device
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
        found = what(self.pairs)
        return found.node if isinstance(found, Traced) else found
