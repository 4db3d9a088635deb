"""The masked autoencoder, against transformers' and against what it promises."""

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from attention_core import LearnedPosition, Neighborhood
from vision import MaskedAutoencoder, VisionTransformer
from vision.pretraining import MaskedImageModelling, completed


def vit(**options: object) -> VisionTransformer:
    defaults: dict[str, object] = {
        "dim": 32,
        "depth": 2,
        "heads": 4,
        "hidden": 64,
        "patch_size": 4,
        "image_size": 16,
        "num_classes": None,
    }
    return VisionTransformer(**{**defaults, **options})  # type: ignore[arg-type]


def autoencoder(mask_ratio: float = 0.75, **options: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(vit(**options), dim=16, depth=1, heads=2, mask_ratio=mask_ratio)


def take_weights(ours: MaskedAutoencoder, theirs: ViTMAEForPreTraining) -> None:
    """Every weight of `theirs` in `ours`, by hand."""
    weights = dict(theirs.state_dict())

    def copy(to: nn.Parameter, *names: str) -> None:
        value = torch.cat([weights.pop(name) for name in names])
        to.data.copy_(value.reshape(to.shape))

    def copy_both(to: nn.Module, *names: str) -> None:
        for kind in ("weight", "bias"):
            copy(getattr(to, kind), *(f"{name}.{kind}" for name in names))

    def copy_blocks(blocks: object, prefix: str) -> None:
        for i, block in enumerate(blocks):  # type: ignore[call-overload]
            attention = f"{prefix}.{i}.attention"
            copy_both(block.attention.query, f"{attention}.q_proj")
            copy_both(block.attention.key_value, f"{attention}.k_proj", f"{attention}.v_proj")
            copy_both(block.attention.out, f"{attention}.o_proj")
            copy_both(block.attention_residual.norm, f"{prefix}.{i}.layernorm_before")
            copy_both(block.feed_forward_residual.norm, f"{prefix}.{i}.layernorm_after")
            copy_both(block.feed_forward.up, f"{prefix}.{i}.mlp.fc1")
            copy_both(block.feed_forward.down, f"{prefix}.{i}.mlp.fc2")

    embeddings = "vit.embeddings"
    copy(ours.vit.class_token, f"{embeddings}.cls_token")
    copy(ours.vit.positions.table, f"{embeddings}.position_embeddings")  # type: ignore[union-attr, arg-type]
    copy_both(ours.vit.embedding.project, f"{embeddings}.patch_embeddings.projection")
    copy_blocks(ours.vit.encoder.blocks, "vit.layers")
    copy_both(ours.vit.encoder.norm, "vit.layernorm")
    copy_both(ours.narrow, "decoder.decoder_embed")
    copy(ours.mask_token, "decoder.mask_token")
    # Theirs has sines and cosines in another order
    ours.positions = LearnedPosition((4, 4), 16, special=1)  # type: ignore[assignment]
    copy(ours.positions.table, "decoder.decoder_pos_embed")
    copy_blocks(ours.decoder.blocks, "decoder.decoder_layers")
    copy_both(ours.decoder.norm, "decoder.decoder_norm")
    copy_both(ours.pixels, "decoder.decoder_pred")
    assert not weights


@pytest.mark.parametrize("normalize", [True, False])
def test_it_equals_the_one_of_transformers(normalize: bool) -> None:
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        num_channels=3,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        norm_pix_loss=normalize,
        initializer_range=0.2,
        layer_norm_eps=1e-6,
    )
    theirs = ViTMAEForPreTraining(config).eval()
    ours = MaskedAutoencoder(vit(), dim=16, depth=2, heads=2, normalize=normalize).eval()
    take_weights(ours, theirs)
    image, noise = torch.rand(3, 3, 16, 16), torch.rand(3, 16)
    expected = theirs(image, noise=noise)
    output = ours(image, noise=noise)
    assert torch.equal(output.hidden, expected.mask.bool())
    torch.testing.assert_close(output.patches, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss(image, output), expected.loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.patches(image), theirs.patchify(image))
    assert torch.equal(ours.assemble(ours.patches(image), (16, 16)), image)


KINDS: list[dict[str, object]] = [
    {"positions": "learned"},
    {"positions": "sinusoidal", "pooling": "mean", "patch_size": (4, 2)},
    {"positions": "rotary", "mask": Neighborhood(1), "registers": 2},
]


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_pixels_change_nothing_and_visible_ones_do(kind: dict[str, object]) -> None:
    model = autoencoder(**kind).eval()
    image = torch.rand(2, 3, 16, 16)
    output = model(image)
    pixels = model.patches(image)
    for wanted in (output.hidden, ~output.hidden):
        changed = torch.where(wanted[..., None], pixels + 1, pixels)
        same = torch.equal(model(model.assemble(changed, (16, 16))).patches, output.patches)
        assert same == torch.equal(wanted, output.hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_same_alone_in_a_batch_and_packed(kind: dict[str, object]) -> None:
    model = autoencoder(**kind).eval()
    images = [torch.rand(3, *size) for size in ((16, 16), (8, 24), (16, 16), (4, 8))]
    noise = [torch.rand(model.patches(image[None]).shape[1]) for image in images]
    alone = [model(one[None], noise=lots[None]) for one, lots in zip(images, noise, strict=True)]
    packed = model(images, noise=torch.cat(noise))
    together = model(torch.stack(images[::2]), noise=torch.stack(noise[::2]))
    close = {"atol": 1e-5, "rtol": 1e-5}
    for got, expected in (
        (packed.patches, torch.cat([one.patches[0] for one in alone])),
        (packed.hidden, torch.cat([one.hidden[0] for one in alone])),
        (together.patches, torch.cat([one.patches for one in alone[::2]])),
    ):
        torch.testing.assert_close(got, expected, **close)
    hidden = packed.hidden
    error = (packed.patches - standardised(model.patches(images))).square().mean(-1)[hidden].mean()
    torch.testing.assert_close(model.loss(images, packed), error)


def standardised(patches: Tensor) -> Tensor:
    mean = patches.mean(-1, keepdim=True)
    return (patches - mean) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def test_each_image_hides_its_own_patches_anew_in_training_and_the_same_in_eval() -> None:
    model = autoencoder(mask_ratio=0.6)
    image = torch.rand(8, 3, 16, 16)
    first, second = model(image).hidden, model(image).hidden
    assert first.sum(1).tolist() == [10] * 8  # 16 · 0.4 are visible, rounded down
    assert len(first.unique(dim=0)) == 8
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(image).hidden, model(image).hidden)
    assert len(model(image).hidden.unique(dim=0)) == 8


def test_every_parameter_learns() -> None:
    model = autoencoder()
    image = torch.rand(2, 3, 16, 16)
    model.loss(image, model(image)).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None and p.numel()}
    assert not idle


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must be a share between 0 and 1, got 1.0"),
        ({"num_classes": 3}, "vit must have no head, which nothing would train"),
        ({"pooling": "attention"}, "vit must have no pool,"),
        ({"embedding": {"stride": 2}}, "patches that share no pixels"),
        ({"embedding": {"stem": [8]}}, "patches that share no pixels"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoencoder(**options)  # type: ignore[arg-type]


def test_an_image_of_one_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="one patch only"):
        autoencoder()(torch.rand(2, 3, 4, 4))


def test_the_figure_of_a_list_shows_images_of_one_size() -> None:
    task = MaskedImageModelling(autoencoder().eval(), optimizer=torch.optim.AdamW)
    images = [torch.rand(3, 16, 16), torch.rand(3, 8, 16), torch.rand(3, 16, 16)]
    with torch.no_grad():
        figure = task.figures({"image": images})["reconstruction"]
    assert len(figure.axes) == 3 * 2  # rows: image, seen, completed


@pytest.mark.parametrize("normalize", [True, False])
def test_images_are_completed_where_they_were_hidden(normalize: bool) -> None:
    model = MaskedAutoencoder(vit(), dim=16, depth=1, heads=2, normalize=normalize).eval()
    image = torch.rand(2, 3, 16, 16)
    output = model(image)
    seen, made = completed(model, image, output)
    assert float(seen.isnan().float().mean()) == 0.75
    visible = ~seen.isnan()
    assert torch.equal(seen[visible], image[visible])
    assert torch.equal(made[visible], image[visible])
    assert not torch.equal(made, image)
    true = model.patches(image)
    perfect = output._replace(patches=standardised(true) if normalize else true)
    torch.testing.assert_close(completed(model, image, perfect)[1], image)
