"""Land or sea in regions of the globe that were never seen: places on it are a Sphere space."""

import math
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attention_core import Bias, Encoder, EncoderOptions, Model, Space
from attention_core.spaces import Pairs
from attention_core.training import ClassificationTask, DataModule, DataModuleOptions, require

SEA, LAND, ASKED, HIDDEN = range(4)  # what is known of a place: one of two; asked for; nothing


class Sphere(Space):
    """Places on the unit sphere, (N, 3) or (B, N, 3). Distance is along it, in degrees."""

    def __init__(self, places: Tensor, *, valid: Tensor | None = None) -> None:
        super().__init__(places.shape[-2], coordinates=places, valid=valid)

    def norm(self, offset: Tensor) -> Tensor:
        chord = torch.linalg.vector_norm(offset, dim=-1)
        return torch.rad2deg(2 * (chord / 2).clamp(max=1).asin())

    def reach_bound(self, radius: float) -> float:
        """Count the pairs of about the same height, among which are all that are near."""
        height = self.coordinates[..., 2].contiguous().sort().values
        chord = 2 * math.sin(math.radians(min(radius, 180)) / 2) + 1e-4  # beyond rounding
        above = torch.searchsorted(height, height + chord, right=True)
        return int((above - torch.searchsorted(height, height - chord)).sum(-1).max())


class Fading(Bias):
    """A score that falls with the distance, for each head at a pace of its own."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.pace = heads, nn.Parameter(torch.linspace(-4, -1, heads))

    def score(self, pairs: Pairs) -> Tensor:
        return -self.pace.exp()[pairs.head] * pairs.distance


@cache
def world() -> Tensor:
    """Whether there is land in the middle of each cell of half a degree, (360, 720) bool."""
    require("global_land_mask", extra="globe")
    file = next(Path(find_spec("global_land_mask").origin).parent.glob("*.npz"))
    with zipfile.ZipFile(file) as archive, archive.open("mask.npy") as mask:  # one GB, not at once
        np.lib.format.read_magic(mask)
        (_, width), _, _ = np.lib.format.read_array_header_1_0(mask)
        bands = (np.frombuffer(mask.read(60 * width), bool) for _ in range(360))
        sea = np.stack([band[30 * width + 30 : 31 * width : 60] for band in bands])
    return torch.from_numpy(~sea)


def is_land(places: Tensor) -> Tensor:
    x, y, z = places.double().clamp(-1, 1).unbind(-1)
    row, column = 360 * (0.5 - z.asin() / math.pi), 720 * (0.5 + torch.atan2(y, x) / math.tau)
    return world()[row.long().clamp(max=359), column.long() % 720].long()


def lattice(count: int) -> Tensor:
    """Places spread evenly, (count, 3), turned at random: a lattice of Fibonacci's numbers."""
    z, angle = 1 - (2 * torch.arange(count) + 1) / count, torch.arange(count).double() * 2.4
    x, y = ((1 - z * z).sqrt() * turn for turn in (angle.cos().float(), angle.sin().float()))
    return torch.stack([x, y, z], dim=1) @ torch.linalg.qr(torch.randn(3, 3))[0]


def interpolated(places: Tensor, seen: Tensor, power: float) -> Tensor:
    """Land or sea where asked, by what is known of other places, weighed by distance^-power."""
    asked, known = places[seen == ASKED].double(), seen < ASKED
    distance = (torch.cdist(asked, places[known].double()) / 2).asin()
    weight = (distance / distance.amin(1, keepdim=True)) ** -power
    return (weight @ (2.0 * seen[known] - 1).double() > 0).long()


class Globe(DataModule):
    """Circles of `radius` degrees are asked for: in the test, in validation, which are hidden
    before, and in training others, drawn for each of its `samples`."""

    def __init__(
        self, *, samples: int, places: int, radius: float, **settings: Unpack[DataModuleOptions]
    ) -> None:
        super().__init__(**settings)
        self.samples, self.places, self.near = samples, places, math.cos(math.radians(radius))

    def load(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same circles whatever the seed
            circles, fifth = lattice(100)[::2], torch.arange(50) % 5  # of all latitudes
            val, test, none = circles[fifth < 2], circles[fifth >= 2], circles[:0]
            self.val_set = [self.sample(val, test) for _ in range(10)]
            self.test_set = [self.sample(test, none) for _ in range(20)]
            drawn = nn.functional.normalize(torch.randn(self.samples, 30, 3), dim=-1)
            self.train_set = [self.sample(asked, circles) for asked in drawn]

    def sample(self, asked: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        places = lattice(self.places)
        seen = land = is_land(places)
        for circles, what in ((asked, ASKED), (hidden, HIDDEN)):
            seen = seen.masked_fill((places @ circles.T > self.near).any(1), what)
        return {"places": places, "seen": seen, "target": land[seen == ASKED]}

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        places, seen, target = zip(*(sample.values() for sample in samples), strict=True)
        stacked = {"places": torch.stack(places), "seen": torch.stack(seen)}
        return {**stacked, "target": torch.cat(target)}


class GlobeEncoder(Model):
    def __init__(
        self, dim: int, depth: int, heads: int, num_classes: int, **encoder: Unpack[EncoderOptions]
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, dim)
        self.encoder = Encoder(dim, depth, heads, **encoder)
        self.reset_head(num_classes)

    def embed(self, places: Tensor, seen: Tensor) -> tuple[Tensor, Sphere]:
        space = Sphere(places, valid=seen != HIDDEN)
        return self.embedding(seen.clamp(max=ASKED)), space.with_tokenwise({"asked": seen == ASKED})

    def read(self, tokens: Tensor, space: Sphere) -> Tensor:
        return self.head(tokens[space.tokenwise["asked"]])


class GlobeTask(ClassificationTask):
    def attention_figure(self, batch: dict[str, Any]) -> Figure:
        """Draw what is known of one globe, and what is made of the places asked for."""
        places, seen, guess = batch["places"][:1], batch["seen"][:1], batch["seen"][0].clone()
        guess[guess == ASKED] = self.model(places, seen).argmax(dim=1)
        x, y, z = places[0].numpy(force=True).T
        figure = Figure(figsize=(15, 4), layout="constrained")
        shown = {
            "What is known (gray: asked for)": seen[0],
            "What is made of it": guess,
            "As it is": is_land(places[0].cpu()),
        }
        for axis, (title, kind) in zip(figure.subplots(1, 3), shown.items(), strict=True):
            color = np.array(["tab:blue", "tab:green", "lightgray", "white"])[
                kind.numpy(force=True)
            ]
            axis.scatter(np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arcsin(z)), c=color, s=14)
            axis.set(title=title, xlabel="degrees east", ylabel="degrees north")
        return figure
