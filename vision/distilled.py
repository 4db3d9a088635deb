"""Vision transformers with a second head, for what a teacher says."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from attention_core import Grid
from attention_core.annotated import checked
from attention_core.pretrained import names
from vision.models import VisionTransformer, VisionTransformerOptions
from vision.pretrained import DISTILLED_TRANSFORMERS


class DistilledVisionTransformer(VisionTransformer):
    """A vision transformer with two heads, whose outputs are averaged (Touvron et al., DeiT, 2021).

    One reads the class token, the other the first register, DeiT's distillation token.

    Args:
        options: those of `VisionTransformer`; `registers` is 1 by default.

    Example::

        model = DistilledVisionTransformer.from_pretrained("deit_base_distilled_patch16_224.pth")
    """

    families = DISTILLED_TRANSFORMERS
    parts = {names.CLASSIFIER: "head", names.DISTILLED: "head_dist"}

    @checked(
        class_token="one of its heads reads it",
        pooling="its heads read the class token and the distillation token",
    )
    def __init__(
        self, dim: int, depth: int, heads: int, **options: Unpack[VisionTransformerOptions]
    ) -> None:
        options.setdefault("registers", 1)
        if options["registers"] == 0:
            raise ValueError("registers must be at least 1: the first is the distillation token")
        super().__init__(dim, depth, heads, **options)
        classes = options["num_classes"]
        self.head_dist = nn.Identity() if classes is None else nn.Linear(dim, classes)

    def classify(self, tokens: Tensor, space: Grid) -> Tensor:
        """The outputs (B, num_classes) from encoded tokens (B, L, D), or (T, D) packed."""
        heads = (self.head, self.head_dist)
        outputs = [
            head(self.pool_norm(_special(tokens, space, rank))) for rank, head in enumerate(heads)
        ]
        return sum(outputs[1:], outputs[0]) / 2


def _special(tokens: Tensor, space: Grid, rank: int) -> Tensor:
    """(B, D), each sample's special token of this rank; they stand in front."""
    if space.segments is None:
        return tokens[..., rank, :]
    assert space.special is not None and space.special_rank is not None
    return tokens[(space.special & (space.special_rank == rank)).to(tokens.device)]
