"""Numbers as targets."""

from functools import partial
from typing import Any

import lightning
import numpy
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor, nn

from attention_core.training import DataModule, RegressionTask, UsageError

SGD = partial(torch.optim.SGD, lr=0.1)


class Line(nn.Module):
    """Linear in x, (B, 3), and one number each unless `flat`."""

    def __init__(self, outputs: int = 1, flat: bool = False) -> None:
        super().__init__()
        self.linear, self.flat = nn.Linear(3, outputs), flat

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y.squeeze(1) if self.flat else y


class Points(DataModule):
    def __init__(self, outputs: int | None = None, **settings: Any) -> None:
        super().__init__(**{"batch_size": 16, **settings})
        self.outputs = outputs

    def load(self) -> None:
        draw = torch.Generator().manual_seed(0)
        shape = (3,) if self.outputs is None else (3, self.outputs)
        weight = torch.randn(shape, generator=draw)

        def points(count: int) -> list[dict[str, Tensor]]:
            x = torch.randn(count, 3, generator=draw)
            noise = 0.1 * torch.randn((x @ weight).shape, generator=draw)
            return [{"x": a, "target": b} for a, b in zip(x, x @ weight + noise, strict=True)]

        self.train_set, self.val_set, self.test_set = points(64), points(20), points(30)  # type: ignore[assignment]


def trained(task: RegressionTask, data: DataModule, epochs: int = 10) -> dict[str, float]:
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(task, data)
    (results,) = trainer.test(task, data, verbose=False)
    return dict(results)


@pytest.mark.parametrize("loss", ["squared", "absolute"])
@pytest.mark.parametrize(("outputs", "flat"), [(None, False), (None, True), (2, False)])
def test_learns_a_line_and_measures_as_sklearn_does(
    loss: Any, outputs: int | None, flat: bool
) -> None:
    data = Points(outputs)
    task = RegressionTask(Line(outputs or 1, flat), optimizer=SGD, loss=loss)
    found = trained(task, data, epochs=20)
    assert data.test_set is not None
    samples = [data.test_set[n] for n in range(30)]
    target = torch.stack([sample["target"] for sample in samples]).numpy()
    with torch.no_grad():
        output = task.model(torch.stack([sample["x"] for sample in samples])).numpy()
    output = output.reshape(target.shape)
    assert found["test/r2"] > 0.9
    each = numpy.abs(output - target) if loss == "absolute" else (output - target) ** 2
    for name, expected in {
        "loss": each.mean(),
        "mae": mean_absolute_error(target, output),
        "rmse": numpy.sqrt(((output - target) ** 2).mean()),
        "r2": r2_score(target, output),
    }.items():
        assert found[f"test/{name}"] == pytest.approx(expected, rel=1e-4), name
    if outputs is None:
        assert found["test/rmse"] == pytest.approx(
            root_mean_squared_error(target, output), rel=1e-4
        )


def test_one_sample_has_no_r2_and_is_no_error() -> None:
    data = Points()
    data.load()
    data.test_set = data.test_set[:1]  # type: ignore[index]
    results = trained(RegressionTask(Line(), optimizer=SGD), data, epochs=1)
    assert numpy.isnan(results["test/r2"]) and numpy.isfinite(results["test/loss"])


def test_predictions_name_their_columns() -> None:
    task = RegressionTask(Line(), optimizer=SGD)
    assert task.predictions(torch.tensor([1.5, 2])) == [{"prediction": 1.5}, {"prediction": 2.0}]
    assert task.predictions(torch.tensor([[1.5]])) == [{"prediction": 1.5}]
    rows = task.predictions(torch.tensor([[1.0, 2], [3, 4]]))
    assert rows[1] == {"prediction_0": 3.0, "prediction_1": 4.0}


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UsageError, match="task.loss must be squared or absolute, got 'cubed'"):
        RegressionTask(Line(), optimizer=SGD, loss="cubed")  # type: ignore[arg-type]
    task = RegressionTask(Line(2), optimizer=SGD)
    for target in (torch.zeros(4), torch.zeros(4, 3)):
        message = f"shape of its targets, {tuple(target.shape)}".replace("(", r"\(")
        with pytest.raises(UsageError, match=message.replace(")", r"\)") + r".* got \(4, 2\)"):
            task.loss(torch.zeros(4, 2), {"target": target})


class Naive(RegressionTask):
    def naive(self, batch: dict[str, Any]) -> Tensor:
        return batch["x"][:, 0]


def test_what_is_to_be_beaten_is_measured_beside_the_model() -> None:
    task, data = Naive(Line(), optimizer=SGD), Points()
    results = trained(task, data)
    samples: Any = data.test_set
    expected = mean_absolute_error(
        [sample["target"] for sample in samples], [sample["x"][0] for sample in samples]
    )
    assert results["test/naive_mae"] == pytest.approx(expected)
    assert results["test/mae"] < 0.5 * results["test/naive_mae"]


def test_a_naive_figure_of_another_shape_is_refused() -> None:
    task = Naive(Line(), optimizer=SGD)
    batch = {"x": torch.zeros(4, 3, 3), "target": torch.zeros(4)}
    with pytest.raises(UsageError, match=r"Naive.naive: .*\(4,\), expected, got \(4, 3\)"):
        task.update_metrics(task.measures["val_metrics"], torch.zeros(4), batch)
