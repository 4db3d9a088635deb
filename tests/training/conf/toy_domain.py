"""A complete domain outside the packages: points on two rings, told apart by a small MLP."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import torch
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn

from attention_core.training import ClassificationTask, DataModule, DataModuleOptions
from attention_core.training.inputs import csv_rows, files


class Rings(DataModule):
    """Points on two noisy rings; each training point is jittered anew whenever it is drawn."""

    def __init__(
        self, *, samples: int = 120, noise: float = 0.2, **settings: Unpack[DataModuleOptions]
    ) -> None:
        super().__init__(**settings)
        self.samples = samples
        self.noise = noise

    def load(self) -> None:
        generator = torch.Generator().manual_seed(0)  # the split is the same for every seed
        target = torch.arange(2 * self.samples) % 2
        angle = torch.rand(len(target), generator=generator) * 2 * torch.pi
        radius = 1.0 + target + self.noise * torch.randn(len(target), generator=generator)
        points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        third = self.samples // 2
        self.train_set = Points(points[: -2 * third], target[: -2 * third], jitter=0.05)
        self.val_set = Points(points[-2 * third : -third], target[-2 * third : -third])
        self.test_set = Points(points[-third:], target[-third:])

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        for name, file in files(path, [".csv"]):
            yield from csv_rows(name, file, ["x", "y"])

    def read(self, raw: dict[str, str]) -> dict[str, Tensor]:
        return {"points": torch.tensor([float(raw["x"]), float(raw["y"])])}


class Points(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, points: Tensor, target: Tensor, jitter: float = 0.0) -> None:
        self.points, self.target, self.jitter = points, target, jitter

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        point = self.points[index]
        if self.jitter:
            point = point + self.jitter * torch.randn(2)
        return {"points": point, "target": self.target[index]}


class MLP(nn.Module):
    def __init__(self, dim: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, num_classes)
        )

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)


class RingsTask(ClassificationTask):
    """Draws what an attention map would be drawn as: a figure over one real input."""

    def attention_figure(self, batch: dict[str, Any]) -> Figure:
        figure = Figure(figsize=(4, 4), layout="constrained")
        axis = figure.subplots()
        predicted = self.model(batch["points"]).argmax(dim=1)
        x, y = batch["points"].T.cpu()
        axis.scatter(x, y, c=predicted.cpu(), cmap="coolwarm", s=14)
        axis.set_title("Predicted class of the test points", loc="left")
        axis.set_aspect("equal")
        return figure


class KillAt(Callback):
    """Kills the process after the optimizer step that the environment names, like a power cut; or
    fills the disk: files may grow to 8 KiB, no further."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if os.environ.get("TOY_KILL_AT") == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("TOY_FILL_DISK_AT") == str(trainer.global_step):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
