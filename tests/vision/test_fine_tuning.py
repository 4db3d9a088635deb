"""Published weights in runs: a file of timm's is all that a configuration names."""

from pathlib import Path

import numpy
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from attention_core.errors import UsageError
from attention_core.training import train
from attention_core.training.finetune import start_from
from attention_core.training.predict import load_trained
from tests.training.conftest import Compose, compose, figures_as_files, one_thread  # noqa: F401
from tests.vision.test_pretrained import randomised
from vision import SwinTransformer, VisionTransformer

#: One step that changes nothing, so the run's weights are those of the file.
STILL = [
    *["experiment=vision/digits", "trainer.max_epochs=1", "trainer.limit_train_batches=1"],
    *["trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "optimizer.lr=0.0"],
]


@pytest.fixture
def theirs() -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 2}
    model = timm.create_model(
        "vit_small_patch16_224", **sizes, num_heads=4, mlp_ratio=2, num_classes=10
    )
    return randomised(model)


@pytest.fixture
def file(theirs: nn.Module, tmp_path: Path) -> Path:
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def assert_is_theirs(
    run: Path, theirs: nn.Module, *, head: bool, size: tuple[int, int] = (1, 8)
) -> None:
    """The model of a run computes what theirs does, up to the head."""
    _, task = load_trained(run)
    channels, side = size
    image = torch.randn(2, channels, side, side)
    model = task.model.eval()
    with torch.no_grad():
        got = model(image) if head else model.features(image, norm=True)[0]  # type: ignore[operator]
        want = theirs(image)
        if not head:
            want = theirs.get_intermediate_layers(image, 1, reshape=True, norm=True)[0]  # type: ignore[operator]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_published_checkpoint_is_fine_tuned(
    compose: Compose,  # noqa: F811
    theirs: nn.Module,
    file: Path,
    tmp_path: Path,
) -> None:
    given = ["model=vision/pretrained_vit", f"model.weights={file}", "+model.heads=4"]
    train(compose(*STILL, *given, config_dir=None), tmp_path / "run")
    assert_is_theirs(tmp_path / "run", theirs, head=False)
    _, task = load_trained(tmp_path / "run")
    assert not torch.equal(task.model.head.weight, theirs.head.weight)  # type: ignore[union-attr]


def test_images_of_ones_own_in_one_command(compose: Compose, tmp_path: Path) -> None:  # noqa: F811
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    theirs = timm.create_model("vit_small_patch16_224", **sizes)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    for name in ("one", "other"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = numpy.random.default_rng(number).integers(256, size=(40, 40, 3))
            path = tmp_path / "images" / name / f"{number}.png"
            Image.fromarray(pixels.astype(numpy.uint8)).save(path)
    given = [
        "~experiment",
        "task=image_classification",
        "data=vision/image_folder",
        "data.normalize=half",
    ]
    given += [f"data.root={tmp_path}/images", "data.size=32", "data.workers=0", "data.batch_size=8"]
    given += [
        "model=vision/pretrained_vit",
        f"model.weights={tmp_path}/vit.safetensors",
        "+model.heads=2",
    ]
    train(compose(*given, *STILL[1:], config_dir=None), tmp_path / "run")
    assert_is_theirs(tmp_path / "run", theirs.eval(), head=False, size=(3, 32))


@pytest.mark.slow
def test_a_run_starts_from_published_weights(
    compose: Compose,  # noqa: F811
    theirs: nn.Module,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ["model.positions=learned", "model.depth=2"]
    train(compose(*STILL, *model, f"init.weights={file}", config_dir=None), tmp_path / "run")
    assert "Starting with 36 of 37 tensors from" in (said := capsys.readouterr().out)
    assert ", by the names of timm" in said
    assert_is_theirs(tmp_path / "run", theirs, head=True)


def ours(**options: object) -> VisionTransformer:
    sizes = {"patch_size": 2, "channels": 1, "image_size": 8, "hidden": 128, "num_classes": 10}
    return VisionTransformer(64, 2, 4, **{**sizes, **options})  # type: ignore[arg-type]


def test_what_is_new_stays_and_what_does_not_fit_is_named(file: Path) -> None:
    model = ours(num_classes=3)
    head = model.head.weight.clone()
    said = start_from(model, weights=str(file), new=["head"])
    assert said.endswith("by the names of timm; new: head; not taken: head")
    assert torch.equal(model.head.weight, head)
    with pytest.raises(UsageError, match=r"head\.weight is \(10, 64\), .*init\.new names"):
        start_from(model, weights=str(file))
    with pytest.raises(UsageError, match=r"4 missing: .*layer.*|missing: encoder.*scale"):
        start_from(ours(layer_scale=1.0), weights=str(file))
    # What theirs computes with is not left out, as parts of a file of our own are
    with pytest.raises(UsageError, match=r"1 surplus: positions\.table \(17, 64\)"):
        start_from(ours(positions="sinusoidal"), weights=str(file))
    with pytest.raises(UsageError, match="of 'timm', for VisionTransformer, not for Swin"):
        start_from(SwinTransformer(8, (1,), (2,), window=2, num_classes=3), weights=str(file))
