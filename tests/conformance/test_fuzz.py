"""Odd arguments of public functions: a result that `reference` gives, too, or a named error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_core import (
    ALiBi,
    AttentionPool,
    BackendError,
    Block,
    Decoder,
    Encoder,
    FeedForward,
    GlobalTokens,
    KVCache,
    MultiheadAttention,
    Neighborhood,
    PrefixLM,
    Rotary,
    Sequence,
    attend,
    plan,
    pool,
)
from tests.conformance.cases import BACKENDS

HEADS = torch.randn(2, 2, 3, 4)
TOKENS = torch.randn(2, 3, 8)
#: What stands for an argument: each with some that are right for one of them.
ODD: list[Any] = [
    *[None, True, -1, 0, 1, 2, 1.5, float("nan"), float("inf"), "word", (), (1, 2), [1.0], {}],
    *[object(), np.zeros((2, 3, 8)), Sequence(3), Sequence(0), Neighborhood(1), ALiBi(2)],
    *[HEADS, HEADS.double(), HEADS.half(), HEADS.long(), HEADS.to("meta"), HEADS.to_sparse()],
    *[HEADS.to(torch.complex64), HEADS[:, :, :0], HEADS.bool()],
    *[TOKENS, TOKENS.double(), TOKENS.long(), TOKENS.to("meta"), TOKENS.to_sparse()],
    *[TOKENS[:, :0], TOKENS[0], TOKENS[..., :5], torch.tensor(1.0), torch.zeros(0), torch.ones(2)],
]
ATTEND: dict[str, Any] = {
    "q": HEADS,
    "k": HEADS,
    "v": HEADS,
    "space": None,
    "mask": None,
    "bias": None,
    "score": None,
    "scale": None,
    "softcap": None,
    "sink": None,
    "edge_key": None,
    "edge_value": None,
    "dropout_p": 0.0,
    "return_weights": False,
    "return_lse": False,
    "plan": None,
}
PLAN = {"space": Sequence(3), "mask": None, "bias": None, "score": None, "heads": 2}
LAYER: dict[str, Any] = {
    "dim": 8,
    "heads": 2,
    "kv_heads": None,
    "head_dim": None,
    "context_dim": None,
    "edge_dim": None,
    "rotary": None,
    "score": None,
    "bias": None,
    "scale": None,
    "qk_norm": False,
    "gate": False,
    "sink": False,
    "softcap": None,
    "dropout": 0.0,
}
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "plan": (plan, PLAN | {"head_dim": 4, "batch": 1, "softcap": None, "backend": None}),
    "MultiheadAttention": (MultiheadAttention, LAYER),
    "Block": (Block, {"dim": 8, "heads": 2, "hidden": None, "dropout": 0.0, "drop_path": 0.0}),
    "Encoder": (Encoder, {"dim": 8, "depth": 1, "heads": 2, "groups": None}),
    "FeedForward": (FeedForward, {"dim": 8, "hidden": 9, "activation": "gelu", "dropout": 0.0}),
    "AttentionPool": (AttentionPool, {"dim": 8, "heads": 2, "queries": 1}),
    "attention()": (MultiheadAttention(8, 2), {"x": TOKENS, "context": None, "plan": None}),
    "block()": (Block(8, 2), {"x": TOKENS, "plan": None}),
    "encoder()": (Encoder(8, 1, 2), {"x": TOKENS, "space": None, "backend": None}),
    "decoder()": (
        Decoder(8, 1, 2, cross=True),
        {"x": TOKENS, "context": TOKENS, "space": None, "context_space": None, "cache": None},
    ),
    "feed_forward()": (FeedForward(8), {"x": TOKENS}),
    "attention_pool()": (AttentionPool(8, 2), {"x": TOKENS, "space": None}),
    "pool": (pool, {"x": TOKENS, "space": Sequence(3), "how": "mean"}),
    "Sequence": (Sequence, {"length": 3, "special": 0}),
    "GlobalTokens": (GlobalTokens, {"position": 0}),
    "PrefixLM": (PrefixLM, {"n": 1}),
    "Rotary": (Rotary, {"axes": 1, "base": 100.0}),
    "KVCache": (KVCache, {"max_length": None}),
}


def is_named(error: Exception, name: str) -> bool:
    """Whether an error says which argument it is about."""
    if isinstance(error, BackendError):
        return True
    name = "norm" if name == "order" else name
    return isinstance(error, TypeError | ValueError) and bool(re.search(rf"\b{name}\b", str(error)))


@pytest.mark.parametrize("call", CALLS)
def test_an_odd_argument_is_taken_or_named(call: str) -> None:
    function, arguments = CALLS[call]
    obscure = []
    for name in arguments:
        for value in ODD:
            try:
                function(**arguments | {name: value})
            except Exception as error:
                if not is_named(error, name):
                    came = f"{value.dtype}" if isinstance(value, torch.Tensor) else repr(value)
                    obscure.append(f"{name}={came}: {type(error).__name__}: {error}"[:200])
    assert not obscure, "\n".join(obscure)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(BACKENDS), st.data())
def test_odd_arguments_of_attend_give_what_reference_gives(backend: str, data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(ATTEND)), min_size=1, max_size=2))
    odd = {name: ODD[data.draw(st.integers(0, len(ODD) - 1))] for name in names}
    arguments = ATTEND | odd
    if arguments["plan"] is None:
        arguments["backend"] = backend
    try:
        found = attend(**arguments)
    except Exception as error:
        assert any(is_named(error, name) for name in names), f"{odd}: {error!r}"
        return
    if arguments["dropout_p"] or arguments["plan"] is not None:
        return
    wanted = attend(**arguments | {"backend": "reference"})
    found, wanted = (x if isinstance(x, tuple) else (x,) for x in (found, wanted))
    if arguments["return_weights"] != "pairs":
        torch.testing.assert_close(found, wanted, equal_nan=True, rtol=2e-3, atol=2e-3)
