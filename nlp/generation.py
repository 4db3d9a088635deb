"""Texts continued token by token: greedily, by drawing, or by beam search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf, log
from operator import index
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from attention_core import KVCache
from attention_core.annotated import checked
from attention_core.checks import check_dense, check_number
from attention_core.evaluation import evaluating
from attention_core.transfer import constant, moved, on_host, remember_original
from nlp.batches import Side, pad, token_space, unpad
from nlp.beam_search import BeamSearch
from nlp.logits_processors import (
    FiniteScores,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)


class Generative(Protocol):
    """The methods that `generate` asks of a model: `TextDecoder` has them, and
    `Seq2SeqTransformer` for its targets."""

    @property
    def max_length(self) -> int | None:
        """The longest text that there are positions for; None for any."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Return the modules that are in evaluation mode meanwhile."""
        ...

    def new_cache(self, max_length: int | None = None) -> KVCache:
        """Make an empty cache for texts of at most this length."""
        ...

    def next_scores(self, ids: Tensor, lengths: Tensor | None, cache: KVCache | None) -> Tensor:
        """Compute the scores (B, V) of what follows texts (B, L), padded on the left; with a cache
        that holds tokens, of what follows those and `ids`."""
        ...


class GenerationOptions(TypedDict, total=False):
    """Options of `generate`, which models and tasks pass on."""

    max_tokens: int
    stop: int | Iterable[int]
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    beams: int
    length_penalty: float
    generator: torch.Generator | None
    use_cache: bool


@torch.no_grad()
@checked
def generate(
    model: Generative,
    ids: Tensor,
    lengths: Tensor | None = None,
    *,
    side: Side = "right",
    max_tokens: int = 64,
    stop: int | Iterable[int] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    beams: int = 1,
    length_penalty: float = 1.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> list[Tensor]:
    """Generate what follows each prompt: ids (n,) for each, up to and without the stop token.

    Scores are changed in this order: repetition penalty, temperature, top-k, top-p, min-p. The
    model runs in evaluation mode and is left in the mode it had, even where several threads do so.

    Args:
        model: such as a `TextDecoder`.
        ids: the prompts, (T,) packed or (B, L) padded.
        lengths: (B,) tokens of each prompt; without it, packed ids are one prompt and padded ids
            have no padding.
        side: of padded prompts, where the padding is.
        max_tokens: new tokens, at most.
        stop: the id or ids that end a text.
        temperature: 0 takes the likeliest token, and so does what is too small to divide by, below
            1e-30; above, scores are divided by it and a token is drawn.
        top_k: draw from the k likeliest tokens.
        top_p: draw from the fewest tokens that together have this probability.
        min_p: draw from tokens at least this share as probable as the likeliest.
        repetition_penalty: above 1 discourages tokens of the prompt and of what was generated.
        beams: above 1, search for the text of the highest log-probability with this many
            candidates, instead of the likeliest token at each step.
        length_penalty: of beam search, which divides a text's log-probability by its number of new
            tokens to this power: above 0 prefers long texts.
        generator: for drawing; torch's own by default.
        use_cache: keep keys and values of past tokens, in a cache that holds what the masks reach.
            The texts are the same without it, only later.

    Raises:
        TypeError: `stop` or a count is no integer, or `lengths` no tensor.
        ValueError: an option out of its range or without effect, a prompt without a token, more
            tokens than there are positions for, a stop token that there is none of, or scores of
            the model that are NaN or infinite.
    """
    _check_model(model)
    stops = _ids(stop)
    counts = {"max_tokens": max_tokens, "top_k": top_k, "beams": beams}
    _check_options(counts, temperature, top_p, min_p, repetition_penalty, length_penalty)
    if beams == 1 and length_penalty != 1:
        raise ValueError(
            f"length_penalty={length_penalty} is of beam search, but beams=1: give beams above 1"
        )
    ids, lengths = _left_padded(ids, lengths, side)
    if not len(ids):
        return []
    limit, longest = model.max_length, ids.shape[1] + max_tokens - 1
    if limit is not None and longest > limit:
        raise ValueError(
            f"the longest prompt has {ids.shape[1]} tokens, and max_tokens={max_tokens} more need "
            f"{longest} positions: the model has {limit}"
        )
    past = _Past(model, ids, lengths, model.new_cache(longest) if use_cache else None)

    finite = FiniteScores()

    def next_scores() -> Tensor:
        scores = finite.checked(past.next_scores().float(), stops)
        # Beam search adds up log-probabilities, which its users have penalised, not scores
        scores = scores.log_softmax(-1) if beams > 1 else scores
        if repetition_penalty == 1:
            return scores
        return penalize_repetition(scores, past.seen(scores.shape[-1]), repetition_penalty)

    ending = constant(stops, ids.device, ids.dtype)
    with evaluating(model.modules()):
        if beams > 1:
            search = BeamSearch(len(ids), beams, ending, max_tokens, length_penalty)
            scores = next_scores().repeat_interleave(beams, 0)
            past.select(torch.arange(len(ids)).repeat_interleave(beams))
            while not search.step(scores, past):
                scores = next_scores()
            finite.look()
            return _up_to(search.best, ending)
        stopped = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for _ in range(max_tokens):
            scores = next_scores()
            if temperature >= 1e-30:
                scores = scores / temperature
                scores = scores if top_k is None else keep_top_k(scores, top_k)
                scores = scores if top_p is None else keep_top_p(scores, top_p)
                scores = scores if min_p is None else keep_min_p(scores, min_p)
                tokens = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
            else:
                tokens = scores.argmax(-1)
            past.add(tokens)
            stopped |= torch.isin(tokens, ending)
            if stops and finite.look(stopped.all()):
                break
        finite.look()
    return _up_to(past.new, ending)


class _Past:
    """The prompts and what was generated, and how the model is asked about them."""

    def __init__(
        self, model: Generative, ids: Tensor, lengths: Tensor | None, cache: KVCache | None
    ) -> None:
        self.model, self.ids, self.lengths, self.cache = model, ids, lengths, cache
        self.new = ids[:, :0]

    def next_scores(self) -> Tensor:
        count = self.new.shape[1]
        if self.cache is not None and count:
            return self.model.next_scores(self.new[:, -1:], None, self.cache)
        lengths = None if self.lengths is None else self.lengths + count
        return self.model.next_scores(torch.cat([self.ids, self.new], 1), lengths, self.cache)

    def add(self, tokens: Tensor) -> None:
        """One token more for each text, (B,)."""
        self.new = torch.cat([self.new, tokens[:, None]], dim=1)

    def select(self, index: Tensor) -> None:
        """Make text `index[b]` the new text b."""
        there = moved(index, self.ids.device)
        if there is not index:
            remember_original(there, index)
        self.ids, self.new = self.ids[there], self.new[there]
        if self.lengths is not None:
            self.lengths = self.lengths[on_host(index)]
        if self.cache is not None:
            self.cache.reorder(there)

    def seen(self, vocab_size: int) -> Tensor:
        """(B, V) bool: the ids that each text holds, padding aside."""
        ids = torch.cat([self.ids, self.new], 1)
        if self.lengths is not None:
            places = torch.arange(self.ids.shape[1], 0, -1, device=ids.device)
            padding = places > moved(self.lengths, ids.device)[:, None]
            ids = torch.cat([self.ids.masked_fill(padding, vocab_size), self.new], 1)
        seen = torch.zeros(len(ids), vocab_size + 1, dtype=torch.bool, device=ids.device)
        return seen.scatter(1, ids, True)[:, :vocab_size]


def _check_model(model: object) -> None:
    wanted = ("max_length", "modules", "new_cache", "next_scores")
    lacks = [name for name in wanted if not hasattr(model, name)]
    if lacks:
        raise TypeError(
            f"model must be a TextDecoder, or have its {', '.join(wanted)}; got "
            f"{type(model).__name__} without {', '.join(lacks)}"
        )


def _left_padded(ids: Tensor, lengths: Tensor | None, side: Side) -> tuple[Tensor, Tensor | None]:
    """Prompts (B, L) that end in the last column, and their lengths; None where all are as long."""
    if lengths is not None and not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a tensor, got {type(lengths).__name__}")
    check_dense(ids=ids)
    lengths = None if lengths is None else on_host(lengths)
    token_space(ids, lengths, side)  # checks the shapes
    shortest = ids.shape[-1] if lengths is None else int(lengths.min()) if len(lengths) else 1
    if shortest < 1:
        raise ValueError(
            "every prompt needs at least one token, such as the tokenizer's start token: ids are "
            f"{tuple(ids.shape)}, lengths {None if lengths is None else lengths.tolist()}"
        )
    if lengths is None:
        return (ids if ids.ndim == 2 else ids[None]), None
    if ids.ndim == 2:
        ids = unpad(ids, lengths, side)
    padded = pad(ids, lengths, side="left")
    return padded, None if shortest == padded.shape[1] else lengths


def _up_to(ids: Tensor, ending: Tensor) -> list[Tensor]:
    """The ids (n,) of each of B texts (B, N) in front of the first one that ends it."""
    before = torch.isin(ids, ending).cumsum(1) == 0
    return [row[:count] for row, count in zip(ids, before.sum(1).tolist(), strict=True)]


def _ids(stop: Any) -> list[int]:
    try:
        if isinstance(stop, str):
            raise TypeError
        alone = hasattr(stop, "__index__") and not getattr(stop, "ndim", 0)  # of tensors, arrays
        given = [stop] if alone else list(stop)
        if any(isinstance(one, bool) for one in given):
            raise TypeError
        ids = [index(one) for one in given]
    except Exception:  # as of tensors of floats, or without values
        raise TypeError(
            f"stop must be the id of a token, or several ids, got {stop!r:.80}"
        ) from None
    if any(one < 0 for one in ids):
        raise ValueError(f"stop must be ids of tokens, from 0 on, got {stop!r:.80}")
    return ids


def _check_options(
    counts: dict[str, int | None],
    temperature: float,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
    length_penalty: float,
) -> None:
    for name, count in counts.items():
        wanted = "at least 1, or None" if name == "top_k" else "at least 1"
        if count is None and name == "top_k":
            continue
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"{name} must be an integer of {wanted}, got {count!r}")
        if count < 1:
            raise ValueError(f"{name} must be {wanted}, got {count}")
    for name, value, right, wanted in (
        ("temperature", temperature, 0 <= temperature < inf, "at least 0, and finite"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1, or None"),
        ("min_p", min_p, min_p is None or 0 <= min_p <= 1, "between 0 and 1, or None"),
        (
            "repetition_penalty",
            repetition_penalty,
            0 < repetition_penalty < inf,
            "above 0, and finite",
        ),
        (
            "length_penalty",
            length_penalty,
            abs(length_penalty) * log(counts["max_tokens"] or 1) < 88,
            "a number, and max_tokens to its power one of float32",
        ),
    ):
        if not right:
            raise ValueError(f"{name} must be {wanted}, got {value}")
    check_number(repetition_penalty=repetition_penalty, length_penalty=length_penalty)
    for name, value in (("temperature", temperature), ("top_p", top_p), ("min_p", min_p)):
        check_number(or_none=name != "temperature", **{name: value})
    top_k, beams = counts["top_k"], counts["beams"] or 1
    drawing = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    given = [name for name, value in drawing.items() if value is not None]
    if given and not temperature:
        raise ValueError(
            f"{', '.join(given)} say what to draw from, but temperature=0 draws nothing: give a "
            "temperature above 0"
        )
    if beams > 1 and temperature:
        raise ValueError(f"beams={beams} search and draw nothing: give temperature=0")
