"""Odd arguments of public callables of `vision`: see `tests.fuzz`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vision
from attention_core import Block, Encoder, Grid, MultiheadAttention, Sequence
from tests.fuzz import PLAIN, Call, call, cases, faults, left_out
from vision import (
    CenteredRotary,
    DistilledVisionTransformer,
    MaskedAutoencoder,
    NeighborhoodTransformer,
    PatchEmbedding,
    ResampledPosition,
    SwinTransformer,
    TokenMerging,
    VisionTransformer,
    drop_patches,
)

IMAGES = torch.rand(2, 3, 8, 8)
TOKENS = torch.rand(2, 4, 8)
GRID = Grid(2, 2)
ODD = [
    *[*PLAIN, GRID, Grid(2, 2, special=1), Grid(4), Sequence(4), TOKENS, TOKENS[0], TOKENS[:, :2]],
    *[IMAGES, (IMAGES * 255).byte(), IMAGES.double(), IMAGES.half(), IMAGES.bool(), IMAGES / 0],
    *[IMAGES[:, :1], IMAGES[0], IMAGES[None], IMAGES[:0], IMAGES[..., :3], IMAGES[..., :0]],
    *[IMAGES.to("meta"), IMAGES.to_sparse(), IMAGES.numpy(), [IMAGES[0]], [None], [IMAGES]],
    *[torch.tensor(1.0)],
]
SIZES = {"dim": 8, "depth": 1, "heads": 2}
PASSED_ON = MultiheadAttention, Block, Encoder
IMAGE = {
    "patch_size": 4,
    "num_classes": 3,
    "channels": 3,
    "image_size": 8,
    "positions": "learned",
    "class_position": True,
    "mask": None,
    "bias": None,
    "pooling": "class",
    "class_token": None,
    "registers": 0,
    "embedding": None,
    "embedding_norm": False,
    "pool_norm": False,
    "patch_dropout": 0.0,
}
VIT = VisionTransformer(**SIZES, patch_size=4, num_classes=3, image_size=8).eval()
SWIN = SwinTransformer(8, (1, 1), (2, 2), window=2, patch_size=2, num_classes=3).eval()
HEADLESS = VisionTransformer(**SIZES, patch_size=4, num_classes=None, image_size=8).eval()
AUTOENCODER = MaskedAutoencoder(HEADLESS, dim=8, depth=1, heads=2).eval()


def _swin(image: Tensor) -> Tensor:
    """Of a new model each time: it would remember which backend has computed an image's size."""
    torch.manual_seed(0)
    model = SwinTransformer(8, (1, 1), (2, 2), window=2, patch_size=2, num_classes=3)
    output: Tensor = model.eval()(image)
    return output


CALLS: dict[str, Call] = {
    "VisionTransformer": call(VisionTransformer, *PASSED_ON, **SIZES, **IMAGE, hidden=None),
    "VisionTransformer.preset": call(
        VisionTransformer.preset, VisionTransformer, name="tiny", depth=1, patch_size=16,
        num_classes=3, positions=None,
    ),
    "NeighborhoodTransformer": call(
        NeighborhoodTransformer, VisionTransformer, **SIZES, radius=1, dilation=1,
        patch_size=4, num_classes=3, image_size=8,
    ),
    "DistilledVisionTransformer": call(
        DistilledVisionTransformer, VisionTransformer, **SIZES, patch_size=4, num_classes=3,
        image_size=8, registers=1,
    ),
    "SwinTransformer": call(
        SwinTransformer, *PASSED_ON, dim=8, depths=(1, 1), heads=(2, 2), window=2, patch_size=2,
        num_classes=3, channels=3, version=1, drop_path=0.0, eps=1e-5, hidden=None,
    ),
    "SwinTransformer.preset": call(
        SwinTransformer.preset, SwinTransformer, name="tiny", dim=8, depths=(1,), heads=(2,),
        num_classes=3,
    ),
    "MaskedAutoencoder": call(
        MaskedAutoencoder, vit=HEADLESS, **SIZES, mask_ratio=0.75, normalize=True
    ),
    "PatchEmbedding": call(
        PatchEmbedding, patch_size=4, dim=8, channels=3, stride=None, stem=(), projection_bias=True
    ),
    "ResampledPosition": call(ResampledPosition, size=(2, 2), dim=8, special=0),
    "CenteredRotary": call(
        CenteredRotary, axes=2, base=100.0, shift=0.0, jitter=1.0, rescale=1.0, frequencies=None,
        dim=None, layout="half",
    ),
    "TokenMerging": call(TokenMerging, model=VIT, count=1),
    "VisionTransformer()": call(VIT, image=IMAGES, backend=None),
    "VisionTransformer.encode": call(VIT.encode, VIT.embed, image=IMAGES, backend=None),
    "VisionTransformer.features": call(
        VIT.features, VIT.embed, image=IMAGES, layers=(-1,), norm=True
    ),
    "SwinTransformer()": call(_swin, image=IMAGES),
    "SwinTransformer.features": call(
        SWIN.features, image=IMAGES, layers=None, norm=False, backend=None
    ),
    "MaskedAutoencoder()": call(AUTOENCODER, image=IMAGES, noise=torch.rand(2, 4)),
    "MaskedAutoencoder.loss": call(AUTOENCODER.loss, image=IMAGES, output=AUTOENCODER(IMAGES)),
    "MaskedAutoencoder.patches": call(AUTOENCODER.patches, image=IMAGES),
    "PatchEmbedding()": call(PatchEmbedding(4, 8), image=IMAGES, special=0),
    "PatchEmbedding.grid_size": call(PatchEmbedding(4, 8).grid_size, image_size=(8, 8)),
    "ResampledPosition()": call(ResampledPosition((2, 2), 8), space=GRID),
    "CenteredRotary()": call(CenteredRotary(), x=torch.rand(1, 2, 4, 8), space=GRID),
    "TokenMerging()": call(TokenMerging(VIT, 1).eval(), image=IMAGES),
    "drop_patches": call(drop_patches, tokens=TOKENS, space=GRID, share=0.0),
}  # fmt: skip


def test_no_public_callable_is_left_out() -> None:
    exempt = {  # of weights of other libraries, with errors of their own: test_pretrained
        "DistilledVisionTransformer.from_pretrained",
        "VisionTransformer.from_pretrained",
        "SwinTransformer.from_pretrained",
    }
    assert left_out(vision, CALLS, exempt) == []


@pytest.mark.parametrize(
    "name",
    cases(
        CALLS,
        "VisionTransformer",
        "VisionTransformer.preset",
        "DistilledVisionTransformer",
        "SwinTransformer",
        "SwinTransformer()",
    ),
)
def test_an_odd_argument_is_taken_or_named(name: str) -> None:
    found = faults(CALLS[name], ODD)
    assert not found, "\n".join(found)
