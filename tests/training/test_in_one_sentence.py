"""What is missing or odd in a domain of one's own is said in one sentence."""

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from attention_core import Encoder, Model, Pool, Sequence
from attention_core.training import ClassificationTask, DataModule, RegressionTask, UsageError

SGD = partial(torch.optim.SGD, lr=0.1)


class Complete(Model):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(8, 1, 2)
        self.pool = Pool("mean")
        self.reset_head(3)

    def embed(self, x: Tensor) -> tuple[Tensor, Sequence]:
        return x, Sequence(x.shape[1])


class NoEmbed(Complete):
    embed = Model.embed


class TokensAlone(Complete):
    def embed(self, x: Tensor) -> Any:
        return x


class OtherSpace(Complete):
    def embed(self, x: Tensor) -> tuple[Tensor, Sequence]:
        return x, Sequence(9)


class NoPool(Complete):
    def __init__(self) -> None:
        super().__init__()
        del self.pool


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)[:, :3]


class Broken(Complete):
    def embed(self, x: Tensor) -> tuple[Tensor, Sequence]:
        raise ValueError("of the user's own code")


def step(model: nn.Module, batch: dict[str, Any], task: Any = ClassificationTask) -> None:
    names = {"classes": ["a", "b", "c"]} if task is ClassificationTask else {}
    made = task(model, optimizer=SGD, **names)
    made._trainer = cast(Any, SimpleNamespace(testing=False))
    made._step(batch, "train")


X, TARGET = torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("model", "batch", "said"),
    [
        (NoEmbed, {}, r"model: NoEmbed must define embed\(self, ...\) -> \(tokens, space\)"),
        (TokensAlone, {}, r"model: TokensAlone.embed must return \(tokens, space\).* got Tensor"),
        (OtherSpace, {}, r"model: x is \(4, 5, 8\), but its space is a sequence of 9 tokens"),
        (NoPool, {}, r"model: NoPool.__init__ must set self.pool: Pool\(\"mean\"\)"),
        (Complete, {"extra": 1}, "model: Complete takes no argument 'extra'"),
        (Plain, {"extra": 1}, r"model: Plain.forward\(\) got an unexpected keyword .*'extra'"),
        (Complete, {"target": None}, "data: a batch must have 'target', .* no target, but x"),
        (Complete, {"target": [0, 1, 2, 0]}, "'target', a tensor, and has a list"),
        (Complete, {"target": TARGET[:3]}, r"of shape \(4,\) from 0 to 2, got int64 of shape \(3,"),
        (Complete, {"target": TARGET[:, None]}, r"of shape \(4,\) .* got int64 of shape \(4, 1\)"),
        (Complete, {"target": TARGET.float()}, r"int64 of shape .* got float32 of shape \(4,\)"),
        (Complete, {"target": TARGET + 1}, "from 0 to 2, got int64 of shape .* from 1 to 3"),
    ],
)
def test_in_training(model: type[nn.Module], batch: dict[str, Any], said: str) -> None:
    step(Complete(), {"x": X, "target": TARGET})
    with pytest.raises(UsageError, match=said):
        step(model(), {"x": X, "target": TARGET, **batch})


def test_regression_without_a_target() -> None:
    with pytest.raises(UsageError, match="a batch must have 'target', .* no target, but x"):
        step(Complete(), {"x": X}, RegressionTask)


def test_an_error_of_the_models_own_code_stays_one() -> None:
    with pytest.raises(ValueError, match="of the user's own code") as caught:
        step(Broken(), {"x": X, "target": TARGET})
    assert not isinstance(caught.value, UsageError)


class Ragged(DataModule):
    def load(self) -> None:
        self.train_set = [{"x": torch.zeros(n), "target": torch.tensor(0)} for n in (2, 3)]


class Listed(Ragged):
    def collate(self, samples: list[Any]) -> Any:
        return samples


@pytest.mark.parametrize("workers", [0, 1])
def test_data(workers: int) -> None:
    with pytest.raises(UsageError, match=r"DataModule must define load\(self\), which fills train"):
        DataModule(batch_size=2).setup("fit")
    for kind, said in (
        (
            Ragged,
            r"Ragged: 'x' of samples is of different sizes, \(\d,\) and .* Write its method",
        ),
        (Listed, "Listed.collate must return a dict, 'target' and .* got list"),
    ):
        data = kind(batch_size=2, workers=workers)
        data.setup("fit")
        with pytest.raises(UsageError, match=said):
            next(iter(data.train_dataloader()))
        data.teardown()
