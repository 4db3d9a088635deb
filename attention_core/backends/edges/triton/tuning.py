"""How many pairs a program takes at once, and how many warps it has: measured, on a GPU.

Measured once a process for each kernel, its sizes, dtypes and mean number of pairs, in powers of
two. Not under deterministic algorithms, where sums may not depend on what was the fastest, and not
in Triton's interpreter.
"""

# Triton ships no types.
# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
from triton import language as tl

from attention_core.backends.edges.triton.scores import Sizes

#: Bytes of a tile that a thread holds.
_OF_THREAD = (32, 64)
#: Pairs of a program in Triton's interpreter.
INTERPRETED = 64
_WARPS = (1, 2, 4, 8)
_BLOCKS = (1, 2, 4, 8, 16, 32, 64)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
    """Run a kernel, whose last arguments are degree, sizes and segment, in a grid of programs.

    Args:
        grid: of a single number: of pairs, which programs share.
    """
    if 0 in grid:
        return
    degree, sizes, _ = arguments[-3:]
    if torch.cuda.device_count() > 1:  # triton launches on the current one
        with torch.cuda.device_of(arguments[0].v):
            _run(kernel, grid, degree, sizes, arguments)
    else:
        _run(kernel, grid, degree, sizes, arguments)


def _run(
    kernel: Any, grid: tuple[int, ...], degree: int, sizes: Sizes, arguments: tuple[Any, ...]
) -> None:

    def programs(meta: dict[str, Any]) -> tuple[int, ...]:
        return (triton.cdiv(grid[0], meta["BLOCK"]),) if len(grid) == 1 else grid

    if degree and not interpreted(kernel) and not torch.are_deterministic_algorithms_enabled():
        _tuned(kernel)[programs](*arguments)
        return
    block, warps = (INTERPRETED, 1) if interpreted(kernel) else fixed(sizes)
    kernel[programs](*arguments, BLOCK=block, num_warps=warps)


def interpreted(kernel: Any) -> bool:
    """Return whether Triton's interpreter runs the kernel, on the CPU."""
    return not isinstance(kernel, triton.JITFunction)


def fixed(sizes: Sizes) -> tuple[int, int]:
    """Return pairs and warps of a program where nothing is measured."""
    pair = _bytes(sizes)
    warps = min(triton.cdiv(pair, 32 * _OF_THREAD[-1]), 8) if pair >= 2048 else 1
    warps = max(triton.next_power_of_2(warps), 2 if pair >= 1024 else 1)
    return min(max(32 * warps * _OF_THREAD[-1] // pair, 1), 16), warps


def _bytes(sizes: Sizes) -> int:
    """Bytes of a pair in a tile."""
    numbers = sizes.slots * max(sizes.pad, sizes.value_pad, sizes.features_pad)
    return numbers * (8 if sizes.dtype == tl.float64 else 4)


@cache
def _tuned(kernel: Any) -> Any:
    configs = [
        triton.Config({"BLOCK": block}, num_warps=warps) for block in _BLOCKS for warps in _WARPS
    ]
    tuner = triton.autotune(configs, ["sizes", "degree"], {"early_config_prune": _fitting})
    return tuner(kernel)


def _fitting(configs: list[Any], named: dict[str, Any], **given: Any) -> list[Any]:
    """Those whose tiles fit into registers and hold no more pairs than a row is likely to have."""
    known = named | given
    sizes, most = known["sizes"], 1 << known["degree"]
    pair = _bytes(sizes)
    found = [
        config
        for config in configs
        if pair * config.kwargs["BLOCK"] / (32 * config.num_warps) in _OF_THREAD
        and config.kwargs["BLOCK"] <= most
    ]
    block, warps = fixed(sizes)
    return found or [triton.Config({"BLOCK": block}, num_warps=warps)]
