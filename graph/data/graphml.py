"""GraphML files: what networkx reads of one, and what it passes over in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from attention_core.training import UsageError, require
from attention_core.training.inputs import check_file


def read_graphml(path: Path) -> Any:
    """Read the one graph of a GraphML file, as networkx does, and with the default values that the
    file gives to attributes.

    Raises:
        UsageError: it cannot be read; holds several graphs, or one within another; names a node, an
            edge or an attribute twice; or has an edge to a node that it does not declare.
    """
    require("networkx", extra="graph")
    import networkx

    try:
        root = ElementTree.parse(check_file(path)).getroot()
        _check(root)
        _fill_in_defaults(root)
        graph = networkx.parse_graphml(ElementTree.tostring(root, encoding="unicode"))
        declared = sum(1 for _ in _named(root.iter(), "edge"))
        if graph.number_of_edges() != declared:  # as of edges between the same nodes with one key
            raise ValueError(f"{graph.number_of_edges()} of its {declared} edges can be told apart")
        return graph
    except Exception as error:  # networkx raises a dozen kinds
        reason = str(error) or type(error).__name__
        raise UsageError(f"{path.name} is no GraphML that can be read: {reason}.") from error


def _check(root: Element) -> None:
    graphs = sum(1 for _ in _named(root.iter(), "graph"))
    if graphs > 1:
        raise ValueError(f"it holds {graphs} graphs; one was expected")
    keys = [
        (element, key.get("attr.name"))
        for key in _named(root.iter(), "key")
        for element in _elements(key)
        if key.get("attr.name") is not None
    ]
    nodes = [node.get("id") for node in _named(root.iter(), "node")]
    edges = [edge.get("id") for edge in _named(root.iter(), "edge") if edge.get("id") is not None]
    for what, names in (("attribute", keys), ("node", nodes), ("edge", edges)):
        for name, count in Counter(names).items():
            if count > 1:
                shown = name[1] if isinstance(name, tuple) else name
                raise ValueError(f"it declares the {what} {shown!r} {count} times")
    for name in ("graph", "node", "edge"):
        for element in _named(root.iter(), name):
            values = [data.get("key") for data in _named(element, "data")]
            if len(values) > len(set(values)):
                raise ValueError(
                    f"the {name} {element.get('id')!r} has two values of one attribute"
                )
    declared = set(nodes)
    for edge in _named(root.iter(), "edge"):
        for end in ("source", "target"):
            if edge.get(end) not in declared:
                raise ValueError(
                    f"an edge has the {end} {edge.get(end)!r}, which is no node of the graph"
                )


def _fill_in_defaults(root: Element) -> None:
    """Writes the default value of an attribute to each element that has none."""
    for key in _named(root.iter(), "key"):
        default = next(_named(key, "default"), None)
        if default is None:
            continue
        for name in _elements(key):
            for element in _named(root.iter(), name):
                if all(data.get("key") != key.get("id") for data in element):
                    namespace = element.tag.removesuffix(name)
                    data = ElementTree.SubElement(element, f"{namespace}data")
                    data.set("key", str(key.get("id")))
                    data.text = default.text


def _elements(key: Element) -> tuple[str, ...]:
    """The elements that a declared attribute is of."""
    of = key.get("for", "all")
    return ("graph", "node", "edge") if of == "all" else (of,)


def _named(elements: Iterable[Element], name: str) -> Iterator[Element]:
    """Those of this name, in whatever namespace."""
    return (e for e in elements if isinstance(e.tag, str) and e.tag.rpartition("}")[2] == name)
