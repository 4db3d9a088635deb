"""Vision transformers with local attention: one mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from attention_core import Dilated, Mask, Neighborhood
from attention_core.annotated import checked
from attention_core.checks import check_whole, check_whole_each
from vision.models import VisionTransformer, VisionTransformerOptions


class NeighborhoodTransformer(VisionTransformer):
    """A vision transformer whose patches attend to those around them (Hassani et al., NAT, 2023).

    The neighborhood is cut at the border. Registers and class token still attend to, and are
    attended by, everyone.

    Args:
        radius: how many patches away, in each direction or (rows, columns), or None for all
            patches; a list of these, which the layers take in turn.
        dilation: attend to every `dilation`-th patch only, out to radius · dilation (Hassani &
            Shi, DiNAT, 2022); a list that the layers take in turn.
        options: all others are those of `VisionTransformer`.

    Raises:
        ValueError: as there; or `mask` is given.

    Example::

        NeighborhoodTransformer(384, 12, 6, radius=3, dilation=[1, 2], patch_size=8,
                                num_classes=1000, image_size=224)
    """

    @checked
    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        radius: int | tuple[int, int] | Sequence[int | tuple[int, int] | None] | None,
        dilation: int | Sequence[int] = 1,
        **options: Unpack[VisionTransformerOptions],
    ) -> None:
        if options.get("mask") is not None:
            raise ValueError("a NeighborhoodTransformer has its mask: give radius and dilation")
        check_whole(depth=depth)
        one = isinstance(radius, tuple) or not isinstance(radius, Sequence)
        radii: list[Any] = [radius] if one else list(radius)  # type: ignore[arg-type]
        steps = list(dilation) if isinstance(dilation, Sequence) else [dilation]
        for name, values in (("radius", radii), ("dilation", steps)):
            if not 0 < len(values) <= depth:
                raise ValueError(f"{name} lists {len(values)} entries for {depth} layers")
        for reach in radii:
            if reach is not None:
                check_whole_each(0, radius=reach if isinstance(reach, Sequence) else (reach,))
        check_whole_each(dilation=steps)
        masks = [
            _neighborhood(radii[layer % len(radii)], steps[layer % len(steps)])
            for layer in range(depth)
        ]
        options["mask"] = masks
        super().__init__(dim, depth, heads, **options)


def _neighborhood(radius: int | Sequence[int] | None, step: int) -> Mask | None:
    if radius is None:
        return None if step == 1 else Dilated(step)
    reach = tuple(radius) if isinstance(radius, Sequence) else radius
    if step == 1:
        return Neighborhood(reach)
    far = tuple(r * step for r in reach) if isinstance(reach, tuple) else reach * step
    return Dilated(step) & Neighborhood(far)
