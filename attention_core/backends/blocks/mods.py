"""Score mods in `blocks`: asked about the pairs of a chunk, in forward and again in backward.

A score mod is code of the user's own, which no operator of torch.library could take. So the passes
run inside an autograd function, and torch.compile leaves it out of its graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention_core.backends.blocks.chunks import Chunk, Work, tokens
from attention_core.backends.blocks.groups import Listed
from attention_core.biases import Bias
from attention_core.errors import BackendError
from attention_core.job import Job
from attention_core.score_mods import modified
from attention_core.spaces import Pairs


class Mods:
    """The first terms of a bias, up to its last score mod, for the pairs of a job.

    Args:
        adds: whether there are terms after them.
    """

    def __init__(self, job: Job, terms: list[Bias], listed: Listed | None, adds: bool) -> None:
        self.job, self.terms, self.adds, self._listed = job, terms, adds, listed
        self._tensors = self._current()
        #: What gets a gradient.
        self.learned = [x for x in self._tensors if x.requires_grad]
        self._checked = not torch.is_grad_enabled()

    def _current(self) -> list[Tensor]:
        found = {id(x): x for term in self.terms for x in term.tensors()}  # each once
        return list(found.values())

    def pairs(self, work: Work, chunk: Chunk) -> Pairs:
        """Return the pairs of a chunk: (C / Hkv, 1, Q, 1) and (C / Hkv, 1, 1, M), of all heads."""
        job, kv_heads = self.job, work.kv_heads
        heads, (queries, keys) = job.heads, (space.length for space in job.spaces)
        rows = tokens(chunk.queries, work.blocks.query_run).view(-1, heads, work.size)[:, 0]
        query = rows % queries
        columns = tokens(chunk.keys, work.blocks.key_run).view(-1, kv_heads, work.reach)[:, 0]
        key = columns % keys
        return Pairs(
            job.spaces,
            shape=(job.batch, heads, queries, keys),
            batch=(rows[:, :1] // (queries * heads))[:, None, None],
            head=torch.arange(heads, device=rows.device)[:, None, None],
            query=query[:, None, :, None],
            key=key[:, None, None],
            distance=None if self._listed is None else self._listed.distance(query, key),
        )

    def __call__(
        self, work: Work, chunk: Chunk, scores: Tensor, added: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what becomes of the scores (C, G·Q, M) of a chunk, mask and later terms included.

        By torch's own operations, none of them in place.

        Returns: the scores, 0 in rows that may attend to nothing, and (C, G·Q) which these are.
        """
        shape, blocks = (len(scores), work.groups, work.size, work.reach), work.blocks
        scores, hidden, of_pattern = scores.view(shape), None, None
        if added is not None:
            of_pattern = work.of_pattern(chunk, added)
            hidden = of_pattern.detach() == -torch.inf
            if blocks.empty_rows is not None:
                hidden = hidden | work.of_pattern(chunk, blocks.empty_rows)[..., None]
            scores = scores.masked_fill(hidden, 0)
        by_head = scores.view(-1, work.kv_heads * work.groups, *shape[2:])
        pairs = self.pairs(work, chunk)
        if not self._checked:
            self._check(by_head, pairs)
        scores = modified(self.terms, by_head, pairs).reshape(shape)
        if of_pattern is not None and self.adds:
            scores = scores + of_pattern
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        # A score mod may forbid, too, so rows may be empty that the mask does not know of
        empty = scores.detach().amax(-1) == -torch.inf
        if empty.device.type != "cpu" or bool(empty.any()):
            scores = scores.masked_fill(empty[..., None], 0)
        return scores.flatten(1, 2), empty.flatten(1, 2)

    def recorded(self, work: Work, chunk: Chunk, scores: Tensor) -> Recorded:
        """Do the same, to be differentiated in the scores and in `learned`."""
        added = work.blocks.added
        with torch.enable_grad():
            given = scores.detach().requires_grad_()
            found, empty = self(work, chunk, given, None if added is None else added.detach())
        return Recorded(given, found, empty, self.learned)

    def check_unchanged(self) -> None:
        """Raise BackendError if the tensors are not those of the forward pass.

        As after `functional_call`, which puts others into a module for a while.
        """
        now = self._current()
        if len(now) != len(self._tensors) or any(
            a is not b for a, b in zip(now, self._tensors, strict=True)
        ):
            raise BackendError(
                f"backend='blocks' asks {self._names()} again in backward, but its tensors are not "
                "those of the forward pass: give backend='reference' or 'edges' instead"
            )

    def _check(self, scores: Tensor, pairs: Pairs) -> None:
        """Raise ValueError if anything needs a gradient that `tensors()` does not name."""
        self._checked = True
        with torch.enable_grad():
            found = modified(self.terms, scores.detach(), pairs)
        nodes = [found.grad_fn]
        seen = {torch.autograd.graph.get_gradient_edge(x).node for x in self.learned}
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                raise ValueError(
                    f"tensors() of {self._names()} leaves out a tensor that needs a gradient, "
                    f"{tuple(node.variable.shape)}: backend='blocks' would give it none"
                )
            nodes += [parent for parent, _ in node.next_functions]

    def _names(self) -> str:
        return " + ".join(type(term).__name__ for term in self.terms)


@dataclass
class Recorded:
    """The scores of a chunk before and after score mods, and what lies between.

    Attributes:
        given: (C, G·Q, M).
        scores, empty: as `Mods` gives them.
        learned: what else they depend on.
    """

    given: Tensor
    scores: Tensor
    empty: Tensor
    learned: list[Tensor]

    def gradients(self, of_scores: Tensor) -> list[Tensor]:
        """Return the gradients of what was given and of each of `learned`."""
        inputs = [self.given, *self.learned]
        if not self.scores.requires_grad:
            return [torch.zeros_like(x) for x in inputs]
        return list(torch.autograd.grad(self.scores, inputs, of_scores, materialize_grads=True))
