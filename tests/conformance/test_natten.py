"""`Neighborhood(border="shift")` on the problems that NATTEN tests itself with.

Those of tests/test_fna.py and tests/test_flex.py of github.com/SHI-Labs/NATTEN, in any version up
to 0.21.6, each once: grid / kernel size / stride / dilation. With each of them every choice of
causal axes is asked for. The oracle says in plain Python what NATTEN's mask is; ours was compared
with NATTEN's own `get_na_flex_mask`, too: all pairs of grids of up to 1,300 tokens, 256,000 others.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import torch
from torch import Tensor

from attention_core import Grid, Neighborhood, Pairs
from tests.conformance.oracle import shifted_keys

PROBLEMS = """
    32/32/1/1 125/3/1/1 125/15/1/1 128/3/1/1 128/3/2/5 128/3/2/10 128/8/7/5 128/15/1/1
    128/61/33/1 128/63/31/1 256/3/2/10 256/255/82/1 2048/2048/1/1 32768/2048/1/1
    32768/2048/128/1 32768/2048/256/1 32768/2048/2048/1 8x8/8x8/1x1/1x1 5x25/5x16/1x16/1x1
    5x25/5x16/4x16/1x1 16x16/3x3/1x1/1x1 16x16/3x3/2x2/1x1 16x16/4x4/2x3/1x1 16x16/14x14/1x1/1x1
    16x16/15x15/1x1/1x1 16x16/16x16/1x1/1x1 16x16/16x16/4x5/1x1 16x16/16x16/4x8/1x1
    19x29/8x8/1x1/2x3 40x20/3x7/1x1/1x1 17x48/16x24/1x1/1x2 48x17/24x16/1x1/1x1
    48x17/24x16/1x1/2x1 32x32/31x31/15x15/1x1 33x33/24x16/1x1/1x1 28x40/17x31/1x1/1x1
    28x40/28x40/1x1/1x1 28x46/11x13/1x1/1x1 36x40/36x40/1x1/1x1 36x40/36x40/12x13/1x1
    84x19/7x3/1x1/5x1 32x64/25x31/10x20/1x2 32x64/26x30/1x1/1x2 48x48/24x24/1x1/1x2
    48x48/24x24/1x1/2x2 56x56/7x7/1x1/2x4 56x56/17x4/2x1/1x2 56x56/17x4/2x1/3x2
    44x80/9x10/1x1/1x1 44x80/24x16/1x1/1x1 44x80/24x16/8x16/1x1 44x80/24x24/1x1/1x1
    44x80/24x24/8x16/1x1 44x80/32x32/22x16/1x1 44x80/44x80/1x1/1x1 44x80/44x80/4x8/1x1
    48x80/24x24/8x8/1x1 64x64/32x32/1x1/1x2 64x64/32x32/1x1/2x2 67x80/12x7/8x4/5x11
    72x80/24x16/1x1/3x5 84x69/7x20/1x6/5x1 84x69/7x23/1x1/5x1 84x69/7x68/1x1/5x1
    64x128/21x29/10x12/3x4 64x128/55x101/1x1/1x1 128x128/4x4/1x1/1x1 128x128/4x4/1x1/2x2
    128x128/8x8/1x1/1x1 128x128/8x8/1x1/4x4 128x128/19x24/2x3/2x2 128x128/93x78/2x2/1x1
    4x4x4/2x2x2/1x1x1/1x1x1 4x4x4/2x2x2/2x2x1/1x1x1 8x4x8/7x3x7/1x1x1/1x1x1
    8x8x4/3x4x3/1x1x1/1x1x1 8x8x8/8x8x8/1x1x1/1x1x1 8x8x10/3x4x3/3x4x1/1x1x1
    8x8x12/5x8x11/2x3x4/1x1x1 14x8x8/7x5x5/2x1x3/2x1x1 8x8x16/3x3x3/2x1x2/2x2x4
    16x8x8/7x5x5/2x1x3/2x1x1 18x8x8/7x5x5/2x1x3/2x1x1 13x11x9/3x4x3/1x1x1/3x2x2
    13x11x9/3x4x3/2x3x3/3x2x2 32x8x8/7x5x5/2x1x3/2x1x1 32x10x10/7x3x3/5x1x1/1x2x3
    16x10x24/16x10x8/16x10x8/1x1x1 16x16x16/2x16x16/2x4x16/1x1x1 16x16x16/3x3x3/1x1x1/1x1x1
    16x16x16/12x12x12/8x4x8/1x1x1 16x16x16/14x14x14/1x1x1/1x1x1 16x16x16/15x15x15/1x1x1/1x1x1
    16x16x16/16x16x16/1x1x1/1x1x1 16x16x16/16x16x16/2x4x5/1x1x1 16x16x16/16x16x16/8x4x8/1x1x1
    12x24x16/8x24x16/6x24x16/1x1x1 16x24x16/4x8x2/4x8x2/1x1x1 24x16x16/8x4x2/8x4x2/1x1x1
    24x16x16/8x14x12/8x2x8/1x1x1 32x10x24/16x10x8/16x10x8/2x1x1 18x37x12/14x16x12/12x8x1/1x1x1
    18x37x12/14x16x12/12x8x1/1x2x1 18x37x12/14x16x12/12x8x6/1x2x1 12x49x16/8x24x16/6x24x16/1x2x1
    16x16x48/4x10x16/4x8x16/1x1x1 16x48x16/4x8x2/4x8x2/1x2x1 16x48x16/10x16x8/2x16x8/1x1x1
    48x16x16/48x2x8/16x2x4/1x1x1 16x16x50/2x16x16/2x4x16/1x1x3 50x16x16/12x12x12/8x4x8/3x1x1
    5x45x73/2x7x32/1x4x32/2x2x2 24x16x48/8x4x2/8x4x2/1x1x3 24x16x50/8x14x12/8x2x8/1x1x3
    30x48x17/18x24x16/1x1x1/1x1x1 96x16x16/48x2x8/16x2x4/2x1x1 16x97x16/10x16x8/2x16x8/1x2x1
    30x48x18/3x2x8/1x1x1/8x18x2 30x48x18/30x48x18/1x1x1/1x1x1 24x28x40/11x17x31/1x1x1/1x1x1
    30x32x32/10x32x32/1x1x1/1x1x1 31x32x32/10x32x32/1x1x1/1x1x1 20x40x40/20x12x16/1x4x16/1x1x1
    24x36x40/24x36x40/1x1x1/1x1x1 24x36x40/24x36x40/10x12x13/1x1x1 33x33x33/18x24x16/1x1x1/1x1x1
    50x16x48/4x10x16/4x8x16/3x1x1 16x44x80/8x9x10/1x1x1/1x1x1 16x44x80/12x32x32/8x22x16/1x1x1
    16x44x80/16x44x80/1x1x1/1x1x1 16x44x80/16x44x80/8x4x8/1x1x1 57x32x32/10x32x32/1x1x1/1x1x1
    57x32x32/10x32x32/1x1x1/2x1x1 61x32x32/10x32x32/1x1x1/2x1x1 24x44x80/24x12x24/1x4x8/1x1x1
    57x20x88/19x4x6/13x1x6/2x2x7 57x20x88/20x4x6/1x1x1/2x1x1 57x20x88/20x8x16/1x1x1/2x1x1
    30x44x80/18x24x24/1x1x1/1x1x1 30x44x80/18x24x24/2x8x16/1x1x1 30x44x80/24x24x16/1x1x1/1x1x1
    30x44x80/24x24x16/2x8x16/1x1x1 30x48x80/18x24x24/16x8x8/1x1x1 32x64x64/16x16x16/1x1x2/1x1x1
    32x64x64/16x16x16/1x1x2/1x3x2 32x64x64/16x16x16/1x2x2/1x1x1 32x64x64/16x16x16/2x1x1/1x1x1
    32x64x64/16x16x16/2x1x1/2x2x3 48x64x64/7x15x11/1x2x2/5x3x2 61x61x61/10x10x10/1x1x1/1x1x2
    61x61x61/10x10x10/1x1x1/1x2x1 61x61x61/10x10x10/1x1x1/2x2x2
"""


def problems() -> list[list[tuple[int, ...]]]:
    """Grid, kernel size, stride and dilation of each."""
    return [
        [tuple(map(int, part.split("x"))) for part in problem.split("/")]
        for problem in PROBLEMS.split()
    ]


@cache
def axis(length: int, window: int, stride: int, dilation: int, is_causal: bool) -> list[list[int]]:
    """Some queries along an axis, and keys in and just outside of their windows: query, key, 0 or
    1."""
    generator = torch.Generator().manual_seed(length)
    some = torch.randint(length, (6,), generator=generator).tolist()
    found = []
    for query in {0, length - 1, dilation, length // 2, *some} & {*range(length)}:
        keys = shifted_keys(length, query, window, dilation, stride, is_causal)
        inside = {keys[0], keys[-1], keys[len(keys) // 2]}
        near = {query + step for step in (-1, 0, 1)} | {keys[0] - dilation, keys[-1] + dilation}
        seen = {*keys}
        found += [[query, k, k in seen] for k in inside | near if 0 <= k < length]
    return found


def drawn(table: list[list[int]], count: int, generator: torch.Generator) -> Tensor:
    """(count, 3) rows of a table, half of them allowed."""
    rows = torch.tensor(table)
    weight = torch.where(rows[:, 2] > 0, 1 / rows[:, 2].sum(), 0.3 / len(rows))
    return rows[torch.multinomial(weight, count, replacement=True, generator=generator)]


def test_the_windows_are_those_of_natten() -> None:
    generator = torch.Generator().manual_seed(0)
    zero, checked = torch.zeros(1, dtype=torch.long), 0
    for size, kernel, stride, dilation in problems():
        space = Grid(*size)
        for causal in product([False, True], repeat=len(size)):
            mask = Neighborhood(
                tuple((k - 1) / 2 for k in kernel), "shift", dilation, stride, causal
            )
            axes = [
                drawn(axis(*one), 256, generator)
                for one in zip(size, kernel, stride, dilation, causal, strict=True)
            ]
            query = key = zero
            for length, rows in zip(size, axes, strict=True):
                query, key = query * length + rows[:, 0], key * length + rows[:, 1]
            tokens = space.keep(torch.cat([query, key]))  # of large grids, only these
            index = torch.arange(len(query))
            pairs = Pairs(
                (tokens, tokens),
                shape=(1, 1, tokens.length, tokens.length),
                batch=zero,
                head=zero,
                query=index,
                key=index + len(query),
            )
            wanted = torch.stack([rows[:, 2] for rows in axes]).bool().all(0)
            assert wanted.any() and (not wanted.all() or (kernel == size and not any(causal)))
            found = mask.allowed(pairs)
            assert torch.equal(found, wanted), (size, kernel, stride, dilation, causal)
            checked += 1
    assert checked == 17 * 2 + 55 * 4 + 80 * 8
