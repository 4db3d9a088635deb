"""Vision transformers with a second head, for what a teacher says."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from attention_core import Space
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

    def reset_head(self, num_classes: int | None) -> None:
        """Replace both heads by new ones, see `Model.reset_head`."""
        super().reset_head(num_classes)
        like = self.class_token
        self.head_dist = self._new_head(num_classes).to(like.device, like.dtype)

    def read(self, tokens: Tensor, space: Space) -> Tensor:
        """Return the outputs (B, num_classes) for encoded tokens (B, L, D), or (T, D) packed."""
        outputs = [
            head(self.pool_norm(_special(tokens, space, rank)))
            for rank, head in enumerate((self.head, self.head_dist))
        ]
        return (outputs[0] + outputs[1]) / 2


def _special(tokens: Tensor, space: Space, rank: int) -> Tensor:
    """(B, D), each sample's special token of this rank; they stand in front."""
    if space.segments is None:
        return tokens[..., rank, :]
    assert space.special is not None and space.special_rank is not None
    return tokens[(space.special & (space.special_rank == rank)).to(tokens.device)]
