"""An encoding of eigenvectors that their signs do not change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_index, check_whole


class SignInvariant(nn.Module):
    """Node encodings from eigenvectors, the same for v and -v (Lim et al., SignNet, 2023).

    ``ρ(φ(v₁) + φ(-v₁), ..., φ(v_k) + φ(-v_k))``. φ passes messages along the edges; of a single
    node's entry it could only see the absolute value, not on which side of a wave the node is
    among its neighbours. Eigenvalues are a second input of φ. Repeated eigenvalues stay ambiguous,
    see `laplacian_eigenvectors`.

    Args:
        k: number of eigenvectors.
        dim: size D of a node's encoding, such as that of a token, to which it is added.
        hidden: width of φ.
        depth: rounds of messages in φ.
    """

    @checked
    def __init__(self, k: int, dim: int, *, hidden: int = 16, depth: int = 2) -> None:
        super().__init__()
        check_whole(k=k, dim=dim, hidden=hidden)
        check_whole(0, depth=depth)
        self.k = k
        self.embed = nn.Linear(2, hidden)
        self.rounds = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))
            for _ in range(depth)
        )
        self.join = nn.Sequential(nn.Linear(k * hidden, hidden), nn.GELU(), nn.Linear(hidden, dim))

    @checked
    def forward(self, vectors: Tensor, values: Tensor, edge_index: Tensor) -> Tensor:
        """Encode eigenvectors and eigenvalues (N, k), as `laplacian_eigenvectors` returns them, and
        edges (2, E) as (N, D). Columns without an eigenvector, of eigenvalue 0, have no part.

        Raises:
            ValueError: `vectors` or `values` have another shape.
        """
        check_dense(vectors=vectors, values=values)
        for name, x in (("vectors", vectors), ("values", values)):
            if x.ndim != 2 or x.shape[1] != self.k or x.shape != vectors.shape:
                raise ValueError(
                    f"{name} must be (N, {self.k}), got {tuple(x.shape)}; vectors and values are "
                    f"{tuple(vectors.shape)} and {tuple(values.shape)}"
                )
        check_index(len(vectors), "(2, E)", edge_index=edge_index)
        of_values = values.to(self.embed.weight)
        of_vectors = vectors.to(self.embed.weight)
        both = sum(
            self._phi(torch.stack([signed, of_values], dim=-1), edge_index)
            for signed in (of_vectors, -of_vectors)
        )
        assert isinstance(both, Tensor)
        there = (values > 0)[..., None]
        encoded: Tensor = self.join((both * there).flatten(1))
        return encoded

    def _phi(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """(N, k, hidden) from (N, k, 2)."""
        source, target = edge_index
        x = nn.functional.gelu(self.embed(x))
        for mlp in self.rounds:
            x = mlp(x.index_add(0, target, x[source])) + x
        return x
