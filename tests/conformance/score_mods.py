"""Score mods to run the suite over: those of the core, two of a user's own, and sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attention_core import (
    Multiplier,
    Pairs,
    ScalableSoftmax,
    ScoreMod,
)
from tests.conformance import oracle
from tests.conformance.cases import HEADS, PLACES, Biased, biases_of
from tests.conformance.oracle import Modify, Pair, World


class Softcap(ScoreMod):
    """A learned cap for each head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.caps = heads, nn.Parameter(torch.rand(heads) + 0.5)

    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        caps = self.caps[pairs.head]
        return caps * torch.tanh(score / caps)


class Near(ScoreMod):
    """Grows with nearness, by a learned rate; a pair with a special token is halved."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.randn(heads))

    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        return score * (1 + self.rates[pairs.head] / (1 + pairs.distance))

    def special_modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        return score / 2


class Forbidding(ScoreMod):
    """In the first head, every other query may attend to nothing; in others to no far key."""

    def modify(self, score: Tensor, pairs: Pairs) -> Tensor:
        closed = torch.where(pairs.head == 0, pairs.query % 2 == 1, pairs.key > pairs.query + 1)
        return torch.where(closed, -torch.inf, score)


def _softcap(mod: Softcap) -> Modify:
    def modify(pair: Pair, score: Tensor) -> Tensor:
        return (
            score if pair.special else mod.caps[pair.head] * torch.tanh(score / mod.caps[pair.head])
        )

    return modify


def _near(mod: Near) -> Modify:
    def modify(pair: Pair, score: Tensor) -> Tensor:
        if pair.special:
            return score / 2
        return score * (1 + mod.rates[pair.head] / (1 + pair.distance))

    return modify


def _forbidding(pair: Pair, score: Tensor) -> Tensor:
    closed = pair.i % 2 == 1 if pair.head == 0 else pair.j > pair.i + 1
    return score.new_tensor(-math.inf) if closed and not pair.special else score


def _multiplied(biased: Biased) -> Modify:
    return lambda pair, score: score * (1 + biased.scored(pair))


def _keys_of(world: World, pair: Pair) -> int:
    """The keys of the sample that a query is in."""
    own = world.keys[pair.batch]
    return sum(token.valid and token.sample == pair.query.sample for token in own)


def _scalable(mod: ScalableSoftmax) -> Modify:
    def modify(pair: Pair, score: Tensor) -> Tensor:
        keys = _keys_of(pair.world, pair)
        if mod.causal and not pair.query.special:
            keys = int(pair.query.place[0]) + 1
        return score * mod.slope[pair.head] * math.log(keys)

    return modify


def score_mods_of(name: str) -> dict[str, Biased]:
    """Every score mod that the space of that name can serve, and sums; freshly drawn."""
    place = PLACES[name]
    kind = place.kind
    biases = biases_of(name)
    with torch.random.fork_rng():
        torch.manual_seed(13)
        cap, scalable = Softcap(HEADS).double(), ScalableSoftmax(HEADS, 5).double()
        first = biases["dense-heads"]
        gate = biases["edge-types" if "edge-types" in biases else "dense-row"]
        assert first.bias is not None and gate.bias is not None
        found = {
            "softcap": Biased("softcap", cap, oracle.nothing(), _softcap(cap)),
            "scalable": Biased("scalable", scalable, oracle.nothing(), _scalable(scalable)),
            "forbidding": Biased("forbidding", Forbidding(), oracle.nothing(), _forbidding),
            "gate": Biased("gate", Multiplier(gate.bias), oracle.nothing(), _multiplied(gate)),
            "bias, softcap": Biased(
                "bias, softcap", first.bias + cap, oracle.nothing(),
                lambda pair, score: _softcap(cap)(pair, score + first.scored(pair)),
            ),
        }  # fmt: skip
        if kind not in ("nowhere", "bipartite"):
            near = Near(HEADS).double()
            last = biases["alibi"]
            assert last.bias is not None
            found["near"] = Biased("near", near, oracle.nothing(), _near(near))
            found["softcap, near, bias"] = Biased(
                "softcap, near, bias", cap + (near + last.bias), last.scored,
                lambda pair, score: _near(near)(pair, _softcap(cap)(pair, score)),
            )  # fmt: skip
        if kind == "sequence":
            causal = ScalableSoftmax(HEADS, 5, causal=True).double()
            table = biases["t5+special"]
            assert table.bias is not None
            found["causal"] = Biased("causal", causal, oracle.nothing(), _scalable(causal))
            found["table"] = Biased(
                "table", Multiplier(table.bias), oracle.nothing(), _multiplied(table)
            )
    return found
