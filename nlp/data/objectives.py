"""What a model is asked about a text that has no label: its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attention_core.training import UsageError
from nlp.data.packing import Sample

if TYPE_CHECKING:
    from nlp.tokenizer import Tokenizer


# How likely spans of 1 to 10 tokens are in SpanBERT
_SPANS = 0.2 * 0.8 ** torch.arange(10.0)


class Objective:
    """Makes samples of texts: `ids` (n,), what the model sees, and `target`, what it is to say."""

    tokenizer: Any = None

    def bind(self, tokenizer: Tokenizer) -> None:
        """Remember the tokenizer, before the first text."""
        self.tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text as ids."""
        rows: list[list[int]] = self.tokenizer.encode(texts)
        return rows

    def cut(self, ids: list[int], window: int | None) -> list[list[int]]:
        """Cut a text into parts of which each becomes a sample of at most `window` tokens."""
        raise NotImplementedError(f"{type(self).__name__}.cut must cut a text into parts.")

    def __call__(self, ids: Tensor) -> Sample:
        """The sample of a part's ids, (n,)."""
        raise NotImplementedError(f"{type(self).__name__} must make a sample of a text.")


class NextToken(Objective):
    """Causal language modelling: after every token, the next one; after the last one, `end`.

    Parts of a long text overlap by one token, so every token is predicted, and once.
    """

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self.tokenizer.encode(texts, special=False)
        return [[self.tokenizer.start, *row] for row in rows]

    def cut(self, ids: list[int], window: int | None) -> list[list[int]]:
        row = [*ids, self.tokenizer.end]
        step = window or len(row)
        return [row[start : start + step + 1] for start in range(0, len(row) - 1, step)]

    def __call__(self, ids: Tensor) -> Sample:
        return {"ids": ids[:-1], "target": ids[1:]}


class Masking(Objective):
    """Masked-language modelling (Devlin et al., BERT, 2019): a share of the tokens is to be named
    from the others. A sample has `at` (m,), their places, and `target` (m,), their ids.

    Of the chosen tokens 80% are seen as <mask>, 10% as a random token and 10% as they are. Special
    tokens are never chosen, and any other text has at least one chosen token. They are chosen anew
    whenever a text is drawn, but in the same way in every validation.

    Args:
        share: of tokens that are chosen.
        spans: choose runs of tokens, their lengths drawn from a geometric distribution (0.2) of
            at most 10, a mean of 3.8, where all tokens of a run are seen in one of the three ways
            (Joshi et al., SpanBERT, 2020).

    Raises:
        UsageError: `share` is not between 0 and 1.
    """

    def __init__(self, share: float = 0.15, spans: bool = False) -> None:
        if not 0 < share < 1:
            raise UsageError(f"data.objective.share must be between 0 and 1, got {share}.")
        self.share, self.spans = share, spans

    def bind(self, tokenizer: Tokenizer) -> None:
        super().bind(tokenizer)
        special = torch.zeros(len(tokenizer), dtype=torch.bool)
        special[list(tokenizer.special)] = True
        self._special, self._others = special, (~special).nonzero().squeeze(-1)

    def cut(self, ids: list[int], window: int | None) -> list[list[int]]:
        if window is None or len(ids) <= window:
            return [ids]
        start, body, step = ids[:1], ids[1:], window - 1
        return [start + body[i : i + step] for i in range(0, len(body), step)]

    def __call__(self, ids: Tensor) -> Sample:
        places = (~self._special[ids]).nonzero().squeeze(-1)
        if not len(places):
            return {"ids": ids, "at": places, "target": places}
        count = max(1, round(self.share * len(places)))
        runs = self._runs(len(places), count) if self.spans else self._singles(len(places), count)
        chosen, way = places[runs[0]], torch.rand(int(runs[1].max()) + 1)[runs[1]]
        seen = ids.clone()
        drawn = self._others[torch.randint(len(self._others), (len(chosen),))]
        seen[chosen] = torch.where(
            way < 0.8, self.tokenizer.mask, torch.where(way < 0.9, drawn, ids[chosen])
        )
        return {"ids": seen, "at": chosen, "target": ids[chosen]}

    @staticmethod
    def _singles(length: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` of `length` places, and a number for each."""
        return torch.randperm(length)[:count], torch.arange(count)

    @staticmethod
    def _runs(length: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` of `length` places in runs, and for each the number of its run."""
        run_of = torch.full((length,), -1)
        number, left = 0, count
        while left:
            size = min(1 + int(torch.multinomial(_SPANS, 1)), left)
            free = run_of.unfold(0, size, 1).amax(1).eq(-1).nonzero().squeeze(-1)
            if not len(free):  # no run of this length fits between the others any more
                free, size = run_of.eq(-1).nonzero().squeeze(-1), 1
            start = int(free[torch.randint(len(free), ())])
            run_of[start : start + size] = number
            number, left = number + 1, left - size
        places = run_of.ge(0).nonzero().squeeze(-1)
        return places, run_of[places]
