"""Attention to the nearest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.checks import check_flag, check_whole
from attention_core.lasting import lasting
from attention_core.masks.algebra import Mask, Spaces
from attention_core.spaces import PairList, Pairs, Space
from attention_core.transfer import moved

#: Pairs whose distances are looked at together, where a space does not find what is near.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Nearest(Mask):
    """Attend to the `k` nearest keys of one's sample, whatever their distance::

        Nearest(2) on Points at 0, 1, 3, 4    Nearest(2, loop=False)
        ■ ■ · ·                               · ■ ■ ·
        ■ ■ · ·                               ■ · ■ ·
        · · ■ ■                               · ■ · ■
        · · ■ ■                               · ■ ■ ·

    A graph of k nearest neighbors, as `knn_graph(x, k, loop=...)` of torch_cluster and PyG makes
    it, and as point transformers attend (Zhao et al., 2021). The distance is that of the space, so
    it serves Points, of any number of dimensions, and everything else that has a distance.

    Of keys that are equally far those that come first are taken. Padding, special tokens and keys
    that cannot be reached are nobody's neighbors, and a query with fewer keys than k takes all of
    them. The choice has no gradient. It is among the tokens that the space holds: where some are
    dropped, others take their place, and in ``Nearest(8) & Causal()`` those before a query are
    taken from the 8 nearest of both sides. So a `Decoder` with a cache refuses it.

    Args:
        k: how many keys.
        loop: whether a token may be its own neighbor, at distance 0, as usual in attention and as
            PyG's default False does not have it. Of queries and keys in two spaces, none is.
    """

    k: int
    loop: bool = True

    def __post_init__(self) -> None:
        check_whole(k=self.k)
        check_flag(loop=self.loop)

    def allowed(self, pairs: Pairs) -> Tensor:
        if is_exporting():
            return self._ranked(pairs)
        query, key = pairs.spaces
        chosen = self._chosen(pairs.spaces)
        rows = 1 if chosen.pairs.batch is None else pairs.shape[0]
        if pairs.whole:
            table = torch.zeros(
                rows * query.length * key.length, dtype=torch.bool, device=query.device
            )
            return table.index_fill(0, chosen.places, True).view(rows, 1, query.length, key.length)
        wanted = pairs.query * key.length + pairs.key
        if chosen.pairs.batch is not None:
            wanted = pairs.batch * (query.length * key.length) + wanted
        if not len(chosen.places):
            return torch.zeros_like(wanted, dtype=torch.bool)
        at = torch.searchsorted(chosen.places, wanted).clamp(max=len(chosen.places) - 1)
        return chosen.places[at] == wanted

    def count_bound(self, spaces: Spaces) -> float:
        query, key = spaces
        return query.length * min(self.k, key.length)

    def candidates(self, spaces: Spaces) -> PairList | None:
        return self._chosen(spaces).pairs

    @property
    def needs_end(self) -> bool:
        return True

    @property
    def depends_on_others(self) -> bool:
        return True

    def _chosen(self, spaces: Spaces) -> _Chosen:
        """The allowed pairs, found once for as long as the space of the keys is."""
        query, key = spaces
        other = None if query is key else query  # or the space would hold itself
        known: _Chosen | None = key._nearest.get(self)
        if known is None or known.queries is not other:
            if query._made_on_host and key._made_on_host:  # where nobody waits for it
                of_keys = key.host
                there = self._chosen((of_keys if query is key else query.host, of_keys))
                found, places = moved((there.pairs, there.places), key.device)
            else:
                found = self._find(spaces)
                places = found.query * key.length + found.key
                if found.batch is not None:
                    places = places + found.batch * (query.length * key.length)
            known = key._nearest[self] = _Chosen(found, places, other)
        return known

    @lasting
    @torch.no_grad()
    def _find(self, spaces: Spaces) -> PairList:
        """The allowed pairs, row by row and query by query."""
        query, key = spaces
        found = key.nearest_from(query, self.k, self.loop)
        if found is not None:
            return found
        rows = next((space.batch for space in spaces if space.batch is not None), None)
        count = max(_CHUNK // max((rows or 1) * key.length, 1), 1)
        parts = []
        queries = torch.arange(query.length if key.length else 0, device=query.device)
        for chunk in queries.split(count) if len(queries) else ():
            pairs = Pairs.all(spaces, batch=rows or 1, device=query.device)
            pairs.query, pairs.whole = chunk[None, None, :, None], False
            apart = self._apart(pairs)
            # Of those as far as the last one that is taken, the first ones
            last = apart.kthvalue(min(self.k, key.length), dim=-1, keepdim=True).values
            nearer, equal = apart < last, (apart == last) & apart.isfinite()
            missing = self.k - nearer.sum(-1, keepdim=True)
            batch, at, of_key = (nearer | (equal & (equal.cumsum(-1) <= missing))).nonzero().T
            parts.append(torch.stack([batch, chunk[at], of_key]))
        none = torch.zeros(3, 0, dtype=torch.long, device=query.device)
        batch, of_query, of_key = torch.cat([none, *parts], 1)
        if rows is None:
            return PairList(of_query, of_key)
        order = (batch * query.length + of_query).argsort(stable=True)
        return PairList(of_query[order], of_key[order], batch=batch[order])

    def _ranked(self, pairs: Pairs) -> Tensor:
        """The same for all pairs, by operations that an exported program can hold."""
        apart = self._apart(pairs)
        rank = apart.argsort(dim=-1, stable=True).argsort(-1)
        return ((rank < self.k) & apart.isfinite())[:, None]

    def _apart(self, pairs: Pairs) -> Tensor:
        """Distances (B, Lq, Lk) of some queries to all keys, infinite to those that they may not
        have."""
        shape = (pairs.batch.numel(), 1, pairs.query.numel(), pairs.key.numel())
        apart = pairs.distance.detach()
        apart = apart if apart.is_floating_point() else apart.float()
        apart = apart.expand(shape).nan_to_num(nan=torch.inf, posinf=torch.inf)
        if pairs.special is not None:
            apart = apart.masked_fill(pairs.special, torch.inf)
        for term in (pairs.same_sample, pairs.valid):
            if term is not None:
                apart = apart.masked_fill(~term, torch.inf)
        if not self.loop and pairs.spaces[0] is pairs.spaces[1]:
            apart = apart.masked_fill(pairs.query == pairs.key, torch.inf)
        return apart[:, 0]

    def __repr__(self) -> str:
        return f"Nearest({self.k}{'' if self.loop else ', loop=False'})"


class _Chosen(NamedTuple):
    """The allowed pairs; the place of each among all pairs, rising; and the space of the queries,
    where it is another one than the keys'."""

    pairs: PairList
    places: Tensor
    queries: Space | None
