"""Rotary frequencies stretched for texts longer than those of training.

A scaling turns the frequencies (F,) of `Rotary` into others. Each slows down rotations so that
`factor` times the trained length spans the angles that the model has seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from attention_core.checks import check_flag, check_number, check_whole


class RotaryScaling(Protocol):
    """A rule for longer contexts, as `Rotary(scaling=...)` takes it."""

    @property
    def amplitude(self) -> float:
        """The factor on the rotated features of queries and of keys."""
        ...

    def __call__(self, frequencies: Tensor, base: float) -> Tensor:
        """Other frequencies (F,) for those of `base`, base^(-i / F)."""
        ...


@dataclass(frozen=True)
class LinearScaling:
    """Every frequency divided by `factor` (Chen et al., position interpolation, 2023)."""

    factor: float
    amplitude: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_number(above=0, factor=self.factor)

    def __call__(self, frequencies: Tensor, base: float) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class NTKScaling:
    """A larger base, so that the slowest frequency is divided by `factor` and the fastest is not
    (NTK-aware scaling, bloc97, 2023; as in Peng et al., YaRN, 2024)."""

    factor: float
    amplitude: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_number(above=0, factor=self.factor)

    def __call__(self, frequencies: Tensor, base: float) -> Tensor:
        places = torch.arange(len(frequencies), device=frequencies.device)
        return frequencies / self.factor ** (places / max(len(frequencies) - 1, 1))


@dataclass(frozen=True)
class YaRN:
    """Fast rotations stay, slow ones are divided by `factor`, between them it is a ramp
    (Peng et al., YaRN, 2024).

    Args:
        factor: how much longer texts become.
        length: places that the model was trained on.
        fast, slow: rotations within `length` from which a frequency stays, and up to which it is
            divided.
        gain: the amplitude; by default 0.1 · ln(factor) + 1, which sharpens attention.
        whole: the ramp begins and ends at whole numbers of features, as published.
    """

    factor: float
    length: int
    fast: float = 32.0
    slow: float = 1.0
    gain: float | None = None
    whole: bool = True

    def __post_init__(self) -> None:
        check_whole(length=self.length)
        check_number(above=0, factor=self.factor, fast=self.fast, slow=self.slow)
        check_number(gain=self.gain, or_none=True)
        check_flag(whole=self.whole)

    @property
    def amplitude(self) -> float:
        if self.gain is not None:
            return self.gain
        return 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0

    def __call__(self, frequencies: Tensor, base: float) -> Tensor:
        count = len(frequencies)

        def place(rotations: float) -> float:
            return count * math.log(self.length / (rotations * 2 * math.pi)) / math.log(base)

        first, last = place(self.fast), place(self.slow)
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * count - 1)
        places = torch.arange(count, device=frequencies.device)
        divided = ((places - first) / max(last - first, 1e-3)).clamp(0, 1)
        return frequencies * (1 - divided) + frequencies / self.factor * divided


@dataclass(frozen=True)
class Llama3Scaling:
    """Wavelengths above length / low are divided, those below length / high stay, between them it
    is a ramp (Llama 3.1, 2024).

    Args:
        factor: how much longer texts become.
        length: places that the model was trained on.
        low, high: rotations within `length`.
    """

    factor: float
    length: int = 8192
    low: float = 1.0
    high: float = 4.0
    amplitude: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_whole(length=self.length)
        check_number(above=0, factor=self.factor, low=self.low, high=self.high)
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, got low={self.low}, high={self.high}")

    def __call__(self, frequencies: Tensor, base: float) -> Tensor:
        rotations = self.length * frequencies / (2 * math.pi)
        kept = ((rotations - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequencies * kept + frequencies / self.factor * (1 - kept)
