"""Rotary positions, from a configuration of transformers."""

from __future__ import annotations

from typing import Any

from attention_core import Rotary
from attention_core.errors import UsageError
from attention_core.pretrained.family import Config
from attention_core.rotary_scaling import LinearScaling, Llama3Scaling, RotaryScaling, YaRN


def rotary(config: Config, head_dim: int) -> Rotary:
    """Make the positions of `rope_theta`, `rope_scaling` (old) and `rope_parameters` (new).

    Args:
        head_dim: size of a head, of which `partial_rotary_factor` says how much turns.

    Raises:
        UsageError: a scaling that depends on the length of the text, or an unknown one.
    """
    rope = {**config, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    part = rope.get("partial_rotary_factor") or 1.0
    return Rotary(
        base=float(rope.get("rope_theta") or 10_000.0),
        dim=None if part == 1 else int(head_dim * part),
        scaling=_scaling(rope),
    )


def _scaling(rope: dict[str, Any]) -> RotaryScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(float(rope["factor"]))
    length = rope.get("original_max_position_embeddings") or rope.get("max_position_embeddings")
    if kind == "llama3" and length is not None:
        low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
        return Llama3Scaling(float(rope["factor"]), int(length), float(low), float(high))
    if kind == "yarn" and length is not None:
        if rope.get("mscale") or rope.get("mscale_all_dim"):
            raise UsageError("config: rope_parameters with mscale are not known; give rotary=.")
        return YaRN(
            float(rope["factor"]),
            int(length),
            fast=float(rope.get("beta_fast") or 32),
            slow=float(rope.get("beta_slow") or 1),
            gain=rope.get("attention_factor"),
            whole=rope.get("truncate", True),
        )
    raise UsageError(
        f"config: rope_type must be default, linear, llama3 or yarn, got {kind!r}. Give rotary=, "
        "such as Rotary(scaling=NTKScaling(2.0)), which serves texts of any length alike."
    )
