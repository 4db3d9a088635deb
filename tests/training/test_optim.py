"""Which parameters decay, and how the rate moves."""

import itertools
import math

import pytest
import torch
from torch import nn

from attention_core.training import UsageError
from attention_core.training.optim import constant, decay_groups, warmup_cosine


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
