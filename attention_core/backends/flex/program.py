"""The mask_mod and the score_mod of a job: code, which equal structures share, and its tensors.

An example, `Causal() & Neighborhood(5)` on a Sequence, with a learned table of offsets::

    def make(c0, c1):                      def make(c0, c1, c2):
        def mask_mod(b, h, q, k):              def score_mod(score, b, h, q, k):
            t0 = c0[k]                             t0 = c0[k]
            t1 = c1[q]                             t1 = c1[q]
            t2 = (t0 - t1)                         t2 = (t0 - t1)
            t3 = (t2 <= 0)                         t3 = c2[h, t2]
            t4 = aten.abs.default(t2)              t4 = (score + t3)
            t5 = (t4 <= 5)                         return t4.to(score.dtype)
            t6 = (t3 & t5)                     return score_mod
            return t6
        return mask_mod
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_core.backends.flex.lanes import Lanes
from attention_core.backends.flex.tables import Offsets, has_table, table_of
from attention_core.backends.flex.tracing import Node, Tracer, Unmappable
from attention_core.backends.flex.writing import Writer
from attention_core.biases import Bias
from attention_core.score_mods import Multiplier, ScoreMod, has_score_mod
from attention_core.spaces import Pairs

Mod = Callable[..., Tensor]


@dataclass(frozen=True)
class Program:
    """A mask_mod or score_mod.

    Attributes:
        source: its code; equal where structures are.
        captured: the tensors that it looks numbers up in.
    """

    source: str
    captured: list[Tensor]

    @cached_property
    def mod(self) -> Mod:
        """The function of (b, h, q, k), or (score, b, h, q, k)."""
        return _made(self.source)(*self.captured)


@lru_cache(maxsize=4096)
def _made(source: str) -> Callable[..., Mod]:
    scope: dict[str, Any] = {
        "torch": torch, "aten": torch.ops.aten, "inf": math.inf, "nan": math.nan
    }  # fmt: skip
    exec(compile(source, f"<flex {len(source)} {hash(source) & 0xFFFFFF:x}>", "exec"), scope)
    made: Callable[..., Mod] = scope["make"]
    return made


def _source(signature: str, captured: int, lines: list[str], result: str) -> str:
    """The code of a mod, in a function of what it captures."""
    names = ", ".join(f"c{n}" for n in range(captured))
    body = "".join(f"        {line}\n" for line in (*lines, f"return {result}"))
    name = signature.partition("(")[0]
    return f"def make({names}):\n    def {signature}:\n{body}    return {name}\n"


def write_mask(lanes: Lanes, allowed: Node | Tensor | None, real: Tensor | None) -> Program | None:
    """Write the mask_mod; None where every pair may attend.

    Args:
        allowed: what tells that, traced on the CPU or where it has to be; None: all may.
        real: (Lk,) which places of keys hold one, the others being there to fill a block; None: all
            do.

    Raises:
        Unmappable: the mask looks at values, or does what FlexAttention cannot.
    """
    writer, terms = Writer(lanes), []
    if allowed is not None:
        terms.append(writer.scalar(allowed))
    if real is not None:
        terms.append(writer.captured(real, "k"))
    if not terms:
        return None
    # A mask that is alike for all pairs is a number, where a tensor is needed
    terms = [
        t if t.isidentifier() and t[0] == "t" else f"(b * 0 == {int(t != 'True')})" for t in terms
    ]
    result = terms[0] if len(terms) == 1 else writer.line(f"({terms[0]} & {terms[1]})")
    captured = [x.detach() for x in writer.buffers]  # which pairs may attend has no gradient
    source = _source("mask_mod(b, h, q, k)", len(captured), writer.lines, result)
    return Program(source, captured)


class Score(NamedTuple):
    """Hold what becomes of a score: lines of code, the name of the result, what they capture."""

    lines: list[str]
    result: str
    captured: list[Tensor]

    def program(self) -> Program | None:
        """Return the score_mod; None where it leaves scores as they are."""
        if self.result == "score":
            return None
        source = _source(
            _SCORE_MOD, len(self.captured), self.lines, f"{self.result}.to(score.dtype)"
        )
        return Program(source, self.captured)

    def dropping(self, seed: Tensor, chance: float) -> Program:
        """Return the score_mod that also forbids pairs by chance, each by a hash of its indices.

        Args:
            seed: (1,) int64.
        """
        lines, count = list(self.lines), len(self.captured)
        x = f"c{count}[b * 0]"
        steps = [f"({{}} + {part}) & 0x7FFFFFFF" for part in "bhqk"]
        for step in steps:
            for code in (step, *_MIXED):
                lines.append(f"d{len(lines)} = {code.format(x, x)}")
                x = f"d{len(lines) - 1}"
        lines.append(f"kept = (({x} >> 7) & 0xFFFFFF) * {2.0**-24!r} >= c{count + 1}[b * 0]")
        result = f"torch.where(kept, {self.result}, -inf).to(score.dtype)"
        captured = [*self.captured, seed, torch.full((1,), chance, device=seed.device)]
        return Program(_source(_SCORE_MOD, len(captured), lines, result), captured)


_SCORE_MOD = "score_mod(score, b, h, q, k)"
#: Of a hash of 31 bits.
_MIXED = [f"(({{}} >> {shift}) ^ {{}}) * 0x45D9F3B & 0x7FFFFFFF" for shift in (16, 15)]


def write_score(
    tracer: Tracer,
    lanes: Lanes,
    offsets: Offsets | None,
    bias: Bias | None,
    softcap: float | None,
    dtype: torch.dtype,
    allowed: Callable[[Pairs], Tensor | None],
) -> Score:
    """Write what becomes of a score: softcap, then the terms of a bias in their order.

    Args:
        tracer, lanes: of the job.
        offsets: its offsets, numbered; None where biases of place have no table.
        dtype: of the scores.
        allowed: what the mask allows: score mods see a 0 in place of other scores, for what they
            make of these must change nothing, not even a gradient.

    Raises:
        Unmappable: the bias looks at values, or does what FlexAttention cannot.
    """
    writer = Writer(lanes)
    score, terms = "score", [] if bias is None else bias.leaves()
    if softcap is not None:
        score = writer.line(f"({softcap!r} * torch.tanh(score / {softcap!r}))")
    if has_score_mod(bias):
        found = tracer.trace(allowed)
        if found is not None:
            score = writer.line(f"torch.where({writer.scalar(found)}, {score}, 0.0)")
    for term in terms:
        term.check_heads(tracer.pairs)
        if isinstance(term, Multiplier) and type(term)._of_all is Multiplier._of_all:
            factor = _added(term.bias, tracer, offsets, writer)
            score = writer.line(f"({score} * (1 + {factor}))")
        elif isinstance(term, ScoreMod):
            score = _modified(term, score, tracer, writer, dtype)
        else:
            score = writer.line(f"({score} + {_added(term, tracer, offsets, writer)})")
    return Score(writer.lines, score, writer.buffers)


def _modified(
    term: ScoreMod, score: str, tracer: Tracer, writer: Writer, dtype: torch.dtype
) -> str:
    given = tracer.score(score, dtype)
    # What `ScoreMod.modified` checks of shapes, one pair cannot break
    found = tracer.trace(lambda pairs: term._of_all(given, pairs))
    assert found is not None
    return writer.scalar(found)


def _added(bias: Bias, tracer: Tracer, offsets: Offsets | None, writer: Writer) -> str:
    """The code of what a bias adds to a score."""
    if len(bias.leaves()) > 1:
        codes = [_added(leaf, tracer, offsets, writer) for leaf in bias.leaves()]
        return writer.line(f"({' + '.join(codes)})")
    if offsets is not None and has_table(bias, tracer.spaces):
        return _of_table(bias, tracer, offsets, writer)
    found = tracer.trace(bias)
    if found is None:
        raise Unmappable(f"{type(bias).__name__} gives no scores")
    return writer.scalar(found)


def _of_table(bias: Bias, tracer: Tracer, offsets: Offsets, writer: Writer) -> str:
    pairs = tracer.pairs

    def code(what: Callable[[Pairs], Tensor]) -> str:
        found = tracer.trace(what)
        assert found is not None
        return writer.scalar(found)

    of_query, of_key = offsets.query, offsets.key
    if of_query is not None and of_key is not None:
        first = code(lambda _: pairs.pick(of_query, "query", dims=1))
        place = writer.line(f"({code(lambda _: pairs.pick(of_key, 'key', dims=1))} - {first})")
    else:
        place = code(lambda _: ((pairs.offset - offsets.least) * offsets.strides).sum(-1))
    table = table_of(bias, offsets, writer.lanes.sizes["h"])
    score, special = writer.captured(table, f"h, {place}"), tracer.trace(lambda _: pairs.special)
    if special is None:
        return score
    of_special = bias.special_score(pairs)
    other = repr(of_special)
    if isinstance(of_special, Tensor):
        found = tracer.trace(lambda _: of_special)
        assert found is not None
        other = writer.scalar(found)
    return writer.line(f"torch.where({writer.scalar(special)}, {other}, {score})")
