"""Generation: as transformers does it, and the same with and without a cache."""

import math
import threading
from collections.abc import Callable
from typing import Any, get_args

import numpy
import pytest
import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nlp import Seq2SeqTransformer, TextDecoder, TextEncoder, Tokenizer, generate, pad
from nlp.embeddings import Positions
from nlp.logits_processors import keep_min_p, keep_top_k, keep_top_p, penalize_repetition
from tests.nlp.gpt2 import ENDS, VOCABULARY, models

LENGTHS = [5, 1, 9, 3]


def prompts() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(8, VOCABULARY, (sum(LENGTHS),), generator=draw)
    return ids, torch.tensor(LENGTHS)


def of_transformers(options: dict[str, Any]) -> list[list[int]]:
    theirs, _ = models()
    ids, lengths = prompts()
    padded = pad(ids, lengths, side="left")
    mask = torch.arange(padded.shape[1], 0, -1) <= lengths[:, None]
    out = theirs.generate(padded, attention_mask=mask, max_new_tokens=20, **options)
    rows = [row[padded.shape[1] :].tolist() for row in out]
    ends = [[place for place, token in enumerate(row) if token in ENDS] for row in rows]
    return [row[: end[0]] if end else row for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"do_sample": False}),
        ({"repetition_penalty": 1.7}, {"do_sample": False, "repetition_penalty": 1.7}),
        *(
            (
                {"beams": beams, "length_penalty": penalty},
                {"do_sample": False, "num_beams": beams, "length_penalty": penalty},
            )
            for beams, penalty in ((2, 1.0), (4, 0.0), (4, 1.0), (5, 2.5))
        ),
        (
            {"beams": 3, "repetition_penalty": 1.3, "length_penalty": -1.0},
            {
                "do_sample": False,
                "num_beams": 3,
                "repetition_penalty": 1.3,
                "length_penalty": -1.0,
            },
        ),
        ({"temperature": 1.0}, {"do_sample": True, "top_k": 0}),
        ({"temperature": 2.0, "top_p": 0.8}, {"do_sample": True, "temperature": 2.0, "top_p": 0.8}),
        ({"temperature": 3.0, "top_k": 5}, {"do_sample": True, "temperature": 3.0, "top_k": 5}),
        (
            {"temperature": 4.0, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
            {"do_sample": True, "temperature": 4.0, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
        ),
    ],
    ids=str,
)
def test_texts_are_those_of_transformers(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    models()  # whose weights are drawn, once
    torch.manual_seed(5)
    expected = of_transformers({"top_k": 0, **theirs} if theirs["do_sample"] else theirs)
    ids, lengths = prompts()
    draw = torch.Generator().manual_seed(5)
    texts = models()[1].generate(ids, lengths, max_tokens=20, stop=ENDS, generator=draw, **ours)
    assert [text.tolist() for text in texts] == expected
    assert len({len(text) for text in expected}) > 1


def test_scores_are_changed_as_transformers_does() -> None:
    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.randint(40, (6, 12))
    torch.testing.assert_close(keep_top_k(scores, 7), TopKLogitsWarper(7)(ids, scores))
    torch.testing.assert_close(keep_top_k(scores, 99), scores)
    for p in (0.05, 0.5, 0.99, 1.0):
        torch.testing.assert_close(keep_top_p(scores, p), TopPLogitsWarper(p)(ids, scores))
        torch.testing.assert_close(keep_min_p(scores, p), MinPLogitsWarper(p)(ids, scores))
    seen = torch.zeros(6, 40, dtype=torch.bool).scatter(1, ids, True)
    for penalty in (0.5, 1.4):
        torch.testing.assert_close(
            penalize_repetition(scores, seen, penalty),
            RepetitionPenaltyLogitsProcessor(penalty)(ids, scores),
        )


SEARCHES: list[dict[str, Any]] = [
    {},
    {"beams": 3, "length_penalty": 0.5},
    {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.2},
]


def seeded(options: dict[str, Any]) -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(3), "max_tokens": 12, "stop": 4, **options}


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beams", "drawn"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("positions", [*get_args(Positions), None])
def test_the_cache_changes_no_token(positions: Any, window: Any, search: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = TextDecoder(
        VOCABULARY, 16, 2, 4, kv_heads=2, positions=positions, window=window, max_length=32
    )
    torch.nn.init.normal_(model.embedding.table.weight)
    ids, lengths = prompts()
    cached, without = (
        model.generate(ids, lengths, use_cache=use_cache, **seeded(search))
        for use_cache in (True, False)
    )
    assert [text.tolist() for text in cached] == [text.tolist() for text in without]
    assert (model.new_cache(20).window == 3) == (window == 3)
    if search.get("temperature"):
        return  # what is drawn depends on the row
    for row, prompt in enumerate(ids.split(LENGTHS)):
        (alone,) = model.generate(prompt, **seeded(search))
        assert alone.tolist() == cached[row].tolist()


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beams", "drawn"])
@pytest.mark.parametrize("positions", [*get_args(Positions), None])
def test_the_cache_changes_no_translation(positions: Any, search: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = Seq2SeqTransformer(VOCABULARY, 16, 2, 4, positions=positions, max_length=32)
    torch.nn.init.normal_(model.embedding.table.weight)
    ids, lengths = prompts()
    options = {"start": 1, **search}
    cached = model.generate(ids, lengths, **seeded(options))
    padded = model.generate(pad(ids, lengths), lengths, use_cache=False, **seeded(options))
    assert [text.tolist() for text in cached] == [text.tolist() for text in padded]
    if not search.get("temperature"):
        for row, source in enumerate(ids.split(LENGTHS)):
            (alone,) = model.generate(source[None], **seeded(options))
            assert alone.tolist() == cached[row].tolist()


def test_the_likeliest_target_is_found_by_beam_search_where_it_is_wide_enough() -> None:
    torch.manual_seed(0)
    model = Seq2SeqTransformer(5, 8, 1, 2).eval()
    torch.nn.init.normal_(model.embedding.table.weight, std=2.0)
    source = torch.tensor([3, 1, 2])
    targets = torch.cartesian_prod(*[torch.arange(5)] * 3)
    inputs = torch.cat([torch.full((125, 1), 1), targets[:, :2]], dim=1)
    with torch.no_grad():
        scores = model(source.expand(125, 3), None, inputs, None).log_softmax(-1)
    best = targets[scores.gather(2, targets[..., None]).sum((1, 2)).argmax()]
    (found,) = model.generate(source, start=1, max_tokens=3, beams=25, length_penalty=0.0)
    assert found.tolist() == best.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_may_be_padded_on_either_side(side: Any) -> None:
    ids, lengths = prompts()
    _, model = models()
    expected = model.generate(ids, lengths, max_tokens=8)
    padded = pad(ids, lengths, 50, side=side)
    texts = generate(model, padded, lengths, side=side, max_tokens=8)
    assert [text.tolist() for text in texts] == [text.tolist() for text in expected]


def test_a_model_in_training_generates_without_dropout_and_stays_in_training() -> None:
    model = TextDecoder(20, 16, 1, 2, dropout=0.9, embedding_dropout=0.9).train()
    first, second = (model.generate(torch.arange(5), max_tokens=20)[0] for _ in range(2))
    assert first.tolist() == second.tolist()
    assert model.training and not first.requires_grad


def generating() -> tuple[Any, str, Callable[[], list[Any]]]:
    model = TextDecoder(300, 16, 2, 2, dropout=0.9)
    return model, "next_scores", lambda: model.generate(torch.arange(5), max_tokens=20)[0].tolist()


def translating() -> tuple[Any, str, Callable[[], list[Any]]]:
    model = Seq2SeqTransformer(300, 16, 1, 2, dropout=0.9)
    options = {"start": 1, "max_tokens": 20, "beams": 2}
    return model, "encode", lambda: model.generate(torch.arange(5), **options)[0].tolist()


def embedding() -> tuple[Any, str, Callable[[], list[Any]]]:
    pytest.importorskip("tokenizers")
    tokenizer = Tokenizer.train(["a"], 300)
    model = TextEncoder(300, 16, 1, 2, num_classes=2, dropout=0.9)
    return model, "encode", lambda: model.embed_texts(["abc", "d"], tokenizer).tolist()


@pytest.mark.parametrize("make", [generating, translating, embedding])
def test_threads_leave_each_part_of_a_model_in_the_mode_it_had(make: Any) -> None:
    """Three of them begin one after another, and end so, each when the next has begun."""
    model, name, work = make()
    expected = work()
    list(model.modules())[-1].eval()  # as of a part that is frozen
    modes = [module.training for module in model.modules()]
    assert True in modes and False in modes
    method, found = getattr(model, name), {}
    begun, going = ([threading.Event() for _ in range(3)] for _ in range(2))

    def waiting(*arguments: Any, **options: Any) -> Any:
        order = int(threading.current_thread().name)
        begun[order].set()
        assert going[order].wait(60)
        return method(*arguments, **options)

    def run(order: int) -> None:
        found[order] = work()

    setattr(model, name, waiting)
    threads = [threading.Thread(target=run, args=(n,), name=str(n)) for n in range(3)]
    for order, thread in enumerate(threads):
        thread.start()
        assert begun[order].wait(60)
    for order, thread in enumerate(threads):
        assert not any(module.training for module in model.modules())
        going[order].set()
        thread.join()
    assert found == dict.fromkeys(range(3), expected)
    assert [module.training for module in model.modules()] == modes


def test_every_stop_token_ends_a_text_and_is_left_out() -> None:
    _, model = models()
    ids, lengths = prompts()
    whole = model.generate(ids, lengths, max_tokens=10)
    stops = [int(whole[0][4]), int(whole[2][2])]
    for row, text in enumerate(model.generate(ids, lengths, max_tokens=10, stop=stops)):
        full = whole[row].tolist()
        ends = [full.index(stop) for stop in stops if stop in full]
        assert text.tolist() == full[: min(ends, default=10)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"top_k": 0, "temperature": 1}, "top_k must be at least 1, or None"),
        ({"top_p": 1.5, "temperature": 1}, "top_p must be above 0 and at most 1"),
        ({"top_p": 0.9}, "top_p say what to draw from, but temperature=0"),
        ({"beams": 2, "temperature": 1.0}, "beams=2 search and draw nothing"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"length_penalty": 2.0}, "length_penalty=2.0 is of beam search, but beams=1"),
        ({"temperature": math.inf}, "temperature must be at least 0, and finite, got inf"),
        ({"temperature": math.nan}, "temperature must be at least 0, and finite, got nan"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be above 0, and finite"),
        ({"length_penalty": math.nan, "beams": 2}, "length_penalty must be a number, .* got nan"),
        ({"length_penalty": math.inf, "beams": 2}, "length_penalty must be a number, .* got inf"),
        ({"length_penalty": 1e3, "beams": 2}, "length_penalty must be .* float32, got 1000"),
        ({"max_tokens": 2.0}, "max_tokens must be an integer of at least 1, got 2.0"),
        ({"top_k": 1.5, "temperature": 1}, "top_k must be an integer of at least 1, or None, got"),
        ({"beams": True}, "beams must be an integer of at least 1, got True"),
        ({"side": "up"}, "side must be 'right' or 'left', got 'up'"),
        (
            {"stop": VOCABULARY, "max_tokens": 5},
            f"stop: there is no token {VOCABULARY}; the model has {VOCABULARY}",
        ),
        (
            {"stop": [3, 999], "beams": 2, "max_tokens": 5},
            "stop: there is no token 999; the model has",
        ),
        ({"stop": -1}, "stop must be ids of tokens, from 0 on, got -1"),
        ({"stop": "</s>"}, "stop must be a whole number or a list .*, got '</s>'"),
        ({"stop": None}, "stop must be a whole number or a list .*, got None"),
        ({"stop": 1.5}, "stop must be the id of a token, or several ids, got 1.5"),
        ({"stop": [True]}, r"stop must be the id of a token, or several ids, got \[True\]"),
        ({"max_tokens": 65}, "9 tokens, and max_tokens=65 more need 73 positions: .* has 64"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        models()[1].generate(*prompts(), **options)


def test_lengths_are_a_tensor_and_a_side_is_one_of_two() -> None:
    model = models()[1]
    with pytest.raises(TypeError, match="lengths must be a tensor or None, got list"):
        model.generate(torch.arange(3), [3])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="side must be 'right' or 'left', got 'up'"):
        model(torch.arange(3)[None], side="up")


def test_a_stop_token_may_be_any_integer() -> None:
    model, (ids, lengths) = models()[1], prompts()
    expected = [text.tolist() for text in model.generate(ids, lengths, max_tokens=10, stop=ENDS)]
    stops: list[Any] = [torch.tensor(ENDS), numpy.array(ENDS), tuple(numpy.array(ENDS)), set(ENDS)]
    for stop in stops:
        texts = model.generate(ids, lengths, max_tokens=10, stop=stop)
        assert [text.tolist() for text in texts] == expected
    one = [model.generate(ids, lengths, max_tokens=10, stop=stop) for stop in (ENDS[0], [ENDS[0]])]
    for stop in (torch.tensor(ENDS[0]), numpy.int64(ENDS[0])):
        one.append(model.generate(ids, lengths, max_tokens=10, stop=stop))  # type: ignore[arg-type]
    assert all([text.tolist() for text in texts] == [t.tolist() for t in one[0]] for texts in one)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"beams": 2}], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_tell_no_token_are_named(value: float, options: dict[str, Any]) -> None:
    model = TextDecoder(20, 16, 1, 2)
    next_scores, calls = model.next_scores, []

    def broken(*arguments: Any) -> Tensor:
        calls.append(arguments)
        scores = next_scores(*arguments)
        if len(calls) == 3:  # of one text: a single NaN, or -inf throughout
            scores[1, ... if value < 0 else 7] = value
        return scores

    model.next_scores = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the model's scores of new token 2 are NaN or infinite"):
        model.generate(torch.zeros(2, 3).long(), max_tokens=5, **options)
    assert len(calls) == 3


def test_a_temperature_too_small_to_divide_by_takes_the_likeliest_token() -> None:
    model, (ids, lengths) = models()[1], prompts()
    expected = [text.tolist() for text in model.generate(ids, lengths, max_tokens=5)]
    for temperature in (1e-45, 1e-38, 1e-29):
        texts = model.generate(ids, lengths, max_tokens=5, temperature=temperature)
        assert [text.tolist() for text in texts] == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_no_prompt_at_all_has_no_continuation(beams: int) -> None:
    translator = Seq2SeqTransformer(VOCABULARY, 16, 1, 4)
    none, lengths = torch.zeros(0).long(), torch.zeros(0).long()
    for ids, sizes in ((none, lengths), (none.view(0, 4), None), (none.view(0, 4), lengths)):
        assert models()[1].generate(ids, sizes, beams=beams) == []
        assert translator.generate(ids, sizes, start=1, beams=beams) == []


@pytest.mark.parametrize("stop", [[], [0], [0, 1, 2]], ids=str)
def test_more_beams_than_tokens_find_the_likeliest_text(stop: list[int]) -> None:
    torch.manual_seed(0)
    model = TextDecoder(3, 8, 1, 2)
    torch.nn.init.normal_(model.embedding.table.weight, std=2.0)
    best = [
        model.generate(torch.tensor([1]), beams=beams, max_tokens=3, stop=stop, length_penalty=0.0)
        for beams in (27, 40)
    ]
    assert best[0][0].tolist() == best[1][0].tolist()
    assert len(best[0][0]) <= (0 if len(stop) == 3 else 3)


def test_a_prompt_without_a_token_is_named() -> None:
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        models()[1].generate(torch.arange(3), torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        models()[1].generate(torch.zeros(2, 0).long())
