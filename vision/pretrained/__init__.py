"""The weights of other libraries in models of ours, and back.

One module for each family translates names and shapes; `settings` tells the configuration from
them; `attention_core.training.weights` reads files and loads strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import nn

from attention_core.errors import UsageError, did_you_mean
from attention_core.training.weights import (
    LoadReport,
    Weights,
    load_strictly,
    read_weights,
    some,
    without_prefix,
)
from vision.models import VisionTransformer
from vision.pretrained.clip import from_clip, from_siglip, is_clip, is_siglip
from vision.pretrained.dino import from_dinov2, from_dinov3, is_dinov2, is_dinov3
from vision.pretrained.eva import from_eva02, is_eva02
from vision.pretrained.fitting import fit_positions, without_head
from vision.pretrained.huggingface import from_huggingface, is_huggingface
from vision.pretrained.names import assemble
from vision.pretrained.settings import grid, settings, swin_settings
from vision.pretrained.timm import from_timm, is_timm, to_timm
from vision.pretrained.torchvision import from_torchvision, is_swin, is_torchvision
from vision.swin import SwinTransformer

__all__ = ["SOURCES", "LoadReport", "build", "load_pretrained", "to_timm"]

Model = TypeVar("Model", bound=nn.Module)


class Source(NamedTuple):
    """Where weights may come from.

    Attributes:
        recognises: whether weights are its own.
        translate: from their names to ours, with what was dropped and why.
    """

    recognises: Callable[[Weights], bool]
    translate: Callable[[Weights], tuple[Weights, dict[str, str]]]


#: By name, what is more particular first.
SOURCES = {
    "torchvision": Source(is_torchvision, from_torchvision),
    "siglip": Source(is_siglip, from_siglip),
    "clip": Source(is_clip, from_clip),
    "dinov3": Source(is_dinov3, from_dinov3),
    "eva02": Source(is_eva02, from_eva02),
    "dinov2": Source(is_dinov2, from_dinov2),
    "huggingface": Source(is_huggingface, from_huggingface),
    "timm": Source(is_timm, from_timm),
}


def load_pretrained(
    model: nn.Module,
    weights: Mapping[str, Any] | str | Path,
    source: str | None = None,
    *,
    head: bool = True,
) -> LoadReport:
    """Loads weights of another library into `model`, all of them or none.

    The model's configuration must be the one that they were trained with: shapes are checked, but
    what has none, such as `eps`, `activation`, rotary positions or the number of heads, cannot be.
    `VisionTransformer.from_pretrained` chooses it. Learned positions are resampled to the
    model's image size.

    Args:
        weights: a state dict, or a `.safetensors` or torch file of one.
        source: one of `SOURCES`; by default it is recognised by the names.
        head: False leaves the model's head as it is, to fine-tune it on other classes.

    Returns: what was dropped, and why, and what of the model is as before.

    Raises:
        UsageError: the file cannot be read, the source is unknown, or something of theirs has no
            place in the model, or the reverse; the message has the first names and shapes.

    Example::

        model = VisionTransformer.preset("small", patch_size=16, num_classes=10, image_size=96)
        print(load_pretrained(model, "vit_small_patch16_224.safetensors", head=False))
    """
    theirs = without_prefix(read_weights(weights), "module.")
    source = _recognised(theirs, source)
    ours, dropped = _translated(theirs, source)
    return _load(model, theirs, ours, dropped, source, head=head)


def build(
    model_type: type[Model],
    weights: Mapping[str, Any] | str | Path,
    *,
    source: str | None = None,
    heads: int | None = None,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Model:
    """The model that weights of another library are for, with them; see
    `VisionTransformer.from_pretrained`.
    """
    theirs = without_prefix(read_weights(weights), "module.")
    source = _recognised(theirs, source)
    ours, dropped = _translated(theirs, source)
    if is_swin(theirs):
        _check_type(model_type, SwinTransformer)
        if heads is not None or config is not None:
            raise UsageError(
                "heads, config: the weights of a Swin transformer say all that either could."
            )
        found, known = swin_settings(theirs, window=options.get("window")), None
    else:
        _check_type(model_type, VisionTransformer)
        found = settings(
            source,
            theirs,
            ours,
            heads=heads,
            config=config,
            image_size=options.get("image_size"),
            activation=options.get("activation"),
        )
        known = grid(found.get("image_size"), found["patch_size"])
    model = model_type(**{**found, **options})
    head = "num_classes" not in options
    _load(model, theirs, ours, dropped, source, head=head, known=known)
    return model


def _check_type(given: type[nn.Module], wanted: type[nn.Module]) -> None:
    if not issubclass(given, wanted):
        raise UsageError(
            f"weights: they are a {wanted.__name__}'s; {given.__name__}.from_pretrained cannot "
            f"make one of them, {wanted.__name__}.from_pretrained does."
        )


def _recognised(theirs: Weights, source: str | None) -> str:
    if source is not None:
        if source not in SOURCES:
            raise UsageError(
                f"source must be one of {', '.join(SOURCES)}, got {source!r}."
                f"{did_you_mean(source, SOURCES)}"
            )
        return source
    for name, one in SOURCES.items():
        if one.recognises(theirs):
            return name
    if any(name.startswith("encoder.blocks.0.") for name in theirs):
        raise UsageError(
            "weights: they have our own names; model.load_state_dict loads them, or init.weights= "
            "on the command line."
        )
    raise UsageError(
        f"weights: they are of none of {', '.join(SOURCES)}; the first are {some(list(theirs))}."
    )


def _translated(theirs: Weights, source: str) -> tuple[Weights, dict[str, str]]:
    ours, dropped = SOURCES[source].translate(theirs)
    return assemble(ours), dropped


def _load(
    model: nn.Module,
    theirs: Weights,
    ours: Weights,
    dropped: dict[str, str],
    source: str,
    *,
    head: bool,
    known: tuple[int, int] | None = None,
) -> LoadReport:
    kept: list[str] = []
    ours = fit_positions(model, theirs, ours, known)
    if not head:
        ours, unread, kept = without_head(model, ours)
        dropped = {**dropped, **unread}
    load_strictly(model, ours, keep=kept)
    return LoadReport(source, dropped, kept)
