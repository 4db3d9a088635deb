"""Vision models beside those of other libraries: the same shapes, the same images, in one process.

Run `python -m benchmarks.vision`; `--quick` repeats less. A ViT-S/16 on 8 images of 224 × 224
beside timm, torchvision, transformers and vit-pytorch; Swin-T beside torchvision; and 64 images of
mixed sizes, packed in one row, beside the same images padded to the largest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification
from vit_pytorch import ViT

from attention_core.memory import keep_freed_memory
from benchmarks.measure import Forward, in_turn
from vision import SwinTransformer, VisionTransformer

BATCH, SIZE, PATCH, CLASSES = 8, 224, 16, 1000
DIM, DEPTH, HEADS = 384, 12, 6


def vit() -> dict[str, nn.Module]:
    """ViT-S/16 of each library, with random weights."""
    config = ViTConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        image_size=SIZE,
        patch_size=PATCH,
        num_labels=CLASSES,
    )
    return {
        "ours": VisionTransformer(
            DIM, DEPTH, HEADS, patch_size=PATCH, num_classes=CLASSES, image_size=SIZE
        ),
        "timm": timm.create_model("vit_small_patch16_224"),
        "torchvision": torchvision.models.VisionTransformer(
            SIZE, PATCH, DEPTH, HEADS, DIM, 4 * DIM, num_classes=CLASSES
        ),
        "transformers": ViTForImageClassification(config),
        "vit-pytorch": ViT(
            image_size=SIZE,
            patch_size=PATCH,
            num_classes=CLASSES,
            dim=DIM,
            depth=DEPTH,
            heads=HEADS,
            mlp_dim=4 * DIM,
            dim_head=DIM // HEADS,
        ),
    }


def swin() -> dict[str, nn.Module]:
    return {
        "ours": SwinTransformer.preset("tiny", num_classes=CLASSES),
        "torchvision": torchvision.models.swin_t(),
    }


def step(model: nn.Module, images: Any, *, training: bool) -> Forward:
    """A forward pass; the gradients of the pass before are dropped first."""
    model.train(training)

    def forward() -> Tensor:
        model.zero_grad(set_to_none=True)
        output = model(images)
        return output if isinstance(output, Tensor) else output.logits

    return forward


def compare(
    models: dict[str, nn.Module], images: Tensor, repetitions: int
) -> dict[str, tuple[float, float]]:
    """Milliseconds of inference, and of a forward and backward pass in training."""
    inference = [step(model, images, training=False) for model in models.values()]
    forward = in_turn(inference, repetitions, backward=[False] * len(models))
    training = [step(model, images, training=True) for model in models.values()]
    both = in_turn(training, repetitions)
    return {
        name: (eager.forward, trained.both or 0.0)
        for name, eager, trained in zip(models, forward, both, strict=True)
    }


def mixed() -> tuple[list[Tensor], Tensor]:
    """64 images whose sides are multiples of 16 from 96 to 224, and the same padded to 224."""
    generator = torch.Generator().manual_seed(0)
    sides = PATCH * torch.randint(6, SIZE // PATCH + 1, (64, 2), generator=generator)
    images = [torch.rand(3, h, w, generator=generator) for h, w in sides.tolist()]
    padded = torch.zeros(len(images), 3, SIZE, SIZE)
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return images, padded


def packing(repetitions: int) -> dict[str, tuple[float, float]]:
    """The ViT-S/16 on images of mixed sizes: packed, and padded in timm's."""
    models = vit()
    images, padded = mixed()
    cases: list[tuple[str, nn.Module, Any]] = [
        ("ours, packed", models["ours"], images),
        ("ours, padded", models["ours"], padded),
        ("timm, padded", models["timm"], padded),
    ]
    found = {}
    for name, direction in (("forward", False), ("both", True)):
        steps = [step(model, given, training=direction) for _, model, given in cases]
        times = in_turn(steps, repetitions, backward=[direction] * len(cases))
        found[name] = [getattr(one, name) for one in times]
    return {
        name: (forward, both)
        for (name, *_), forward, both in zip(cases, found["forward"], found["both"], strict=True)
    }


def show(console: Console, title: str, rows: dict[str, tuple[float, float]]) -> None:
    table = Table(title=title)
    table.add_column("model")
    for name in ("inference, ms", "÷ ours", "forward + backward, ms", "÷ ours"):
        table.add_column(name, justify="right")
    first = next(iter(rows.values()))
    for name, times in rows.items():
        cells = [
            cell
            for time, own in zip(times, first, strict=True)
            for cell in (f"{time:,.0f}", f"{time / own:.2f}")
        ]
        table.add_row(name, *cells)
    console.print(table)


def main() -> None:
    keep_freed_memory()
    quick = "--quick" in sys.argv
    console = Console()
    measure: list[tuple[str, Callable[[], dict[str, tuple[float, float]]]]] = [
        (
            f"ViT-S/16, {BATCH} images of {SIZE} × {SIZE}",
            lambda: compare(vit(), torch.rand(BATCH, 3, SIZE, SIZE), 2 if quick else 7),
        ),
        (
            f"Swin-T, {BATCH} images of {SIZE} × {SIZE}",
            lambda: compare(swin(), torch.rand(BATCH, 3, SIZE, SIZE), 2 if quick else 7),
        ),
        (
            "ViT-S/16, 64 images of 96 to 224 pixels a side",
            lambda: packing(1 if quick else 3),
        ),
    ]
    for title, rows in measure:
        show(console, title, rows())


if __name__ == "__main__":
    main()
