"""Stretched rotary frequencies are those of transformers."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from attention_core import LinearScaling, Llama3Scaling, NTKScaling, Rotary, Sequence, YaRN

OLD, FACTOR = 128, 4.0
CASES: list[tuple[Any, dict[str, Any]]] = [
    (LinearScaling(FACTOR), {"rope_type": "linear"}),
    (YaRN(FACTOR, OLD), {"rope_type": "yarn"}),
    (
        YaRN(FACTOR, OLD, fast=16.0, slow=2.0, gain=1.3),
        {"rope_type": "yarn", "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3},
    ),
    (YaRN(FACTOR, OLD, whole=False), {"rope_type": "yarn", "truncate": False}),
    (YaRN(0.5, OLD), {"rope_type": "yarn", "factor": 0.5}),
    (
        Llama3Scaling(FACTOR, OLD),
        {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    (
        Llama3Scaling(8.0, OLD, low=0.5, high=12.0),
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 12.0},
    ),
]


def config(rope: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=int(OLD * FACTOR),
        rope_parameters={
            "rope_theta": 10_000.0,
            "factor": FACTOR,
            "original_max_position_embeddings": OLD,
            **rope,
        },
    )


@pytest.mark.parametrize(("scaling", "rope"), CASES, ids=str)
def test_rotated_queries_are_those_of_transformers(scaling: Any, rope: dict[str, Any]) -> None:
    q, k = torch.randn(2, 1, 4, 300, 32)
    cos, sin = LlamaRotaryEmbedding(config(rope))(q, torch.arange(300)[None])
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    ours, space = Rotary(scaling=scaling), Sequence(300)
    torch.testing.assert_close((ours(q, space), ours(k, space)), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dim", [2, 32])
def test_ntk_slows_the_slowest_rotation_by_the_factor(dim: int) -> None:
    plain, scaled = (
        Rotary(scaling=scaling).angles(Sequence(2), dim)[1] for scaling in (None, NTKScaling(8.0))
    )
    torch.testing.assert_close(scaled[0], plain[0])
    if dim > 2:
        torch.testing.assert_close(scaled[-1] * 8, plain[-1])
        # A larger base: what transformers has for texts of a length that needs the factor 8
        rope = config({"rope_type": "dynamic", "factor": 1.0})
        length = 8 * rope.max_position_embeddings
        expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](rope, torch.device("cpu"), seq_len=length)
        torch.testing.assert_close(scaled, expected)


def test_bad_scalings_are_named() -> None:
    with pytest.raises(ValueError, match="factor must be a finite number above 0, got 0"):
        LinearScaling(0)
    with pytest.raises(ValueError, match="low must be less than high"):
        Llama3Scaling(8.0, low=4.0)
    with pytest.raises(ValueError, match="frequencies or scaling, not both"):
        Rotary(frequencies=[1.0], scaling=LinearScaling(2.0))
