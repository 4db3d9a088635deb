"""Python code of what is left of a mask, bias or score mod: functions of the scalars b, h, q, k.

Vectors of a token, such as coordinates, are written number by number, and sums over them as chains,
so that the compiler sees pointwise operations and loads alone. Numbers come in as captured tensors,
so that equal structure gives equal code, which is compiled once.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from attention_core.backends.flex.lanes import Lanes
from attention_core.backends.flex.spelling import INFIX, Coded, is_literal, spell, spell_call
from attention_core.backends.flex.tracing import Node, Unmappable, name_of
from attention_core.precision import HALVES
from attention_core.transfer import constant

#: Numbers of one pair that are written out.
_MOST = 32

_SAME = {"alias", "clone", "lift_fresh", "lift_fresh_copy", "contiguous"}
#: Operators that only move numbers, which are done once, when the code is written.
_MOVES = {
    "view", "_unsafe_view", "reshape", "expand", "squeeze", "unsqueeze", "select", "slice", "t",
    "permute", "transpose", "flip", "roll", "repeat", "unbind", "split", "split_with_sizes",
}  # fmt: skip
_JOINS = {
    "all": "({} & {})", "any": "({} | {})", "sum": "({} + {})", "prod": "({} * {})",
    "amax": "torch.maximum({}, {})", "amin": "torch.minimum({}, {})",
    "linalg_vector_norm": "({} + {})",
}  # fmt: skip


class Writer:
    """Write the lines of a function of b, h, q, k, and gather what it captures.

    Args:
        lanes: what is known of samples, heads and tokens.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes, self.device = lanes, lanes.device
        self.lines: list[str] = []
        self.buffers: list[Tensor] = []
        self._known: dict[Node, Any] = {}
        self._lanes: dict[str, dict[Node, Any]] = {}
        self._names: dict[str, str] = {}
        #: Codes of what is never below 0, so that it is an index as it is.
        self._natural = {"b", "h"}

    def line(self, code: str) -> str:
        """Return the name of what this code computes, written once."""
        if code not in self._names:
            self._names[code] = name = f"t{len(self._names)}"
            self.lines.append(f"{name} = {code}")
        return self._names[code]

    def captured(self, tensor: Tensor, index: str) -> str:
        """Return the code of ``tensor[index]``, of a tensor that the function captures."""
        if tensor.device != self.device:  # a number of Python's, to which tensors were compared
            tensor = constant(tuple(tensor.tolist()), self.device, tensor.dtype)
        self.buffers.append(tensor.contiguous())
        return self.line(f"c{len(self.buffers) - 1}[{index}]")

    def scalar(self, value: Node | Tensor) -> str:
        """Return the code of a value of one number a pair.

        Raises:
            Unmappable: it has several, or cannot be written.
        """
        coded = self.coded(value)
        if len(coded.codes) != 1:
            raise Unmappable(f"it gives {coded.shape[1:]} numbers for a pair")
        return coded.codes[0]

    def coded(self, value: Any) -> Coded:
        if isinstance(value, Node):
            if value not in self._known:
                key = self.lanes.key(value)
                self._known[value] = (
                    self._emit(value) if key is None else self._looked_up(value, key)
                )
            found: Coded = self._known[value]
            return found
        if isinstance(value, Tensor):
            return self._constant(value, literal=True)
        return Coded([spell(value)], (1,))

    def _constant(self, tensor: Tensor, *, literal: bool) -> Coded:
        if tensor.numel() > _MOST:
            raise Unmappable(f"{tensor.numel()} numbers take part in each pair")
        one_by_one = tensor.reshape(-1)
        shape = tuple(tensor.shape) or (1,)
        # To look at another device would be to wait for it
        if literal and not tensor.requires_grad and tensor.device.type == "cpu":
            return Coded([spell(x) for x in one_by_one.tolist()], shape)
        # Of no dimension, it would lose its gradient in older versions (pytorch#145208)
        return Coded([self.captured(x.reshape(1), "b * 0") for x in one_by_one.unbind()], shape)

    def value(self, node: Node, key: str) -> Tensor:
        """Return a node for all combinations of `key`."""
        found: Tensor = self.lanes.evaluate(node, key, self._lanes.setdefault(key, {}))
        return found

    def _looked_up(self, node: Node, key: str) -> Coded:
        """The code of what depends on a token, a head or a sample: it is computed outside."""
        if node.function is None and node.name in "bh":
            return Coded([node.name], (1,))
        full = self.value(node, key)
        if not key:
            return self._constant(full, literal=True)
        if math.prod(node.trailing) > _MOST:
            raise Unmappable(f"a token has {math.prod(node.trailing)} numbers in each pair")
        sizes = [self.lanes.sizes[name] for name in key]
        columns = full.expand(math.prod(sizes), *full.shape[1:]).reshape(*sizes, -1).unbind(-1)
        codes = [self.captured(column, ", ".join(key)) for column in columns]
        if self._is_natural(full):
            self._natural.update(codes)
        return Coded(codes, (1, *node.trailing))

    def _is_natural(self, full: Tensor) -> bool:
        if full.is_floating_point() or full.dtype == torch.bool:
            return False
        return full.device.type == "cpu" and (not full.numel() or int(full.min()) >= 0)

    # -- operations on what differs from pair to pair ------------------------------------------

    def _emit(self, node: Node) -> Any:
        if node.function is None:
            return Coded([node.name], (1,))
        name, args = name_of(node.function), node.args
        if node.function is operator.getitem:
            parts = self._moved(args[0])
            return parts[args[1]]
        if not isinstance(node.like, Tensor):
            raise Unmappable(f"it computes what FlexAttention cannot ({name})")
        if node.like.ndim == 0 or node.like.shape[0] != 1:
            raise Unmappable(f"it does not treat each pair alone ({name})")
        if node.like.numel() > _MOST and name not in _PRODUCTS:
            raise Unmappable(f"{node.like.numel()} numbers take part in each pair ({name})")
        if name in _SAME:
            return self.coded(args[0])
        if name in _MOVES:
            return self._moved(node)
        if name in ("stack", "cat"):
            return self._joined(node)
        if name in _JOINS:
            return self._reduced(node, name)
        if name in ("index", "embedding", "index_select"):
            return self._indexed(node, name)
        if name == "searchsorted":
            return self._searched(node)
        if name in _PRODUCTS:
            raise Unmappable("it runs a network on each pair")
        if torch.Tag.pointwise not in node.function.tags and name not in _POINTWISE:
            raise Unmappable(f"it computes what FlexAttention cannot ({name})")
        return self._pointwise(node, name)

    def _moved(self, node: Node) -> Any:
        one = self.coded(node.args[0])
        moved = node.function(one.numbers, *node.args[1:], **node.kwargs)
        if isinstance(moved, Tensor):
            return one.moved(moved)
        return [one.moved(part) for part in moved]

    def _joined(self, node: Node) -> Coded:
        parts = [self.coded(part) for part in node.args[0]]
        together = Coded([code for part in parts for code in part.codes], ())
        numbers, first = [], 0
        for part in parts:
            numbers.append(part.numbers + first)
            first += len(part.codes)
        return together.moved(node.function(numbers, *node.args[1:], **node.kwargs))

    def _reduced(self, node: Node, name: str) -> Coded:
        one = self.coded(node.args[0])
        boolean = node.args[0].like.dtype == torch.bool
        if boolean != (name in ("all", "any")):
            raise Unmappable(
                f"it computes what FlexAttention cannot ({name} of {node.args[0].like.dtype})"
            )
        rest = list(node.args[1:])
        # Halves are added up in float32, as torch's operators do
        half = node.args[0].like.dtype in HALVES
        if half:
            one = Coded([self.line(f"{code}.to(torch.float32)") for code in one.codes], one.shape)
        if name == "linalg_vector_norm":
            if rest and rest.pop(0) != 2:
                raise Unmappable("of norms it can have the Euclidean one alone")
            one = Coded([self.line(f"({code} * {code})") for code in one.codes], one.shape)
        dims: Any = rest[0] if rest else node.kwargs.get("dim")
        axes = {d % len(one.shape) for d in (dims if isinstance(dims, list | tuple) else [dims])}
        kept = [d for d in range(len(one.shape)) if d not in axes]
        groups = one.numbers.permute(*kept, *sorted(axes)).reshape(node.like.numel(), -1)
        codes = []
        for group in groups.tolist():
            total = one.codes[group[0]]
            for n in group[1:]:
                total = self.line(_JOINS[name].format(total, one.codes[n]))
            total = self.line(f"torch.sqrt({total})") if "norm" in name else total
            codes.append(self.line(f"{total}.to({node.like.dtype})") if half else total)
        return Coded(codes, tuple(node.like.shape))

    def _indexed(self, node: Node, name: str) -> Coded:
        table = node.args[0]
        index: list[Any] = [node.args[1]]  # of an embedding
        if name == "index":
            index = list(node.args[1])
        elif name == "index_select":
            dims = table.like.ndim if isinstance(table, Node) else table.ndim
            index = [None] * (int(node.args[1]) % int(dims)) + [node.args[2]]
        if isinstance(table, Node):
            if not any(isinstance(one, Node) for one in index):  # by numbers that are known
                one = self.coded(table)
                return one.moved(node.function(one.numbers, *node.args[1:]))
            if self.lanes.key(table) != "":
                self.coded(table)  # says why, where it cannot be written at all
                raise Unmappable("it indexes what differs from pair to pair")
            table = self.value(table, "")
        if any(one is None for one in index):
            raise Unmappable("it takes whole rows for a pair")
        at = [self.coded(one) for one in index]
        rest = math.prod(table.shape[len(index) :])
        if rest > _MOST:
            raise Unmappable(f"it takes a row of {rest} numbers for each pair")
        shape = torch.broadcast_shapes(*(one.shape for one in at))
        spread = [one.moved(one.numbers.expand(shape)).codes for one in at]
        columns = table.reshape(*table.shape[: len(index)], -1).unbind(-1)
        codes = []
        for n in range(math.prod(shape)):
            places = ", ".join(
                self._place(one[n], size) for one, size in zip(spread, table.shape, strict=False)
            )
            codes += [self._of_table(column, places) for column in columns]
        return Coded(codes, tuple(node.like.shape))

    def _of_table(self, column: Tensor, places: str) -> str:
        return self.captured(column, places)

    def _place(self, code: str, size: int) -> str:
        """An index that may be below 0, which counts from the end."""
        if code in self._natural:
            return code
        if code.isdigit():
            return f"b * 0 + {code}"
        end = self.captured(constant((size,), self.device), "b * 0")
        return self.line(f"torch.where({code} < 0, {code} + {end}, {code})")

    def _searched(self, node: Node) -> Coded:
        """A binary search, step by step: how many numbers of a table come before one."""
        table, wanted = node.args
        if self.lanes.compiled:
            raise Unmappable("it searches a list of pairs, which a compiler would unroll")
        if isinstance(table, Node) or not isinstance(wanted, Node) or table.ndim != 1:
            raise Unmappable("it searches in what differs from pair to pair")
        right = node.kwargs.get("right") or node.kwargs.get("side") == "right"
        steps = max(len(table), 1).bit_length()
        filler = torch.inf if table.is_floating_point() else torch.iinfo(table.dtype).max
        table = torch.cat([table, table.new_full((2**steps - 1 - len(table),), filler)])
        self.buffers.append(table)
        name, before = f"c{len(self.buffers) - 1}", "<=" if right else "<"
        codes = []
        for code in self.coded(wanted).codes:
            place = "b * 0"
            for bit in reversed(range(steps)):
                ahead = self.line(f"{place} + {2**bit}")
                place = self.line(
                    f"torch.where({name}[{ahead} - 1] {before} {code}, {ahead}, {place})"
                )
            codes.append(place)
            self._natural.add(place)
        return Coded(codes, tuple(node.like.shape))

    def _pointwise(self, node: Node, name: str) -> Coded:
        shape = tuple(node.like.shape)
        infix = name in INFIX and len(node.args) == 2 and not node.kwargs
        literal = infix or name in ("where", "masked_fill")

        def spread(x: Any) -> list[str]:
            if x is None or isinstance(x, bool | int | float | str | list | tuple | torch.dtype):
                return [spell(x)] * math.prod(shape)
            one = self.coded(x) if literal or isinstance(x, Node) else None
            if one is None or (not literal and is_literal(one)) or (not infix and _counts(one)):
                value = x if isinstance(x, Tensor) else self.value(x, "")
                one = self._constant(value, literal=False)
            return one.moved(one.numbers.expand(shape)).codes

        columns = [spread(x) for x in node.args]
        options = {key: spread(x) for key, x in node.kwargs.items() if key not in _NOT_NEEDED}
        codes = []
        for n in range(math.prod(shape)):
            given = [column[n] for column in columns]
            named = [f"{key}={column[n]}" for key, column in options.items()]
            codes.append(self.line(spell_call(node, name, infix, given, named)))
        self._learn(node, name, columns, codes)
        return Coded(codes, shape)

    def _learn(self, node: Node, name: str, columns: list[list[str]], codes: list[str]) -> None:
        """Note which results are never below 0."""
        first = node.args[0]
        least = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
        natural = name == "abs" or (
            name in ("clamp", "clamp_min") and isinstance(least, int | float) and least >= 0
        )
        if name == "_to_copy":
            of_bool = isinstance(first, Node) and first.like.dtype == torch.bool
            natural = of_bool or all(code in self._natural for code in columns[0])
        if name in ("add", "mul", "where", "maximum", "minimum"):
            taken = columns[1:] if name == "where" else columns
            natural = all(c in self._natural or c.isdigit() for one in taken for c in one)
        if natural:
            self._natural.update(codes)


_PRODUCTS = {"addmm", "mm", "bmm", "mv", "linear", "dot"}
#: Pointwise operators that are not marked so in every version of torch.
_POINTWISE = {"_to_copy", "where", "masked_fill", "floor_divide"}
#: Of keyword arguments, what says how a result is stored.
_NOT_NEEDED = {"memory_format", "layout", "pin_memory", "device", "non_blocking"}


def _counts(coded: Coded) -> bool:
    """Whether a number is large enough to be a count of edges or tokens, which differs from batch
    to batch; what is chosen where there is nothing is one behind the last."""
    return any(code.isdigit() and int(code) >= _MOST for code in coded.codes)
