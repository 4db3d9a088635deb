"""The families of published vision models, by the models of ours that load them; and back.

One module for each family has its names and settings; `attention_core.pretrained` does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

from attention_core.pretrained import Family
from vision.pretrained.beit import BEIT
from vision.pretrained.clip import CLIP, SIGLIP
from vision.pretrained.dino import DINOV2, DINOV3
from vision.pretrained.eva import EVA02
from vision.pretrained.huggingface import HUGGINGFACE
from vision.pretrained.swin import TIMM_SWIN, TORCHVISION_SWIN
from vision.pretrained.timm import TIMM, TIMM_DISTILLED, to_timm
from vision.pretrained.torchvision import TORCHVISION

__all__ = ["DISTILLED_TRANSFORMERS", "SWIN_TRANSFORMERS", "VISION_TRANSFORMERS", "to_timm"]

#: By name, what is more particular first.
VISION_TRANSFORMERS: Mapping[str, Family] = {
    "torchvision": TORCHVISION,
    "siglip": SIGLIP,
    "clip": CLIP,
    "dinov3": DINOV3,
    "beit": BEIT,
    "eva02": EVA02,
    "dinov2": DINOV2,
    "huggingface": HUGGINGFACE,
    "timm": TIMM,
}
SWIN_TRANSFORMERS: Mapping[str, Family] = {"torchvision": TORCHVISION_SWIN, "timm": TIMM_SWIN}
DISTILLED_TRANSFORMERS: Mapping[str, Family] = {"timm": TIMM_DISTILLED}
