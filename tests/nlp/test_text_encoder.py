"""What must hold of a text encoder: packed, padded and alone are the same."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from attention_core import Neighborhood, Rotary
from attention_core.layers import Pooling
from nlp import MaskedLanguageModel, TextEncoder, TokenEmbedding, Tokenizer
from nlp.batches import pad, unpad
from nlp.embeddings import Positions

LENGTHS = [5, 1, 12, 7]


def build(**options: Any) -> TextEncoder:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "num_classes": 3}
    return TextEncoder(50, **{**settings, **options}).double().eval()


def packed() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 50, (sum(LENGTHS),), generator=draw), torch.tensor(LENGTHS)


#: All but "special", as texts have no such tokens.
POOLINGS = [pooling for pooling in get_args(Pooling) if pooling != "special"]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("positions", [*get_args(Positions), None])
def test_packed_padded_and_alone_are_the_same(positions: Any, pooling: Any) -> None:
    model = build(positions=positions, pooling=pooling)
    ids, lengths = packed()
    together = model(ids, lengths)
    assert together.shape == (4, 3)
    # Whatever stands in the padding
    for value in (0, 49):
        torch.testing.assert_close(model(pad(ids, lengths, value), lengths), together)
    left = pad(ids, lengths, 49, side="left")
    torch.testing.assert_close(model(left, lengths, side="left"), together)
    alone = [model(row) for row in ids.split(LENGTHS)]
    torch.testing.assert_close(torch.cat(alone), together)
    batch_of_one = [model(row[None]) for row in ids.split(LENGTHS)]
    torch.testing.assert_close(torch.cat(batch_of_one), together)


def test_packed_and_padded_have_the_same_gradients() -> None:
    gradients = []
    ids, lengths = packed()
    for padded in (False, True):
        model = build(positions="t5")
        model(pad(ids, lengths) if padded else ids, lengths).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("positions", [*get_args(Positions), None])
def test_order_matters_where_there_are_positions(positions: Any) -> None:
    model = build(positions=positions)
    ids, shuffled = torch.arange(9), torch.tensor([3, 0, 8, 4, 1, 7, 2, 6, 5])
    changed = (model(ids) - model(shuffled)).abs().max() > 1e-6
    assert bool(changed) == (positions is not None)


def test_alibi_sees_distance_and_not_direction() -> None:
    ids = torch.arange(9)
    for positions, alike in (("alibi", True), ("t5", False), ("rotary", False)):
        model = build(positions=positions)
        assert bool((model(ids) - model(ids.flip(0))).abs().max() < 1e-9) == alike


def test_alternating_local_layers_equal_full_ones_on_short_texts() -> None:
    ids, lengths = packed()
    full, local = build(), build(mask=[None, Neighborhood(16)])
    torch.testing.assert_close(local(ids, lengths), full(ids, lengths))
    narrow = build(mask=[None, Neighborhood(1)])
    assert (narrow(ids, lengths) - full(ids, lengths)).abs().max() > 1e-6


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_a_text_of_length_0_is_defined_and_disturbs_no_other(pooling: Any) -> None:
    model = build(pooling=pooling)
    ids, lengths = packed()
    with_empty = model(ids, torch.tensor([0, 5, 1, 0, 12, 7, 0]))
    torch.testing.assert_close(with_empty[[1, 2, 4, 5]], model(ids, lengths))
    assert with_empty.isfinite().all()
    torch.testing.assert_close(with_empty[0], with_empty[6])


def test_the_first_token_of_a_text_without_one() -> None:
    with pytest.raises(ValueError, match="pooling='class' .* sample 1 has length 0"):
        build(pooling="class")(torch.arange(3), torch.tensor([3, 0]))
    for nothing in (torch.zeros(2, 0).long(), torch.zeros(0).long()):
        with pytest.raises(ValueError, match="pooling='class' .* sample 0 has length 0"):
            build(pooling="class")(nothing)
    assert build(pooling="class")(torch.zeros(0, 3).long()).shape[0] == 0


@pytest.mark.parametrize(
    ("ids", "lengths", "error", "words"),
    [
        (torch.arange(4), [3], ValueError, "packed ids hold 4 tokens, but lengths sum to 3"),
        (torch.arange(4)[None], [3, 1], ValueError, r"packed ids, .* are \(T,\), got \(1, 4\)"),
        (torch.zeros(2, 4).long(), [3], ValueError, "2 texts, but there are 1 lengths"),
        (torch.zeros(1, 4).long(), [5], ValueError, "length=4 is shorter .* 5"),
        (torch.tensor([50]), [1], ValueError, "ids run from 50 to 50, but the vocabulary has 50"),
        (torch.tensor([-1]), [1], ValueError, "ids run from -1"),
        (torch.rand(3), [3], TypeError, "ids must be integers"),
        (torch.zeros(1, 1, 1).long(), [1], ValueError, r"got \(1, 1, 1\)"),
        (torch.arange(2), [[2]], ValueError, r"shape \(B,\), got torch.int64 \(1, 1\)"),
    ],
)
def test_bad_input_is_named(ids: Tensor, lengths: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()(ids, torch.tensor(lengths))


def test_texts_longer_than_the_learned_positions() -> None:
    with pytest.raises(ValueError, match=r"learned for places up to \(8,\)"):
        build(positions="learned", max_length=8)(torch.zeros(9).long())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "max", "class"])
def test_longer_texts_are_read_in_windows_where_asked(pooling: Any, side: Any) -> None:
    options = {"positions": "learned", "max_length": 5, "pooling": pooling}
    model = build(**options, windowed=True)
    ids, lengths = packed()
    together = model(ids, lengths)
    padded = pad(ids, lengths, 49, side=side)
    torch.testing.assert_close(model(padded, lengths, side=side), together)
    torch.testing.assert_close(model(ids[6:18][None]), together[2:3])
    # The text of 12 tokens as windows of 5, 5 and 2; the others as they are
    windows, _ = model.encode(ids, torch.tensor([5, 1, 5, 5, 2, 5, 2]))
    torch.testing.assert_close(model.encode(ids, lengths)[0], windows)
    short = build(**options)
    torch.testing.assert_close(short(ids[:6], lengths[:2]), together[:2])
    with pytest.raises(ValueError, match=r"learned for places up to \(5,\)"):
        short(ids, lengths)
    with pytest.raises(ValueError, match="windowed=True .* positions='rotary' end nowhere"):
        build(positions="rotary", windowed=True)


def test_types_of_tokens() -> None:
    ids, lengths = packed()
    types = (torch.arange(len(ids)) % 3 == 0).long()
    model = build(num_token_types=2)
    together = model(ids, lengths, types=types)
    padded = model(pad(ids, lengths), lengths, types=pad(types, lengths, 1))
    torch.testing.assert_close(padded, together)
    torch.testing.assert_close(model(ids, lengths, types=0 * types), model(ids, lengths))
    assert (together - model(ids, lengths)).abs().max() > 1e-6
    with pytest.raises(ValueError, match="types run from 0 to 2, but the number .* is 2"):
        model(ids, lengths, types=2 * types)
    with pytest.raises(ValueError, match="made without token types"):
        build()(ids, lengths, types=types)


@pytest.mark.parametrize("positions", [*get_args(Positions), None])
def test_scores_of_masked_tokens_are_the_same_packed_and_padded(positions: Any) -> None:
    torch.manual_seed(0)
    model = MaskedLanguageModel(50, 16, 2, 4, positions=positions, embedding_norm=True)
    model = model.double().eval()
    ids, lengths = packed()
    together = model(ids, lengths)
    assert together.shape == (len(ids), 50)
    for side in ("left", "right"):
        padded = model(pad(ids, lengths, 7, side=side), lengths, side=side)
        torch.testing.assert_close(unpad(padded, lengths, side=side), together)
    alone = torch.cat([model(row) for row in ids.split(LENGTHS)])
    torch.testing.assert_close(alone, together)
    masked = torch.tensor([2, 9, 20])
    chosen = model.scores(model.encode(ids, lengths)[0][masked])
    torch.testing.assert_close(chosen, together[masked])


def test_a_masked_language_model_shares_its_encoder_with_a_text_encoder() -> None:
    options: dict[str, Any] = {
        "num_token_types": 2,
        "embedding_dim": 6,
        "num_groups": 1,
        "norm_order": "post",
    }
    named = MaskedLanguageModel(50, 16, 3, 4, transform="gelu-tanh", **options)
    encoder = TextEncoder(50, 16, 3, 4, num_classes=None, pooling="class", pooler="tanh", **options)
    left_out = encoder.load_state_dict(named.state_dict(), strict=False)
    assert set(left_out.missing_keys) == {"pooler.linear.weight", "pooler.linear.bias"}
    assert {key.split(".")[0] for key in left_out.unexpected_keys} == {"head", "transform"}
    # The table (50, 6) is that of the scores, too: 3 layers are one, and no table is (50, 16)
    assert sum(p.shape[0] == 50 and p.ndim == 2 for p in named.parameters()) == 1
    named(*packed()).sum().backward()
    assert all(p.grad is not None for p in named.parameters())


def test_options_of_modernbert() -> None:
    far, near = Rotary(base=160_000.0), Rotary(base=10_000.0)
    model = build(
        depth=4,
        mask=[None, Neighborhood(4), Neighborhood(4)],
        rotary=[far, near, near],
        positions=None,
        norm="layer-no-bias",
        projection_bias=False,
        activation="geglu",
        embedding_norm=True,
        first_norm=False,
    )
    rotaries = [block.attention.rotary for block in model.encoder.blocks]
    assert rotaries == [far, near, near, far]
    assert {name for name, _ in model.named_parameters() if "bias" in name} == {"head.bias"}
    assert "encoder.blocks.0.attention_residual.norm.weight" not in model.state_dict()
    assert "encoder.blocks.1.attention_residual.norm.weight" in model.state_dict()
    ids, lengths = packed()
    torch.testing.assert_close(model(pad(ids, lengths), lengths), model(ids, lengths))


def test_unknown_choices_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="positions must be one of 'learned', .*got 'rope'"):
        build(positions="rope")
    with pytest.raises(ValueError, match="pooling must be one of 'class', .*got 'cls'"):
        build(pooling="cls")
    with pytest.raises(ValueError, match="pooling='special': texts have no special tokens"):
        build(pooling="special")
    with pytest.raises(ValueError, match="positions must be one of 'learned', 'sinusoidal', None"):
        TokenEmbedding(5, 4, positions="rotary")  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sentence_embeddings_of_any_number_of_texts(pooling: Any) -> None:
    texts = ["the cat sat", "", "a dog"]
    tokenizer = Tokenizer.train(texts, 300)
    model = TextEncoder(300, 16, 1, 4, num_classes=3, pooling=pooling)
    vectors = model.embed_texts(texts, tokenizer, batch=2)
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(model.embed_texts((text for text in texts), tokenizer), vectors)
    assert model.embed_texts([], tokenizer).shape == (0, 16)
    with pytest.raises(ValueError, match="batch must be at least 1, got -2"):
        model.embed_texts(texts, tokenizer, batch=-2)
    short = TextEncoder(300, 16, 1, 4, num_classes=3, positions="learned", max_length=4)
    with pytest.raises(ValueError, match=r"texts\[1\] has 11 tokens, but .* positions for 4"):
        short.embed_texts(["", 10 * "!"], tokenizer)


@pytest.mark.slow
def test_a_whole_model_that_is_compiled_stays_within_the_limit_of_recompilations() -> None:
    """It is many programs, as planning looks at lengths; behind torch's limit it would be none."""
    model = build(depth=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for lengths in ([5, 7, 11], [4, 12]):
            n = torch.tensor(lengths)
            ids = torch.randint(50, (sum(lengths),))
            torch.testing.assert_close(compiled(ids, n), model(ids, n))
    torch._dynamo.reset()
