"""Where tokens sit: sequences, grids, graphs and point sets.

A space holds four things about each token, and nothing about any model:

========================  =====================================================================
``coordinates`` (L, A)    its place along A axes; every position method reads it
``segments`` (L,)         its sample, where several share a row; samples never see each other
``valid`` (L,)            False on padding
``special`` (L,)          True on class, register and virtual-node tokens, which sit nowhere
========================  =====================================================================

Each may carry a leading batch dimension; a space without one serves every sample of a batch.
"""

from attention_core.spaces.base import PairList, Space
from attention_core.spaces.graph import Graph
from attention_core.spaces.grid import Grid
from attention_core.spaces.pairs import Pairs
from attention_core.spaces.points import Points
from attention_core.spaces.sequence import Sequence
from attention_core.spaces.tiles import BlockKey, TilePairs, Tiles, TileStatus

__all__ = [
    "BlockKey",
    "Graph",
    "Grid",
    "PairList",
    "Pairs",
    "Points",
    "Sequence",
    "Space",
    "TilePairs",
    "TileStatus",
    "Tiles",
]
