"""Compile the Triton kernels of `edges` for GPUs of two kinds, and keep what ptxas says of them.

    python -m tests.devices.edges_kernels     # writes edges_kernels.json, in some five minutes

Registers are of a thread, which has 255 at most; what does not fit is spilled to memory.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from attention_core.backends.edges.pairs import Pairs
from attention_core.backends.edges.plain import Inputs
from attention_core.backends.edges.triton import launch
from attention_core.spaces.csr import CSR
from tests.devices.ahead import Compiled, compiling

TABLE = Path(__file__).with_suffix(".json")
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NODES, PAIRS = 64, launch.SEGMENT + 1


class Case(NamedTuple):
    """Hold what kernels are compiled for.

    Attributes:
        capability: compute capability, 80 as an A100 has or 90 as an H100.
        sizes: heads, groups, D (and Dv), F.
        options: whether with bias, allowed, dropout, softcap and sink; without, there are features
            only if F is not 0.
    """

    capability: int
    score: str
    dtype: str
    sizes: tuple[int, int, int, int]
    options: bool

    def __str__(self) -> str:
        heads, groups, dim, features = self.sizes
        with_ = "with all options" if self.options else "alone"
        return (
            f"sm_{self.capability} {self.score} {self.dtype} H={heads} Hkv={groups} D={dim} "
            f"F={features} {with_}"
        )


EVERY = [
    Case(capability, score, dtype, sizes, options)
    for capability in (80, 90)
    for score in ("dot", "additive", "additive_v2")
    for dtype in DTYPES
    for sizes, options in (((8, 8, 8, 0), False), ((8, 2, 64, 16), True))
]
#: Each kernel in each dtype, for one of the two.
FEW = [
    Case(90, "dot", "float32", (8, 2, 64, 16), True),
    Case(80, "additive", "float64", (8, 2, 64, 16), True),
    Case(90, "additive_v2", "bfloat16", (8, 2, 64, 16), True),
    Case(80, "dot", "float16", (8, 2, 64, 16), True),
    Case(90, "dot", "bfloat16", (8, 8, 8, 0), False),
]


def inputs(case: Case) -> tuple[Inputs, Pairs]:
    """Tensors of the case's dtypes; what is in them, no one will read."""
    heads, groups, dim, features = case.sizes
    at = torch.arange(PAIRS) % NODES
    csr = CSR(at, at, NODES, NODES)
    pairs = Pairs(*csr.tensors, csr.item, NODES, *csr.transpose)
    dtype, own = DTYPES[case.dtype], case.score == "additive"
    wide = torch.promote_types(dtype, torch.float32)

    def room(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    of_score = wide if own else dtype
    x: dict[str, Any] = dict.fromkeys(Inputs._fields)
    x |= {"score": case.score, "heads": heads, "scale": 0.3, "slope": 0.2, "grow": 1.0}
    x |= {
        "q": room(NODES, heads, 1 if own else dim, dtype=of_score).transpose(0, 1),
        "k": room(NODES, heads if own else groups, 1 if own else dim, dtype=of_score),
        "v": room(NODES, groups, dim).transpose(0, 1),
        "edge_sums": features > 0,
        "edge_attr_grad": features > 0,
    }
    x["k"] = x["k"].transpose(0, 1)
    if case.score == "additive_v2":
        x["weight"] = room(heads, dim, dtype=wide)
    if features:
        x["edge_attr"] = room(PAIRS, features)
        if case.score == "dot":
            x["edge_query"] = room(heads, NODES, features)
        elif own:
            x["edge_key"] = room(PAIRS, heads, 1, dtype=wide)
        else:
            x["edge_weight"] = room(groups, dim, features)
    if case.options:
        x["bias"] = room(heads, PAIRS, dtype=wide)
        x["allowed"] = torch.ones(heads, PAIRS, dtype=torch.bool)
        x["sink"] = room(heads, dtype=wide)
        x |= {"seed": torch.zeros(1, dtype=torch.int64), "grow": 1.5, "softcap": 2.0}
    return Inputs(**x), pairs


def compiled(case: Case) -> list[Compiled]:
    """Compile all kernels that forward and backward of a case launch."""
    x, pairs = inputs(case)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # one configuration, not all that would be measured
    try:
        with (
            tempfile.TemporaryDirectory() as cache,
            compiling(case.capability, Path(cache)) as known,
        ):
            found = launch.forward(x, pairs)
            of_sum = None if found.edge_sum is None else torch.zeros_like(found.edge_sum)
            of_out, of_lse = torch.zeros_like(found.out), torch.zeros_like(found.lse)
            launch.backward(x, pairs, found, of_out, of_lse, of_sum, case.options)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    return known


if __name__ == "__main__":
    table = {
        str(case): {
            kernel.name: {
                "warps": kernel.warps,
                "registers": kernel.registers,
                "spilled": kernel.spilled,
                "shared": kernel.shared,
            }
            for kernel in compiled(case)
        }
        for case in EVERY
    }
    TABLE.write_text(json.dumps({"triton": triton.__version__} | table, indent=1) + "\n")
