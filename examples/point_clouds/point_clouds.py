"""Solids told apart by points measured on their surface: a cloud is a Points space."""

import math
from typing import Any, Unpack

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import random_split

from attention_core import Encoder, EncoderOptions, Model, Points, Pool, record_attention
from attention_core.interpret.plots import HEAT, INK, put_title, verdict_color
from attention_core.training import ClassificationTask, DataModule, DataModuleOptions


def turned(radius: Tensor, height: Tensor) -> Tensor:
    """Points (n, 3) of a curve that turns around the vertical axis."""
    angle = 2 * math.pi * torch.rand(len(radius))
    return torch.stack([radius * angle.cos(), radius * angle.sin(), height], dim=1)


def surface(solid: str, n: int) -> Tensor:
    """Points (n, 3) anywhere on the surface of a solid about as large as the unit sphere."""
    share, angle = torch.rand(n), 2 * math.pi * torch.rand(n)
    if solid == "cube":
        faces, sides = torch.randint(3, (n, 1)), 2.0 * torch.randint(2, (n, 1)) - 1
        return (2 * torch.rand(n, 3) - 1).scatter(1, faces, sides)
    if solid == "torus":
        return turned(1 + 0.4 * angle.cos(), 0.4 * angle.sin())
    if solid == "cylinder":
        return turned(torch.ones(n), 2 * share - 1)
    if solid == "cone":
        return turned(share.sqrt(), 1 - 2 * share.sqrt())
    return nn.functional.normalize(torch.randn(n, 3), p={"sphere": 2, "octahedron": 1}[solid])


class Clouds(DataModule):
    """Each class is a solid, stretched and turned at random and measured with noise."""

    def __init__(
        self, *, samples: int, points: int, noise: float, **settings: Unpack[DataModuleOptions]
    ) -> None:
        super().__init__(**settings)
        self.samples, self.points, self.noise = samples, points, noise

    def load(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same clouds whatever the seed
            clouds = [self.measure(number % len(self.classes)) for number in range(self.samples)]
            self.train_set, self.val_set, self.test_set = random_split(clouds, [0.75, 0.125, 0.125])

    def measure(self, target: int) -> dict[str, Tensor]:
        points = surface(self.classes[target], self.points) * torch.empty(3).uniform_(0.7, 1.3)
        turn, _ = torch.linalg.qr(torch.randn(3, 3))
        points = points @ turn + self.noise * torch.randn(self.points, 3)
        return {"points": points, "target": torch.tensor(target)}


class CloudEncoder(Model):
    def __init__(
        self, dim: int, depth: int, heads: int, num_classes: int, **encoder: Unpack[EncoderOptions]
    ) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(3, dim), nn.GELU(), nn.Linear(dim, dim))
        self.encoder = Encoder(dim, depth, heads, **encoder)
        self.pool = Pool("mean")
        self.reset_head(num_classes)

    def embed(self, points: Tensor) -> tuple[Tensor, Points]:
        return self.embedding(points), Points(points)


class CloudTask(ClassificationTask):
    def attention_figure(self, batch: dict[str, Any]) -> Figure:
        """Draw what one point of each cloud attends to, in the last two layers."""
        clouds, target = batch["points"][:6], batch["target"].tolist()
        with record_attention(self.model, layers=[-2, -1]) as maps:
            guess = self.model(clouds).argmax(dim=1).tolist()
        figure = Figure(figsize=(16, 6), layout="constrained")
        put_title(figure, "To what the circled point attends: last layer but one, and last layer")
        axes = figure.subplots(2, len(clouds), subplot_kw={"projection": "3d"}, squeeze=False)
        for n, cloud in enumerate(clouds.cpu().numpy()):
            x, y, z = cloud.T
            front = int((x - y + z).argmax())  # the nearest to the eye
            for axis, weights in zip(axes[:, n], maps, strict=True):
                share = weights[n, :, front].mean(dim=0).cpu().numpy()  # over the heads
                share = share / share.max()
                axis.scatter(x, y, z, c=share, s=10 + 60 * share, cmap=HEAT, vmin=-0.3)
                axis.scatter(x[front], y[front], z[front], s=150, fc="none", ec=INK, lw=2)
                axis.set_box_aspect(cloud.max(axis=0) - cloud.min(axis=0), zoom=1.4)
                axis.set_axis_off()
            said = f"{self.classes[target[n]]}, seen as {self.classes[guess[n]]}"
            axes[0, n].set_title(said, color=verdict_color(guess[n] == target[n]))
        return figure
