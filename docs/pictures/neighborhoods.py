"""Draws neighborhoods.png: one mask, `Neighborhood(r)`, on a Sequence, a Grid and a Graph.

    python docs/pictures/neighborhoods.py

What is drawn is what the toolkit computes: the mask and the distances of all pairs of a space.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Patch, Rectangle
from torch import Tensor

from attention_core import Graph, Grid, Neighborhood, Pairs, Sequence, Space

RADIUS = 2
QUERY, NEAR = "#e4572e", ["#1b4f8f", "#79aede"]  # distance 0, then 1 and 2
FAR, LINE, INK, SOFT = "#e9edf2", "#a9b4c2", "#1f2933", "#5c6875"


def mask_and_distance(space: Space) -> tuple[Tensor, Tensor]:
    """Both (L, L), for all pairs of the space."""
    pairs = Pairs.all((space, space))
    return Neighborhood(RADIUS).at(pairs).squeeze(), pairs.distance.squeeze()


def colors(space: Space) -> list[list[str]]:
    """The color of each pair, by query and then key."""
    mask, distance = mask_and_distance(space)
    return [
        [
            [QUERY, *NEAR][int(far)] if allowed else FAR
            for allowed, far in zip(mask_row, row, strict=True)
        ]
        for mask_row, row in zip(mask, distance, strict=True)
    ]


def draw_tiles(axis: Axes, places: list[tuple[float, float]], faces: list[str]) -> None:
    for (x, y), face in zip(places, faces, strict=True):
        axis.add_patch(
            FancyBboxPatch(
                (x - 0.43, y - 0.43),
                0.86,
                0.86,
                boxstyle="round,pad=0,rounding_size=0.14",
                facecolor=face,
                edgecolor="none",
            )
        )


def draw_molecule(
    axis: Axes, places: list[tuple[float, float]], bonds: list[tuple[int, int]], faces: list[str]
) -> None:
    for a, b in bonds:
        axis.plot(*zip(places[a], places[b], strict=True), color=LINE, linewidth=4, zorder=1)
    for place, face in zip(places, faces, strict=True):
        axis.add_patch(Circle(place, 0.3, facecolor=face, edgecolor="white", linewidth=3, zorder=2))


def draw_mask(axis: Axes, pairs: list[list[str]], query: int) -> None:
    length = len(pairs)
    image = [[to_rgb(face) for face in row] for row in pairs]
    axis.imshow(image, extent=(0, length, length, 0), interpolation="nearest")
    for line in range(length + 1):
        axis.axhline(line, color="white", linewidth=16 / length)
        axis.axvline(line, color="white", linewidth=16 / length)
    axis.add_patch(
        Rectangle(
            (0, query), length, 1, fill=False, edgecolor=QUERY, linewidth=2, clip_on=False, zorder=3
        )
    )
    axis.annotate(
        "",
        (0, query + 0.5),
        (-0.055 * length, query + 0.5),
        arrowprops={
            "arrowstyle": "-|>",
            "color": QUERY,
            "linewidth": 2,
            "shrinkA": 0,
            "shrinkB": 1,
        },
        annotation_clip=False,
    )
    axis.set_xlabel("keys", fontsize=16, color=SOFT, labelpad=8)
    axis.set_ylabel("queries", fontsize=16, color=SOFT, labelpad=24)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def draw_legend(figure: Figure, y: float) -> None:
    entries = [
        (QUERY, "the query itself"),
        (NEAR[0], "distance 1"),
        (NEAR[1], "distance 2"),
        (FAR, "farther: may not attend"),
    ]
    handles = [Patch(facecolor=face, edgecolor="none", label=words) for face, words in entries]
    figure.legend(
        handles=handles,
        loc="center",
        bbox_to_anchor=(0.5, y),
        ncols=len(entries),
        frameon=False,
        fontsize=17,
        labelcolor=INK,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=2.4,
        handletextpad=0.6,
    )


def caffeine() -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    """Places and bonds of the 14 heavy atoms of caffeine, a bond being 1 long."""
    corners = [math.radians(angle) for angle in (30, 90, 150, 210, 270, 330)]
    places = [(math.cos(angle), math.sin(angle)) for angle in corners]
    bonds = [(atom, (atom + 1) % 6) for atom in range(6)]
    # The five-ring shares the bond of atoms 0 and 5
    middle = places[0][0] + 0.5 / math.tan(math.pi / 5)
    radius = 0.5 / math.sin(math.pi / 5)
    for angle in (math.radians(72), 0.0, -math.radians(72)):
        places.append((middle + radius * math.cos(angle), radius * math.sin(angle)))
    bonds += [(0, 6), (6, 7), (7, 8), (8, 5)]
    for atom, center in ((1, 0.0), (2, 0.0), (3, 0.0), (4, 0.0), (6, middle)):
        (x, y) = places[atom]
        length = math.hypot(x - center, y)
        places.append((x + (x - center) / length, y + y / length))
        bonds.append((atom, len(places) - 1))
    return places, bonds


def main() -> None:
    figure = Figure(figsize=(16, 11.2), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    width, lefts = 0.262, (0.057, 0.3875, 0.718)
    tops = [figure.add_axes((x, 0.485, width, 0.265)) for x in lefts]
    bottoms = [figure.add_axes((x, 0.06, width, width * 16 / 11.2)) for x in lefts]

    sequence, query = Sequence(14), 5
    pairs = colors(sequence)
    draw_tiles(tops[0], [(float(place), 0.0) for place in range(14)], pairs[query])
    tops[0].set_xlim(-0.5, 13.5)
    tops[0].set_ylim(-1, 1)
    draw_mask(bottoms[0], pairs, query)

    grid, query = Grid(6, 6), 2 * 6 + 2
    pairs = colors(grid)
    places = [(float(column), -float(row)) for row in range(6) for column in range(6)]
    draw_tiles(tops[1], places, pairs[query])
    tops[1].set_xlim(-0.5, 5.5)
    tops[1].set_ylim(-5.5, 0.5)
    draw_mask(bottoms[1], pairs, query)

    places, bonds = caffeine()
    both_ways = [*bonds, *((b, a) for a, b in bonds)]
    graph, query = Graph(torch.tensor(both_ways).T, len(places)), 5
    pairs = colors(graph)
    draw_molecule(tops[2], places, bonds, pairs[query])
    tops[2].set_xlim(-2.2, 3.2)
    tops[2].set_ylim(-2.35, 2.35)
    draw_mask(bottoms[2], pairs, query)

    for axis in tops:
        axis.set_aspect("equal")
        axis.axis("off")
    titles = [
        ("Sequence(14)", "a window of words"),
        ("Grid(6, 6)", "a square of image patches"),
        ("Graph(bonds, 14)", "atoms up to two bonds away"),
    ]
    for left, (code, words) in zip(lefts, titles, strict=True):
        x = left + width / 2
        figure.text(x, 0.812, code, ha="center", fontsize=21, family="monospace", color=INK)
        figure.text(x, 0.778, words, ha="center", fontsize=16.5, color=SOFT)
    figure.text(
        0.5,
        0.94,
        f"mask = Neighborhood({RADIUS})",
        ha="center",
        fontsize=31,
        family="monospace",
        fontweight="bold",
        color=INK,
    )
    draw_legend(figure, 0.895)
    figure.savefig(Path(__file__).with_suffix(".png"), pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
