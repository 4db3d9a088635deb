"""Positions that act on tokens, queries and keys: rotary, sinusoidal and learned.

All read the coordinates of a space, so tokens may be dropped, packed or padded, and special tokens,
which sit nowhere, are left as they are or have rows of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Listing
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_number, check_whole, may_look
from attention_core.rotary_scaling import RotaryScaling
from attention_core.spaces import Space
from attention_core.transfer import constant

Layout = Literal["half", "interleaved"]
SinusoidalLayout = Literal["half", "interleaved", "sines-first"]


def _check_layout(layout: str, type_: Any = Layout) -> None:
    known = get_args(type_)
    if layout not in known:
        names = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        raise ValueError(f"layout must be {names}, got {layout!r}")


def angles(space: Space, places: Tensor, frequencies: Tensor) -> Tensor:
    """Compute angles (L, A · F) or (B, L, A · F) in float32: place · frequency.

    The axes follow each other in the last dimension. Special tokens have angle 0.

    Args:
        space: the tokens.
        places: (L, A) or (B, L, A), where they sit along each axis.
        frequencies: (F,).
    """
    with torch.autocast(space.device.type, enabled=False):
        angle = places.float()[..., None] * frequencies
        if space.special is not None:
            angle = angle.masked_fill(space.special[..., None, None], 0)
    return angle.flatten(-2)


def _frequencies(dim: int, axes: int, base: float, device: torch.device) -> Tensor:
    """base^(-2i / (dim/axes)), (dim / (2 · axes),) in float32."""
    if dim % (2 * axes):
        raise ValueError(f"dim must be a multiple of 2 · axes = {2 * axes}, got {dim}")
    per_axis = dim // axes
    exponent = torch.arange(0, per_axis, 2, device=device, dtype=torch.float32) / per_axis
    return base**-exponent


def _coordinates(space: Space, axes: int) -> Tensor:
    if space.axes != axes or space.coordinates is None:
        raise ValueError(f"space: positions have {axes} axes, {space.describe()} has {space.axes}")
    return space.coordinates


def rotate(x: Tensor, angle: Tensor, layout: Layout = "half", amplitude: float = 1.0) -> Tensor:
    """Rotate pairs of features by `angle`, in float32 (Su et al., RoFormer, 2021).

    Args:
        x: (..., L, D).
        angle: (..., L, d/2), broadcastable; the first d features turn, the rest pass.
        layout: which features are a pair: (i, i + d/2) for "half", (2i, 2i + 1) for "interleaved".
        amplitude: what the turned features are multiplied with.
    """
    return turn(x, rotation(angle, amplitude), layout)


def rotation(angle: Tensor, amplitude: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute cosine and sine of `angle`, times `amplitude`: what all that turns by it shares."""
    with torch.autocast(angle.device.type, enabled=False):
        cos, sin = angle.cos(), angle.sin()
        return (cos, sin) if amplitude == 1 else (cos * amplitude, sin * amplitude)


def turn(x: Tensor, by: tuple[Tensor, Tensor], layout: Layout = "half") -> Tensor:
    """Rotate x (..., L, D) as `rotate` does, by cosine and sine (..., L, d/2) of its angles."""
    cos, sin = by
    with torch.autocast(x.device.type, enabled=False):
        d = 2 * cos.shape[-1]
        turning = x[..., :d].to(torch.promote_types(x.dtype, torch.float32))
        first, second = _split(turning, layout)
        turned = _join(first * cos - second * sin, second * cos + first * sin, layout).to(x.dtype)
    return turned if d == x.shape[-1] else torch.cat([turned, x[..., d:]], dim=-1)


def _split(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    halves = x.chunk(2, dim=-1) if layout == "half" else x.unflatten(-1, (-1, 2)).unbind(-1)
    return halves[0], halves[1]


def _join(first: Tensor, second: Tensor, layout: Layout) -> Tensor:
    if layout == "half":
        return torch.cat([first, second], dim=-1)
    return torch.stack([first, second], dim=-1).flatten(-2)


class Rotary(nn.Module):
    """Rotary positions of queries and keys (Su et al., 2021), along any number of axes.

    With one axis as in language models, with two the axial form of vision transformers
    (Heo et al., 2024), on a Graph with `coordinates` its spectral form. The angles depend on where
    tokens sit alone, and are computed in float32.

    Args:
        axes: number of axes; the head is divided between them.
        base: of the frequencies, base^(-2i / (dim/axes)).
        dim: how many features of a head turn; all of them by default.
        layout: "half" pairs feature i with i + dim/2 (Llama, DINOv3), "interleaved" pairs
            2i with 2i + 1 (the paper, EVA-02).
        extent: on a grid, coordinates · extent / size of the grid, so that a grid of any size
            spans the places of one of `extent` (per axis, or one for all), which the model was
            trained on (Chen et al., position interpolation, 2023; EVA-02).
        frequencies: (dim / (2 · axes),) radians per place, instead of those of `base`; such as a
            published model's own. Where an axis of n places wraps, they have to be 2π m / n with
            whole m, so that an angle comes round; others are refused there.
        scaling: of the frequencies, for texts longer than those of training: `LinearScaling`,
            `NTKScaling`, `YaRN` or `Llama3Scaling`.
    """

    @checked
    def __init__(
        self,
        axes: int = 1,
        *,
        base: float = 10_000.0,
        dim: int | None = None,
        layout: Layout = "half",
        extent: float | Listing[float] | None = None,
        frequencies: Listing[float] | None = None,
        scaling: RotaryScaling | None = None,
    ) -> None:
        super().__init__()
        _check_layout(layout)
        if frequencies is not None and scaling is not None:
            raise ValueError("give frequencies or scaling, not both: frequencies stay as they are")
        check_whole(axes=axes)
        check_whole(dim=dim, or_none=True)
        check_number(above=0, base=base)
        self.axes, self.base, self.dim, self.layout = axes, base, dim, layout
        self.extent: tuple[float, ...] | None = None
        if extent is not None:
            if not isinstance(extent, Listing):
                check_number(above=0, extent=extent)
            self.extent = tuple(extent) if isinstance(extent, Listing) else (extent,) * axes
            if len(self.extent) != axes or any(not n > 0 for n in self.extent):
                raise ValueError(f"extent must be positive, for each of {axes} axes; got {extent}")
        self.frequencies = None if frequencies is None else tuple(map(float, frequencies))
        self.scaling = scaling

    @property
    def amplitude(self) -> float:
        """The factor on turned features."""
        return 1.0 if self.scaling is None else self.scaling.amplitude

    def angles(self, space: Space, head_dim: int) -> Tensor:
        """Compute angles (L, dim/2), or (B, 1, L, dim/2) to broadcast over the heads of a batch."""
        dim = head_dim if self.dim is None else self.dim
        if dim > head_dim:
            raise ValueError(f"dim={dim} exceeds the size of a head, {head_dim}")
        frequencies = _frequencies(dim, self.axes, self.base, space.device)
        if self.frequencies is not None:
            if len(self.frequencies) != len(frequencies):
                raise ValueError(
                    f"there are {len(self.frequencies)} frequencies, but dim={dim} and "
                    f"axes={self.axes} need {len(frequencies)}"
                )
            frequencies = constant(self.frequencies, space.device, torch.float32)
        if self.scaling is not None:
            frequencies = self.scaling(frequencies, self.base)
        with torch.autocast(space.device.type, enabled=False):
            places = self.places(space).float()  # torch.export cannot write an empty region
        self._check_wrap(space)
        angle = angles(space, places, frequencies)
        return angle.unsqueeze(1) if angle.ndim == 3 else angle

    def rotation(self, space: Space, head_dim: int) -> tuple[Tensor, Tensor]:
        """Compute cosine and sine of `angles`, times `amplitude`, for `turn`."""
        return rotation(self.angles(space, head_dim), self.amplitude)

    def _check_wrap(self, space: Space) -> None:
        """Raise unless axes that wrap are turned around whole times."""
        for size in dict.fromkeys(getattr(space, "sizes", ())):
            extent = size if self.extent is None else self.extent
            for n, wraps in zip(extent, space.wrap, strict=True):
                turns = [n * f / (2 * math.pi) for f in self.frequencies or (1.0,)]
                plain = type(self).places is Rotary.places and self.scaling is None
                if wraps and not (plain and all(abs(t - round(t)) < 1e-3 for t in turns)):
                    raise ValueError(
                        f"{type(self).__name__} would not come round in {space.describe()}: give "
                        f"frequencies=[2π m / {n:g}, ...] with whole m, a bias, or a grid that "
                        "does not wrap"
                    )

    def places(self, space: Space) -> Tensor:
        """Return what the frequencies are multiplied with, (L, A) or (B, L, A)."""
        at = _coordinates(space, self.axes)
        if self.extent is None:
            return at
        extent = constant(self.extent, at.device, torch.float32)
        return at * (extent / self.extent_of(space))

    def extent_of(self, space: Space) -> Tensor:
        """Return the extent of the grid of each token, (L, A) or what broadcasts to it.

        Raises:
            ValueError: the tokens do not sit on a grid, or on one of another number of axes.
        """
        _coordinates(space, self.axes)
        extent = space.extent
        if extent is None:
            raise ValueError(
                f"these positions are relative to the size of a grid: {space.describe()} is none"
            )
        return extent

    @checked
    def forward(self, x: Tensor, space: Space) -> Tensor:
        """Rotate x (B, H, L, D) to where its tokens sit."""
        check_dense(x=x)
        if x.ndim < 2 or not x.is_floating_point() or x.shape[-2] != space.length:
            raise ValueError(
                f"x must be float (B, H, {space.length}, D), as its space is "
                f"{space.describe()}; got {x.dtype} {tuple(x.shape)}"
            )
        if self.dim is None and x.shape[-1] % (2 * self.axes):
            raise ValueError(
                f"the dim of x must be a multiple of 2 · axes = {2 * self.axes}, got {x.shape[-1]}"
            )
        angle = self.angles(space.to(x.device), x.shape[-1])
        return rotate(x, angle, self.layout, self.amplitude)

    def extra_repr(self) -> str:
        scaling = "" if self.scaling is None else f", scaling={self.scaling}"
        return f"axes={self.axes}, base={self.base:g}, layout={self.layout!r}{scaling}"


class Sinusoidal(nn.Module):
    """Sines and cosines of the coordinates (Vaswani et al., 2017), to add to tokens.

    Args:
        dim: size D of a token, a multiple of 2 · axes; each axis has D / axes of it.
        axes: number of axes.
        base: of the frequencies, base^(-2i / (dim/axes)).
        layout: per axis all sines and then all cosines ("half", MAE), or alternating
            ("interleaved", the paper); or the sines of all axes and then their cosines
            ("sines-first", timm).
        reverse: the last axis first: columns before rows, as MAE and big_vision have them.
    """

    @checked
    def __init__(
        self,
        dim: int,
        axes: int = 1,
        *,
        base: float = 10_000.0,
        layout: SinusoidalLayout = "interleaved",
        reverse: bool = False,
    ) -> None:
        super().__init__()
        _check_layout(layout, SinusoidalLayout)
        check_whole(dim=dim, axes=axes)
        check_number(above=0, base=base)
        self.dim, self.axes, self.base = dim, axes, base
        self.layout, self.reverse = layout, reverse

    @checked
    def forward(self, space: Space) -> Tensor:
        """Compute the positions (L, D) or (B, L, D) in float32; special tokens have zeros."""
        places = _coordinates(space, self.axes)
        if self.reverse:
            places = places.flip(-1)
        angle = angles(space, places, _frequencies(self.dim, self.axes, self.base, space.device))
        if self.layout == "sines-first":
            embedding = _join(angle.sin(), angle.cos(), "half")
        else:
            angle = angle.unflatten(-1, (self.axes, -1))
            embedding = _join(angle.sin(), angle.cos(), self.layout).flatten(-2)
        if space.special is not None:
            embedding = embedding.masked_fill(space.special[..., None], 0)
        return embedding

    def extra_repr(self) -> str:
        return f"dim={self.dim}, axes={self.axes}, base={self.base:g}, layout={self.layout!r}"


class LearnedPosition(nn.Module):
    """A learned vector for every place of a Sequence or Grid, to add to tokens.

    Args:
        size: number of places along each axis.
        dim: size D of a token.
        special: number of special tokens in a sample, which have vectors of their own.
    """

    @checked
    def __init__(self, size: int | tuple[int, ...], dim: int, *, special: int = 0) -> None:
        super().__init__()
        self.size = tuple(size) if isinstance(size, tuple | list) else (size,)
        for places in self.size:
            check_whole(size=places)
        check_whole(dim=dim)
        check_whole(0, special=special)
        self.special = special
        self.table = nn.Parameter(torch.empty(special + math.prod(self.size), dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    @checked
    def forward(self, space: Space) -> Tensor:
        """Return the positions of a space's tokens, (L, D) or (B, L, D).

        Raises:
            ValueError: a token sits outside the table, or has no row.
        """
        if space.axes != len(self.size) or space.coordinates is None:
            raise ValueError(
                f"positions have {len(self.size)} axes, {space.describe()} has {space.axes}"
            )
        place = space.coordinates
        looked_at = space.host if space.has_host else space
        assert looked_at.coordinates is not None
        if may_look(looked_at.coordinates):
            self._check(looked_at, looked_at.coordinates)
        strides = [math.prod(self.size[axis + 1 :]) for axis in range(len(self.size))]
        row = (place * constant(strides, place.device)).sum(-1) + self.special
        if space.special is not None and space.special_rank is not None:
            row = torch.where(space.special, space.special_rank, row)
        row = row.clamp(0, len(self.table) - 1)  # of padding beyond the table
        return self.table[row.to(self.table.device)]

    def _check(self, space: Space, place: Tensor) -> None:
        outside = (place < 0) | (place >= constant(self.size, place.device))
        if space.special is not None and space.special_rank is not None:
            if bool((space.special & (space.special_rank >= self.special)).any()):
                raise ValueError(
                    f"{space.describe()}: there are vectors for {self.special} special tokens a "
                    "sample"
                )
            outside = outside & ~space.special[..., None]
        if space.valid is not None:
            outside = outside & space.valid[..., None]
        if bool(outside.any()):
            raise ValueError(
                f"positions are learned for places up to {self.size}, {space.describe()} reaches "
                f"{tuple((place.flatten(0, -2).amax(0) + 1).tolist())}"
            )

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.table.shape[1]}, special={self.special}"
