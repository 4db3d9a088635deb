"""Compare the Triton kernels of `edges` with plain torch, in Triton's interpreter, on the CPU.

    python -m tests.attention_core.edges_in_triton few|all

A process of its own, as the interpreter has to be asked for before triton is imported. Prints what
differs, case by case, and "equal" where nothing does.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ["ATTENTION_CORE_FAST"] = "0"

import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime import interpreter

from attention_core import Additive, AdditiveV2, EdgeProjection, Edges, Graph, attend
from attention_core.backends import edges
from attention_core.backends.edges import operator, plain, ways
from attention_core.backends.edges.pairs import Pairs
from attention_core.backends.edges.plain import Inputs
from attention_core.backends.edges.triton import launch, tuning
from attention_core.spaces.csr import CSR

_patch, _patched = interpreter._patch_lang, dict[int, Any]()


def _patch_once(function: Any) -> Any:
    """Patch triton.language for a kernel and leave it so: to do it for every function that one
    calls, as the interpreter does, takes half of the time."""
    key = id(function.__globals__)
    if key not in _patched:
        _patched[key] = _patch(function)
    return mock.Mock()


interpreter._patch_lang = _patch_once

N, M, E, EDGES, F = 7, 6, 48, 30, 3
DOUBLE = torch.float64


def listed(dtype: torch.dtype = torch.int32) -> Pairs:
    """Pairs with a query and a key that have none, an edge that comes 20 times, hubs among both,
    and several pairs for one edge."""
    row = torch.cat([torch.full((20,), 3), torch.tensor([5] * 8), torch.randint(1, N, (20,))])
    column = torch.cat([torch.full((20,), 2), torch.randint(1, M, (28,))])
    csr = CSR(row, column, N, M)
    tensors = [*csr.tensors, torch.randint(0, EDGES, (E,)), *csr.transpose]
    start, row, column, item, *by_key = (t.to(dtype) for t in tensors)
    return Pairs(start, row, column, item, M, *by_key)


def normal(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def inputs(
    score: str,
    heads: int,
    groups: int,
    dim: int,
    value_dim: int,
    pairs: Pairs,
    *,
    features: int = 0,
    tensors: bool = False,
    per_pair: bool = False,
    dtype: torch.dtype = DOUBLE,
    **given: Any,
) -> Inputs:
    """Tokens as three projections leave them; and every option that is asked for."""
    wide = torch.promote_types(dtype, torch.float32)
    own, count = score == "additive", len(pairs.row)
    key_heads, key_dim = (heads, 1) if own else (groups, dim)
    of_score = wide if own else dtype
    x: dict[str, Any] = dict.fromkeys(Inputs._fields)
    x |= {"score": score, "heads": heads, "scale": 0.7, "slope": 0.2, "grow": 1.0}
    x |= {"edge_sums": features > 0, "edge_attr_grad": features > 0}
    x["v"] = normal(pairs.columns, groups, value_dim, dtype=dtype).transpose(0, 1)
    if score != "none":
        x["q"] = normal(pairs.rows, heads, key_dim, dtype=of_score).transpose(0, 1)
        x["k"] = normal(key_heads, pairs.columns, key_dim, dtype=of_score)
    if score == "additive_v2":
        x["weight"] = normal(heads, dim, dtype=wide)
    if features:
        x["edge_attr"] = normal(EDGES, features, dtype=dtype)
        if score == "dot":
            x["edge_query"] = normal(heads, pairs.rows, features, dtype=dtype)
        if score == "additive_v2":
            x["edge_weight"] = normal(groups, dim, features, dtype=dtype)
    if (tensors and score != "none") or (features and own):
        x["edge_key"] = normal(EDGES, key_heads, key_dim, dtype=of_score)
    if tensors:
        x["edge_value"] = normal(EDGES, groups, value_dim, dtype=dtype)
    if per_pair:
        x["bias"] = normal(count, heads, dtype=wide).T
        x["allowed"] = torch.rand(heads, count) > 0.2
        x["sink"] = normal(heads, dtype=wide)
        x |= {"seed": torch.randint(2**62, (1,)), "grow": 1 / 0.7, "softcap": 2.0}
    return Inputs(**x | given)


def differing(x: Inputs, pairs: Pairs, tolerance: float, **changed: int) -> Iterator[str]:
    """Name what differs from plain torch, forward and backward."""
    y = ways.drawn(x, pairs)
    block = changed.pop("BLOCK", 4)
    with (
        mock.patch.multiple(launch, **{"SEGMENT": 8} | changed),
        mock.patch.object(tuning, "INTERPRETED", block),
    ):
        found, expected = launch.forward(x, pairs), plain.forward(y, pairs)
        of_out, of_lse, of_sum = (
            None if of is None else torch.randn_like(of)
            for of in (expected.out, expected.lse, expected.edge_sum)
        )
        assert of_out is not None
        of_out, rest = of_out.to(x.v.dtype), (of_lse, of_sum, x.bias is not None)
        of_inputs = launch.backward(x, pairs, found, of_out, *rest)
    rounded = found._replace(out=found.out.to(y.v.dtype))
    wanted = plain.backward(y, pairs, rounded, of_out.to(y.v.dtype), *rest)
    results = zip(
        (*found._fields, *(f"gradient of {name}" for name in wanted._fields)),
        (*found, *of_inputs),
        (*expected, *wanted),
        strict=True,
    )
    for name, got, right in results:
        if got is None or right is None:
            if got is not right:
                yield f"{name} is {'not ' * (got is not None)}there"
            continue
        right = right.to(got.dtype)
        if not torch.allclose(got, right, rtol=tolerance, atol=tolerance, equal_nan=True):
            yield f"{name} by {(got - right).abs().nan_to_num(torch.inf).max():.2g}"


def of_extremes() -> Iterator[str]:
    """Biases and sinks no softmax is fond of, another in each head, in float32."""
    pairs, lowest = listed(), torch.finfo(torch.float32).min
    bias = torch.tensor([-1e4, -1e9, -1e30, -1e31, lowest, -torch.inf, 0.0, 0.0])[:, None]
    bias = bias.repeat(1, E)
    bias[6, ::2], bias[7, 1::2] = -torch.inf, lowest
    x = inputs("dot", 8, 8, 4, 4, pairs, dtype=torch.float32)
    yield from differing(x._replace(bias=bias), pairs, 2e-5)
    sink = torch.tensor([-torch.inf, 80.0, -80.0, 0.0, -torch.inf, 80.0, 1e30, lowest])
    bias[:4] = 0
    bias[4:6] = -torch.inf
    yield from differing(x._replace(bias=bias, sink=sink), pairs, 2e-5)
    exact = inputs("dot", 2, 1, 4, 4, pairs)
    for options in ({"scale": 1e4}, {"scale": 30.0, "softcap": 50.0}, {"softcap": 1e-3}):
        yield from differing(exact._replace(**options), pairs, 1e-9)
    yield from differing(x._replace(sink=torch.full((8,), torch.inf)), pairs, 2e-5)
    x.v[0, 2, 0] = torch.nan
    found, expected = launch.forward(x, pairs).out, plain.forward(x, pairs).out
    if not torch.equal(found.isnan(), expected.isnan()):
        yield "NaN in a value"


def of_hub(rows: int, columns: int, count: int) -> Iterator[str]:
    """A query with so many pairs, or a key, in segments as they are; autograd's way round too."""
    csr = CSR(torch.arange(count) % rows, torch.randint(0, columns, (count,)), rows, columns)
    pairs = Pairs(*csr.tensors, csr.item, columns, *csr.transpose)
    x = inputs("additive_v2", 2, 1, 4, 3, pairs, per_pair=True)
    yield from differing(x, pairs, 1e-10, SEGMENT=1024, BLOCK=256)


def attended(tokens: list[Tensor], space: Graph, score: Any, features: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    of_key, of_value = torch.randn(2, 2, 4, F, dtype=features.dtype).unbind()
    out = attend(
        *tokens, space=space, mask=Edges(), score=score, backend="edges", dropout_p=0.3,
        edge_key=EdgeProjection(features, of_key), edge_value=EdgeProjection(features, of_value),
    )  # fmt: skip
    return [out, *torch.autograd.grad(out.float().square().sum(), [*tokens, features])]


def of_attend(score: Any, dtype: torch.dtype) -> Iterator[str]:
    """What users call, as on a GPU: in dtypes as they come, and with one draw of the dropout."""
    space = Graph(torch.randint(N, (2, E)), N)
    tokens = [torch.randn(1, h, N, 4, dtype=dtype, requires_grad=True) for h in (4, 2, 2)]
    features = torch.randn(E, F, dtype=dtype, requires_grad=True)
    with mock.patch.object(edges, "in_triton", lambda device: True):
        expected = attended(tokens, space, score, features)  # the same draw, in plain torch
        with mock.patch.object(ways, "in_triton", lambda device: True):
            found = attended(tokens, space, score, features)
    for name, got, right in zip(("out", "q", "k", "v", "features"), found, expected, strict=True):
        apart = ((got - right).abs().max() / right.abs().max()).item()
        if got.dtype != dtype or not apart < {torch.float32: 1e-5}.get(dtype, 2e-2):
            yield f"{name} {got.dtype} by {apart:.2g} of the largest"


def of_operator() -> Iterator[str]:
    """Schema, fake tensors and gradients are as they say, in bfloat16 and with a seed."""
    pairs = listed()
    x = inputs("dot", 2, 1, 3, 3, pairs, features=F, dtype=torch.bfloat16)
    x = x._replace(seed=torch.tensor([7]), grow=1.5)
    for tensor in (x.q, x.k, x.v, x.edge_attr, x.edge_query):
        assert tensor is not None
        tensor.requires_grad_()
    lists = [pairs.start, pairs.row, pairs.column, pairs.item]
    by_key = [t for t in (pairs.key_start, pairs.key_row, pairs.pair) if t is not None]
    with mock.patch.object(ways, "in_triton", lambda device: True):
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operator._forward, (lists, by_key, M, *x), test_utils=tests)
        kept, *_ = operator._forward(lists, by_key, M, *x)
        assert kept.dtype == torch.bfloat16
    return iter(())


def of(tolerance: float, *sizes: Any, **given: Any) -> Callable[[], Iterator[str]]:
    """A case: score, heads, groups, dim and value_dim, and options of `inputs` and `differing`."""

    def case() -> Iterator[str]:
        changed = {
            name: given.pop(name) for name in ("SEGMENT", "_WIDEST", "BLOCK") if name in given
        }
        pairs = listed(given.pop("index", torch.int32))
        return differing(inputs(*sizes, pairs, **given), pairs, tolerance, **changed)

    return case


FEW = {
    "dot, all options": of(1e-10, "dot", 4, 2, 3, 5, features=F, per_pair=True),
    "GAT, all options": of(1e-10, "additive", 6, 2, 1, 3, features=F, per_pair=True),
    "GATv2, all options": of(1e-10, "additive_v2", 4, 2, 3, 5, features=F, per_pair=True),
    "GATv2 in bfloat16": of(2e-2, "additive_v2", 4, 4, 8, 8, dtype=torch.bfloat16),
    "hubs of many parts": of(
        1e-10, "dot", 2, 1, 2, 2, features=F, per_pair=True, SEGMENT=3, BLOCK=2
    ),
    "no pairs of hubs": of(1e-10, "dot", 1, 1, 1, 1, SEGMENT=100),
    "the operator": of_operator,
}
ALL = FEW | {
    "a user's score": of(1e-10, "none", 6, 3, 1, 3, per_pair=True),
    "dot with tensors of edges": of(1e-10, "dot", 6, 2, 3, 5, tensors=True),
    "GAT with tensors of edges": of(1e-10, "additive", 6, 2, 3, 5, tensors=True),
    "GATv2 with tensors of edges": of(1e-10, "additive_v2", 6, 2, 3, 5, tensors=True),
    "heads in several programs": of(1e-10, "additive_v2", 6, 3, 4, 4, features=F, _WIDEST=8),
    "int64": of(1e-10, "dot", 3, 3, 3, 3, index=torch.int64),
    "D = 1": of(1e-10, "dot", 3, 3, 1, 8),
    "D = 64": of(1e-10, "dot", 8, 2, 64, 20),
    "D = 128": of(1e-10, "dot", 8, 1, 128, 8),
    "float32": of(2e-5, "dot", 4, 2, 8, 8, features=F, per_pair=True, dtype=torch.float32),
    "bfloat16": of(3e-2, "dot", 4, 2, 8, 8, features=F, per_pair=True, dtype=torch.bfloat16),
    "float16": of(4e-3, "additive_v2", 4, 2, 8, 8, per_pair=True, dtype=torch.float16),
    "GAT in float16": of(4e-3, "additive", 4, 2, 1, 8, per_pair=True, dtype=torch.float16),
    "extremes": of_extremes,
    "a query of 5,000 pairs": lambda: of_hub(1, 50, 5000),
    "a key of 3,000 pairs": lambda: of_hub(40, 1, 3000),
    "attend in float32": lambda: of_attend(None, torch.float32),
    "attend in bfloat16": lambda: of_attend(None, torch.bfloat16),
    "attend with GAT": lambda: of_attend(Additive(4, 4, edge=True), torch.bfloat16),
    "attend with GATv2": lambda: of_attend(AdditiveV2(4, 4), torch.float16),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    wrong = False
    for title, case in {"few": FEW, "all": ALL}[sys.argv[1]].items():
        torch.manual_seed(0)
        for difference in case():
            print(f"{title}: {difference}", flush=True)
            wrong = True
    print("differ" if wrong else "equal")
