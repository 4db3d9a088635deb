"""Published models' weights in ours: all outputs equal those of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from attention_core.errors import UsageError
from attention_core.pretrained import load_pretrained
from nlp import MaskedLanguageModel, Seq2SeqTransformer, TextDecoder, TextEncoder
from nlp.batches import pad, unpad

V, LENGTHS = 60, torch.tensor([9, 1, 23, 14])
SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
MODERN: dict[str, Any] = {
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "pad_token_id": 0,
    "num_hidden_layers": 5,
    "local_attention": 8,
    "tie_word_embeddings": True,
}


def bert(**options: Any) -> Any:
    return hf.BertConfig(**{**SMALL, **options})


def roberta() -> Any:
    return hf.RobertaConfig(**SMALL, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)


def distilbert() -> Any:
    return hf.DistilBertConfig(
        vocab_size=V, dim=16, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=32
    )


def albert() -> Any:
    return hf.AlbertConfig(**{**SMALL, "num_hidden_layers": 4}, embedding_size=8)


def modernbert() -> Any:
    return hf.ModernBertConfig(**{**SMALL, **MODERN})


ENCODERS = {
    "bert": (bert, "Bert"),
    "roberta": (roberta, "Roberta"),
    "distilbert": (distilbert, "DistilBert"),
    "albert": (albert, "Albert"),
    "modernbert": (modernbert, "ModernBert"),
}


def random(model: type, config: Any, spread: float = 0.15) -> Any:
    """Their model with weights large enough for outputs that differ."""
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    theirs = model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return theirs


def texts() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(3, V, (int(LENGTHS.sum()),), generator=draw)


def theirs_padded(model: nn.Module, ids: Tensor, side: str, value: int, **more: Any) -> Any:
    """Their output of padded texts, whose positions count real tokens."""
    rows = pad(ids, LENGTHS, value, side=side)  # type: ignore[arg-type]
    mask = pad(torch.ones_like(ids), LENGTHS, 0, side=side)  # type: ignore[arg-type]
    with torch.no_grad():
        return model(input_ids=rows, attention_mask=mask, **more)


def places(side: str) -> Tensor:
    inside = torch.cat([torch.arange(n) for n in LENGTHS.tolist()])
    return pad(inside, LENGTHS, 0, side=side)  # type: ignore[arg-type]


def assert_alike(ours: Any, theirs: Tensor, ids: Tensor, side: str) -> None:
    """Packed and padded, ours equals theirs (B, L, ...) on the real tokens."""
    wanted = unpad(theirs, LENGTHS, side)  # type: ignore[arg-type]
    with torch.no_grad():
        packed = ours(ids, LENGTHS)
        padded = ours(pad(ids, LENGTHS, 7, side=side), LENGTHS, side=side)  # type: ignore[arg-type]
    assert wanted.std() > 0.05
    for got in (packed, unpad(padded, LENGTHS, side)):  # type: ignore[arg-type]
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def positions_of(family: str, side: str) -> dict[str, Tensor]:
    # RoBERTa counts tokens itself; rotary positions are relative; DistilBERT takes no positions
    return {"position_ids": places(side)} if family in ("bert", "albert") else {}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ENCODERS)
def test_tokens_and_scores_of_an_encoder(family: str, side: str) -> None:
    if family == "distilbert" and side == "left":
        pytest.skip("theirs cannot be told where the texts begin")
    make, name = ENCODERS[family]
    config, ids = make(), texts()
    more = positions_of(family, side)
    value = 1 if family == "roberta" else 0
    theirs = random(getattr(hf, f"{name}Model"), config)
    ours = TextEncoder.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    output = theirs_padded(theirs, ids, side, value, **more)
    assert_alike(lambda *a, **k: ours.encode(*a, **k)[0], output.last_hidden_state, ids, side)
    if "pooler_output" in output and side == "right":  # on the left, theirs pools padding
        with torch.no_grad():
            pooled = ours(ids, LENGTHS)
        torch.testing.assert_close(pooled, output.pooler_output, atol=1e-5, rtol=1e-5)
    theirs = random(getattr(hf, f"{name}ForMaskedLM"), config)
    masked = MaskedLanguageModel.from_pretrained(theirs.state_dict(), config=config.to_dict())
    logits = theirs_padded(theirs, ids, side, value, **more).logits
    assert_alike(masked.eval(), logits, ids, side)
    # The same tokens from weights with a head of another use, and from those without one
    again = TextEncoder.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    with torch.no_grad():
        torch.testing.assert_close(again.encode(ids, LENGTHS)[0], masked.encode(ids, LENGTHS)[0])
    report = load_pretrained(again, theirs.state_dict(), head=False)
    assert report.source == family
    assert any("transform" in reason for reason in report.dropped.values())


@pytest.mark.parametrize("family", [family for family in ENCODERS if family != "modernbert"])
def test_a_fine_tuned_classifier(family: str) -> None:
    make, name = ENCODERS[family]
    config, ids = make(), texts()
    config.num_labels = 5
    theirs = random(getattr(hf, f"{name}ForSequenceClassification"), config)
    ours = TextEncoder.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    wanted = theirs_padded(theirs, ids, "right", 1 if family == "roberta" else 0).logits
    assert wanted.shape == (4, 5)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, LENGTHS), wanted, atol=1e-5, rtol=1e-5)
    other = TextEncoder.from_pretrained(theirs.state_dict(), config=config.to_dict(), num_classes=2)
    assert other(ids, LENGTHS).shape == (4, 2)


def test_token_types_and_old_names() -> None:
    theirs, ids = random(hf.BertModel, bert()), texts()
    types = (torch.arange(len(ids)) % 3 == 0).long()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in theirs.state_dict().items()
    }
    ours = TextEncoder.from_pretrained(old, heads=4).eval()
    wanted = theirs_padded(theirs, ids, "right", 0, token_type_ids=pad(types, LENGTHS))
    with torch.no_grad():
        got, _ = ours.encode(ids, LENGTHS, types=types)
    wanted = unpad(wanted.last_hidden_state, LENGTHS)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_roberta_s_first_positions_are_dropped() -> None:
    theirs = random(hf.RobertaModel, roberta()).state_dict()
    ours = TextEncoder.from_pretrained(theirs, heads=4)
    report = load_pretrained(ours, theirs)
    assert list(report.dropped) == ["embeddings.position_embeddings.weight[:2]"]
    assert ours.embedding.max_length == 30


def test_what_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    theirs = random(hf.BertModel, bert()).state_dict()
    ours = TextEncoder(
        V, 16, 3, 4, num_classes=None, positions="learned", norm_order="post", num_token_types=2
    )
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(UsageError) as error:
        load_pretrained(ours, theirs)
    words = str(error.value)
    assert "2 surplus: embedding.norm.weight (16,), embedding.norm.bias (16,)" in words
    assert "embedding.positions.table is (32, 16), the model's (512, 16)" in words
    assert "encoder.blocks.0.feed_forward.up.weight is (40, 16), the model's (64, 16)" in words
    assert all(value.equal(before[name]) for name, value in ours.state_dict().items())
    with pytest.raises(UsageError, match=r"1 of 56 have no place here: other \(2,\)"):
        load_pretrained(ours, {**theirs, "other": torch.ones(2)})


def test_the_pooling_of_a_sentence_encoder(tmp_path: Path) -> None:
    random(hf.BertModel, bert()).save_pretrained(tmp_path)
    assert TextEncoder.from_pretrained(tmp_path).pooling == "class"
    (tmp_path / "1_Pooling").mkdir()
    settings = tmp_path / "1_Pooling" / "config.json"
    for name, pooling in (("cls_token", "class"), ("mean_tokens", "mean"), ("max_tokens", "max")):
        settings.write_text(json.dumps({f"pooling_mode_{name}": True}))
        ours = TextEncoder.from_pretrained(tmp_path)
        assert ours.pooling == pooling and isinstance(ours.pooler, nn.Identity)
    settings.write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}')
    with pytest.raises(UsageError, match="pooled tokens are joined of mean and max"):
        TextEncoder.from_pretrained(tmp_path)
    settings.write_text('{"pooling_mode": "mean"}')
    (tmp_path / "2_Dense").mkdir()
    with pytest.raises(UsageError, match="pooled tokens go through 2_Dense"):
        TextEncoder.from_pretrained(tmp_path)
    assert TextEncoder.from_pretrained(tmp_path, num_classes=2).pooling == "mean"
    assert TextEncoder.from_pretrained(tmp_path, pooling="max").pooling == "max"
    settings.write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(UsageError, match="their pooling is none of cls, mean, max"):
        TextEncoder.from_pretrained(tmp_path)


def test_unknown_weights_and_sources() -> None:
    with pytest.raises(UsageError, match="they are of none of modernbert, .*; the first are a"):
        TextEncoder.from_pretrained({"a": torch.ones(1)})
    with pytest.raises(UsageError, match="source must be one of .*, got 'berd'"):
        TextEncoder.from_pretrained({"a": torch.ones(1)}, source="berd")
    own = TextEncoder(V, 16, 1, 2, num_classes=2)
    with pytest.raises(UsageError, match=r"have our own names; TextEncoder\.from_pretrained makes"):
        load_pretrained(own, own.state_dict())
    with pytest.raises(TypeError, match="model must be one of .*TextEncoder, .*; got Linear"):
        load_pretrained(nn.Linear(1, 1), random(hf.BertModel, bert()).state_dict())


def test_an_encoder_s_weights_are_for_no_decoder() -> None:
    theirs = random(hf.BertModel, bert()).state_dict()
    for model in (TextDecoder, Seq2SeqTransformer):
        with pytest.raises(
            UsageError, match=f"of 'bert', for TextEncoder .*not for {model.__name__}"
        ):
            model.from_pretrained(theirs, heads=4)


def test_every_family_is_recognised_by_its_names() -> None:
    for family, (make, name) in ENCODERS.items():
        state = random(getattr(hf, f"{name}Model"), make()).state_dict()
        found = [source for source, one in TextEncoder.families.items() if one.recognises(state)]
        assert found[0] == family


def test_modernbert_s_classifier_is_refused_and_may_be_left_out() -> None:
    config = modernbert()
    theirs = random(hf.ModernBertForSequenceClassification, config).state_dict()
    with pytest.raises(UsageError, match="normalises what it reads"):
        TextEncoder.from_pretrained(theirs, config=config.to_dict())
    ours = TextEncoder.from_pretrained(theirs, config=config.to_dict(), num_classes=3)
    assert ours(texts(), LENGTHS).shape == (4, 3)
