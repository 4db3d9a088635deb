"""The edges of a graph, and what can be asked of them: which edge, how many hops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting

from attention_core.checks import check_dense, may_look
from attention_core.lasting import computed, computed_names, kept, lasting
from attention_core.spaces.csr import CSR, count_each
from attention_core.spaces.hops import all_hops, dense_hops, near_pairs
from attention_core.transfer import moved

_MOST_HOPS = 8  # to which walks are counted; more of them reach nearly everywhere
_MOST_PAIRS = 1 << 30  # entries of a table of pairs; 4 GiB of float32


class EdgeList:
    """Directed edges, source to target, of one graph or of several side by side.

    Args:
        edge_index: (2, E) integers as in PyG, row 0 the source, row 1 the target.
        num_nodes: number of nodes N; of sources, where targets are a set of their own.
        attr: (E,) or (E, F) features of the edges.
        graph: (N,) non-decreasing integers, the graph of each node; None for one graph.
        pair_attr: tables of all pairs inside each graph, (Σ n²,) or (Σ n², F), in the order that
            `pair` gives; "hops" are taken instead of searching them.
        num_targets: number of targets, where they are a set of their own.
        num_graphs: number of graphs in `graph`, where the last ones may have no nodes.

    Values are checked on a CPU alone: another device would have to be waited for. What cannot be
    found there without waiting again and again, as how many hops lie between nodes, is found by
    `host`. Sorting is done where the edges are, and waits for nothing.
    """

    #: (E,) bool, those that are listed and are no edges: of `looped`, where a program is compiled.
    dropped: Tensor | None = None

    @lasting
    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        attr: Tensor | None = None,
        graph: Tensor | None = None,
        pair_attr: Mapping[str, Tensor] | None = None,
        num_targets: int | None = None,
        num_graphs: int | None = None,
    ) -> None:
        check_dense(edge_index=edge_index, edge_attr=attr, segments=graph)
        if edge_index.ndim != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"edge_index must have shape (2, E), got {tuple(edge_index.shape)}")
        if edge_index.is_floating_point() or edge_index.dtype == torch.bool:
            raise TypeError(f"edge_index must hold integers, got {edge_index.dtype}")
        look = may_look(edge_index)
        if not look:
            pass
        elif num_targets is None:
            _check_range(edge_index, num_nodes, "node", "num_nodes")
        else:
            _check_range(edge_index[0], num_nodes, "source", "num_sources")
            _check_range(edge_index[1], num_targets, "target", "num_targets")
        if attr is not None and attr.shape[:1] != edge_index.shape[1:]:
            raise ValueError(
                f"edge_attr has {attr.shape[0] if attr.ndim else 'no'} rows for "
                f"{edge_index.shape[1]} edges in edge_index"
            )
        if graph is not None:
            if graph.shape != (num_nodes,) or graph.is_floating_point():
                raise ValueError(
                    f"segments must hold an integer per node, shape ({num_nodes},); got "
                    f"{graph.dtype} {tuple(graph.shape)}"
                )
            if look and bool((graph[1:] < graph[:-1]).any()):
                raise ValueError("segments must not decrease: keep the nodes of a graph together")
            if look and bool((graph[edge_index[0]] != graph[edge_index[1]]).any()):
                raise ValueError("edge_index joins nodes of different graphs of the batch")
        self.source, self.target = kept(edge_index).long()
        self.num_nodes = num_nodes
        self.bipartite = num_targets is not None
        self.num_targets = num_nodes if num_targets is None else num_targets
        self.attr, self.graph = kept(attr), kept(graph)
        self.num_graphs = num_graphs
        if graph is not None and num_graphs is None and not (look or is_compiling()):
            self.num_graphs = int(graph[-1]) + 1 if len(graph) else 0  # the one thing to wait for
        self.pair_attr = {name: kept(table) for name, table in (pair_attr or {}).items()}
        self._computed: dict[Hashable, Tensor] = {}
        for name, table in self.pair_attr.items() if look else ():
            if len(table) != self.num_pairs:
                raise ValueError(
                    f"pair_attr[{name!r}] has {len(table)} rows, but there are {self.num_pairs} "
                    "pairs of nodes inside the graphs: n² of each"
                )

    @classmethod
    @lasting
    def joined(cls, parts: Sequence[EdgeList]) -> EdgeList:
        """Join edges between separate nodes, those of each part behind those of the one before.

        Raises:
            TypeError: some have features or tables of pairs that others have not.
        """
        named = [(one.attr is not None, sorted(one.pair_attr)) for one in parts]
        if any(names != named[0] for names in named) or any(one.bipartite for one in parts):
            raise TypeError("edges can be joined where all have edge_attr and pair_attr, or none")
        nodes = graphs = 0
        sources, targets, of_node = [], [], []
        for one in parts:
            graph, _ = one.local
            sources.append(one.source + nodes)
            targets.append(one.target + nodes)
            of_node.append(graph + graphs)
            nodes, graphs = nodes + one.num_nodes, graphs + len(one.sizes)
        attrs = [one.attr for one in parts if one.attr is not None]
        shapes = {tuple(attr.shape[1:]) for attr in attrs}
        if len(shapes) > 1:
            raise ValueError(
                f"edges can be joined where a row of edge_attr has one shape, got {sorted(shapes)}"
            )
        return cls(
            torch.stack([torch.cat(sources), torch.cat(targets)]),
            nodes,
            torch.cat(attrs) if attrs else None,
            torch.cat(of_node),
            {name: torch.cat([one.pair_attr[name] for one in parts]) for name in named[0][1]},
            num_graphs=graphs,
        )

    @property
    def num_edges(self) -> int:
        return self.source.shape[0]

    def to(self, device: torch.device | str) -> EdgeList:
        """Return the edges with their tensors on `device`, in one copy; sorted, if they are."""
        return moved(self, device)

    def left_behind(self) -> set[str]:
        """Return names of what does not follow to another device: what was computed, aside from
        the order, which would have to be found again there."""
        return {"_computed", *computed_names(self)} - {"csr"}

    def arrived(self, origin: EdgeList) -> None:
        """Remember what this is a copy of, where that is on the CPU."""
        self._computed = {}
        self.know_host(origin)

    def know_host(self, edges: EdgeList) -> None:
        """Keep what these edges are on the CPU, if that is where they are."""
        if edges.source.device.type == "cpu" != self.source.device.type:
            self._host = edges

    @property
    def host(self) -> EdgeList:
        """These edges on the CPU: as they were there before they were moved, or in one copy from
        the device, for which that is waited for once. Features stay where they are."""
        return self if self.source.device.type == "cpu" else self._host

    @computed
    def _host(self) -> EdgeList:
        return moved(self.bare, "cpu")

    @property
    def has_host(self) -> bool:
        """Whether `host` is known, so that nobody waits for it."""
        return self.source.device.type == "cpu" or "_host" in vars(self)

    def sort(self) -> EdgeList:
        """Return these edges, sorted by target and by source, as layers along them and their
        gradients need it: in a worker of a loader, or before a program of layers is compiled, which
        sorts each time what is not sorted yet. The order follows to other devices."""
        self.csr.transpose  # noqa: B018  kept from now on
        return self

    @property
    def bare(self) -> EdgeList:
        """These edges without features and tables of pairs, hops aside: what plans look at."""
        new = copy.copy(self)
        new._forget()
        hops = self.pair_attr.get("hops")
        new.attr, new.pair_attr = None, {} if hops is None else {"hops": hops}
        return new

    def _forget(self) -> None:
        """Drop what was computed for other edges, or on another device."""
        self._computed = {}
        for name in computed_names(self):
            del self.__dict__[name]

    @computed
    def csr(self) -> CSR:
        """The edges sorted by target: once per graph, for all layers, plans and forward passes."""
        return CSR(self.target, self.source, self.num_targets, self.num_nodes)

    @computed
    def looped(self) -> tuple[EdgeList, Tensor]:
        """These edges with exactly one self-loop at each node, in the order of nodes, behind the
        others; and which of these edges the others are. Features are left out.

        Where targets are a set of their own, they are taken for the first of the sources, as the
        batches of neighbour samplers have it.
        """
        kept = (self.source != self.target).nonzero().squeeze(-1)  # how many, a device is asked
        return self._with_loops(self.source[kept], self.target[kept]), kept

    def looped_in_place(self) -> EdgeList:
        """Return what `looped` does in as many entries as edges and nodes, for programs whose sizes
        cannot depend on values: loops that were listed stay, `dropped`."""
        new = self._with_loops(self.source, self.target)
        loops = self.source == self.target
        new.dropped = torch.cat([loops, loops.new_zeros(new.num_edges - len(loops))])
        return new

    def _with_loops(self, source: Tensor, target: Tensor) -> EdgeList:
        node = torch.arange(min(self.num_nodes, self.num_targets), device=source.device)
        new = copy.copy(self)
        new._forget()
        new.source, new.target = torch.cat([source, node]), torch.cat([target, node])
        new.attr = None
        return new

    def with_attr(self, attr: Tensor | None) -> EdgeList:
        """Return these edges, as they are sorted, with other features, (E,) or (E, F)."""
        new = copy.copy(self)
        new.csr, new.attr, new._computed = self.csr, kept(attr), {}
        return new

    def into(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """List the edges into some nodes (K,), node by node: which of `targets` each leads to, and
        which edge it is, (M,) each. It takes as many steps as there are such edges."""
        start = self.csr.start.long()
        first = start[targets]
        counts = start[targets + 1] - first
        owner = torch.repeat_interleave(counts)
        rank = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        return owner, self.csr.item[first[owner] + rank].long()

    # -- which edge ---------------------------------------------------------------------------

    @computed
    def _sorted(self) -> tuple[Tensor, Tensor]:
        keys, order = (self.target * self.num_nodes + self.source).sort()
        return keys, order

    @computed
    def repeated(self) -> int | None:
        """An edge that is listed more than once, if there is one."""
        if not may_look(self.source) and self.has_host and not is_compiling():
            return self.host.repeated
        keys, order = self._sorted
        twice = keys[1:] == keys[:-1]
        return int(order[twice.nonzero()[0]]) if bool(twice.any()) else None

    def find(self, target: Tensor, source: Tensor) -> Tensor:
        """Return the index of the edge source → target of each pair of nodes, or -1.

        Raises ValueError where an edge is listed twice: one pair then has two edges. (Pairs that
        come from the edge list itself, as in the `edges` backend, know their edge without this.)
        """
        wanted = target * self.num_nodes + source
        if is_exporting():
            return self._find_in_table(wanted, (target >= 0) & (source >= 0))
        keys, order = self._sorted
        edge = self.repeated
        if edge is not None:
            raise ValueError(
                f"edge_index lists the edge {int(self.source[edge])} → {int(self.target[edge])} "
                "more than once, and only backend='edges' with the mask Edges() tells such edges "
                "apart; coalesce the edges, or use that"
            )
        if len(keys) == 0:
            return torch.full_like(wanted, -1)
        at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where((keys[at] == wanted) & (target >= 0) & (source >= 0), order[at], -1)

    def _find_in_table(self, wanted: Tensor, exists: Tensor) -> Tensor:
        """`find` with a table of all pairs, which all that runs a program has operations for."""
        numbers = torch.arange(self.num_edges, device=wanted.device)
        table = wanted.new_full((self.num_nodes * self.num_nodes,), -1)
        table = table.scatter(0, self.target * self.num_nodes + self.source, numbers)
        return torch.where(exists, table[wanted.clamp(min=0)], -1)

    # -- pairs inside graphs ------------------------------------------------------------------

    @computed
    def sizes(self) -> Tensor:
        """(G,) nodes of each graph."""
        if self.bipartite:
            raise TypeError(
                "a bipartite graph has edges, but neither hops nor tables of pairs: use Edges(), "
                "and biases of edges"
            )
        if self.graph is None:
            return self.source.new_full((1,), self.num_nodes)
        if self.num_graphs is not None:
            return count_each(self.graph, self.num_graphs)
        return torch.bincount(self.graph)

    @computed
    def local(self) -> tuple[Tensor, Tensor]:
        """(N,) the graph of each node, and (N,) the node's rank in it."""
        device = self.source.device
        graph = self.graph
        if graph is None:
            graph = torch.zeros(self.num_nodes, dtype=torch.long, device=device)
        starts = self.sizes.cumsum(0) - self.sizes
        return graph, torch.arange(self.num_nodes, device=device) - starts[graph]

    @computed
    def num_pairs(self) -> int:
        """Number of pairs inside all graphs, Σ n²."""
        known = self.host if self.has_host else self
        return int((known.sizes**2).sum())

    def count_pairs(self, what: str, width: int = 1) -> int:
        """Count the pairs inside all graphs, Σ n².

        Raises:
            ValueError: they are too many to hold `width` numbers of each; it speaks of `what`.
        """
        if is_exporting():
            return 0
        count = self.num_pairs
        if count * width > _MOST_PAIRS:
            raise ValueError(f"{what} would take {count * width:,} entries, n² of each graph")
        return count

    def pair(self, target: Tensor, source: Tensor) -> Tensor:
        """Return the row of each pair source → target in a table of all pairs inside each graph, -1
        between two graphs. Such a table has Σ n² rows: graph by graph, target by target."""
        if self.num_nodes == 0:
            return torch.full_like(target + source, -1)
        (graph, local), areas = self.local, self.sizes**2
        of = graph[target]
        row = (areas.cumsum(0) - areas)[of] + local[target] * self.sizes[of] + local[source]
        return torch.where(of == graph[source], row, -1)

    def pair_of_all(self, target: Tensor, source: Tensor) -> Tensor:
        """Return the row of each pair source → target in a table of all N² pairs of nodes, -1
        between two graphs: what exported programs compute, whose sizes of graphs stay open."""
        row = target * self.num_nodes + source
        return (
            row
            if self.graph is None
            else torch.where(self.graph[target] == self.graph[source], row, -1)
        )

    def all_pairs(self) -> tuple[Tensor, Tensor]:
        """Return target and source, (Σ n²,) each, of the rows that `pair` numbers."""
        areas = self.sizes**2
        graph = torch.repeat_interleave(areas, output_size=self.num_pairs)
        rank = torch.arange(len(graph), device=areas.device) - (areas.cumsum(0) - areas)[graph]
        n, first = self.sizes[graph], (self.sizes.cumsum(0) - self.sizes)[graph]
        return first + rank // n, first + rank % n

    def memo(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the value cached under `key`, computing it on a miss: what layers and
        biases share."""
        if key not in self._computed:
            self._computed[key] = lasting(compute)()
        return self._computed[key]

    # -- how many hops ------------------------------------------------------------------------

    @computed
    def hop_table(self) -> Tensor:
        """(Σ n²,) hops of all pairs inside each graph, infinite where there is no path."""
        given = self.pair_attr.get("hops")
        if given is not None:
            if given.ndim != 1 or not given.is_floating_point():
                raise ValueError(
                    "pair_attr['hops'] must be float (Σ n²,), infinite where there is no path; "
                    f"got {given.dtype} {tuple(given.shape)}"
                )
            return given
        if not (may_look(self.source) or is_compiling()):  # each hop would be waited for
            return moved(self.host.hop_table, self.source.device)
        self.count_pairs(
            "hops between all pairs of nodes (Neighborhood(k) with backend='edges' needs only the "
            "pairs within k)"
        )
        return all_hops(self.target, self.source, *self.local, self.sizes)

    def hops(self, target: Tensor, source: Tensor) -> Tensor:
        """Return the edges on the shortest path source → target, float, infinite without a path."""
        if is_exporting() and "hops" not in self.pair_attr:
            table = self.memo("hops", lambda: dense_hops(self.target, self.source, self.num_nodes))
            return table[target, source]
        row = self.pair(target, source)
        if self.num_nodes == 0:
            return torch.full_like(row, torch.inf, dtype=torch.float)
        return self.hop_table[row.clamp(min=0)].masked_fill(row < 0, torch.inf)

    def hops_along(self, edge: Tensor) -> Tensor | None:
        """Return a hop for each edge, none along a self-loop; None where there are no hops."""
        if self.bipartite:
            return None
        return (self.source[edge] != self.target[edge]).float()

    def within_bound(self, radius: float) -> float:
        """Return at most how many pairs are `radius` hops apart or less: as many as are walks."""
        nodes = max(self.num_nodes, self.num_targets or 0)
        if radius < 1:
            return nodes
        if radius < 2:
            return nodes + self.num_edges
        if self.bipartite or is_compiling():
            return math.inf
        if not may_look(self.target):
            return self.host.within_bound(radius)
        most = float(nodes)
        walks = torch.ones(nodes, dtype=torch.double, device=self.target.device)
        total = walks
        for _ in range(int(min(radius, _MOST_HOPS))):
            walks = torch.zeros_like(walks).index_add_(0, self.target, walks[self.source])
            total = (total + walks).clamp(max=most)
            if not bool((walks > 0).any()):
                return float(total.sum())
        return float(total.sum()) if radius < _MOST_HOPS + 1 else math.inf

    def within(self, radius: float, targets: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Find the pairs at most `radius` hops apart as (target, source, hops), without a table; of
        some `targets`, different nodes, or of all."""
        if not (may_look(self.target) or is_compiling()):
            found = self.host.within(radius, None if targets is None else targets.cpu())
            return moved(found, self.target.device)
        return near_pairs(self.target, self.source, self.num_nodes, radius, targets)


def _check_range(index: Tensor, count: int, what: str, name: str) -> None:
    if not index.numel():
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"edge_index names {what} {low if low < 0 else high}, but {name}={count}: {what}s are "
            f"0 to {count - 1}"
        )
