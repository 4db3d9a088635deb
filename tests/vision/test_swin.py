"""The Swin transformers, against torchvision's with its weights: values and gradients."""

from __future__ import annotations

import copy
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import swin_transformer as theirs

from attention_core import Grid, Neighborhood, Sequence, Window, record_attention
from attention_core.layers import attention as attention_module
from vision import SwinTransformer
from vision.pretrained.swin import TORCHVISION_SWIN
from vision.swin import PatchMerging, SwinStage
from vision.windows import WindowAttention

Version = Literal[1, 2]
VERSIONS: list[Version] = [1, 2]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def peer(version: Version, window: tuple[int, int]) -> nn.Module:
    """torchvision's, small, with random numbers where it starts with zeros and ones."""
    second: dict[str, Any] = {
        "block": theirs.SwinTransformerBlockV2,
        "downsample_layer": theirs.PatchMergingV2,
    }
    model = theirs.SwinTransformer(
        [4, 4],
        24,
        [2, 3],
        [2, 4],
        list(window),
        stochastic_depth_prob=0.0,
        num_classes=5,
        **(second if version == 2 else {}),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def small(version: Version = 1, **changes: Any) -> SwinTransformer:
    settings: dict[str, Any] = {"window": (7, 7), "num_classes": 5, "version": version}
    return SwinTransformer(24, [2, 3], [2, 4], **{**settings, **changes})


def swin_from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Theirs by our names, as `load_pretrained` has them."""
    ours = TORCHVISION_SWIN.translate(state, SwinTransformer.parts).ours
    return {re.sub("^classifier", "head", name): value for name, value in ours.items()}


def with_weights_of(peer: nn.Module, model: SwinTransformer) -> SwinTransformer:
    model.load_state_dict(swin_from_torchvision(peer.state_dict()))
    return model


def backward(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Outputs, and the gradients of their squares in the image and in the parameters."""
    image = image.clone().requires_grad_()
    outputs = model(image)
    outputs.square().sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert image.grad is not None
    return outputs, image.grad, {name: grad for name, grad in found.items() if grad is not None}


# ------------------------------------------------------------------- values and gradients of a peer


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("window", "image"),
    [
        ((7, 7), (56, 56)),  # windows tile both stages
        ((7, 7), (64, 40)),  # both have to be completed
        ((7, 7), (28, 84)),  # one window high, so no shift along that axis
        ((7, 7), (20, 12)),  # one window holds everything, and more
        ((4, 4), (36, 52)),  # odd rows and columns to merge
        ((3, 5), (48, 40)),
        ((2, 6), (4, 44)),
        ((8, 8), (4, 4)),  # a single patch
    ],
)
def test_logits_and_gradients_are_torchvisions(
    version: Version, window: tuple[int, int], image: tuple[int, int]
) -> None:
    reference = peer(version, window)
    model = with_weights_of(reference, small(version, window=window))
    images = torch.randn(2, 3, *image)
    logits, to_image, gradients = backward(model, images)
    expected, expected_to_image, of_theirs = backward(reference, images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(to_image, expected_to_image, atol=1e-5, rtol=1e-3)
    # The mapping takes gradients to ours as it does weights
    renamed = swin_from_torchvision(of_theirs)
    assert renamed.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = float(renamed[name].abs().max()) + 1e-3
        torch.testing.assert_close(
            gradient / scale, renamed[name] / scale, atol=1e-4, rtol=0, msg=lambda m, n=name: n + m
        )


FULL: dict[str, tuple[Version, Callable[[], nn.Module]]] = {
    "swin_t": (1, torchvision.models.swin_t),
    "swin_v2_t": (2, torchvision.models.swin_v2_t),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_models_are_torchvisions_at_every_size(name: str) -> None:
    version, make = FULL[name]
    reference = make().eval()
    model = SwinTransformer.preset("tiny", version=version, num_classes=1000)
    with_weights_of(reference, model).eval()
    for size in ((224, 224), (256, 256), (384, 384), (160, 288)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(model(image), reference(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_b"])
def test_presets_have_torchvisions_parameters(name: str) -> None:
    size = {"t": "tiny", "s": "small", "b": "base"}[name[-1]]
    version = 2 if "v2" in name else 1
    with torch.device("meta"):
        reference = getattr(torchvision.models, name)()
        model = SwinTransformer.preset(size, version=version, num_classes=1000)
        mapped = swin_from_torchvision(reference.state_dict())
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in mapped.items()}


def test_the_mapping_drops_by_name_and_refuses_what_it_does_not_know() -> None:
    state = peer(2, (7, 7)).state_dict()
    dropped = TORCHVISION_SWIN.translate(state, SwinTransformer.parts).dropped
    reasons = Counter(dropped.values())
    assert reasons == {"the window gives it": 2 * 5, "the forward pass makes it zero": 5}
    with pytest.raises(ValueError, match=r"have no place here: features.1.0.attn.strange \(1,\)"):
        swin_from_torchvision({**state, "features.1.0.attn.strange": torch.zeros(1)})


# ---------------------------------------------------------------------------------------- one model


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("image", [(56, 56), (40, 64)])
def test_backends_agree(version: Version, image: tuple[int, int]) -> None:
    model = small(version, window=(4, 7))
    tokens, grid = model.embedding(torch.randn(2, 3, *image))
    stage = model.stages[0]
    results = {name: stage(tokens, grid, backend=name) for name in ("reference", "dense", "blocks")}
    parameters = [*stage.blocks.parameters(), *stage.biases.parameters()]
    for name, result in results.items():
        torch.testing.assert_close(result, results["reference"], atol=1e-5, rtol=1e-4)
        for own, expected in zip(
            torch.autograd.grad(result.square().sum(), parameters, retain_graph=True),
            torch.autograd.grad(results["reference"].square().sum(), parameters, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(own, expected, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("window", [(1, 1), (1, 3), (8, 8)])
@pytest.mark.parametrize("image", [(4, 4), (4, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_nan_when_windows_or_images_shrink(
    version: Version, window: tuple[int, int], image: tuple[int, int], dtype: torch.dtype
) -> None:
    model = small(version, window=window)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        logits, to_image, gradients = backward(model, torch.randn(2, 3, *image))
    assert bool(logits.isfinite().all()) and bool(to_image.isfinite().all())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert gradients.keys() == dict(model.named_parameters()).keys()


def test_a_key_of_version_2_never_gets_a_bias() -> None:
    """Under cosine attention it would change results, so there must be none to train."""
    model = small(2, window=(4, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    backward(model, torch.randn(2, 3, 20, 20))
    optimizer.step()
    attention = model.stages[0].blocks[0].attention
    assert attention.key_value.bias is None and attention.value_bias is not None
    assert bool(attention.value_bias.any())
    width = attention.heads * attention.head_dim
    assert not bool(attention.key_value(torch.zeros(1, 24))[:, :width].any())


@pytest.mark.parametrize("version", VERSIONS)
def test_features_are_the_maps_of_the_stages(version: Version) -> None:
    """Beside those of torchvision's, which are (B, H, W, C)."""
    reference = peer(version, (7, 7))
    model = with_weights_of(reference, small(version))
    image = torch.randn(2, 3, 36, 44)
    maps = model.features(image)
    assert [tuple(one.shape) for one in maps] == [(2, 24, 9, 11), (2, 48, 5, 6)]
    features = reference.features
    assert isinstance(features, nn.Sequential)
    for one, end in zip(maps, (2, 4), strict=True):
        expected = features[:end](image).movedim(-1, 1)
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-4)
    pooled = small(version, num_classes=None)
    pooled.load_state_dict(model.state_dict(), strict=False)
    last = maps[-1].movedim(1, -1)
    torch.testing.assert_close(pooled(image), model.norm(last).mean((1, 2)), atol=1e-5, rtol=1e-4)


def test_drop_path_grows_over_all_stages() -> None:
    model = small(drop_path=0.4)
    rates = [block.feed_forward_residual.drop_path for s in model.stages for block in s.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    image = torch.randn(2, 3, 28, 28)
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))


def test_layers_of_a_stage_share_two_plans_which_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plan = attention_module.plan

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(arguments[0])
        return plan(*arguments, **options)

    monkeypatch.setattr(attention_module, "plan", counted)
    model = small(window=4)
    image = torch.randn(2, 3, 40, 40)
    first = model(image)
    assert len(made) == 4  # two stages, with and without a shift
    first.sum().backward()
    second = model(image)
    assert len(made) == 4 and torch.equal(first, second)
    second.sum().backward()
    with torch.inference_mode():
        model(image)
    assert len(made) == 8
    for size in range(4, 60, 4):  # no more are kept than a few
        model(torch.randn(1, 3, size, size))
    attention = model.stages[0].blocks[0].attention
    assert isinstance(attention, WindowAttention) and len(attention._plans) <= 8
    again = copy.deepcopy(model)
    torch.save(model, io.BytesIO())
    torch.testing.assert_close(again(image), first)
    bias = again.stages[0].biases[0]
    kept = again.stages[0].blocks[0].attention._plans  # type: ignore[union-attr]
    assert all(own.job.bias is bias for own in kept.values())


def test_what_attends_is_recorded_with_what_completes_the_windows() -> None:
    model = small(window=4).eval()
    with record_attention(model) as maps, torch.no_grad():
        model(torch.randn(1, 3, 20, 12))  # grids of 5×3 and 3×2
    assert [tuple(weights.shape[2:]) for weights in maps] == [(15, 32)] * 2 + [(6, 16)] * 3
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    # One window wide, two high: unshifted, the first row sees the first window
    assert bool((maps[0][..., 0, :16] > 0).all()) and not bool(maps[0][..., 0, 16:].any())
    # Shifted by 2 along the height alone
    assert bool((maps[1][..., 0, :8] > 0).all()) and not bool(maps[1][..., 0, 8:].any())


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_an_exported_model_takes_any_batch(version: Version) -> None:
    model = small(version, window=3).eval()
    image = torch.randn(3, 3, 32, 40)
    model(image)  # the plans of which an export must not take
    program = torch.export.export(
        model, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    ).module()
    image = torch.randn(5, 3, 32, 40)
    torch.testing.assert_close(program(image), model(image), atol=1e-5, rtol=1e-4)


def test_patch_merging_is_torchvisions() -> None:
    for norm, reference in (("pre", theirs.PatchMerging(6)), ("post", theirs.PatchMergingV2(6))):
        model = PatchMerging(6, norm_order=norm)  # type: ignore[arg-type]
        model.load_state_dict(reference.state_dict())
        x = torch.randn(2, 5, 3, 6)
        merged, grid = model(x.flatten(1, 2), Grid(5, 3))
        assert grid.size == (3, 2)
        torch.testing.assert_close(merged.unflatten(1, grid.size), reference(x))


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, r"version must be 1 or 2, got 3"),
        ({"window": 0}, r"window must be .* got 0"),
        ({"window": (4, 4, 4)}, r"window must be .* got \(4, 4, 4\)"),
        ({"channels": 0}, r"channels must be at least 1, got 0"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        (
            {"norm_order": "sandwich"},
            r"norm_order must be 'pre', 'post' or 'res-post', got 'sandwich'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_stages_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"for each stage, got \[2, 2\] and \[2\]"):
        SwinTransformer(24, [2, 2], [2], window=7, num_classes=5)
    with pytest.raises(ValueError, match=r"dim=48 must be a multiple of heads=5"):
        SwinTransformer(24, [2, 2], [2, 5], window=7, num_classes=5)
    with pytest.raises(ValueError, match=r"window must be one size, or one for each of 2 stages"):
        SwinTransformer(24, [2, 2], [2, 4], window=[(4, 4)], num_classes=5)
    with pytest.raises(ValueError, match=r"drop_path lists 1 entries for 2 layers"):
        SwinStage(24, 2, 2, window=4, drop_path=[0.1])
    with pytest.raises(ValueError, match=r"one of tiny, small, base, large; got 'swin_t'"):
        SwinTransformer.preset("swin_t", num_classes=5)


def test_images_that_do_not_fit_are_named() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"multiples of patch_size=4×4, got 30×32"):
        model(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"channels=3, got \(1, 1, 32, 32\)"):
        model(torch.zeros(1, 1, 32, 32))
    with pytest.raises(TypeError, match=r"image must be float"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"image must be a tensor \(B, C, H, W\), got list"):
        model([torch.zeros(3, 32, 32)])


def test_what_window_attention_cannot_do_is_named() -> None:
    layer, x = WindowAttention(8, 2), torch.randn(1, 12, 8)
    grid, window = Grid(3, 4), Window(2, shift=1)
    assert layer(x, space=grid, mask=window).shape == x.shape
    with pytest.raises(TypeError, match=r"windows need one whole Grid, got .*12 tokens"):
        layer(x, space=Sequence(12), mask=window)
    with pytest.raises(TypeError, match=r"windows need one whole Grid"):
        layer(x, space=Grid(4, 4).keep(torch.arange(12)), mask=window)
    with pytest.raises(TypeError, match=r"mask must be a Window\(size, shift\), got Neigh"):
        layer(x, space=grid, mask=Neighborhood(1))
    with pytest.raises(ValueError, match=r"no context, no cache"):
        layer(x, x, space=grid, mask=window)
    with pytest.raises(ValueError, match=r"give either them or plan="):
        layer(x, space=grid, plan=layer.plan(x, grid, window))
