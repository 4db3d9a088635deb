"""Beam search: the texts of the highest log-probability among a few candidates."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from attention_core.checks import may_look
from attention_core.transfer import remember_original


class Past(Protocol):
    """The candidates, B · K texts, each sample's on end."""

    new: Tensor

    def select(self, index: Tensor) -> None: ...
    def add(self, tokens: Tensor) -> None: ...


class BeamSearch:
    """K candidates for each of B samples, and the K best texts that have ended so far.

    A text that ends is worth its log-probability / (new tokens)^length_penalty, the stop token
    counted. A sample is done when it has K ended texts and its best candidate, as long as it is, is
    worth less than the worst of them: what transformers calls ``early_stopping=False``.

    Args:
        samples: B.
        beams: K.
        ending: (S,) the ids that end a text.
        max_tokens: new tokens after which every text ends.
        length_penalty: above 0 prefers long texts.
    """

    def __init__(
        self, samples: int, beams: int, ending: Tensor, max_tokens: int, length_penalty: float
    ) -> None:
        device = ending.device
        self.beams, self.ending, self.max_tokens = beams, ending, max_tokens
        self.length_penalty = length_penalty
        # All candidates begin alike: only the first of a sample may go on, in K ways
        self.total = torch.full((samples, beams), -torch.inf, device=device)
        self.total[:, 0] = 0
        self.worth = torch.full((samples, beams), -torch.inf, device=device)
        self.ended = ending.new_zeros(samples, beams, max_tokens)
        self.open = torch.ones(samples, dtype=torch.bool, device=device)
        self.first = torch.arange(samples, device=device)[:, None] * beams

    @property
    def best(self) -> Tensor:
        """(B, max_tokens) the best text of each sample, with an ending id after it if it is
        shorter."""
        return self.ended[:, 0]

    def step(self, log_probabilities: Tensor, past: Past) -> bool:
        """Take every candidate one token on; return whether all samples are done.

        Args:
            log_probabilities: (B · K, V) of the next token.
            past: the candidates, which become those that go on.
        """
        samples, beams = self.total.shape
        vocabulary, length = log_probabilities.shape[-1], past.new.shape[1] + 1
        total = self.total[..., None] + log_probabilities.view(samples, beams, vocabulary)
        # So many that K of them do not end here
        count = min(beams * max(2, 1 + len(self.ending)), beams * vocabulary)
        total, chosen = total.flatten(1).topk(count)
        source, tokens = self.first + chosen // vocabulary, chosen % vocabulary
        ends = torch.isin(tokens, self.ending) | (length == self.max_tokens)
        self._add_ended(total, ends, past.new[source], tokens, length)
        self.total, going = total.masked_fill(ends, -torch.inf).topk(beams)
        best_hope = self.total[:, 0] / length**self.length_penalty
        self.open &= best_hope > self.worth[:, -1]
        index, on = source.gather(1, going).flatten(), self.open.any()
        if not may_look(index):  # both are waited for at once
            both = torch.cat([index, on[None].to(index.dtype)]).to("cpu")
            remember_original(index, both[:-1])
            on = both[-1]
        past.select(index)
        past.add(tokens.gather(1, going).flatten())
        return length == self.max_tokens or not bool(on)

    def _add_ended(
        self, total: Tensor, ends: Tensor, before: Tensor, tokens: Tensor, length: int
    ) -> None:
        worth = total / length**self.length_penalty
        # Those beyond the first K are there to go on in place of the ones that end
        counted = ends & self.open[:, None]
        counted[:, self.beams :] = False
        texts = self.ended.new_zeros(*tokens.shape, self.max_tokens)
        texts[..., : length - 1], texts[..., length - 1] = before, tokens
        worth = torch.cat([self.worth, worth.masked_fill(~counted, -torch.inf)], dim=1)
        self.worth, kept = worth.topk(self.beams)
        texts = torch.cat([self.ended, texts], dim=1)
        self.ended = texts.gather(1, kept[..., None].expand(-1, -1, self.max_tokens))
