"""What is done to the scores of the next token before it is drawn; (B, V) to (B, V) each."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_core.checks import may_look


def penalize_repetition(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive scores of ids that were there by `penalty`, multiply negative ones (Keskar et
    al., CTRL, 2019).

    Args:
        scores: (B, V).
        seen: (B, V) bool, the ids of each text so far.
        penalty: above 1 to discourage repetition.
    """
    penalized = torch.where(scores > 0, scores / penalty, scores * penalty)
    return torch.where(seen, penalized, scores)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Keep the `k` highest scores of each text, and others as high; else -inf (Fan et al.,
    2018)."""
    lowest = scores.topk(min(k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < lowest, -torch.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Keep the fewest ids that together have probability `p`; -inf else (Holtzman et al., 2020)."""
    ascending, order = scores.sort(-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - p
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    """Keep ids at least `p` times as probable as the likeliest; -inf else (Nguyen et al., 2025)."""
    probabilities = scores.softmax(-1)
    likeliest = probabilities.amax(-1, keepdim=True)
    return scores.masked_fill(probabilities < p * likeliest, -torch.inf)


class FiniteScores:
    """Whether the scores of each new token are finite: looked at with the token on a CPU, and from
    elsewhere together with the next thing that has to be waited for."""

    def __init__(self) -> None:
        self._place = 0
        self._unseen: list[Tensor] = []

    def checked(self, scores: Tensor, stops: list[int]) -> Tensor:
        """Return the scores (B, V) of one more token, which may be drawn from.

        Raises:
            ValueError: they are not finite, as far as that is known by now, or have no stop token.
        """
        vocabulary = scores.shape[-1]
        beyond = [id for id in stops if id >= vocabulary]
        if beyond:
            raise ValueError(
                f"stop: there is no token {', '.join(map(str, beyond))}; the model has {vocabulary}"
            )
        # The highest is NaN where one is, and infinite where all are -inf
        finite = scores.amax(-1, keepdim=True).isfinite()
        self._unseen.append(finite.all())
        if may_look(finite):
            self.look()
            return scores
        return scores.where(finite, 0.0)  # a GPU that drew from others would be of no more use

    def look(self, *flags: Tensor) -> bool:
        """Return whether all of the flags are set; raise ValueError for scores not yet seen."""
        if not self._unseen and not flags:
            return True
        count, both = len(self._unseen), [*self._unseen, *flags]
        seen = [bool(one) for one in both] if may_look(both[0]) else torch.stack(both).tolist()
        for place, finite in enumerate(seen[:count], self._place):
            if not finite:
                raise ValueError(f"the model's scores of new token {place} are NaN or infinite")
        self._place, self._unseen = self._place + count, []
        return all(seen[count:])
