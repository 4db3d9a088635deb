"""Weights of other libraries: our model of them computes what theirs does, at any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from attention_core.pretrained import load_pretrained
from vision import DistilledVisionTransformer, VisionTransformer
from vision.pretrained import to_timm
from vision.swin import SwinTransformer

NATIVE = (32, 32)
SIZES = [NATIVE, (48, 48), (24, 40)]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
HF = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode with every parameter random: zeros and ones would hide a wrong name."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(std=value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3)
            if "norm" in name and name.endswith("weight"):
                value.add_(1)
    return model.eval()


def timm_model(name: str, **options: Any) -> nn.Module:
    settings = {**SMALL, "num_classes": 5, "dynamic_img_size": True, **options}
    return randomised(timm.create_model(name, **settings))


@torch.no_grad()
def assert_parity(
    ours: nn.Module,
    theirs: Callable[[Tensor], Tensor],
    sizes: list[tuple[int, int]],
    tolerance: float = 1e-5,
) -> None:
    for size in sizes:
        image = torch.randn(2, 3, *size)
        want, got = theirs(image), ours.eval()(image)
        assert float(want.std()) > 0.05, "an output that says nothing"
        torch.testing.assert_close(got, want, atol=tolerance, rtol=0)


# ------------------------------------------------------------------------------------- torchvision


def test_torchvision_vit() -> None:
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)
    theirs = randomised(model)
    assert_parity(VisionTransformer.from_pretrained(theirs.state_dict(), heads=2), theirs, [NATIVE])


@pytest.mark.parametrize("version", [1, 2])
def test_torchvision_swin(version: int) -> None:
    second = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    model = torchvision.models.SwinTransformer(
        [4, 4],
        16,
        [2, 2],
        [2, 4],
        [4, 4],
        num_classes=5,
        **(second if version == 2 else {}),
    )
    theirs = randomised(model)
    ours = SwinTransformer.from_pretrained(theirs.state_dict())
    assert_parity(ours, theirs, [(64, 64), (72, 40)])
    report = load_pretrained(ours, theirs.state_dict())
    buffers = {name for name in theirs.state_dict() if ".relative_" in name}
    buffers -= {name for name in buffers if name.endswith("bias_table")}
    assert buffers <= report.dropped.keys()
    with pytest.raises(ValueError, match=r"SwinTransformer\.from_pretrained does"):
        VisionTransformer.from_pretrained(theirs.state_dict())
    with pytest.raises(ValueError, match=r"VisionTransformer\.from_pretrained does"):
        SwinTransformer.from_pretrained(timm_model("vit_small_patch16_224").state_dict())


# -------------------------------------------------------------------------------------------- timm

SWIN = {
    "v1": ("swin_tiny_patch4_window7_224", {"window_size": 4}, {}),
    "v1, windows as small as the grid": ("swin_tiny_patch4_window7_224", {"window_size": 8}, {}),
    "v1, without head": ("swin_tiny_patch4_window7_224", {"window_size": 4, "num_classes": 0}, {}),
    "v2": ("swinv2_tiny_window8_256", {"window_size": 4}, {"window": 4}),
    "v2, windows as small as the grid": (
        "swinv2_tiny_window8_256",
        {"window_size": 8},
        {"window": [(8, 8), (4, 4)]},
    ),
}


@pytest.mark.parametrize("case", SWIN)
def test_timm_swin(case: str) -> None:
    name, options, settings = SWIN[case]
    sizes = {"img_size": 32, "embed_dim": 16, "depths": (2, 3), "num_heads": (2, 4)}
    theirs = randomised(timm.create_model(name, **{"num_classes": 5, **sizes, **options}))
    weights = theirs.state_dict()
    ours = SwinTransformer.from_pretrained(weights, **settings)
    assert_parity(ours, theirs, [NATIVE])
    assert load_pretrained(ours, weights).source == "timm"
    if settings:
        with pytest.raises(ValueError, match="do not say how large their windows are. Give window"):
            SwinTransformer.from_pretrained(weights)
    with pytest.raises(ValueError, match=r"of 'timm', for SwinTransformer, not for VisionTransfor"):
        VisionTransformer.from_pretrained(weights)


BEIT = {
    "v1": ("beit_base_patch16_224", {}),
    "v2": ("beitv2_base_patch16_224", {}),
    "a class token": ("beit_base_patch16_224", {"global_pool": "token"}),
    "one table": (
        "beit_base_patch16_224",
        {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    ),
    "a rectangle": ("beit_base_patch16_224", {"img_size": (24, 48)}),
}


@pytest.mark.parametrize("case", BEIT)
def test_timm_beit(case: str) -> None:
    name, options = BEIT[case]
    theirs = randomised(timm.create_model(name, **{**SMALL, "num_classes": 5, **options}))
    size = options.get("img_size", NATIVE)
    ours = VisionTransformer.from_pretrained(theirs.state_dict(), image_size=size)
    assert_parity(ours, theirs, [size])
    if size != NATIVE:
        with pytest.raises(ValueError, match=r"55 relative positions are those of no square image"):
            VisionTransformer.from_pretrained(theirs.state_dict())


def test_timm_deit_with_two_heads() -> None:
    theirs = timm_model("deit_tiny_distilled_patch16_224")
    weights = theirs.state_dict()
    ours = DistilledVisionTransformer.from_pretrained(weights, heads=2)
    assert_parity(ours, theirs, SIZES)
    images = [torch.randn(3, 32, 32), torch.randn(3, 24, 40)]
    with torch.no_grad():
        packed = ours(images)
        for image, got in zip(images, packed, strict=True):
            torch.testing.assert_close(got[None], theirs(image[None]), atol=1e-5, rtol=0)
    bare = timm_model("deit_tiny_distilled_patch16_224", num_classes=0)
    assert_parity(
        DistilledVisionTransformer.from_pretrained(bare.state_dict(), heads=2), bare, SIZES
    )
    tuned = DistilledVisionTransformer.from_pretrained(weights, heads=2, num_classes=3)
    report = load_pretrained(tuned, weights, head=False)
    tuned.reset_head(4)
    assert tuned(images).shape == (2, 4) and not tuned.head.weight.equal(tuned.head_dist.weight)
    heads = [f"{head}.{kind}" for head in ("head", "head_dist") for kind in ("weight", "bias")]
    assert report.kept == heads and sorted(report.dropped) == sorted(heads)
    with pytest.raises(ValueError, match=r"DistilledVisionTransformer\.from_pretrained does"):
        VisionTransformer.from_pretrained(weights)
    with pytest.raises(ValueError, match=r"VisionTransformer\.from_pretrained does"):
        DistilledVisionTransformer.from_pretrained(timm_model("vit_small_patch16_224").state_dict())


TIMM = {
    "ViT": ("vit_small_patch16_224", {}, {}),
    "ViT without head": ("vit_small_patch16_224", {"num_classes": 0}, {}),
    "ViT, mean and norm of it": ("vit_small_patch16_224", {"global_pool": "avg"}, {}),
    "ViT, QK norm and registers with places": (
        "vit_small_patch16_224",
        {"qk_norm": True, "reg_tokens": 3},
        {},
    ),
    "DeiT 3": ("deit3_small_patch16_224", {}, {}),
    "DINOv2": ("vit_small_patch14_dinov2", {}, {}),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {}, {}),
    "DINOv2, giant": ("vit_giant_patch14_reg4_dinov2", {}, {}),
    "DINOv3": ("vit_small_patch16_dinov3", {"global_pool": "token"}, {}),
    "DINOv3, mean": ("vit_small_patch16_dinov3", {}, {"pooling": "mean"}),
    "DINOv3, with biases": ("vit_small_patch16_dinov3_qkvb", {"global_pool": "token"}, {}),
    "DINOv3, 7b": ("vit_7b_patch16_dinov3", {"global_pool": "token"}, {}),
    "EVA-02, tiny": ("eva02_tiny_patch14_224", {}, {}),
    "EVA-02, base": ("eva02_base_patch14_224", {}, {}),
    "CLIP": ("vit_base_patch16_clip_224", {}, {"activation": "gelu"}),
    "CLIP, OpenAI's": (
        "vit_base_patch16_clip_quickgelu_224",
        {},
        {"activation": "quick-gelu"},
    ),
    "SigLIP": ("vit_base_patch16_siglip_224", {}, {"activation": "gelu"}),
    "SigLIP 2": ("vit_base_patch32_siglip_256", {}, {}),
}


@pytest.mark.parametrize("case", TIMM)
def test_timm(case: str) -> None:
    name, options, settings = TIMM[case]
    theirs = timm_model(name, **options)
    ours = VisionTransformer.from_pretrained(theirs.state_dict(), heads=2, **settings)
    assert_parity(ours, theirs, SIZES)


TO_TIMM = [case for case in TIMM if "EVA" not in case and "DINOv3" not in case]


@pytest.mark.parametrize("case", TO_TIMM)
def test_back_to_timm(case: str) -> None:
    name, options, settings = TIMM[case]
    theirs = timm_model(name, **options)
    ours = VisionTransformer.from_pretrained(theirs.state_dict(), heads=2, **settings)
    back = to_timm(ours)
    if "places" in case:
        options = {**options, "no_embed_class": True}  # these places are now in the tokens
    again = timm.create_model(
        name, **{**SMALL, "num_classes": 5, "dynamic_img_size": True, **options}
    )
    again.load_state_dict(back, strict=True)
    assert_parity(again, theirs, [NATIVE, (24, 40)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "rotary"}, "rotary positions"),
        ({"positions": "sinusoidal"}, "fixed positions"),
        ({"pooling": "attention"}, "pooling by attention without"),
        ({"kv_heads": 1}, "grouped keys"),
        ({"norm_order": "res-post"}, "norm after a block"),
        ({"scale": 1.0}, "scale"),
        ({"depth": 2, "num_groups": 1}, "blocks that serve several layers"),
        ({"gate": True}, r"no place here: encoder\.blocks\.0\.attention\.gate\.weight"),
        ({"embedding": {"stem": [4]}}, r"embedding\.stem"),
    ],
)
def test_what_timm_has_not_is_refused(options: dict[str, Any], message: str) -> None:
    settings = {"depth": 1, "patch_size": 8, "num_classes": 5, "image_size": 32, **options}
    ours = VisionTransformer(32, heads=2, **settings)
    with pytest.raises(ValueError, match=message):
        to_timm(ours)


# ------------------------------------------------------------------------------------ transformers


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh", "quick_gelu"])
def test_transformers_vit(act: str) -> None:
    config = transformers.ViTConfig(**HF, hidden_act=act)
    model = randomised(transformers.ViTForImageClassification(config))
    ours = VisionTransformer.from_pretrained(model.state_dict(), config=config.to_dict())
    assert ours.encoder.norm.eps == 1e-12
    assert_parity(ours, lambda image: model(image).logits, [NATIVE])


def test_transformers_vit_without_head() -> None:
    model = randomised(transformers.ViTModel(transformers.ViTConfig(**HF)))
    ours = VisionTransformer.from_pretrained(model.state_dict(), heads=2)
    assert ours.encoder.norm.eps == 1e-12
    assert_parity(ours, lambda image: model(image).last_hidden_state[:, 0], [NATIVE])
    report = load_pretrained(ours, model.state_dict())
    assert report.source == "huggingface"
    assert sorted(report.dropped) == ["pooler.dense.bias", "pooler.dense.weight"]


def test_transformers_clip() -> None:
    settings = transformers.CLIPVisionConfig(**HF, projection_dim=16)
    model = randomised(transformers.CLIPVisionModelWithProjection(settings))
    ours = VisionTransformer.from_pretrained(model.state_dict(), config=settings.to_dict())
    assert_parity(ours, lambda image: model(image).image_embeds, [NATIVE])


def test_transformers_clip_with_its_text_tower() -> None:
    text = {key: HF[key] for key in HF if key not in ("image_size", "patch_size")}
    config = transformers.CLIPConfig(text_config=text, vision_config=HF, projection_dim=16)
    model = randomised(transformers.CLIPModel(config))
    theirs = model.state_dict()
    ours = VisionTransformer.from_pretrained(theirs, config=config.to_dict())
    assert_parity(ours, lambda x: model.get_image_features(x).pooler_output, [NATIVE])
    report = load_pretrained(ours, theirs)
    towers = ("text_model.", "text_projection.", "logit_scale")
    assert report.dropped.keys() == {name for name in theirs if name.startswith(towers)}


def test_transformers_siglip() -> None:
    model = randomised(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**HF)))
    ours = VisionTransformer.from_pretrained(model.state_dict(), heads=2)
    assert_parity(ours, lambda image: model(image).pooler_output, [NATIVE])


def test_transformers_siglip_classifier() -> None:
    config = transformers.SiglipConfig(vision_config=HF)
    model = randomised(transformers.SiglipForImageClassification(config))
    ours = VisionTransformer.from_pretrained(model.state_dict(), config=config.to_dict())
    assert_parity(ours, lambda image: model(image).logits, [NATIVE])


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_transformers_beit(shared: bool, mean: bool) -> None:
    config = transformers.BeitConfig(
        **HF,
        num_labels=5,
        use_mean_pooling=mean,
        use_relative_position_bias=not shared,
        use_shared_relative_position_bias=shared,
    )
    model = randomised(transformers.BeitForImageClassification(config))
    weights = {**model.state_dict(), "beit.embeddings.mask_token": torch.ones(1, 1, 32)}
    ours = VisionTransformer.from_pretrained(weights, config=config.to_dict())
    assert ours.encoder.blocks[0].attention_residual.norm.eps == 1e-12
    assert_parity(ours, lambda image: model(image).logits, [NATIVE])
    report = load_pretrained(ours, weights)
    assert report.source == "beit" and "embeddings.mask_token" in report.dropped


@pytest.mark.parametrize("gated", [False, True])
def test_transformers_dinov3(gated: bool) -> None:
    config = transformers.DINOv3ViTConfig(**HF, num_register_tokens=2, use_gated_mlp=gated)
    model = randomised(transformers.DINOv3ViTModel(config))
    ours = VisionTransformer.from_pretrained(model.state_dict(), config=config.to_dict())
    assert_parity(ours, lambda image: model(image).pooler_output, SIZES)


@pytest.mark.parametrize("gated", [False, True])
def test_transformers_dinov2(gated: bool) -> None:
    sizes = {key: value for key, value in HF.items() if key != "intermediate_size"}
    config = transformers.Dinov2WithRegistersConfig(
        **sizes, num_register_tokens=2, use_swiglu_ffn=gated
    )
    model = randomised(transformers.Dinov2WithRegistersModel(config))
    ours = VisionTransformer.from_pretrained(model.state_dict(), config=config.to_dict())
    assert_parity(ours, lambda image: model(image).pooler_output, [NATIVE])


# --------------------------------------------------------------------------------------- full size


@pytest.mark.slow
def test_torchvision_vit_b_16() -> None:
    theirs = torchvision.models.vit_b_16().eval()
    nn.init.normal_(theirs.heads.head.weight, std=0.02)  # torchvision starts it at zero
    assert_parity(VisionTransformer.from_pretrained(theirs.state_dict()), theirs, [(224, 224)])


@pytest.mark.slow
def test_timm_vit_small_patch16_224() -> None:
    theirs = timm.create_model("vit_small_patch16_224", dynamic_img_size=True).eval()
    nn.init.normal_(theirs.head.weight, std=0.05)
    ours = VisionTransformer.from_pretrained(theirs.state_dict())
    assert_parity(ours, theirs, [(224, 224), (256, 192)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_torchvision_swin_t(name: str) -> None:
    theirs = getattr(torchvision.models, name)().eval()
    nn.init.normal_(theirs.head.weight, std=0.05)
    ours = SwinTransformer.from_pretrained(theirs.state_dict())
    assert_parity(ours, theirs, [(224, 224), (256, 256), (384, 384)])
