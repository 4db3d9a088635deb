"""Whose weights they are, what is told from them, and what happens to those that do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from timm.models import eva, vision_transformer
from torch import Tensor

from attention_core.pretrained import load_pretrained
from tests.vision.test_pretrained import (
    HF,
    NATIVE,
    SIZES,
    assert_parity,
    randomised,
    timm_model,
)
from vision import NeighborhoodTransformer, SwinTransformer, VisionTransformer

Weights = dict[str, Tensor]


def renamed(weights: Weights, *rules: tuple[str, str]) -> Weights:
    out = {}
    for name, value in weights.items():
        for pattern, by in rules:
            name = re.sub(pattern, by, name)
        out[name] = value.clone()  # loading into the peer must not change it
    return out


# --------------------------------------------------------------------------- other names, old names


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("giant", [False, True])
def test_dinov2_by_its_authors_names(registers: int, giant: bool) -> None:
    """timm's own conversion says what the model is."""
    size, reg = ("giant" if giant else "small"), f"_reg{registers}" if registers else ""
    theirs = timm_model(f"vit_{size}_patch14{reg}_dinov2")
    rules = [("^reg_token", "register_tokens")]
    if giant:
        rules += [(r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3")]
    authors = renamed(theirs.state_dict(), *rules)
    authors["mask_token"] = torch.randn(1, 32)
    if registers:  # they have a vector for the place of the class token
        table = torch.cat([torch.randn(1, 1, 32), authors["pos_embed"]], 1)
        authors["pos_embed"] = table
    theirs.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(authors), theirs))
    ours = VisionTransformer.from_pretrained(authors, heads=2)
    assert_parity(ours, theirs, SIZES)
    report = load_pretrained(ours, authors)
    assert report.source == "dinov2"
    assert report.dropped == {"mask_token": "only pretraining uses it"}


@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_by_its_authors_names(gated: bool) -> None:
    name = "vit_small_plus_patch16_dinov3_qkvb" if gated else "vit_small_patch16_dinov3_qkvb"
    theirs = timm_model(name, global_pool="token", num_classes=0)
    authors: Weights = {}
    for key, value in theirs.state_dict().items():
        for block in (0, 1):
            if key == f"blocks.{block}.attn.q_bias":
                parts = [
                    value,
                    torch.randn(32),
                    theirs.get_parameter(f"blocks.{block}.attn.v_bias"),
                ]
                authors[f"blocks.{block}.attn.qkv.bias"] = torch.cat(parts)
                mask = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)])
                authors[f"blocks.{block}.attn.qkv.bias_mask"] = mask
        if "_bias" not in key:
            authors[key] = value
    authors = renamed(
        authors,
        ("^reg_token", "storage_tokens"),
        (r"gamma_(\d)", r"ls\1.gamma"),
        (r"mlp\.fc1_g", "mlp.w1"),
        (r"mlp\.fc1_x", "mlp.w2"),
        *([(r"mlp\.fc2", "mlp.w3")] if gated else []),
    )
    authors["mask_token"] = torch.randn(1, 32)
    authors["rope_embed.periods"] = 100 ** (torch.arange(4) / 4)
    converted = eva.checkpoint_filter_fn(dict(authors), theirs)
    theirs.load_state_dict(converted)
    ours = VisionTransformer.from_pretrained(authors)  # heads come from the periods
    assert ours.encoder.blocks[0].attention.heads == 2
    assert_parity(ours, theirs, SIZES)
    dropped = load_pretrained(ours, authors).dropped
    assert {re.sub(r"\d", "#", name) for name in dropped} == {
        "mask_token",
        "rope_embed.periods",
        "blocks.#.attn.qkv.bias_mask",
        "blocks.#.attn.qkv.bias (of keys)",
    }


def test_dinov3_takes_the_periods_of_the_file() -> None:
    theirs = timm_model("vit_small_patch16_dinov3", num_classes=0).state_dict()
    authors = renamed(theirs, ("^reg_token", "storage_tokens"))
    own = VisionTransformer.from_pretrained(authors, heads=2)
    other = VisionTransformer.from_pretrained(
        {**authors, "rope_embed.periods": 7 ** (torch.arange(4) / 4)}
    )
    image = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(own(image), other(image), atol=1e-3)


def test_clip_by_openai_s_names() -> None:
    theirs = timm_model("vit_base_patch16_clip_quickgelu_224", num_classes=16)
    names = theirs.state_dict()
    del names["head.bias"]
    openai = renamed(
        names,
        ("^cls_token", "class_embedding"),
        ("^pos_embed", "positional_embedding"),
        (r"^patch_embed\.proj", "conv1"),
        ("^norm_pre", "ln_pre"),
        (r"^norm\.", "ln_post."),
        ("^head.weight", "proj"),
        (r"^blocks\.(\d+)\.norm(\d)", r"transformer.resblocks.\1.ln_\2"),
        (r"^blocks\.(\d+)\.attn\.qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
        (r"^blocks\.(\d+)\.attn\.proj", r"transformer.resblocks.\1.attn.out_proj"),
        (r"^blocks\.(\d+)\.mlp\.fc1", r"transformer.resblocks.\1.mlp.c_fc"),
        (r"^blocks\.(\d+)\.mlp\.fc2", r"transformer.resblocks.\1.mlp.c_proj"),
        ("^", "visual."),
    )
    for name in ("class_embedding", "positional_embedding"):
        openai[f"visual.{name}"] = openai[f"visual.{name}"].reshape(-1, 32).squeeze()
    openai["visual.proj"] = openai["visual.proj"].T.clone()
    text = {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.weight": torch.ones(8)}
    openai |= {**text, "input_resolution": torch.tensor(32)}
    theirs.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(openai), theirs))
    ours = VisionTransformer.from_pretrained(openai, heads=2)
    assert_parity(ours, theirs, SIZES)
    assert load_pretrained(ours, openai).dropped.keys() == {*text, "input_resolution"}
    # open_clip keeps the names, but not the activation
    del openai["input_resolution"]
    with pytest.raises(ValueError, match=r"Give activation='quick-gelu'.*or config="):
        VisionTransformer.from_pretrained(openai, heads=2)


def test_old_files_of_torchvision() -> None:
    theirs = randomised(torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5))
    old = renamed(
        theirs.state_dict(), (r"mlp\.0\.", "mlp.linear_1."), (r"mlp\.3\.", "mlp.linear_2.")
    )
    theirs.load_state_dict(old)  # torchvision's own conversion
    assert_parity(VisionTransformer.from_pretrained(old, heads=2), theirs, [NATIVE])


def test_old_files_of_transformers(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**HF, num_labels=5)
    old = renamed(
        randomised(transformers.ViTForImageClassification(config)).state_dict(),
        (r"vit\.layers\.", "vit.encoder.layer."),
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    )
    config.save_pretrained(tmp_path)
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    ours = VisionTransformer.from_pretrained(tmp_path / "model.safetensors", heads=2)
    assert_parity(ours, lambda image: theirs(image).logits, [NATIVE])
    # The folder says how many heads there are, and what kind of model it is
    ours = VisionTransformer.from_pretrained(tmp_path)
    assert_parity(ours, lambda image: theirs(image).logits, [NATIVE])
    (tmp_path / "config.json").write_text('{"model_type": "vit_msn"}')
    with pytest.raises(ValueError, match=r"model_type 'vit_msn' is none of .*give source="):
        VisionTransformer.from_pretrained(tmp_path)
    VisionTransformer.from_pretrained(tmp_path, source="huggingface", heads=2)


# --------------------------------------------------------------------------- what is told from them

PUBLISHED = [
    ("vit_tiny_patch16_224", "timm"),
    ("vit_large_patch16_224", "timm"),
    ("vit_huge_patch14_224", "timm"),
    ("deit3_small_patch16_224", "timm"),
    ("vit_giant_patch14_reg4_dinov2", "timm"),
    ("vit_so150m_patch16_reg4_gap_256", "timm"),
    ("vit_huge_patch14_clip_224", "clip"),
    ("vit_gigantic_patch14_clip_224", "clip"),
    ("vit_so400m_patch14_siglip_384", "siglip"),
    ("vit_giantopt_patch16_siglip_384", "siglip"),
    ("vit_huge_plus_patch16_dinov3", "dinov3"),
    ("vit_7b_patch16_dinov3", "dinov3"),
    ("beit_large_patch16_384", "beit"),
    ("beitv2_base_patch16_224", "beit"),
    ("eva02_tiny_patch14_336", "eva02"),
    ("eva02_large_patch14_448", "eva02"),
]


@pytest.mark.parametrize(("name", "source"), PUBLISHED)
def test_published_models_are_recognised(name: str, source: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
        activation = {"activation": "gelu"} if source == "clip" else {}
        weights = dict(theirs.state_dict())
        ours = VisionTransformer.from_pretrained(weights, **activation)
    block = ours.encoder.blocks[0]
    assert load_pretrained(ours, weights).source == source
    assert block.attention.heads == theirs.blocks[0].attn.num_heads
    assert block.attention_residual.norm.eps == theirs.blocks[0].norm1.eps
    grid = getattr(ours.positions, "size", theirs.patch_embed.grid_size)
    assert grid == theirs.patch_embed.grid_size
    count = sum(value.numel() for value in ours.parameters())
    their_count = sum(value.numel() for value in theirs.parameters())
    assert abs(count - their_count) < 0.001 * their_count  # their keys have no bias, say


def test_heads_of_torchvision_s_huge_model() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vit_h_14()
        ours = VisionTransformer.from_pretrained(theirs.state_dict())
    assert ours.encoder.blocks[0].attention.heads == 16


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_rope_224",
        "vit_medium_patch16_rope_reg1_gap_256",
        "vit_pe_core_tiny_patch16_384",
        "vit_pe_spatial_tiny_patch16_512",
        "vit_base_patch16_sapiens2",
        "eva_giant_patch14_224",
        "eva02_base_patch16_clip_224",
        "beit3_base_patch16_224",
    ],
)
def test_other_models_by_like_names_are_refused(name: str) -> None:
    with torch.device("meta"):
        weights = timm.create_model(name).state_dict()
        with pytest.raises(ValueError, match="have no place here|they are of none"):
            VisionTransformer.from_pretrained(weights)


def test_options_replace_what_is_found(tmp_path: Path) -> None:
    theirs = timm_model("vit_small_patch16_224")
    torch.save({"state_dict": theirs.state_dict(), "epoch": 1}, tmp_path / "vit.pth")
    image = torch.randn(1, 3, 32, 32)
    ours = VisionTransformer.from_pretrained(tmp_path / "vit.pth", heads=2, num_classes=7)
    assert ours(image).shape == (1, 7)
    torch.testing.assert_close(
        ours.features(image)[0],
        theirs.get_intermediate_layers(image, 1, reshape=True, norm=True)[0],
    )
    wide = NeighborhoodTransformer.from_pretrained(
        tmp_path / "vit.pth", source="timm", heads=2, radius=4
    )
    assert_parity(wide.eval(), theirs, [NATIVE])  # the radius reaches everything
    local = NeighborhoodTransformer.from_pretrained(tmp_path / "vit.pth", heads=2, radius=1)
    assert not torch.allclose(local.eval()(image), theirs(image), atol=1e-3)


# ---------------------------------------------------------------------------------------- positions


def ours_like(**options: Any) -> VisionTransformer:
    settings = {"patch_size": 8, "num_classes": 5, "image_size": 32, **options}
    return VisionTransformer(32, 2, 2, **settings).eval()


@pytest.mark.parametrize("size", [(48, 48), (24, 40)])
def test_positions_come_to_the_size_of_the_model(size: tuple[int, int]) -> None:
    theirs = timm_model("vit_small_patch16_224")
    built = VisionTransformer.from_pretrained(theirs.state_dict(), heads=2, image_size=size)
    loaded = ours_like(image_size=size)
    load_pretrained(loaded, theirs.state_dict())
    for ours in (built, loaded):
        assert ours.positions.size == (size[0] // 8, size[1] // 8)
        assert_parity(ours, theirs, [size])


def test_positions_of_a_rectangle() -> None:
    theirs = timm_model("vit_small_patch16_224", img_size=(24, 48), dynamic_img_size=False)
    weights = theirs.state_dict()
    with pytest.raises(ValueError, match=r"19 positions are those of no square image"):
        VisionTransformer.from_pretrained(weights, heads=2)
    built = VisionTransformer.from_pretrained(weights, heads=2, image_size=(24, 48))
    loaded = ours_like(image_size=(24, 48))
    load_pretrained(loaded, weights)
    for ours in (built, loaded):
        assert_parity(ours, theirs, [(24, 48)])


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "deit3_small_patch16_224"])
@pytest.mark.parametrize("class_position", [True, False])
def test_a_place_of_the_class_token_or_none(name: str, class_position: bool) -> None:
    theirs = timm_model(name)
    scale = 1.0 if name.startswith("deit3") else None
    ours = ours_like(class_position=class_position, layer_scale=scale)
    load_pretrained(ours, theirs.state_dict())
    assert_parity(ours, theirs, SIZES)


# --------------------------------------------------------------------------------------- strictness


def test_a_head_of_other_classes() -> None:
    theirs = timm_model("vit_small_patch16_224")
    ours = ours_like(num_classes=3)
    own = ours.head.weight.clone()
    with pytest.raises(ValueError, match=r"head\.weight is \(5, 32\), the model's \(3, 32\)"):
        load_pretrained(ours, theirs.state_dict())
    report = load_pretrained(ours, theirs.state_dict(), head=False)
    assert report.kept == ["head.weight", "head.bias"] and torch.equal(ours.head.weight, own)
    assert report.dropped.keys() == {"head.weight", "head.bias"}
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.embed(image)[0], theirs._pos_embed(theirs.patch_embed(image)))
    bare = timm_model("vit_small_patch16_224", num_classes=0).state_dict()
    with pytest.raises(ValueError, match=r"2 missing: head\.weight \(3, 32\), head\.bias \(3,\)"):
        load_pretrained(ours, bare)
    assert load_pretrained(ours, bare, head=False).dropped == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.extra": torch.ones(2)}, r"1 of 33 have no place here: blocks\.0\.extra \(2,\)"),
        ({"blocks.1.mlp.fc1.bias": None}, r"1 missing: encoder\.blocks\.1\.feed_forward\.up\.bias"),
        (
            {"blocks.1.attn.qkv.weight": None},
            r"4 missing: .*query\.weight.*; 1 surplus: .*qkv\.bias",
        ),
        (
            {"blocks.1.norm1.weight": torch.ones(3)},
            r"1 of another shape: encoder\.blocks\.1\.attention_residual\.norm\.weight is \(3,\)",
        ),
        ({"blocks.1.attn.qkv.bias": torch.ones(95)}, r"another shape"),
        ({"blocks.0.mlp.fc2.weight": None}, r"no vision transformer.*feed_forward\.down\.weight"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Tensor | None], message: str) -> None:
    theirs = timm_model("vit_small_patch16_224").state_dict()
    weights = {k: v for k, v in {**theirs, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        VisionTransformer.from_pretrained(weights, heads=2)
    ours = ours_like()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(ValueError, match="no place here|missing|another shape"):
        load_pretrained(ours, weights)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("options", [{"heads": (1, 2)}, {"config": {}}])
def test_options_that_weights_of_swin_leave_nothing_to_say_are_refused(options: Any) -> None:
    theirs = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4])
    with pytest.raises(ValueError, match="heads, config: the weights of a Swin transformer say"):
        SwinTransformer.from_pretrained(theirs.state_dict(), **options)


def test_unknown_sources() -> None:
    ours = ours_like()
    with pytest.raises(
        ValueError, match=r"they are of none of torchvision, .*the first are a, b\."
    ):
        load_pretrained(ours, {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"got 'tim'\. Did you mean timm\?"):
        load_pretrained(ours, {"a": torch.ones(1)}, "tim")
    with pytest.raises(
        ValueError, match=r"have our own names; VisionTransformer\.from_pretrained makes"
    ):
        load_pretrained(ours, ours.state_dict())
    theirs = timm_model("vit_small_patch16_224").state_dict()
    with pytest.raises(ValueError, match=r"have no place here"):
        load_pretrained(ours, theirs, "torchvision")
    with pytest.raises(ValueError, match=r"dim=32, the number of heads cannot be told.*heads="):
        VisionTransformer.from_pretrained(theirs)
    with pytest.raises(ValueError, match=r"hidden_act must be one of gelu,.*got 'mish'"):
        VisionTransformer.from_pretrained(theirs, heads=2, config={"hidden_act": "mish"})


def test_files(tmp_path: Path) -> None:
    """The generic part is in tests/attention_core/test_pretrained.py; here, that it is reached."""
    theirs = timm_model("vit_small_patch16_224")
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    ours = ours_like()
    load_pretrained(ours, tmp_path / "vit.safetensors")
    assert_parity(ours, theirs, SIZES)
    wrapped = {f"module.{name}": value.half() for name, value in theirs.state_dict().items()}
    torch.save({"model": wrapped}, tmp_path / "vit.pth")  # of DistributedDataParallel
    load_pretrained(ours, tmp_path / "vit.pth")
    assert_parity(ours, theirs, SIZES, tolerance=0.02)
    (tmp_path / "vit.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(ValueError, match="damaged"):
        load_pretrained(ours, tmp_path / "vit.safetensors")
