"""What a configuration may build, and what it may not."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from attention_core.training import UsageError
from attention_core.training.instantiate import _find, build, check
from attention_core.training.targets import KINDS


@pytest.mark.parametrize(
    "target",
    [
        "builtins.open",
        "builtins.eval",
        "os.system",
        "posix.system",
        "subprocess.run",
        "pickle.loads",
        "importlib.import_module",
        "torch.load",
        "torch.hub.load",
        "torch.serialization.load",
        "torch.jit.load",
        "torch.utils.cpp_extension.load",
        "torch.os.system",
        "torch.nn.modules.module.torch.load",
        "torch.utils.data.dataloader.os.system",
        "attention_core.training.run.torch.load",
        "attention_core.training.instantiate.importlib.import_module",
        "attention_core.training.folder.yaml.unsafe_load",
        "attention_core.training.train",
        "attention_core.training.cli.main",
        "attention_core.training.folder.replace_file",
        "attention_core.files.replace_file",
        "attention_core.interpret.plots.save_figure",
        "torchvision.datasets.utils._urlretrieve",
        "torchvision.datasets.utils.download_url",
        "torch_geometric.data.download_url",
        "torch_geometric.data.extract_tar",
        "torch.utils.data.datapipes.utils.decoder.basichandlers",
        "torchvision.models._api.load_state_dict_from_url",
        "lightning.pytorch.callbacks.Callback.__subclasses__",
        "numpy.load",
        "joblib.load",
        "hydra.utils.get_method",
    ],
)
@pytest.mark.parametrize("place", ["top", "nested", "in a list"])
def test_dangerous_targets_are_refused_before_anything_is_built(target: str, place: str) -> None:
    bad: dict[str, Any] = {"_target_": target}
    if place == "nested":
        bad = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": bad}
    elif place == "in a list":
        bad = {"_target_": "torch.nn.Sequential", "_args_": [bad]}
    with pytest.raises(UsageError, match="refused|not allowed"):
        build(bad)


@pytest.mark.parametrize(
    "name", ["os", "builtins", "torch", "torch.hub", "numpy", "yaml", "PIL.Image", "sklearn"]
)
def test_allow_cannot_reach_python_or_what_ours_needs(name: str) -> None:
    with pytest.raises(UsageError, match="never safe"):
        check({}, allow=[name])


@pytest.mark.parametrize("name", ["", "*", "my audio", "my_audio.", "my_audio._inner", "a/b"])
def test_allow_takes_names_of_packages(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a package"):
        check({}, allow=[name])


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_on_a_list_is_there(kind: str) -> None:
    bases, ours = KINDS[kind].bases, KINDS[kind].ours
    for name in {*bases, *KINDS[kind].listed, *ours}:
        assert callable(_find(name.split("."), "", name)), name
    for name in {*bases, *ours}:  # by where it is defined, or nothing inherits from it or is it
        found = _find(name.split("."), "", name)
        assert f"{found.__module__}.{found.__qualname__}" == name


@pytest.mark.parametrize(
    ("name", "more"),
    [("VisionTransformer", {"patch_size": 16, "image_size": 32}), ("SwinTransformer", {})],
)
def test_a_preset_can_be_named(name: str, more: dict[str, int]) -> None:
    given = {"_target_": f"vision.{name}.preset", "name": "tiny", "num_classes": 3, **more}
    assert type(build(given, "model")).__name__ == name


@pytest.mark.parametrize("home", ["", "biases.", "biases.relative_table."])
def test_a_constructor_of_a_bias_can_be_named(home: str) -> None:
    """By the module that defines it, and by those that give it."""
    target = f"attention_core.{home}RelativeTable.hops"
    assert build({"_target_": target, "heads": 2, "max_hops": 3}, "model").heads == 2


def test_a_part_is_of_its_kind() -> None:
    """Also where a class of the user's is, which is trusted inside of its own classes."""
    wrong = {"_target_": f"{__name__}.sized", "count": 1}
    check({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}, "model")
    for part, name in (("optimizer", "torch.nn.Linear"), ("data", "vision.VisionTransformer")):
        with pytest.raises(UsageError, match=f"'{name}' is refused"):
            check({"_target_": name}, part)
    with pytest.raises(UsageError, match="params._target_: 'torch.nn.Linear' is refused"):
        check(
            {"_target_": "torch.optim.SGD", "params": {"_target_": "torch.nn.Linear"}}, "optimizer"
        )
    with pytest.raises(UsageError, match="a DataModule is needed"):
        check({"_target_": f"{__name__}.Thing"}, "data", allow=[__name__])
    check({"_target_": "torch.nn.Sequential", "_args_": [wrong]}, "model", allow=[__name__])


class Thing:
    pass


def test_two_parts_at_one_place_are_two() -> None:
    linear = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    twice = {"a.b": {"_target_": "torch.nn.ReLU"}, "a": {"b": linear}, "": linear}
    made = build({"_target_": f"{__name__}.Holder", "parts": twice}, allow=[__name__])
    assert type(made.parts["a.b"]) is torch.nn.ReLU
    assert type(made.parts["a"]["b"]) is type(made.parts[""]) is torch.nn.Linear


class Holder:
    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts


def test_a_package_that_begins_like_an_allowed_one_is_not_allowed() -> None:
    with pytest.raises(UsageError, match="not allowed"):
        build({"_target_": "torchmetrics_evil.Metric"})
    with pytest.raises(UsageError, match="not allowed"):
        build({"_target_": "visionary.Model"})


def test_build() -> None:
    layer = build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3})
    assert isinstance(layer, torch.nn.Linear)
    make = build({"_target_": "torch.optim.AdamW", "_partial_": True, "betas": [0.9, 0.99]})
    assert isinstance(make, partial)
    assert make.func is torch.optim.AdamW
    assert make.keywords == {"betas": [0.9, 0.99]}
    nested = build(
        {
            "_target_": "torch.nn.Sequential",
            "_args_": [{"_target_": "torch.nn.Identity"}, {"_target_": "torch.nn.ReLU"}],
        }
    )
    assert [type(layer) for layer in nested] == [torch.nn.Identity, torch.nn.ReLU]


def test_objects_passed_in_are_the_same_objects() -> None:
    model = torch.nn.Linear(1, 1)
    wrapped = build({"_target_": "torch.nn.Sequential", "_args_": []})
    assert len(wrapped) == 0
    holder = build({"_target_": "torch.nn.ModuleDict"}, modules={"model": model})
    assert holder["model"] is model


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "torch.nn.Liner"}, "'torch.nn.Liner' is refused.*Did you mean .*nn.Linear"),
        ({"_target_": "vision.VisionTransfomer"}, "not exist. Did you mean VisionTransformer"),
        ({"_target_": "vision_of_mine.X"}, "not allowed"),
        ({"_target_": 3}, "_target_ must be a dotted name, got 3"),
        (
            {"_target_": "torch.nn.Linear", "in_feature": 3},
            "in_feature: torch.nn.Linear takes no argument 'in_feature'. Did you mean in_features",
        ),
        ({"_target_": "torch.nn.Linear", "in_features": 3}, "torch.nn.Linear: .*out_features"),
    ],
)
def test_mistakes_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(config)


def test_a_missing_package_of_the_users_is_named() -> None:
    with pytest.raises(UsageError, match="the package 'my_audio' .* cannot be imported"):
        build({"_target_": "my_audio.Model"}, allow=["my_audio"])


def sized(
    count: int,
    share: float = 0.5,
    name: str | None = None,
    mode: Literal["min", "max"] = "min",
    width: "int" = 1,
    odd: int = None,  # type: ignore[assignment]  # noqa: RUF013 - a default is always accepted
    anything: Any = None,
    where: Path | None = None,
) -> None:
    pass


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({"count": 1, "share": 1, "name": None, "mode": "max", "odd": None}, True),
        ({"anything": "x", "where": "a/path", "width": 2, "name": "${x}"}, True),
        ({"count": [1]}, True),  # not a plain value: left to the function
        ({"count": "1"}, False),
        ({"count": 1.0}, False),
        ({"count": True}, False),
        ({"share": "0.5"}, False),
        ({"name": 3}, False),
        ({"mode": "mean"}, False),
        ({"width": "wide"}, False),
    ],
)
def test_plain_values_must_fit_their_annotation(given: dict[str, Any], fits: bool) -> None:
    config = {"_target_": f"{__name__}.sized", **given}
    if fits:
        check(config, allow=[__name__])
    else:
        (key,) = given
        with pytest.raises(UsageError, match=rf"^{key}: .* expects .*, got "):
            check(config, allow=[__name__])


@pytest.mark.parametrize(
    ("target", "given"),
    [
        ("torch.optim.AdamW", {"lr": "abc"}),
        ("torch.optim.AdamW", {"betas": ["a", 0.9]}),
        ("torch.optim.AdamW", {"betas": [0.9]}),
        ("torch.optim.AdamW", {"betas": 0.9}),
        ("torch.optim.AdamW", {"weight_decay": "a"}),
        ("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": ["a"]}),
        ("lightning.pytorch.Trainer", {"limit_train_batches": "a"}),
    ],
)
def test_words_for_numbers_of_other_libraries_are_named(target: str, given: dict[str, Any]) -> None:
    (key,) = given
    with pytest.raises(UsageError, match=rf"^optimizer.{key}: {target} expects .*, got "):
        check({"_target_": target, "_partial_": True, **given}, place="optimizer")


def test_numbers_of_other_libraries_fit() -> None:
    for target, given in (
        ("torch.optim.AdamW", {"lr": 1, "betas": [0, 0.9], "weight_decay": 0, "foreach": None}),
        ("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": [1, 0.5]}),
        ("lightning.pytorch.Trainer", {"devices": [0, 1], "precision": "bf16-mixed"}),
    ):
        check({"_target_": target, "_partial_": True, **given})
