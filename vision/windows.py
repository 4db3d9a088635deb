"""Attention inside the windows of a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import functional as F

from attention_core import Bias, Grid, Mask, MultiheadAttention, Space, Window
from attention_core.cache import LayerCache
from attention_core.job import Plan
from attention_core.precision import product_dtype

#: How many plans a layer keeps: sizes of images, with and without a gradient.
_KEPT = 8


class WindowAttention(MultiheadAttention):
    """Attention inside the windows of a grid (Liu et al., Swin, 2021).

    Where windows do not tile the grid, tokens of zeros below and to the right of it complete them:
    they are attended to, as the published models were trained, and do not attend. Along an axis
    where one window holds all, windows are not shifted.

    Plans are kept, since all that they depend on is the size of the grid.
    Arguments are those of `MultiheadAttention`.
    """

    _no_context = "tokens attend inside windows of their own: no context, no cache"

    def plan(
        self,
        x: Tensor,
        space: Space | tuple[Space, Space],
        mask: Mask | Tensor | None = None,
        bias: Bias | None = None,
        backend: str | None = None,
    ) -> Plan:
        """Make the plan for queries from x on one `Grid` and keys on the grid that windows tile.

        Raises:
            TypeError: `space` is not one whole grid, or `mask` no `Window`.
        """
        grid = space[0] if isinstance(space, tuple) else space
        if not isinstance(grid, Grid) or grid.size is None or grid.special is not None:
            raise TypeError(f"windows need one whole Grid, got {grid.describe()}")
        if not isinstance(mask, Window):
            raise TypeError(f"mask must be a Window(size, shift), got {mask}")
        if is_compiling():
            return self._planned(x, grid, mask, bias, backend)
        batch = x.shape[0] if x.ndim == 3 else 1
        numbers = batch, x.device, product_dtype(x), torch.is_grad_enabled()
        key = (grid.size, mask, bias, *numbers, backend)
        plans: dict[tuple[Any, ...], Plan] = self.__dict__.setdefault("_plans", {})
        if key not in plans:
            if len(plans) >= _KEPT:
                plans.clear()
            plans[key] = self._planned(x, grid, mask, bias, backend)
        return plans[key].renewed()

    def _planned(
        self, x: Tensor, grid: Grid, mask: Window, bias: Bias | None, backend: str | None
    ) -> Plan:
        assert grid.size is not None
        window, shift = (
            n if isinstance(n, tuple) else (n,) * grid.axes for n in (mask.size, mask.shift)
        )
        tiled = tuple(-(-n // size) * size for n, size in zip(grid.size, window, strict=True))
        keys = grid if tiled == grid.size else Grid(*tiled, device=grid.device)
        fitting: Mask | None = None  # one window holds everything
        if tiled != window:
            axes = zip(tiled, window, shift, strict=True)
            fitting = Window(window, tuple(by if n > size else 0 for n, size, by in axes))
        return super().plan(x, (grid, keys), fitting, bias, backend)

    def _forward(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        bias: Bias | None,
        cache: LayerCache | None,
        plan: Plan,
    ) -> Tensor:
        grid, keys = plan.job.spaces
        if keys is not grid:
            assert grid.size is not None and keys.size is not None
            context = pad_grid(x.unflatten(-2, grid.size), keys.size).flatten(-3, -2)
        return super()._forward(x, context, bias=bias, cache=cache, plan=plan)


def pad_grid(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Pad (..., h, w, D) with zeros below and to the right, up to `size`."""
    height, width = x.shape[-3:-1]
    if (height, width) == size:
        return x
    return F.pad(x, (0, 0, 0, size[1] - width, 0, size[0] - height))
