"""Small graphs in files, as a user has them."""

import csv
from collections.abc import Callable
from pathlib import Path

import networkx


def rings_and_paths(count: int = 24) -> list[networkx.Graph]:
    """Rings, of odd number, and paths of three to six atoms."""
    graphs = []
    for number in range(count):
        size = 3 + number % 4
        graph = networkx.cycle_graph(size) if number % 2 else networkx.path_graph(size)
        graph.graph["half"] = size / 2
        for node in graph:
            graph.nodes[node].update(element="CNO"[node % 3], charge=node / 4)
        for a, b in graph.edges:
            graph.edges[a, b].update(kind="double" if a % 2 else "single")
        graphs.append(graph)
    return graphs


def write_tu(folder: Path) -> Path:
    """Node labels 6, 7, 8, edge labels 1, 2, graph labels 5, 9."""
    folder.mkdir(parents=True)
    lines: dict[str, list[str]] = {
        f"{of}_{what}": []
        for of, what in (("graph", "indicator"), ("graph", "labels"), ("node", "labels"))
    } | {"A": [], "edge_labels": []}
    first = 1
    for number, graph in enumerate(rings_and_paths(), start=1):
        lines["graph_labels"].append("5" if number % 2 else "9")
        for _, element in graph.nodes(data="element"):
            lines["graph_indicator"].append(str(number))
            lines["node_labels"].append(str(6 + "CNO".index(element)))
        for a, b, kind in graph.edges(data="kind"):
            lines["A"] += [f"{first + a}, {first + b}", f"{first + b}, {first + a}"]
            lines["edge_labels"] += ["1" if kind == "single" else "2"] * 2
        first += len(graph)
    for name, rows in lines.items():
        (folder / f"{folder.name}_{name}.txt").write_text("\n".join(rows) + "\n")
    return folder


def write_graphml(root: Path) -> Path:
    """A folder of paths and one of rings."""
    for number, graph in enumerate(rings_and_paths()):
        folder = root / ("ring" if number % 2 else "path")
        folder.mkdir(parents=True, exist_ok=True)
        networkx.write_graphml(graph, folder / f"{number:02}.graphml")
    return root


def write_caves(path: Path) -> Path:
    """One graph of 40 nodes in five caves, with what can be told of nodes and edges."""
    graph = networkx.connected_caveman_graph(5, 8)
    for node in graph:
        graph.nodes[node].update(element="CNO"[node % 3], depth=node / 10)
        if node % 8:  # the others are not known
            graph.nodes[node]["cave"] = f"cave {node // 8}"
    for a, b in graph.edges:
        graph.edges[a, b]["side"] = "in" if a // 8 == b // 8 else "out"
    path.parent.mkdir(parents=True, exist_ok=True)
    named = networkx.relabel_nodes(graph, {node: f"n{node}" for node in graph})
    networkx.write_graphml(named, path)
    return path


def write_smiles(path: Path) -> Path:
    """Alkanes and alcohols, with a number besides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["smiles", "target", "mass"])
        for number in range(30):
            alcohol = number % 2
            smiles = "C" * (1 + number % 6) + "O" * alcohol
            writer.writerow([smiles, "alcohol" if alcohol else "alkane", number / 7])
    return path


#: What the experiments read whose graphs are the user's.
OWN: dict[str, Callable[[Path], Path]] = {
    "graph/graph_folder": lambda folder: write_graphml(folder / "graphs"),
    "graph/molecules": lambda folder: write_smiles(folder / "molecules.csv"),
    "graph/graph_links": lambda folder: write_caves(folder / "caves.graphml"),
}
