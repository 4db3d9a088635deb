"""Which parameters decay, and how the rate moves."""

import itertools
import math
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from attention_core import Encoder, RelativeTable
from attention_core.training import UsageError, train
from attention_core.training.optim import (
    check_eps,
    constant,
    decay_groups,
    inverse_sqrt,
    layers,
    scale_rates,
    warmup_cosine,
)
from tests.training.conftest import Compose
from vision import VisionTransformer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(10, 4)
        self.position = nn.Parameter(torch.zeros(7, 4))
        self.class_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.convolution = nn.Conv2d(1, 4, 2)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.token.weight  # tied: still a table


def test_only_what_multiplies_activations_decays() -> None:
    model = Model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, undecayed = decay_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert undecayed["weight_decay"] == 0.0
    assert {names[id(p)] for p in decayed["params"]} == {
        "convolution.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }
    assert {names[id(p)] for p in undecayed["params"]} == {
        "token.weight",
        "position",
        "class_token",
        "convolution.bias",
        "attention.in_proj_bias",
        "attention.out_proj.bias",
        "norm.weight",
        "norm.bias",
        "head.bias",
    }


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match="Identity has no parameter to train"):
        decay_groups(nn.Identity(), 0.1)


def test_layer_wise_rates_are_those_of_timm() -> None:
    same = {"depth": 3, "num_heads": 2, "num_classes": 10, "embed_dim": 16, "class_token": True}
    theirs = timm.models.VisionTransformer(img_size=8, patch_size=2, **same)
    ours = VisionTransformer(16, 3, 2, patch_size=2, num_classes=10, image_size=8)
    names_of_theirs = {
        "class_token": "cls_token",
        "positions": "pos_embed",
        "embedding": "patch_embed",
        "encoder.blocks.0": "blocks.0",
        "encoder.blocks.1": "blocks.1",
        "encoder.blocks.2": "blocks.2",
        "head": "head",
    }

    def scales(model: nn.Module, groups: list[dict[str, object]], key: str, part: str) -> set:
        of = {id(p): group[key] for group in groups for p in group["params"]}  # type: ignore
        return {
            round(of[id(parameter)], 9)  # type: ignore
            for name, parameter in model.named_parameters()
            if f"{name}.".startswith(f"{part}.") and parameter.numel()
        }

    expected = param_groups_layer_decay(theirs, weight_decay=0.1, layer_decay=0.65)
    found = decay_groups(ours, 0.1, layer_decay=0.65)
    for our_name, their_name in names_of_theirs.items():
        wanted = scales(theirs, expected, "lr_scale", their_name)
        assert len(wanted) == 1
        assert scales(ours, found, "rate_scale", our_name) == wanted, our_name
    # timm counts the final norm to the last block; BEiT and MAE, whom we follow, to the head
    assert scales(ours, found, "rate_scale", "encoder.norm") == {1.0}
    trained = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in found) == len(trained)
    assert {group["weight_decay"] for group in found} == {0.1, 0.0}


def test_layers_are_counted_through_stages_and_their_biases() -> None:
    def stage(*biases: nn.Module) -> Encoder:
        return Encoder(4, 2, 2, bias=list(biases))  # type: ignore[arg-type]

    table = RelativeTable.swin(heads=2, window=(2, 2))
    tables = [RelativeTable.swin(heads=2, window=(2, 2)) for _ in range(2)]
    model = nn.Sequential(nn.Linear(4, 4), stage(table), nn.Linear(4, 4), stage(*tables))
    model.append(nn.Linear(4, 2))
    of = layers(model)
    assert {name.partition(".")[0]: of[name] for name in of if name[0] in "024"} == {
        "0": 0,
        "2": 2,  # between two blocks: with the one before
        "4": 5,
    }
    assert [of[f"{s}.blocks.{b}.feed_forward.up.weight"] for s in (1, 3) for b in (0, 1)] == [
        *[1, 2],
        *[3, 4],
    ]
    assert {of[name] for name in of if name.startswith("1.biases.0")} == {1}
    assert {of[name] for name in of if name.startswith("3.biases.1")} == {4}
    assert of["3.norm.weight"] == 5


def test_a_tied_weight_has_the_layer_of_its_first_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Encoder(4, 1, 2), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert layers(model)["0.weight"] == 0
    assert layers(model)["2.bias"] == 2


def test_each_group_starts_from_its_share_of_the_rate() -> None:
    groups = decay_groups(
        VisionTransformer(8, 2, 2, patch_size=2, num_classes=2, image_size=4), 0.0, 0.5
    )
    optimizer = torch.optim.AdamW(groups, lr=0.8)
    scale_rates(optimizer)
    schedule = warmup_cosine(optimizer, total_steps=3, warmup=0)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.1, 0.2, 0.4, 0.8]
    assert optimizer.param_groups[0]["lr"] == 0.8
    optimizer.step()
    schedule.step()
    lrs = {group["lr"] for group in optimizer.param_groups}
    assert sorted(lrs) == pytest.approx([0.05, 0.1, 0.2, 0.4])


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_layer_decay_is_a_share(share: float) -> None:
    with pytest.raises(UsageError, match=f"task.layer_decay .* got {share}"):
        decay_groups(Model(), 0.1, share)


def test_layers_need_blocks() -> None:
    with pytest.raises(UsageError, match="Model has no attention_core.Block to count layers by"):
        decay_groups(Model(), 0.1, 0.5)


def rates(total: int, **settings: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(optimizer, total_steps=total, **settings)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warmup_then_cosine() -> None:
    found = rates(21, warmup=0.2, final=0.1)
    assert found[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert found[4] == pytest.approx(2.0)
    assert found[12] == pytest.approx(0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert found[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(found[4:]))


def test_warmup_then_the_inverse_square_root() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = inverse_sqrt(optimizer, total_steps=1000, warmup=0.1)
    rates = []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # Vaswani et al.: min(step^-0.5, step * warmup^-1.5), here with a peak of 2
    expected = [2 * 100**0.5 * min(step**-0.5, step * 100**-1.5) for step in range(1, 1001)]
    assert rates == pytest.approx(expected)
    with pytest.raises(UsageError, match="schedule.warmup"):
        inverse_sqrt(optimizer, total_steps=10, warmup=2)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_runs_have_a_rate(total: int) -> None:
    assert all(rate > 0 for rate in rates(total)[:1])
    assert rates(total, warmup=1.0)[-1] == pytest.approx(2.0)


def test_schedules_refuse_nonsense() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.raises(UsageError, match="schedule.final is a share between 0 and 1, got 2"):
        warmup_cosine(optimizer, total_steps=3, final=2)
    with pytest.raises(UsageError, match="at least one step, got total_steps=0"):
        constant(optimizer, total_steps=0)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_an_eps_that_is_no_number_in_the_dtype_of_the_weights(kind: type) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float16))
    weight.grad = torch.tensor([0.0, 1e-5, 1.0], dtype=torch.float16)
    unchecked = kind([weight], lr=1e-3)
    with pytest.raises(UsageError, match=r"optimizer.eps: 1e-\d+ is 0 in torch.float16") as refused:
        check_eps(unchecked)
    found = re.search(r"eps=([0-9.e-]+) or more", str(refused.value))
    assert found is not None
    # What the message asks for is enough, and what it refuses is not
    checked = kind([weight], lr=1e-3, eps=float(found[1]))
    check_eps(checked)
    checked.step()
    assert ((weight - 1).abs() <= 0.02).all()
    unchecked.step()
    assert not weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_eps_that_is_a_number(dtype: torch.dtype) -> None:
    check_eps(torch.optim.AdamW([nn.Parameter(torch.ones(3, dtype=dtype))]))
    check_eps(torch.optim.SGD([nn.Parameter(torch.ones(3, dtype=torch.float16))]))


def test_half_precision_is_refused_before_it_divides_by_zero(
    compose: Compose, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"optimizer.eps: 1e-08 is 0 in torch.float16"):
        train(compose("experiment=toy", "trainer.precision=16-true"), tmp_path)
