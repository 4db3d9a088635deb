"""Graph data sets: from files, packages and PyG, and how they are split and batched."""

from graph.data.atlas import Atlas
from graph.data.cuneiform import Cuneiform
from graph.data.digits import DigitsKNN
from graph.data.folder import GraphFolder
from graph.data.graphs import Graphs, Sample, pack, unpack
from graph.data.karate import Karate
from graph.data.links import GraphLinks, LinkData
from graph.data.module import GraphData
from graph.data.molecules import Molecules
from graph.data.mutag import Mutag
from graph.data.pyg_datasets import PyGDataset
from graph.data.tu import read_tu
from graph.data.umls import UMLS

__all__ = [
    "UMLS",
    "Atlas",
    "Cuneiform",
    "DigitsKNN",
    "GraphData",
    "GraphFolder",
    "GraphLinks",
    "Graphs",
    "Karate",
    "LinkData",
    "Molecules",
    "Mutag",
    "PyGDataset",
    "Sample",
    "pack",
    "read_tu",
    "unpack",
]
