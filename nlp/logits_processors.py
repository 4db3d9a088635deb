"""What is done to the scores of the next token before it is drawn; (B, V) to (B, V) each."""

from __future__ import annotations

import torch
from torch import Tensor


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
