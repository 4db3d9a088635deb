"""Handwritten digits of 8×8 pixels."""

from __future__ import annotations

from typing import Unpack

import torch

from attention_core.training import DataModuleOptions, require
from vision.data.digit_images import DigitImages


class Digits(DigitImages):
    """Handwritten digits (Alpaydin & Kaynak, UCI, 1998): 1,797 images of 8×8 in scikit-learn.

    The split is stratified and fixed: 20% test, 20% of the rest for validation. A batch holds
    `image` (B, 1, 8, 8), ink in [0, 1], and `target` (B,). Arguments are those of `DigitImages`.
    """

    side = ink = 8

    def __init__(
        self,
        *,
        rotation: float = 10.0,
        scale: float = 0.1,
        shift: float = 0.5,
        **settings: Unpack[DataModuleOptions],
    ) -> None:
        super().__init__(rotation=rotation, scale=scale, shift=shift, **settings)

    def load(self) -> None:
        require("sklearn", extra="vision")
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        targets = torch.from_numpy(digits.target).long()
        self.fill(images, targets, *self.parts(targets))
