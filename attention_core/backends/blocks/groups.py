"""Blocks of one shape together: a tile of queries each, with all the keys that it can reach."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attention_core.backends.blocks.search import Reached
from attention_core.biases import Bias
from attention_core.job import Job
from attention_core.masks import Mask
from attention_core.spaces import BlockKey, Pairs, Space, Tiles
from attention_core.spaces.tiles import per_token

#: So many shapes of blocks are kept as they are; more are rounded up to fewer.
_MOST_SHAPES = 8


@dataclass
class Group:
    """N blocks of M keys for each of Q queries, padded where they have fewer.

    Attributes:
        queries, keys: (N, Q) and (N, M) tokens, token i of row r being r · length + i; -1 padding.
        masked: whether any pair in them may be forbidden, padding included.
    """

    queries: Tensor
    keys: Tensor
    masked: bool

    @property
    def pairs(self) -> int:
        return self.queries.numel() * self.keys.shape[1]


def group(query: Tiles, key: Tiles, reached: Reached) -> list[Group]:
    """Group the blocks that hold all pairs of the tiles `reached` by about the same shape."""
    keys = query.sizes.new_zeros(len(query)).index_add(0, reached.query, key.sizes[reached.key])
    partial = torch.zeros_like(keys).index_add(0, reached.query, (~reached.every).long()) > 0
    shape = torch.stack([query.sizes, keys, partial.long()], dim=-1)[keys > 0]
    tile = (keys > 0).nonzero().squeeze(-1)
    if len(shape.unique(dim=0)) > _MOST_SHAPES:
        shape[:, 0] = -(-shape[:, 0] // 8) * 8
        # At most an eighth too many keys
        step = 2 ** (shape[:, 1].float().log2().floor().long() - 3).clamp(min=3)
        shape[:, 1] = -(-shape[:, 1] // step) * step
    shapes, of_tile = shape.unique(dim=0, return_inverse=True)
    groups = []
    for number in range(len(shapes)):
        tiles = tile[of_tile == number]
        queries, columns = query.sizes[tiles], keys[tiles]
        chosen = torch.zeros(len(query), dtype=torch.bool, device=tile.device)
        chosen[tiles] = True
        pairs = chosen[reached.query].nonzero().squeeze(-1)
        masked = bool(partial[tiles[0]]) or len(queries.unique()) > 1 or len(columns.unique()) > 1
        groups.append(
            Group(
                _members(query, tiles, int(queries.max())),
                _joined(key, reached.key[pairs], columns),
                masked,
            )
        )
    return groups


def _members(tiles: Tiles, at: Tensor, size: int) -> Tensor:
    """The tokens (N, size) of the tiles `at`, -1 where they have fewer."""
    members = tiles.members[at, :size]
    inside = torch.arange(size, device=at.device) < tiles.sizes[at, None]
    return members.where(inside, -1)


def _joined(tiles: Tiles, at: Tensor, counts: Tensor) -> Tensor:
    """The tokens of runs of the tiles `at`, (N, M) padded with -1; `counts` (N,) tokens a run."""
    sizes = tiles.sizes[at]
    tokens = _members(tiles, at, int(sizes.max())).flatten()
    tokens = tokens[tokens >= 0]
    longest = int(counts.max())
    if len(tokens) == len(counts) * longest:
        return tokens.view(len(counts), longest)
    block = torch.repeat_interleave(counts)
    place = torch.arange(len(tokens), device=at.device) - (counts.cumsum(0) - counts)[block]
    joined = tokens.new_full((len(counts), longest), -1)
    joined[block, place] = tokens
    return joined


@dataclass
class Patterns:
    """The pairs allowed in the blocks of a group, each arrangement once.

    Attributes:
        of_block: (N,) the arrangement of each block, or (B · N,) where samples differ; None where
            there is one for all.
        pairs: the pairs of one block of each arrangement: (P, 1, Q, 1) and (P, 1, 1, M).
        allowed: bool (P, H or 1, Q, M), or None for everything.
        by_head: whether heads may be allowed different pairs.
        empty_rows: (P, H or 1, Q) queries that may attend to nothing; None: there are none.
    """

    of_block: Tensor | None
    pairs: Pairs
    allowed: Tensor | None
    by_head: bool
    empty_rows: Tensor | None

    def in_spaces(self, spaces: tuple[Space, Space]) -> Patterns:
        """Return the same in other spaces of the same structure."""
        return replace(self, pairs=self.pairs.in_spaces(spaces))


def patterns(job: Job, group: Group, rows: int, block_keys: list[BlockKey | None]) -> Patterns:
    """Find the blocks of a group that are arranged alike.

    Args:
        rows: rows of tokens; a batch shares one row where its samples have the same places.
        block_keys: of the queries and of the keys; None where they are not known.
    """
    count = len(group.queries)
    samples = job.batch if rows == 1 else 1
    of_block: Tensor | None
    if block_keys[0] is None or block_keys[1] is None:
        blocks = torch.arange(count, device=job.device).repeat(samples)
        sample = torch.arange(samples, device=job.device).repeat_interleave(count)
        of_block = torch.arange(count * samples, device=job.device) if count * samples > 1 else None
    else:
        blocks, of_block = _alike(_arrangement(group, (block_keys[0], block_keys[1]), rows))
        sample = torch.zeros_like(blocks)
    queries, keys = group.queries[blocks], group.keys[blocks]
    listed = Listed.of(job)
    row = sample if rows == 1 else queries[:, 0] // job.spaces[0].length
    pairs = Pairs(
        job.spaces,
        distance=None if listed is None else listed.distance(queries, keys),
        shape=(job.batch, job.heads, job.spaces[0].length, job.spaces[1].length),
        batch=row[:, None, None, None],
        head=torch.arange(job.heads, device=job.device)[:, None, None],
        query=(queries.clamp(min=0) % job.spaces[0].length)[:, None, :, None],
        key=(keys.clamp(min=0) % job.spaces[1].length)[:, None, None, :],
    )
    allowed = _allowed(job, pairs, queries, keys) if group.masked else None
    if allowed is None:
        return Patterns(of_block, pairs, None, by_head=False, empty_rows=None)
    empty = ~allowed.any(-1)
    some = torch.compiler.is_compiling() or bool(empty.any())  # a program cannot look
    return Patterns(of_block, pairs, allowed, _by_head(allowed), empty if some else None)


class Listed:
    """The hops of the pairs that a mask lists; infinite for pairs not listed.

    Those are forbidden, and the hops between all nodes of a large graph are too many to know.
    """

    def __init__(self, query: Tensor, key: Tensor, hops: Tensor, length: int) -> None:
        self.length = length
        self.places, order = (query * length + key).sort()
        self.hops = hops[order]

    @classmethod
    def of(cls, job: Job) -> Listed | None:
        """Make it for the nodes of a graph, None where the mask does not list pairs and hops."""
        if job.mask is None or not job.spaces[1].searched:
            return None
        listed = job.mask.candidates(job.spaces)
        if listed is None or listed.distance is None:
            return None
        return cls(listed.query, listed.key, listed.distance, job.spaces[1].length)

    def distance(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the hops (P, 1, Q, M) between queries (P, Q) and keys (P, M)."""
        wanted = queries[:, None, :, None] * self.length + keys[:, None, None, :]
        if not len(self.places):
            return torch.full(wanted.shape, torch.inf, device=wanted.device)
        at = torch.searchsorted(self.places, wanted).clamp(max=len(self.places) - 1)
        return self.hops[at].where(self.places[at] == wanted, torch.inf)


def _allowed(job: Job, pairs: Pairs, queries: Tensor, keys: Tensor) -> Tensor:
    allowed = (queries >= 0)[:, None, :, None] & (keys >= 0)[:, None, None, :]
    by_mask = job.allowed(pairs)
    return allowed if by_mask is None else allowed & by_mask


def _by_head(allowed: Tensor) -> bool:
    if allowed.shape[1] == 1:
        return False
    return torch.compiler.is_compiling() or not bool((allowed == allowed[:, :1]).all())


def _arrangement(group: Group, block_keys: tuple[BlockKey, BlockKey], rows: int) -> Tensor:
    """Integers (N, ...) that are the same for blocks with the same pairs allowed."""
    parts = []
    origin = group.queries[:, 0]  # never padding
    query, key = block_keys
    for tokens, own in ((group.queries, query), (group.keys, key._replace(of_query=()))):
        padding = tokens < 0
        for values, zero in (
            *((tensor, start) for tensor, start in zip(own.relative, query.relative, strict=True)),
            *((tensor, None) for tensor in (*own.absolute, *own.of_query)),
        ):
            numbers = per_token(values, rows).long()[tokens.clamp(min=0)]
            if zero is not None:
                numbers = numbers - per_token(zero, rows).long()[origin][:, None]
            parts.append(numbers.masked_fill(padding[..., None], 0).flatten(1))
        parts.append(padding.long())
    return torch.cat(parts, dim=-1)


def _alike(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The first of each set of equal `rows`, and which of them each row equals; None: all one."""
    if bool((rows == rows[:1]).all()):
        return torch.zeros(1, dtype=torch.long, device=rows.device), None
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator)
    _, of_row = (rows * factors.to(rows.device)).sum(-1).unique(return_inverse=True)
    number = torch.arange(len(rows), device=rows.device)
    first = number.new_full((int(of_row.max()) + 1,), len(rows))
    first = first.scatter_reduce(0, of_row, number, "amin")
    if not torch.equal(rows[first[of_row]], rows):  # sums that are equal by chance
        return number, number
    return first, of_row


def block_key_of(space: Space, *terms: Mask | Bias | None) -> BlockKey | None:
    """Return the key of a space under masks and biases, None where one of them gives none.

    Blocks whose tokens have equal keys allow the same pairs, with the same bias.
    """
    own = [term.block_key(space) for term in terms if term is not None]
    if space.segments is not None:
        own.append(BlockKey(relative=(space.segments[..., None],)))
    if space.special is not None:
        own.append(BlockKey(absolute=(space.special[..., None],)))
    return BlockKey.joined(*own)
