"""What is seen of text models: equal to a computation by hand, and to transformers' weights."""

from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings, strategies as st
from torch import Tensor

from nlp import MaskedLanguageModel, Seq2SeqTransformer, TextDecoder, TextEncoder, Tokenizer
from nlp.interpret import (
    alignment,
    attention_maps,
    attention_rollout,
    mean_attention_distance,
    occlusion,
    pooling_attention,
)
from nlp.word_alignment import words
from tests.nlp.test_pretrained import random

TEXT = "the plane is late again, 😡 grün"
TOKENIZER = Tokenizer.train(["the plane is late again", "the plane was on time, thanks!"] * 4, 300)
(IDS,) = TOKENIZER.encode([TEXT])
V = len(TOKENIZER)
SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}


def build(kind: Any = TextEncoder, **options: Any) -> Any:
    torch.manual_seed(0)
    if kind is TextEncoder:
        options = {"num_classes": 2, **options}
    model = kind(V, 16, 2, 4, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def by_hand(attention: Any, x: Tensor, context: Tensor) -> Tensor:
    """(heads, Lq, Lk) of one layer without positions, by its definition."""
    keys = attention.key_value(context).chunk(2, -1)[0]
    q, k = (rows.unflatten(-1, (4, 4)).transpose(0, 1) for rows in (attention.query(x), keys))
    return (q @ k.mT / 2).softmax(-1)  # heads of size 4


def test_a_layer_by_hand() -> None:
    model = build(positions=None)
    seen = attention_maps(model, TEXT, tokenizer=TOKENIZER)
    with torch.no_grad():
        block = model.encoder.blocks[0]
        x = block.attention_residual.norm(model.embedding.table.weight[IDS])
        wanted = by_hand(block.attention, x, x)
    torch.testing.assert_close(seen.weights[0], wanted)
    assert seen.weights.shape == (2, 4, len(IDS), len(IDS))
    assert seen.queries == seen.keys == TOKENIZER.pieces(IDS)
    assert seen.layers == [0, 1] and seen.heads == [0, 1, 2, 3]
    one = attention_maps(
        model, torch.tensor(IDS), layers=[-1, 0], heads=[-1, 1], tokenizer=TOKENIZER
    )
    torch.testing.assert_close(one.weights, seen.weights[[1, 0]][:, [3, 1]])
    assert one.layers == [1, 0] and one.heads == [3, 1]


def test_an_alignment_by_hand() -> None:
    torch.manual_seed(0)
    model = Seq2SeqTransformer(V, 16, 2, 4, decoder_depth=1, positions=None).double().eval()
    (written,) = TOKENIZER.encode(["time thanks"], special=False)
    seen = alignment(model, TEXT, "time thanks", words=False, tokenizer=TOKENIZER)
    with torch.no_grad():
        context, _ = model.encode(torch.tensor(IDS))
        block = model.decoder.blocks[0]
        x = model.embedding.table.weight[[TOKENIZER.start, *written]]
        h = block.attention_residual.norm(x)
        causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        _, values = block.attention.key_value(h).chunk(2, -1)
        q, k = block.attention.query(h), block.attention.key_value(h).chunk(2, -1)[0]
        q, k, v = (rows.unflatten(-1, (4, 4)).transpose(0, 1) for rows in (q, k, values))
        weights = (q @ k.mT / 2).masked_fill(~causal, -torch.inf).softmax(-1)
        x = x + block.attention.out((weights @ v).transpose(0, 1).flatten(1))
        x = block.cross_attention_residual.norm(x)
        wanted = by_hand(block.cross_attention, x, context)
    torch.testing.assert_close(seen.weights[0], wanted)
    # A row is what is written, not what was written last
    assert seen.queries == [*TOKENIZER.pieces(written), "</s>"]
    assert seen.keys == TOKENIZER.pieces(IDS)


def test_bert_s_layers_and_heads() -> None:
    theirs = random(hf.BertModel, hf.BertConfig(**SMALL))
    ours = TextEncoder.from_pretrained(theirs.state_dict(), heads=4).eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS]), output_attentions=True).attentions
    seen = attention_maps(ours, TEXT, tokenizer=TOKENIZER)
    torch.testing.assert_close(seen.weights, torch.cat(wanted), atol=1e-5, rtol=1e-5)
    pooled = pooling_attention(ours, TEXT, words=False, tokenizer=TOKENIZER)
    torch.testing.assert_close(pooled.weights, wanted[-1][0, :, 0], atol=1e-5, rtol=1e-5)


def test_albert_s_shared_block_is_seen_in_its_last_layer() -> None:
    config = hf.AlbertConfig(**SMALL, embedding_size=8)
    theirs = random(hf.AlbertModel, config)
    ours = TextEncoder.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS]), output_attentions=True).attentions
    seen = attention_maps(ours, TEXT, tokenizer=TOKENIZER)
    assert seen.layers == [2]
    torch.testing.assert_close(seen.weights[0], wanted[-1][0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="layer 0 shares its block .* give some of 2"):
        attention_maps(ours, TEXT, layers=[0], tokenizer=TOKENIZER)


def test_gpt2_s_layers() -> None:
    config = hf.GPT2Config(vocab_size=V, n_positions=64, n_embd=16, n_layer=2, n_head=4)
    theirs = random(hf.GPT2LMHeadModel, config)
    ours = TextDecoder.from_pretrained(theirs.state_dict(), heads=4).eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS]), output_attentions=True).attentions
    seen = attention_maps(ours, TEXT, tokenizer=TOKENIZER)
    torch.testing.assert_close(seen.weights, torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_t5_s_encoder_and_alignment() -> None:
    config = hf.T5Config(
        vocab_size=V, d_model=16, d_kv=6, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=4
    )
    theirs = random(hf.T5ForConditionalGeneration, config, 0.05)
    ours = Seq2SeqTransformer.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    (written,) = TOKENIZER.encode(["thanks! late"], special=False)
    with torch.no_grad():
        output = theirs(
            input_ids=torch.tensor([IDS]),
            decoder_input_ids=torch.tensor([[TOKENIZER.pad, *written]]),
            output_attentions=True,
        )
    seen = attention_maps(ours, TEXT, tokenizer=TOKENIZER)
    wanted = torch.cat(output.encoder_attentions)
    torch.testing.assert_close(seen.weights, wanted, atol=1e-5, rtol=1e-5)
    seen = alignment(
        ours, TEXT, torch.tensor(written), words=False, start=TOKENIZER.pad, tokenizer=TOKENIZER
    )
    wanted = torch.cat(output.cross_attentions)
    torch.testing.assert_close(seen.weights, wanted, atol=1e-5, rtol=1e-5)


def test_words_are_their_tokens_together() -> None:
    model = build(Seq2SeqTransformer)
    tokens = alignment(model, TEXT, "grün, time", tokenizer=TOKENIZER)
    names = ["<s>", "the", "plane", "is", "late", "again", ",", "😡", "grün"]
    assert tokens.keys == names
    assert tokens.queries == ["grün", ",", "time", "</s>"]
    # Rows sum to 1 over the source, its special token and all
    torch.testing.assert_close(tokens.weights.sum(-1), torch.ones(2, 4, 4).double())
    fine = alignment(model, TEXT, "grün, time", words=False, tokenizer=TOKENIZER)
    columns = words(TOKENIZER.spell(IDS))
    rows = words(TOKENIZER.spell(TOKENIZER.encode(["grün, time"], special=False)[0]))
    assert len(columns[-1]) > 1 and len(rows[0]) > 1
    wanted = fine.weights[:, :, rows[0]].mean(2)[..., columns[-1]].sum(-1)
    torch.testing.assert_close(tokens.weights[:, :, 0, -1], wanted)
    maps = attention_maps(model, TEXT, words=True, tokenizer=TOKENIZER)
    torch.testing.assert_close(maps.weights.sum(-1), torch.ones(2, 4, 9).double())


@pytest.mark.parametrize("pooling", ["mean", "max", "class", "attention"])
def test_what_reaches_the_vector_of_a_text(pooling: Any) -> None:
    model = build(pooling=pooling)
    tokens = pooling_attention(model, TEXT, words=False, tokenizer=TOKENIZER)
    if pooling == "attention":
        with torch.no_grad():
            x, pool = model.encode(torch.tensor(IDS))[0], model.pool.attention
            wanted = by_hand(pool, model.pool.queries, x)[:, 0]
    else:
        rows = attention_maps(model, TEXT, layers=[-1], tokenizer=TOKENIZER).weights[0]
        wanted = rows[:, 0] if pooling == "class" else rows.mean(1)
    torch.testing.assert_close(tokens.weights, wanted)
    merged = pooling_attention(model, TEXT, tokenizer=TOKENIZER)
    assert "".join(merged.words) == "<s>" + TEXT
    assert merged.special == [True] + [False] * 8
    groups = words(TOKENIZER.spell(IDS))
    for place, group in enumerate(groups):
        torch.testing.assert_close(merged.weights[:, place], tokens.weights[:, group].sum(-1))


@pytest.mark.parametrize("pooling", ["mean", "class", "attention"])
def test_rollout_is_the_papers_formula(pooling: Any) -> None:
    model = build(pooling=pooling)
    layers = attention_maps(model, TEXT, tokenizer=TOKENIZER).weights
    length = layers.shape[-1]
    expected = pooling_attention(model, TEXT, tokenizer=TOKENIZER, words=False).weights.mean(0)
    if pooling != "attention":
        row = torch.eye(length)[0] if pooling == "class" else torch.full((length,), 1 / length)
        mixed = 0.5 * layers[1].mean(0) + 0.5 * torch.eye(length).double()
        expected = row.double() @ mixed
        layers = layers[:1]
    for layer in layers.flip(0):
        expected = expected @ (0.5 * layer.mean(0) + 0.5 * torch.eye(length).double())
    found = attention_rollout(model, TEXT, tokenizer=TOKENIZER, words=False)
    torch.testing.assert_close(found.weights, expected)
    merged = attention_rollout(model, TEXT, tokenizer=TOKENIZER)
    assert "".join(merged.words) == "<s>" + TEXT
    torch.testing.assert_close(merged.weights.sum(), torch.tensor(1.0).double())


def test_how_far_heads_look_in_tokens() -> None:
    for kind in (TextEncoder, TextDecoder, Seq2SeqTransformer):
        model = build(kind)
        weights = attention_maps(model, TEXT, tokenizer=TOKENIZER).weights
        place = torch.arange(len(IDS))
        apart = (place[:, None] - place).abs().double()
        expected = (weights * apart).sum((2, 3)) / len(IDS)
        found = mean_attention_distance(model, TEXT, tokenizer=TOKENIZER)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("target", [None, 0, 1])
def test_occlusion_is_what_the_model_says_without_a_word(target: Any, merged: bool) -> None:
    model = build(pooling="attention")
    found = occlusion(model, TEXT, tokenizer=TOKENIZER, target=target, words=merged)
    groups = words(TOKENIZER.spell(IDS)) if merged else [[place] for place in range(len(IDS))]
    with torch.no_grad():
        whole = model(torch.tensor(IDS)).log_softmax(-1)[0]
        label = int(whole.argmax()) if target is None else target
        expected = []
        for group in groups:
            kept = torch.tensor([i for place, i in enumerate(IDS) if place not in group])
            change = model(kept).log_softmax(-1)[0, label] - whole[label]
            expected.append(torch.nan if IDS[group[0]] in TOKENIZER.special else float(change))
    assert found.special == [True] + [False] * (len(groups) - 1)
    torch.testing.assert_close(
        found.weights, torch.tensor(expected, dtype=torch.double), equal_nan=True
    )
    assert len(found.words) == len(groups)


def test_what_cannot_be_left_out() -> None:
    only = torch.tensor(IDS[1:2])
    found = occlusion(build(), only, tokenizer=TOKENIZER)
    assert found.weights.isnan().tolist() == [True]  # it is the whole text
    with pytest.raises(ValueError, match="must tell classes apart, got one of num_classes=None"):
        occlusion(build(num_classes=None), TEXT, tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="target must be a class from 0 to 1, got 2"):
        occlusion(build(), TEXT, tokenizer=TOKENIZER, target=2)
    with pytest.raises(TypeError, match="must be a TextEncoder, which pools, got TextDecoder"):
        occlusion(build(TextDecoder), TEXT, tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="blocks that serve several layers"):
        attention_rollout(build(num_groups=1), TEXT, tokenizer=TOKENIZER)


def test_windows_do_not_see_each_other() -> None:
    model = build(positions="learned", max_length=8, windowed=True)
    seen = attention_maps(model, torch.tensor((IDS * 2)[:20]), tokenizer=TOKENIZER).weights
    assert seen.shape[-2:] == (20, 20)
    assert not seen[..., :8, 8:].any() and not seen[..., 8:16, 16:].any()
    torch.testing.assert_close(seen.sum(-1), torch.ones(2, 4, 20).double())


def test_a_translation_is_written_where_none_is_given() -> None:
    model = build(Seq2SeqTransformer)
    options = {"start": TOKENIZER.start, "stop": TOKENIZER.end}
    (written,) = model.generate(torch.tensor([IDS]), **options)
    seen = alignment(model, TEXT, words=False, tokenizer=TOKENIZER)
    assert seen.queries == [*TOKENIZER.pieces(written.tolist()), "</s>"]
    given = alignment(model, TEXT, written, words=False, tokenizer=TOKENIZER)
    torch.testing.assert_close(seen.weights, given.weights)
    # Nothing at all is written of an empty translation but its end
    assert alignment(model, TEXT, "", tokenizer=TOKENIZER).queries == ["</s>"]


@pytest.mark.parametrize("text", ["", "x", " ", "\x00", "🇪🇺"])
def test_short_and_odd_texts(text: str) -> None:
    model = build()
    seen = attention_maps(model, text, words=True, tokenizer=TOKENIZER)
    torch.testing.assert_close(seen.weights.sum(-1), torch.ones(seen.weights.shape[:-1]).double())
    pooled = pooling_attention(model, text, tokenizer=TOKENIZER)
    assert "".join(pooled.words) == f"<s>{text}"
    assert len(seen.keys) == len(pooled.words) and all(seen.keys)


def test_what_cannot_be_seen() -> None:
    model = build()
    for wrong, message in (
        ({"layers": [2]}, "there are 2 layers, no layer 2"),
        ({"heads": [-5]}, "there are 4 heads, no head -5"),
        ({"layers": []}, "layers must name at least one layer"),
    ):
        with pytest.raises(ValueError, match=message):
            attention_maps(model, TEXT, tokenizer=TOKENIZER, **wrong)
    with pytest.raises(ValueError, match=r"at least one token, as ids \(L,\); got \(0,\)"):
        attention_maps(model, torch.tensor([], dtype=torch.long), tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="eval mode"):
        attention_maps(model.train(), TEXT, tokenizer=TOKENIZER)
    with pytest.raises(TypeError, match="TextDecoder or Seq2SeqTransformer, got Linear"):
        attention_maps(torch.nn.Linear(1, 1).eval(), TEXT, tokenizer=TOKENIZER)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a TextEncoder, which pools, got TextDecoder"):
        pooling_attention(build(TextDecoder), TEXT, tokenizer=TOKENIZER)
    with pytest.raises(TypeError, match="must be a Seq2SeqTransformer, got MaskedLanguageModel"):
        alignment(build(MaskedLanguageModel), TEXT, tokenizer=TOKENIZER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("late, late", ["late", ",", " late"]),
        ("  two\n\nlines ", ["  two", "\n\nlines", " "]),
        ("don't @me #now", ["don", "'", "t", " @", "me", " #", "now"]),
        ("grün नमस्ते עברית", ["grün", " नमस्ते", " עברית"]),
        ("ok👩‍👩‍👧!", ["ok", "👩‍👩‍👧!"]),
        ("", []),
    ],
)
def test_words_of_bytes(text: str, expected: list[str]) -> None:
    # One byte a token: a word is never cut within a character
    spelled = [bytes([byte]) for byte in text.encode()]
    found = [b"".join(spelled[place] for place in group).decode() for group in words(spelled)]
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(text=st.text(), kind=st.sampled_from(["bpe", "wordpiece"]))
def test_every_token_is_in_one_word(text: str, kind: Any) -> None:
    tokenizer = TOKENIZERS[kind]
    (ids,) = tokenizer.encode([text])
    spelled = tokenizer.spell(ids)
    assert b"".join(spelled) == text.encode("utf-8", "replace")
    groups = words(spelled)
    assert [place for group in groups for place in group] == list(range(len(ids)))


TOKENIZERS = {
    "bpe": TOKENIZER,
    "wordpiece": Tokenizer.train(["the plane is late again"] * 4, 600, kind="wordpiece"),
}


def test_word_pieces_of_a_loaded_tokenizer(tmp_path: Any) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "late", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = Tokenizer.load(tmp_path / "vocab.txt")
    (ids,) = tokenizer.encode(["playing late!"])
    assert tokenizer.spell(ids) == [b"", b" play", b"ing", b" late", b" !", b""]
    assert words(tokenizer.spell(ids)) == [[0], [1, 2], [3], [4], [5]]
