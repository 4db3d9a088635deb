"""Vision transformers: configurations of `attention_core.Encoder` over a `Grid`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attention_core import (
    AttentionPool,
    Bias,
    Encoder,
    Grid,
    LearnedPosition,
    Mask,
    Rotary,
    Sinusoidal,
    pool,
)
from vision.embeddings import PatchEmbedding, pair

Positions = Literal["learned", "sinusoidal", "rotary"]
Pooling = Literal["class", "mean", "attention"]


class VisionTransformer(nn.Module):
    """A transformer over the patches of images (Dosovitskiy et al., ViT, 2021).

    The mask says which patches attend to which: None is the ViT, `Neighborhood(r)` is neighborhood
    attention (Hassani et al., 2023), a list of masks alternates local and global layers. The class
    token sits nowhere, so no mask keeps it from attending to everything.

    Args:
        dim: size D of a token.
        depth: number of blocks.
        heads: number of heads.
        patch: height and width of a patch in pixels, or one number for both.
        classes: number of outputs per image; None returns the pooled image itself, (B, D).
        channels: number of channels of an image.
        image_size: height and width, or one number for both, of the largest image; only "learned"
            positions need it.
        positions: "learned", a vector per place; "sinusoidal", sines and cosines of row and column;
            "rotary", queries and keys turned by row and column (axial, base 100: Heo et al., 2024;
            for another form give ``rotary=`` with positions=None); or None.
        mask: for every layer, or a list of masks (None: all pairs) that the layers take in turn.
        bias: relative positions, such as `RelativeTable.swin(heads, window)`.
        pooling: "class", a learned token in front; "mean" over the patches; or "attention", a
            learned query over them (Lee et al., Set Transformer, 2019).
        encoder: further options of `Encoder`, `Block` and `MultiheadAttention`.

    Raises:
        ValueError: arguments that are unknown or contradict each other; the message names them.

    Example::

        model = VisionTransformer(384, 12, 6, patch=16, classes=1000, image_size=224)
        logits = model(torch.rand(8, 3, 224, 224))
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        patch: int | tuple[int, int],
        classes: int | None,
        channels: int = 3,
        image_size: int | tuple[int, int] | None = None,
        positions: Positions | None = "learned",
        mask: Mask | Sequence[Mask | None] | None = None,
        bias: Bias | Sequence[Bias] | None = None,
        pooling: Pooling = "class",
        **encoder: Any,
    ) -> None:
        super().__init__()
        if pooling not in ("class", "mean", "attention"):
            raise ValueError(f"pooling must be 'class', 'mean' or 'attention', got {pooling!r}")
        self.pooling = pooling
        self.embedding = PatchEmbedding(patch, dim, channels=channels)
        # With another pooling there is no class token, and this is empty
        self.class_token = nn.Parameter(torch.empty(int(pooling == "class"), dim))
        nn.init.normal_(self.class_token, std=0.02)
        self.positions: LearnedPosition | Sinusoidal | None = None
        if positions == "learned":
            if image_size is None:
                raise ValueError("positions='learned' needs image_size, the size of their table")
            size = self.embedding.grid_size(pair("image_size", image_size))
            self.positions = LearnedPosition(size, dim, special=len(self.class_token))
        elif positions == "sinusoidal":
            self.positions = Sinusoidal(dim, axes=2)
        elif positions == "rotary":
            if encoder.get("rotary") is not None:
                raise ValueError("give positions='rotary' or rotary=..., not both")
            encoder["rotary"] = Rotary(axes=2, base=100.0)
        elif positions is not None:
            raise ValueError(
                f"positions must be 'learned', 'sinusoidal', 'rotary' or None, got {positions!r}"
            )
        self.encoder = Encoder(dim, depth, heads, mask=mask, bias=bias, **encoder)
        self.pool = AttentionPool(dim, heads) if pooling == "attention" else None
        self.head = nn.Identity() if classes is None else nn.Linear(dim, classes)

    def embed(self, image: Tensor | Sequence[Tensor]) -> tuple[Tensor, Grid]:
        """What the encoder gets: tokens (B, L, D), or (T, D) packed, and where they sit.

        To drop patches, index the tokens and `keep` the same of the grid.
        """
        patches, space = self.embedding(image, special=len(self.class_token))
        tokens = space.place(patches, self.class_token)
        if self.positions is not None:
            tokens = tokens + self.positions(space).to(tokens.dtype)
        return tokens, space

    def classify(self, tokens: Tensor, space: Grid) -> Tensor:
        """The outputs (B, classes) from encoded tokens (B, L, D), or (T, D) packed."""
        if self.pool is not None:
            pooled = self.pool(tokens, space)
        else:
            pooled = pool(tokens, space, "special" if self.pooling == "class" else "mean")
        output: Tensor = self.head(pooled)
        return output

    def forward(self, image: Tensor | Sequence[Tensor]) -> Tensor:
        """The outputs (B, classes) of B images.

        Args:
            image: (B, C, H, W) float, H and W multiples of the patch; or a list of (C, H, W) of
                different sizes, which are packed in one row and do not see each other.

        Raises:
            TypeError, ValueError: an image of another kind or shape; the message names it.
        """
        tokens, space = self.embed(image)
        return self.classify(self.encoder(tokens, space), space)
