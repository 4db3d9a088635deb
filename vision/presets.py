"""Sizes of vision transformers by the names of the literature."""

from __future__ import annotations

from typing import Any

#: ViT-Ti (Touvron et al., DeiT, 2021); ViT-S, B, L and H (Dosovitskiy et al., 2021); ViT-g and G
#: (Zhai et al., Scaling Vision Transformers, 2022); SoViT-400m (Alabdulmohsin et al., 2023), the
#: larger image tower of SigLIP.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3},
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
    "huge": {"dim": 1280, "depth": 32, "heads": 16},
    "giant": {"dim": 1408, "depth": 40, "heads": 16, "hidden": 6144},
    "gigantic": {"dim": 1664, "depth": 48, "heads": 16, "hidden": 8192},
    "so400m": {"dim": 1152, "depth": 27, "heads": 16, "hidden": 4304},
}
