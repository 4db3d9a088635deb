"""Masked autoencoders: a vision transformer learns from images alone, by completing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from attention_core import Encoder, Grid, Sinusoidal, Space
from attention_core.annotated import checked
from attention_core.checks import check_number, check_whole, may_look
from attention_core.models import Model
from vision.embeddings import choose_patches
from vision.models import VisionTransformer


class Reconstruction(NamedTuple):
    """The output of a `MaskedAutoencoder` for images of N patches with P values each.

    Attributes:
        patches: (B, N, P), or (T, P) of packed images: the values of every patch, row by row; see
            `MaskedAutoencoder.patches`. Those of a visible patch mean nothing: no loss sees them.
        hidden: (B, N) or (T,) bool, the patches that the transformer did not see.
    """

    patches: Tensor
    hidden: Tensor


class MaskedAutoencoder(Model):
    """Predicts hidden patches of images from the visible ones (He et al., MAE, 2022).

    The transformer encodes the visible patches alone, in each image a random choice of its own. A
    light decoder gets them back at their places, a learned token at all others, and predicts the
    pixels. In eval mode every call makes the same choice, so that losses can be compared.

    To fine-tune the transformer, start another run from the part `vit` of the weights: see
    `attention_core.training.finetune`.

    Args:
        vit: the transformer to pretrain, of any positions, masks and biases, with num_classes=None
            and pooling "class" or "mean". A class token passes through the decoder, too.
        dim: size D of the decoder's tokens, a multiple of 4.
        depth: number of the decoder's blocks.
        heads: number of the decoder's heads.
        mask_ratio: share of the patches of each image that are hidden, in (0, 1).
        normalize: predict the values of a patch less their mean, in units of their deviation.

    Raises:
        ValueError: `mask_ratio` is out of range, or `vit` has parts that nothing would train.

    Example::

        vit = VisionTransformer(384, 12, 6, patch_size=16, num_classes=None, image_size=224)
        mae = MaskedAutoencoder(vit, dim=192, depth=4, heads=3)
        loss = mae.loss(images, mae(images))
    """

    @checked
    def __init__(
        self,
        vit: VisionTransformer,
        *,
        dim: int = 512,
        depth: int = 8,
        heads: int = 16,
        mask_ratio: float = 0.75,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_whole(dim=dim, depth=depth, heads=heads)
        check_number(mask_ratio=mask_ratio)
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must be a share between 0 and 1, got {mask_ratio}")
        idle = [
            name
            for name, part in vit.named_children()
            if name in ("pool", "pool_norm", "head") and list(part.parameters())
        ]
        if idle:
            raise ValueError(
                f"vit must have no {', '.join(idle)}, which nothing would train: give "
                "num_classes=None and pooling='class' or 'mean'"
            )
        if vit.embedding.stem is not None or vit.embedding.stride != vit.embedding.patch_size:
            raise ValueError(
                "vit must cut images into patches that share no pixels: with a stem or a smaller "
                "stride visible ones would show the hidden ones"
            )
        self.vit = vit
        self.mask_ratio, self.normalize = mask_ratio, normalize
        self.narrow = nn.Linear(vit.class_token.shape[-1], dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.positions = Sinusoidal(dim, axes=2)
        self.decoder = Encoder(dim, depth, heads)
        self.pixels = nn.Linear(dim, vit.embedding.channels * math.prod(vit.embedding.patch_size))

    def embed(self, image: Tensor | Sequence[Tensor]) -> tuple[Tensor, Grid]:
        """Return what `vit` embeds the images as, without hiding any patch."""
        return self.vit.embed(image)

    @property
    def stack(self) -> Encoder:
        return self.vit.encoder

    def read(self, tokens: Tensor, space: Space) -> NoReturn:
        raise TypeError(
            "a MaskedAutoencoder reads nothing from encoded tokens, as it hides patches before "
            "they are encoded: call the model, or read those of its part `vit`"
        )

    def features(self, *inputs: Any, **options: Any) -> list[Any]:
        """Return maps of the layers of `vit`; arguments are those of its `features`."""
        return self.vit.features(*inputs, **options)

    def _new_head(self, num_classes: int | None) -> NoReturn:
        raise TypeError(
            "a MaskedAutoencoder has no head: fine-tune its part `vit`, by vit.reset_head, or by "
            "init.prefix=vit init.new=[head] on the command line"
        )

    @checked
    def forward(
        self,
        image: Tensor | Sequence[Tensor],
        *,
        noise: Tensor | None = None,
        backend: str | None = None,
    ) -> Reconstruction:
        """Hide patches of the images and predict them.

        Args:
            image: (B, C, H, W), or a list of (C, H, W), as `VisionTransformer` takes them.
            noise: (B, N), or (T,) of packed images: a number for each patch; those of an image
                with the largest are hidden. Random by default.
            backend: a name to override the plan's choice.

        Raises:
            TypeError, ValueError: an image is of another kind or shape, or has one patch only.
        """
        tokens, space = self.vit.embed(image)
        if noise is None and not self.training:
            count = (*tokens.shape[:-2], space.length - space.num_special)
            noise = torch.rand(count, generator=torch.Generator().manual_seed(0))
        visible = choose_patches(tokens, space, self.mask_ratio, lots=noise)
        if visible[-1].shape[-1] == space.length:
            raise ValueError("image has one patch only, so that nothing can be hidden")
        seen = self.vit.encoder(tokens[visible], space.keep(visible[-1]), backend=backend)
        encoded = self.narrow(seen)
        everywhere = self.mask_token.to(encoded.dtype).expand(*tokens.shape[:-1], -1)
        decoded = everywhere.index_put(visible, encoded) + self.positions(space).to(encoded.dtype)
        decoded = self.decoder(decoded, space, backend=backend)
        hidden = torch.ones(tokens.shape[:-1], dtype=torch.bool, device=tokens.device)
        hidden[visible] = False
        decoded, _ = space.without_special(decoded)
        hidden, _ = space.without_special(hidden[..., None])
        return Reconstruction(self.pixels(decoded), hidden.squeeze(-1))

    @checked
    def loss(self, image: Tensor | Sequence[Tensor], output: Reconstruction) -> Tensor:
        """Compute the mean squared error over the values of the hidden patches of `image`."""
        target = self.patches(image)
        if output.patches.shape != target.shape:
            raise ValueError(
                f"image has patches {tuple(target.shape)}, but output is of others, "
                f"{tuple(output.patches.shape)}"
            )
        if self.normalize:
            mean, deviation = moments(target)
            target = (target - mean) / deviation
        error = (output.patches - target).square().mean(-1)
        if may_look(output.hidden):
            return error[output.hidden].mean()
        # How many are hidden is not known before they are
        return error.where(output.hidden, 0).sum() / output.hidden.sum()

    def patches(self, image: Tensor | Sequence[Tensor]) -> Tensor:
        """Cut images into pixels of patches: (B, N, P), or (T, P) of a list; P runs over (h, w,
        C)."""
        self.vit.embedding.check(image)
        if not isinstance(image, Tensor):
            return torch.cat([self.patches(one[None])[0] for one in image])
        h, w = self.vit.embedding.patch_size
        self.vit.embedding.check_size(*image.shape[-2:])
        grid = image.unflatten(3, (-1, w)).unflatten(2, (-1, h))  # (B, C, rows, h, columns, w)
        return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def assemble(self, patches: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Put patches (B, N, P) together to images (B, C, H, W), H and W as `image_size` says."""
        h, w = self.vit.embedding.patch_size
        rows, columns = self.vit.embedding.grid_size(image_size)
        grid = patches.unflatten(2, (h, w, -1)).unflatten(1, (rows, columns))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and deviation of the values of each patch, (..., 1); the latter is never 0."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
