"""Vision transformers: configurations of `attention_core.Encoder` over a `Grid`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from attention_core import Encoder, Grid, Rotary, Sinusoidal, Space
from attention_core.annotated import checked
from attention_core.checks import check_chance, check_options, check_whole
from attention_core.layers import EncoderOptions, Pooling, make_pool
from attention_core.layers.residual import make_norm
from attention_core.layers.tokens import learned_tokens
from attention_core.models import Model
from attention_core.pretrained import names
from vision.embeddings import PatchEmbedding, drop_patches, pair
from vision.positions import ResampledPosition
from vision.presets import PRESETS
from vision.pretrained import VISION_TRANSFORMERS

Positions = Literal["learned", "sinusoidal", "rotary"]


class VisionTransformerOptions(EncoderOptions, total=False):
    """Options of `VisionTransformer`, which what is made of it passes on."""

    patch_size: int | tuple[int, int]
    num_classes: int | None
    channels: int
    image_size: int | tuple[int, int] | None
    positions: Positions | nn.Module | None
    class_position: bool
    pooling: Pooling
    class_token: bool | None
    registers: int
    embedding: Mapping[str, Any] | None
    embedding_norm: bool
    pool_norm: bool
    patch_dropout: float


class VisionTransformer(Model):
    """A transformer over the patches of images (Dosovitskiy et al., ViT, 2021).

    In front of the patches stand the class token, then the registers. They sit nowhere, so no mask
    keeps them from attending to everything.

    Args:
        dim: size D of a token.
        depth: number of blocks.
        heads: number of heads.
        patch_size: height and width of a patch in pixels, or one number for both.
        num_classes: number of outputs per image; None returns the pooled image itself, (B, D).
        channels: number of channels of an image.
        image_size: height and width, or one number for both, for which "learned" positions have a
            vector per patch; for an image of another size they are resampled.
        positions: "learned", a vector per place; "sinusoidal", sines and cosines of row and column;
            "rotary", queries and keys turned by row and column (axial, base 100: Heo et al., 2024);
            a module from a `Grid` to vectors to add, such as `Sinusoidal`; or None. For another
            form of rotary positions, alone or besides these, give ``rotary=``.
        class_position: whether "learned" positions have a vector for the class token.
        pooling: "class", the class token; "mean", "sum" or "max" over the patches; "special", the
            mean of class token and registers; "attention", a learned query over the patches (Lee et
            al., Set Transformer, 2019); or "map", the same followed by a residual feed-forward
            network (Zhai et al., Scaling ViT, 2022; SigLIP).
        class_token: whether there is a class token; by default where pooling is "class".
        registers: tokens that hold nothing but what attention puts there (Darcet et al., 2024).
        embedding: further options of `PatchEmbedding`: `stride`, `stem`, `bias`.
        embedding_norm: normalise tokens before the first block (CLIP).
        pool_norm: normalise the pooled vector instead of every token (BEiT, Bao et al., 2022).
        patch_dropout: share of the patches that an image loses in training, see `drop_patches`.
        encoder: options of `Encoder`, `Block` and `MultiheadAttention`, such as `hidden`,
            `layer_scale`, `drop_path` or `rotary`; `mask=Neighborhood(r)` is neighborhood attention
            (Hassani et al., 2023), `bias=RelativeTable.swin(heads, window)` relative positions.

    Raises:
        TypeError: an argument is unknown.
        ValueError: arguments contradict each other; the message names them.

    Example::

        model = VisionTransformer.preset("small", patch_size=16, num_classes=10, image_size=224)
        logits = model(torch.rand(8, 3, 224, 224))                         # (8, 10)
        maps = model.features(torch.rand(8, 3, 224, 224), layers=[5, -1])  # two of (8, 384, 14, 14)
    """

    presets = PRESETS
    families = VISION_TRANSFORMERS
    parts = {names.CLASSIFIER: "head"}

    @checked
    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        patch_size: int | tuple[int, int],
        num_classes: int | None,
        channels: int = 3,
        image_size: int | tuple[int, int] | None = None,
        positions: Positions | nn.Module | None = "learned",
        class_position: bool = True,
        pooling: Pooling = "class",
        class_token: bool | None = None,
        registers: int = 0,
        embedding: Mapping[str, Any] | None = None,
        embedding_norm: bool = False,
        pool_norm: bool = False,
        patch_dropout: float = 0.0,
        **encoder: Unpack[EncoderOptions],
    ) -> None:
        super().__init__()
        if class_token is None:
            class_token = pooling == "class"
        if pooling == "class" and not class_token:
            raise ValueError("pooling='class' reads the class token, but class_token=False")
        if pooling == "special" and not (class_token or registers):
            raise ValueError("pooling='special' reads class_token and registers: there is none")
        check_whole(0, registers=registers)
        check_chance(patch_dropout=patch_dropout)
        self.pooling, self.patch_dropout = pooling, patch_dropout
        own = dict.fromkeys(
            ("patch_size", "dim", "channels"), "it is an argument beside embedding="
        )
        check_options(self, embedding or {}, **own)
        self.embedding = PatchEmbedding(patch_size, dim, channels=channels, **(embedding or {}))
        self.class_token = learned_tokens(int(class_token), dim, std=0.02)
        self.registers = learned_tokens(registers, dim, std=0.02)
        self.positions: nn.Module | None = None
        if positions == "learned":
            if image_size is None:
                raise ValueError("positions='learned' needs image_size, the size of their table")
            size = self.embedding.grid_size(pair("image_size", image_size))
            self.positions = ResampledPosition(
                size, dim, special=int(class_token and class_position)
            )
        elif positions == "sinusoidal":
            self.positions = Sinusoidal(dim, axes=2)
        elif positions == "rotary":
            if encoder.get("rotary") is not None:
                raise ValueError("give positions='rotary' or rotary=..., not both")
            encoder["rotary"] = Rotary(axes=2, base=100.0)
        elif isinstance(positions, nn.Module):
            self.positions = positions
        elif positions is not None:
            raise ValueError(
                "positions must be 'learned', 'sinusoidal', 'rotary', a module or None, got "
                f"{positions!r}"
            )

        def norm(wanted: bool) -> nn.Module:
            kind, eps = encoder.get("norm", "layer"), encoder.get("eps", 1e-6)
            return make_norm(kind, dim, eps) if wanted else nn.Identity()

        self.embedding_norm = norm(embedding_norm)
        if pool_norm:
            encoder.setdefault("final_norm", False)
        self.encoder = Encoder(dim, depth, heads, **encoder)
        like = self.encoder.blocks[0].feed_forward
        self.pool = make_pool(pooling, dim, heads, like=like, eps=encoder.get("eps", 1e-6))
        self.pool_norm = norm(pool_norm)
        self.reset_head(num_classes)

    @property
    def num_special(self) -> int:
        """How many tokens stand in front of an image's patches: class token, then registers."""
        return len(self.class_token) + len(self.registers)

    @checked
    def embed(self, image: Tensor | Sequence[Tensor]) -> tuple[Tensor, Grid]:
        """Return what the encoder gets, tokens (B, L, D), or (T, D) packed, and where they sit.

        No patch is dropped: to do so, see `drop_patches`.

        Args, Raises: as of `forward`.
        """
        patches, space = self.embedding(image, special=self.num_special)
        tokens = space.place(patches, torch.cat([self.class_token, self.registers]))
        if self.positions is not None:
            tokens = tokens + self.positions(space).to(tokens.dtype)
        return self.embedding_norm(tokens), space

    def weights_of(self, other: VisionTransformer) -> dict[str, Tensor]:
        """Return the weights of another model, with learned positions at this one's image size."""
        weights = super().weights_of(other)
        ours, theirs = self.positions, other.positions
        if not isinstance(ours, ResampledPosition) or not isinstance(theirs, ResampledPosition):
            return weights
        if ours.size == theirs.size:
            return weights
        special, patches = theirs.table[: theirs.special], theirs.resampled(ours.size)
        return {**weights, "positions.table": torch.cat([special, patches]).detach()}

    def read(self, tokens: Tensor, space: Space) -> Tensor:
        """Return the outputs (B, num_classes) for encoded tokens (B, L, D), or (T, D) packed."""
        output: Tensor = self.head(self.pool_norm(self.pool(tokens, space)))
        return output

    def forward(self, image: Tensor | Sequence[Tensor], *, backend: str | None = None) -> Tensor:
        """Return the outputs (B, num_classes) of B images.

        Args:
            image: (B, C, H, W) float, H and W multiples of the patch; or a list of (C, H, W) of
                different sizes, which are packed in one row and do not see each other.
            backend: a name to override the plan's choice.

        Raises:
            TypeError, ValueError: an image of another kind or shape; the message names it.
        """
        tokens, space = self.embed(image)
        if self.training and self.patch_dropout:
            tokens, space = drop_patches(tokens, space, self.patch_dropout)
        return self.read(self.encoder(tokens, space, backend=backend), space)

    def _shaped(self, tokens: Tensor, space: Space) -> Tensor | list[Tensor]:
        """Maps (B, D, rows, columns); of a list of images a list of (D, rows, columns)."""
        assert isinstance(space, Grid)
        if space.segments is None:
            return tokens.mT.unflatten(-1, space.sizes[0])
        each = tokens.split([rows * columns for rows, columns in space.sizes])
        return [x.mT.unflatten(-1, size) for x, size in zip(each, space.sizes, strict=True)]
