"""Published decoders' weights in ours: all outputs equal those of transformers."""

from typing import Any

import pytest
import torch
import transformers as hf

from attention_core.errors import UsageError
from attention_core.pretrained import load_pretrained
from nlp import Seq2SeqTransformer, TextDecoder
from nlp.batches import pad, unpad
from tests.nlp.test_pretrained import (
    LENGTHS,
    SMALL,
    V,
    assert_alike,
    places,
    random,
    texts,
    theirs_padded,
)


def gpt2() -> Any:
    return hf.GPT2Config(
        vocab_size=V, n_positions=32, n_embd=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )


def llama(rope: dict[str, Any], **options: Any) -> Any:
    return hf.LlamaConfig(**SMALL, num_key_value_heads=2, rope_parameters=rope, **options)


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 500.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 500.0,
    },
}


@pytest.mark.parametrize("side", ["right", "left"])
def test_gpt2(side: str) -> None:
    theirs, ids = random(hf.GPT2LMHeadModel, gpt2()), texts()
    state = theirs.state_dict()
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    ours = TextDecoder.from_pretrained(state, heads=4).eval()
    wanted = theirs_padded(theirs, ids, side, 0, position_ids=places(side)).logits
    assert_alike(ours, wanted, ids, side)
    dropped = load_pretrained(ours, state).dropped
    assert set(dropped) == {"h.0.attn.bias", "lm_head.weight"}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", ROPES)
def test_llama(scaling: str, tied: bool, side: str) -> None:
    config, ids = llama(ROPES[scaling], tie_word_embeddings=tied), texts()
    theirs = random(hf.LlamaForCausalLM, config)
    ours = TextDecoder.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    wanted = theirs_padded(theirs, ids, side, 0, position_ids=places(side)).logits
    assert_alike(ours, wanted, ids, side)
    assert (ours.head.weight is None) == tied


def test_a_head_of_another_size_than_the_model_gives_and_old_names_of_rope() -> None:
    config, ids = llama({"rope_theta": 500.0}, head_dim=6), texts()
    theirs = random(hf.LlamaForCausalLM, config)
    old = {"num_attention_heads": 4, "rope_theta": 500.0, "rope_scaling": None}
    ours = TextDecoder.from_pretrained(theirs.state_dict(), config=old).eval()
    assert_alike(ours, theirs_padded(theirs, ids, "right", 0).logits, ids, "right")


def test_mistral_s_window() -> None:
    config = hf.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=5, head_dim=4)
    theirs, ids = random(hf.MistralForCausalLM, config), texts()
    ours = TextDecoder.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    assert_alike(ours, theirs_padded(theirs, ids, "right", 0).logits, ids, "right")


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_t5(kind: str) -> None:
    tied = kind == "relu"
    config = hf.T5Config(
        vocab_size=V,
        d_model=16,
        d_kv=6,
        d_ff=40,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        feed_forward_proj=kind,
        tie_word_embeddings=tied,
    )
    theirs, ids = random(hf.T5ForConditionalGeneration, config, 0.05), texts()
    if not tied:  # transformers 5 makes them tied, and unties them where a file has both
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(V, 16) * 0.3)
    ours = Seq2SeqTransformer.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    target_lengths = torch.tensor([4, 12, 1, 7])
    target = texts()[: int(target_lengths.sum())]
    for side in ("right", "left"):
        rows = pad(target, target_lengths, side=side)  # type: ignore[arg-type]
        wanted = theirs_padded(
            theirs,
            ids,
            side,
            0,
            decoder_input_ids=rows,
            decoder_attention_mask=pad(torch.ones_like(target), target_lengths, 0, side=side),  # type: ignore[arg-type]
        ).logits
        real = unpad(wanted, target_lengths, side)  # type: ignore[arg-type]
        sources = pad(ids, LENGTHS, 7, side=side)  # type: ignore[arg-type]
        with torch.no_grad():
            packed = ours(ids, LENGTHS, target, target_lengths)
            padded = ours(sources, LENGTHS, rows, target_lengths, side=side, target_side=side)
        torch.testing.assert_close(packed, real, atol=1e-5, rtol=1e-5)
        padded = unpad(padded, target_lengths, side)  # type: ignore[arg-type]
        torch.testing.assert_close(padded, real, atol=1e-5, rtol=1e-5)
    assert real.std() > 0.05
    assert (ours.head.weight is None) == tied


def test_mt5_scales_no_scores_though_they_are_tied() -> None:
    config = hf.MT5Config(vocab_size=V, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    theirs, ids = random(hf.MT5ForConditionalGeneration, config, 0.05), texts()[None, :9]
    ours = Seq2SeqTransformer.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    with torch.no_grad():
        wanted = theirs(input_ids=ids, decoder_input_ids=ids).logits
        torch.testing.assert_close(ours(ids, None, ids), wanted, atol=1e-5, rtol=1e-5)


def test_a_model_that_only_has_the_names_of_a_known_one_is_refused() -> None:
    # Granite has Llama's names, and multiplies embeddings, residuals and scores
    config = hf.GraniteConfig(**SMALL, num_key_value_heads=2, residual_multiplier=0.5)
    theirs = random(hf.GraniteForCausalLM, config).state_dict()
    with pytest.raises(UsageError, match="model_type 'granite' is none of .*give source="):
        TextDecoder.from_pretrained(theirs, config=config.to_dict())
    TextDecoder.from_pretrained(theirs, config=config.to_dict(), source="llama")


def test_a_file_without_the_scores_that_its_configuration_promises() -> None:
    theirs = random(hf.LlamaModel, llama(ROPES["default"], tie_word_embeddings=False))
    state, config = theirs.state_dict(), theirs.config.to_dict()
    with pytest.raises(UsageError, match=r"1 missing: head.weight \(60, 16\)"):
        TextDecoder.from_pretrained(state, config=config)
    assert TextDecoder.from_pretrained(state, config=config, tied=True).head.weight is None


def test_what_shapes_do_not_tell_is_asked_for() -> None:
    theirs = random(hf.LlamaForCausalLM, llama({"rope_theta": 1e4})).state_dict()
    with pytest.raises(UsageError, match="num_attention_heads cannot be told from shapes"):
        TextDecoder.from_pretrained(theirs)
    dynamic = {"num_attention_heads": 4, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    with pytest.raises(UsageError, match="rope_type must be default, linear, llama3 or yarn, got"):
        TextDecoder.from_pretrained(theirs, config=dynamic)
    with pytest.raises(UsageError, match="lm_head.weight is to be the same as embed_tokens.weight"):
        TextDecoder.from_pretrained(theirs, config={"num_attention_heads": 4}, tied=True)
