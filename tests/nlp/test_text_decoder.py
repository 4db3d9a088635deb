"""What must hold of a causal language model: packed, padded, alone and in pieces are the same."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from attention_core import KVCache
from nlp import TextDecoder, pad, unpad
from nlp.embeddings import Positions
from tests.nlp.gpt2 import models

LENGTHS = [5, 1, 12, 7]


def build(**options: Any) -> TextDecoder:
    torch.manual_seed(0)
    return TextDecoder(50, 16, 2, 4, **options).double().eval()


def packed() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 50, (sum(LENGTHS),), generator=draw), torch.tensor(LENGTHS)


@pytest.mark.parametrize("window", [None, [None, 3]], ids=str)
@pytest.mark.parametrize("positions", [*get_args(Positions), None])
def test_packed_padded_and_alone_are_the_same(positions: Any, window: Any) -> None:
    model = build(positions=positions, window=window, kv_heads=2)
    ids, lengths = packed()
    together = model(ids, lengths)
    assert together.shape == (len(ids), 50)
    for side in ("left", "right"):
        padded = model(pad(ids, lengths, 49, side=side), lengths, side=side)
        torch.testing.assert_close(unpad(padded, lengths, side=side), together)
    alone = torch.cat([model(row) for row in ids.split(LENGTHS)])
    torch.testing.assert_close(alone, together)


def test_scores_are_those_of_gpt2() -> None:
    theirs, ours = models()
    ids, lengths = packed()
    with torch.no_grad():
        for row in ids.split(LENGTHS):
            torch.testing.assert_close(ours(row), theirs(row[None]).logits[0])
        padded = pad(ids, lengths, side="left")
        mask = torch.arange(12, 0, -1) <= lengths[:, None]
        places = (mask.cumsum(1) - 1).clamp(min=0)
        expected = theirs(padded, attention_mask=mask, position_ids=places).logits
        torch.testing.assert_close(ours(ids, lengths), expected[mask])


def test_the_future_changes_nothing() -> None:
    model = build()
    ids = torch.arange(10)
    changed = torch.cat([ids[:6], ids[6:] + 20])
    torch.testing.assert_close(model(changed)[:6], model(ids)[:6])
    assert (model(changed)[6:] - model(ids)[6:]).abs().min(0).values.max() > 1e-6


def test_a_window_counts_the_tokens_before_itself() -> None:
    model = TextDecoder(50, 16, 1, 4, window=3).eval()
    ids = torch.arange(10)
    reached = []
    with torch.no_grad():
        for place in range(10):
            other = ids.clone()
            other[place] = 40
            reached.append(bool((model(other)[-1] - model(ids)[-1]).abs().max() > 1e-6))
    assert reached == [False] * 6 + [True] * 4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", [*get_args(Positions), None])
def test_pieces_with_a_cache_equal_one_pass(positions: Any, side: Any) -> None:
    model = build(positions=positions)
    ids, lengths = packed()
    more = torch.randint(0, 50, (4, 3), generator=torch.Generator().manual_seed(4))
    cache = model.new_cache(max_length=15)
    model(pad(ids, lengths, side=side), lengths, side=side, cache=cache)
    steps = torch.cat([model(column, cache=cache) for column in more.split([1, 2], dim=1)], dim=1)
    for row, text in enumerate(ids.split(LENGTHS)):
        whole = model(torch.cat([text, more[row]]))
        torch.testing.assert_close(steps[row], whole[-3:])


def test_a_model_chooses_the_cache_that_its_masks_need() -> None:
    assert build(window=3).new_cache(100).window == 3
    assert build(window=[5, 3]).new_cache().window == 5
    assert build(window=0).new_cache().window == 1
    assert build(window=[None, 3]).new_cache(100).max_length == 100
    assert build(window=200).new_cache(100).max_length == 100
    with pytest.raises(ValueError, match="window=3 drops what the masks reach, 5 back"):
        build(window=[5, 3])(torch.arange(4)[None], cache=KVCache(window=3))


@pytest.mark.parametrize(
    ("options", "shape"), [({}, None), ({"tied": False, "scores_bias": True}, (50, 16))]
)
def test_the_table_of_scores(options: dict[str, Any], shape: Any) -> None:
    model = build(**options)
    weight = model.state_dict().get("head.weight")
    assert (None if weight is None else weight.shape) == shape
    tokens = torch.randn(3, 16, dtype=torch.float64)
    table = model.embedding.table.weight if weight is None else weight
    torch.testing.assert_close(model.scores(tokens), tokens @ table.T)


def test_bad_input_is_named() -> None:
    model = build(positions="learned", max_length=8)
    with pytest.raises(ValueError, match=r"learned for places up to \(8,\)"):
        model(torch.zeros(9).long())
    with pytest.raises(ValueError, match="ids run from 50 to 50"):
        model(torch.tensor([50]))
    with pytest.raises(ValueError, match=r"with a cache, ids must be \(B, L\), got \(3,\)"):
        model(torch.arange(3), cache=model.new_cache())
    cache = model.new_cache()
    model(torch.arange(3)[None], cache=cache)
    with pytest.raises(ValueError, match="what follows it has none"):
        model(torch.arange(3)[None], torch.tensor([2]), cache=cache)
    with pytest.raises(ValueError, match="positions must be one of"):
        build(positions="rope")


def test_features_are_of_whole_texts() -> None:
    """A cache would have moved the positions of tokens that attend to none of those before."""
    model = TextDecoder(30, 16, 2, 2, positions="learned").eval()
    ids, lengths = torch.randint(30, (2, 7)), torch.tensor([7, 4])
    tokens, _ = model.encode(ids, lengths, side="left")
    torch.testing.assert_close(model.features(ids, lengths, side="left")[0], tokens)
    cache = model.new_cache()
    model.encode(ids[:, :5], cache=cache)
    with pytest.raises(TypeError, match="features takes no cache=: it reads whole texts"):
        model.features(ids[:, 5:], cache=cache)  # type: ignore[call-arg]
