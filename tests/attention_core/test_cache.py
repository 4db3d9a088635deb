"""Decoding in pieces equals one pass, whatever the cache holds (rule 4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attention_core import (
    ALiBi,
    Decoder,
    KVCache,
    Neighborhood,
    RelativeTable,
    Rotary,
    ScalableSoftmax,
    Sequence,
)

DIM, HEADS = 16, 4


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 1, 3, 2]])
@pytest.mark.parametrize("max_length", [None, 12])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_pieces_equal_one_pass(pieces: list[int], max_length: int | None, kv_heads: int) -> None:
    decoder = Decoder(
        DIM,
        3,
        HEADS,
        kv_heads=kv_heads,
        rotary=Rotary(),
        bias=RelativeTable.t5(HEADS, bidirectional=False),
        mask=[None, Neighborhood(3)],
        cross=True,
    ).eval()
    x, context = torch.randn(2, 12, DIM), torch.randn(2, 5, DIM)
    where = Sequence.padded([5, 2])
    cache = KVCache(max_length)
    out = [
        decoder(piece, context=context, context_space=where, cache=cache)
        for piece in x.split(pieces, dim=1)
    ]
    torch.testing.assert_close(
        torch.cat(out, dim=1), decoder(x, context=context, context_space=where)
    )
    assert cache.length == 12


@pytest.mark.parametrize("pieces", [[1] * 12, [7, 1, 1, 3]])
def test_a_sliding_cache_holds_what_the_window_needs(pieces: list[int]) -> None:
    decoder = Decoder(DIM, 2, HEADS, rotary=Rotary(), mask=Neighborhood(3)).eval()
    x, cache = torch.randn(2, 12, DIM), KVCache(window=3)
    out = torch.cat([decoder(piece, cache=cache) for piece in x.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(out, decoder(x))
    assert cache.length == 3 + pieces[-1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_different_lengths_go_on_after_their_last_token(side: str) -> None:
    decoder = Decoder(DIM, 2, HEADS, rotary=Rotary(), mask=Neighborhood(4)).eval()
    lengths = [3, 6]
    tokens = torch.randn(2, 8, DIM)
    prompt = torch.zeros(2, 6, DIM)
    for row, n in enumerate(lengths):
        start = 6 - n if side == "left" else 0
        prompt[row, start : start + n] = tokens[row, :n]
    cache = KVCache()
    decoder(prompt, Sequence.padded(lengths, side=side), cache=cache)
    for step in range(2):
        new = torch.stack([tokens[row, n + step] for row, n in enumerate(lengths)])[:, None]
        out = decoder(new, cache=cache)
        for row, n in enumerate(lengths):
            alone = decoder(tokens[row : row + 1, : n + step + 1])
            torch.testing.assert_close(out[row], alone[0, -1:])


def test_reorder_swaps_samples() -> None:
    decoder = Decoder(DIM, 2, HEADS, rotary=Rotary(), cross=True).eval()
    x, context = torch.randn(2, 5, DIM), torch.randn(2, 3, DIM)
    swap = torch.tensor([1, 0])
    cache = KVCache()
    decoder(x[:, :4], Sequence.padded([4, 2]), context=context, cache=cache)
    cache.reorder(swap)
    out = decoder(x[swap, 4:], context=context[swap], cache=cache)
    again = KVCache()
    decoder(x[:, :4], Sequence.padded([4, 2]), context=context, cache=again)
    torch.testing.assert_close(out, decoder(x[:, 4:], context=context, cache=again)[swap])


@pytest.mark.parametrize(
    "options",
    [
        {"mask": Neighborhood(2, border="shift")},
        {"mask": [None, ~Neighborhood(2, border="shift", stride=2, is_causal=True)]},
        {"bias": ALiBi(HEADS) + ScalableSoftmax(HEADS, 8)},
    ],
)
def test_what_depends_on_the_end_of_a_sample_is_not_decoded_in_pieces(options: Any) -> None:
    """Each token would see another end than one pass over all: silently other numbers."""
    decoder, x = Decoder(DIM, 2, HEADS, **options), torch.randn(1, 5, DIM)
    with pytest.raises(ValueError, match="depends on where a sample ends"):
        decoder(x, cache=decoder.new_cache())
    assert decoder(x).shape == x.shape


def test_a_full_cache_says_so() -> None:
    cache = KVCache(max_length=4)
    decoder = Decoder(DIM, 1, HEADS)
    decoder(torch.randn(1, 3, DIM), cache=cache)
    with pytest.raises(ValueError, match="max_length=4 tokens, got 5"):
        decoder(torch.randn(1, 2, DIM), cache=cache)
    assert cache.length == 3
    with pytest.raises(ValueError, match="max_length or window, not both"):
        KVCache(4, window=2)
