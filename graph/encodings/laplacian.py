"""Eigenvectors of the graph Laplacian: slow waves over a graph, the places of its nodes.

Two ambiguities remain in any such encoding. An eigenvector's sign is arbitrary: flip it at random
in training (`flip_signs`), or feed it to `SignInvariant`. Where an eigenvalue repeats, as in
symmetric graphs, any rotation of its eigenvectors would do as well, and which one comes out depends
on how nodes are numbered; of those no sign-invariant module makes a definite encoding.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole
from attention_core.spaces.edge_list import EdgeList

Normalization = Literal["sym", "rw", "none"]

#: Components of more nodes go to scipy's Lanczos method, which finds k eigenvectors alone.
_DENSE = 1000
_CHUNK = 1 << 24  # entries of matrices decomposed together, 128 MiB


def check_normalization(normalization: object) -> None:
    """Raise ValueError where there is no such Laplacian."""
    if not isinstance(normalization, str) or normalization not in get_args(Normalization):
        raise ValueError(f"normalization must be 'sym', 'rw' or 'none', got {normalization!r}")


@checked
def laplacian_eigenvectors(
    edges: EdgeList, k: int, *, normalization: Normalization = "sym"
) -> tuple[Tensor, Tensor]:
    """Compute the k eigenvectors of each component with the smallest eigenvalues but the trivial.

    Edges count in both directions; self-loops do not count. Each connected component is taken on
    its own, as are the graphs of a batch: in the Laplacian of several, the eigenvalue 0 repeats and
    its eigenvectors are any mixture. A column, restricted to a component, is an eigenvector of unit
    length of the whole.

    Args:
        edges: of one or more graphs.
        k: how many (Dwivedi & Bresson, 2021).
        normalization: "sym", I - D^-½ A D^-½; "rw", I - D^-1 A; or "none", D - A.

    Returns: eigenvectors (N, k) and, at each node, their eigenvalues (N, k), float32, ascending. A
    component of n nodes has n - 1 of them; the columns beyond hold zeros.

    Raises:
        ValueError: `k` is less than 1, or `normalization` is none of these.
        ImportError: a component has more than 1,000 nodes, and scipy is not installed.
    """
    check_whole(k=k)
    check_normalization(normalization)
    if is_exporting():
        raise ValueError(
            "an exported program cannot search eigenvectors: train with them stored, by "
            "AddLaplacian(k) as data.pre_transform, and they are inputs of the program"
        )
    n, device = edges.num_nodes, edges.source.device
    component = components(edges)
    sizes = torch.bincount(component)
    order = component.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    local = torch.empty_like(order)
    local[order] = torch.arange(n, device=device) - first[component[order]]
    vectors, values = torch.zeros(2, n, k, device=device).unbind(0)
    proper = edges.target != edges.source
    target, source = edges.target[proper], edges.source[proper]
    for size in sizes.unique().tolist():
        if size == 1:
            continue
        members = (sizes == size).nonzero().squeeze(-1)
        for part in members.split(max(1, _CHUNK // size**2) if size <= _DENSE else 1):
            rank = torch.full_like(sizes, -1)
            rank[part] = torch.arange(len(part), device=device)
            of = rank[component[target]]
            inside = of >= 0
            ends = of[inside], local[target[inside]], local[source[inside]]
            solve = _dense if size <= _DENSE else _lanczos
            found, eigenvalues = solve(ends, len(part), size, k, normalization)
            nodes = order[first[part, None] + torch.arange(size, device=device)]
            have = found.shape[-1]
            vectors[nodes, :have] = found.to(vectors)
            values[nodes, :have] = eigenvalues[:, None].to(values)
    return vectors, values


@checked
def spectral_coordinates(
    edges: EdgeList, k: int, *, normalization: Normalization = "sym"
) -> Tensor:
    """Compute places (N, k) of the nodes, for `Graph(coordinates=...)`: `laplacian_eigenvectors`
    scaled to a mean square of 1 over their component, whatever its size.

    `Rotary` reads differences of these: neighbours are near. It is not invariant to signs: with an
    eigenvector flipped, key and query change places along its axis, so that flips belong into
    training. `SpectralBias` is.

    Example::

        batch = AddSpectralCoordinates(2)(batch)
        space = Graph.from_pyg(batch, coordinates="spectral")
        rotary = Rotary(axes=2, frequencies=[1, 2, 4, 8])  # a head of 2 · 2 · 4 features
        encoder = Encoder(64, depth=4, heads=4, mask=Edges(), rotary=rotary)
        y = encoder(x, space)
    """
    vectors, _ = laplacian_eigenvectors(edges, k, normalization=normalization)
    component = components(edges)
    return vectors * torch.bincount(component)[component, None].sqrt()


@checked
def flip_signs(
    vectors: Tensor, component: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Give eigenvectors (N, k) a random sign each in each component (N,)."""
    check_dense(vectors=vectors, component=component)
    integers = component.dtype in (torch.int64, torch.int32)
    if vectors.ndim != 2 or component.shape != vectors.shape[:1] or not integers:
        raise ValueError(
            "vectors must be (N, k) and component integers (N,), got "
            f"{tuple(vectors.shape)} and {component.dtype} {tuple(component.shape)}"
        )
    if len(component) and int(component.min()) < 0:
        raise ValueError(f"component must be at least 0, got {int(component.min())}")
    count = int(component.max()) + 1 if len(component) else 0
    signs = torch.randint(0, 2, (count, vectors.shape[1]), generator=generator) * 2 - 1
    return vectors * signs.to(vectors)[component]


def components(edges: EdgeList) -> Tensor:
    """Number the connected component of each node, (N,), whatever the direction of edges; counted
    from 0 in the order of their first nodes."""
    ends = torch.cat([edges.target, edges.source]), torch.cat([edges.source, edges.target])
    root = torch.arange(edges.num_nodes, device=edges.source.device)
    while True:
        # Trees grow together and flatten, in about log n rounds (Zhang et al., FastSV, 2020)
        above = root[root]
        offered = above[ends[1]]
        new = root.scatter_reduce(0, root[ends[0]], offered, "amin")
        new = torch.minimum(new.scatter_reduce(0, ends[0], offered, "amin"), above)
        if torch.equal(new, root):
            return root.unique(return_inverse=True)[1]
        root = new


Ends = tuple[Tensor, Tensor, Tensor]


def _dense(
    ends: Ends, count: int, n: int, k: int, normalization: Normalization
) -> tuple[Tensor, Tensor]:
    """Compute eigenvectors (C, n, ≤ k) and eigenvalues (C, ≤ k) of components of n nodes."""
    adjacency = torch.zeros(count, n, n, dtype=torch.float64, device=ends[0].device)
    adjacency.index_put_(ends, adjacency.new_ones(()), accumulate=True)
    adjacency = torch.maximum(adjacency, adjacency.mT)
    degree = adjacency.sum(-1)
    if normalization == "none":
        values, vectors = torch.linalg.eigh(torch.diag_embed(degree) - adjacency)
    else:
        root = degree.rsqrt()
        scaled = root[:, :, None] * adjacency * root[:, None, :]
        values, vectors = torch.linalg.eigh(torch.eye(n).to(scaled) - scaled)
        if normalization == "rw":
            vectors = torch.nn.functional.normalize(root[:, :, None] * vectors, dim=1)
    return vectors[..., 1 : k + 1], values[:, 1 : k + 1]


def _lanczos(
    ends: Ends, count: int, n: int, k: int, normalization: Normalization
) -> tuple[Tensor, Tensor]:
    """Compute the eigenvectors and eigenvalues of one large component, by scipy; as `_dense`."""
    try:
        import scipy.sparse as sparse
    except ImportError as error:
        raise ImportError(
            f"eigenvectors of a component of {n:,} nodes (more than {_DENSE:,}) need scipy, which "
            "is not installed. Install it with: pip install 'attention-core[graph]'"
        ) from error
    assert count == 1
    row, column = (end.cpu().numpy() for end in ends[1:])
    adjacency = sparse.coo_array((torch.ones(len(row)).double().numpy(), (row, column)), (n, n))
    adjacency = adjacency.tocsr()
    adjacency = adjacency.maximum(adjacency.T)
    degree = adjacency.sum(axis=1)
    if normalization == "none":
        laplacian = sparse.diags_array(degree) - adjacency
    else:
        root = sparse.diags_array(degree**-0.5)
        laplacian = sparse.eye_array(n) - root @ adjacency @ root
    values, vectors = (torch.from_numpy(x) for x in _smallest(laplacian, min(k + 1, n - 1)))
    if normalization == "rw":
        vectors = vectors * torch.from_numpy(degree**-0.5)[:, None]
        vectors = torch.nn.functional.normalize(vectors, dim=0)
    return vectors[None, :, 1:], values[None, 1:]


def _smallest(laplacian: Any, k: int) -> tuple[Any, Any]:
    """The k smallest eigenvalues, ascending, and their eigenvectors."""
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    n = laplacian.shape[0]
    start = torch.rand(n, generator=torch.Generator().manual_seed(0)).double().numpy()
    try:
        # With scipy's space of 20 vectors it does not converge on a random graph of 20,000 nodes
        space = min(n, max(48, 4 * k))
        values, vectors = eigsh(laplacian, k=k, which="SA", v0=start, ncv=space, maxiter=300)
    except ArpackNoConvergence:
        # Eigenvalues near 0 lie close together: the graph has small cuts, where a factorization
        # stays sparse
        values, vectors = eigsh(laplacian.tocsc(), k=k, sigma=-1e-3, v0=start)
    order = values.argsort()
    return values[order], vectors[:, order]
