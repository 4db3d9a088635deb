"""Positions of patches that depend on the size of the image's grid."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor
from torch.compiler import is_exporting
from torch.nn import functional as F

from attention_core import Grid, LearnedPosition, Rotary
from attention_core.annotated import checked
from attention_core.checks import check_number
from attention_core.positions import Layout
from attention_core.spaces import Space
from attention_core.transfer import moved
from vision.embeddings import pair


class ResampledPosition(LearnedPosition):
    """A learned vector for every place of a grid; for a grid of another size they are resampled.

    Bicubic interpolation with antialiasing, as in timm and DINOv2. An image whose patches are
    dropped or packed gets the vectors of its full grid.

    Args:
        size: rows and columns of the table.
        dim: size D of a token.
        special: how many special tokens of an image have vectors of their own; the others, such as
            registers, get zeros.
    """

    @checked
    def __init__(self, size: tuple[int, int], dim: int, *, special: int = 0) -> None:
        super().__init__(pair("size", size), dim, special=special)

    @checked
    def forward(self, space: Space) -> Tensor:
        """Return the positions of a grid's tokens, (L, D) or (B, L, D).

        Raises:
            ValueError: the tokens do not sit on a grid of rows and columns.
        """
        if not isinstance(space, Grid) or space.axes != 2 or space.coordinates is None:
            raise ValueError(
                f"space: positions are those of a Grid(rows, columns), not {space.describe()}"
            )
        sizes = list(dict.fromkeys(space.sizes))
        nothing = self.table.new_zeros(1, self.table.shape[1])
        parts = [self.table[: self.special], nothing, *(self.resampled(size) for size in sizes)]
        if space.size is not None:  # every place, in order
            beyond = max(0, space.num_special - self.special)
            return torch.cat([parts[0][: space.num_special], nothing.expand(beyond, -1), parts[2]])
        starts, start = {}, self.special + 1
        for size in sizes:
            starts[size], start = start, start + math.prod(size)
        device = space.device
        of_sizes = [starts[s] for s in space.sizes], [s[1] for s in space.sizes]
        both = moved(torch.tensor(of_sizes), device)
        first, columns = space.of_sample(both[0]), space.of_sample(both[1])
        row = space.coordinates[..., 0] * columns + space.coordinates[..., 1] + first
        if space.special is not None and space.special_rank is not None:
            row = torch.where(space.special, space.special_rank.clamp(max=self.special), row)
        if space.valid is not None:
            row = torch.where(space.valid, row, self.special)
        table = torch.cat(parts)
        return table[row.to(table.device)]

    def resampled(self, size: tuple[int, ...]) -> Tensor:
        """Resample the vectors to those (rows · columns, D) of a grid of `size`."""
        table = self.table[self.special :]
        if not is_exporting():  # torch.compile, too, may take sizes for symbols, which the gradient
            size = tuple(map(operator.index, size))  # of this interpolation cannot handle
        # A size that an exported program leaves open is a symbol: asking would fix its range
        if all(isinstance(n, int) for n in size) and size == self.size:
            return table
        with torch.autocast(table.device.type, enabled=False):
            grid = table.float().unflatten(0, self.size).permute(2, 0, 1)[None]
            grid = F.interpolate(grid, size=size, mode="bicubic", antialias=True)
            return grid[0].flatten(1).T.to(table.dtype)


class CenteredRotary(Rotary):
    """Rotary positions of patch centres between −1 and 1 (Siméoni et al., DINOv3, 2025).

    Whatever the size of an image, its borders are at ±1 along each axis, and the slowest frequency
    turns once or less over it: angle 2π · centre · base^(-2i / (dim/axes)). In training, `shift`,
    `jitter` and `rescale` change the centres of all images of a step in the same way, so that a
    model gets used to other sizes and shapes.

    Args:
        axes: number of axes.
        base: of the frequencies.
        shift: largest shift of all places, drawn for each axis.
        jitter: largest factor on all places, drawn for each axis, evenly in its logarithm.
        rescale: largest factor on all places, drawn once for all axes.
        options: `frequencies`, `dim` and `layout` of `Rotary`.

    Raises:
        ValueError: shift is negative, or a factor is below 1.
    """

    @checked
    def __init__(
        self,
        axes: int = 2,
        *,
        base: float = 100.0,
        shift: float = 0.0,
        jitter: float = 1.0,
        rescale: float = 1.0,
        frequencies: list[float] | None = None,
        dim: int | None = None,
        layout: Layout = "half",
    ) -> None:
        super().__init__(axes, base=base, frequencies=frequencies, dim=dim, layout=layout)
        check_number(shift=shift, jitter=jitter, rescale=rescale)
        if shift < 0:
            raise ValueError(f"shift must be at least 0, got {shift}")
        for name, factor in (("jitter", jitter), ("rescale", rescale)):
            if factor < 1:
                raise ValueError(f"{name} must be a factor of at least 1, got {factor}")
        self.shift, self.jitter, self.rescale = shift, jitter, rescale

    def places(self, space: Space) -> Tensor:
        extent = self.extent_of(space)
        assert space.coordinates is not None
        at = 2 * (space.coordinates + 0.5) / extent - 1
        if self.training:
            if self.shift:
                at = at + at.new_empty(self.axes).uniform_(-self.shift, self.shift)
            for factor, axes in ((self.jitter, self.axes), (self.rescale, 1)):
                if factor > 1:
                    most = math.log(factor)
                    at = at * at.new_empty(axes).uniform_(-most, most).exp()
        return 2 * math.pi * at

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, shift={self.shift:g}, jitter={self.jitter:g}, "
            f"rescale={self.rescale:g}"
        )
