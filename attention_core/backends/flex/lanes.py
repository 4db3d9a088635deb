"""What depends on one token, one head, one sample or nothing: computed for all of them, outside of
the kernel and with its gradient."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from attention_core.backends.flex.tracing import Node, Unmappable, mapped, name_of

#: The sets of inputs by which a kernel can look something up.
KEYS = ("", "h", "b", "q", "k", "bq", "bk", "bh")


class Lanes:
    """The samples, heads and tokens of a job, in the order in which the kernel sees them.

    Args:
        batch, heads: B and H.
        query, key: (rows, L) the token of each place, padding included.
        compiled: for a compiler, which was not done with a search after many minutes.
    """

    def __init__(
        self, batch: int, heads: int, query: Tensor, key: Tensor, compiled: bool = False
    ) -> None:
        self.compiled = compiled
        self.sizes = {"b": batch, "h": heads, "q": query.shape[-1], "k": key.shape[-1]}
        self._tokens = {"q": query, "k": key}
        self._inputs: dict[str, dict[str, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return self._tokens["q"].device

    @staticmethod
    def key(node: Node) -> str | None:
        """Return which of `KEYS` decides a node; None where more does."""
        key = "".join(name for name in "bhqk" if name in node.depends)
        return key if key in KEYS and len(key) == len(node.depends) else None

    def inputs(self, key: str) -> dict[str, Tensor]:
        """Return the inputs (N,) of all combinations that `key` stands for; a 0 for what it does
        not name."""
        if key not in self._inputs:
            device = self.device
            sizes = [self.sizes[name] for name in key]
            found = {name: torch.zeros(1, dtype=torch.long, device=device) for name in "bhqk"}
            for axis, name in enumerate(key):
                index = torch.arange(sizes[axis], device=device)
                if name in self._tokens:  # one row of tokens, or one of each sample
                    tokens = self._tokens[name]
                    index = tokens[0] if axis == 0 else tokens
                elif axis == 0 and len(sizes) == 2:
                    index = index[:, None]
                found[name] = index.expand(sizes).reshape(-1)
            self._inputs[key] = found
        return self._inputs[key]

    def evaluate(self, node: Node, key: str, known: dict[Node, Any]) -> Any:
        """Compute a node for all combinations of `key`, (N, ...).

        Args:
            known: what was computed of this key before.

        Raises:
            Unmappable: it mixes pairs with each other.
        """
        if node in known:
            return known[node]
        if node.function is None:
            value: Any = self.inputs(key)[node.name]
        else:

            def argument(x: Any) -> Any:
                return self.evaluate(x, key, known) if isinstance(x, Node) else x

            args, kwargs = mapped(argument, node.args), mapped(argument, node.kwargs)
            if node.function is operator.getitem:
                value = args[0][args[1]]
            else:
                value = node.function(*_for_all(node.function, args), **kwargs)
        if isinstance(value, Tensor):
            self._check(node, value, key)
        known[node] = value
        return value

    def _check(self, node: Node, value: Tensor, key: str) -> None:
        count = 1
        for name in key:
            count *= self.sizes[name]
        wanted = node.like.shape
        if not len(wanted) or wanted[0] != 1 or value.shape[1:] != wanted[1:]:
            raise Unmappable(_mixes(node))
        if value.shape[0] not in (1, count):
            raise Unmappable(_mixes(node))


def _mixes(node: Node) -> str:
    return f"it does not treat each pair alone ({name_of(node.function)})"


#: Operators whose second argument is a shape that was written down for one pair.
_SHAPED = {"expand", "view", "_unsafe_view", "reshape"}


def _for_all(function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an operator, for as many pairs as its first argument has."""
    if name_of(function) not in _SHAPED or not args[0].ndim or args[0].shape[0] == 1:
        return args
    shape = list(args[1])
    if shape and shape[0] == 1:
        shape[0] = args[0].shape[0]
    return (args[0], shape, *args[2:])
