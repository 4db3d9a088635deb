"""What is trained: a model with its loss, its metrics and its optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Required, TypedDict, Unpack

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from attention_core.annotated import checked
from attention_core.errors import UsageError
from attention_core.training.data import DataModule, model_inputs
from attention_core.training.fingerprint import check_unchanged
from attention_core.training.in_one_sentence import refusals_of, refusals_of_classes, target_of
from attention_core.training.mean import Mean
from attention_core.training.optim import (
    check_eps,
    decay_groups,
    scale_rates,
    schedule_rates,
)
from attention_core.training.parallel import FSDP2
from attention_core.training.processes import gather

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = dict[str, Any]
Row = dict[str, Any]


class TaskOptions(TypedDict, total=False):
    """Options of every `Task`, which subclasses pass on."""

    optimizer: Required[Callable[..., Optimizer]]
    schedule: Callable[..., Any] | None
    layer_decay: float


class Task(LightningModule):
    """A model with a loss and metrics, logged as `{train,val,test}/{loss, <metric>}` per epoch.

    A subclass says what the loss is; a batch's `target` is the label and everything else is passed
    to the model by name (see `model_inputs`): `output = model(**inputs)`.

    Args:
        model: any module.
        optimizer: partial of a `torch.optim` class; called with decay groups.
        schedule: partial of a function of `optim.py` or of a class of torch.optim.lr_scheduler;
            see `schedule_rates`. None keeps the rate constant.
        layer_decay: the rate of each layer as a share of the one above, for fine-tuning: see
            `decay_groups`. 1 gives all the same.
        metrics: torchmetrics by name, copied for training, validation and test.

    `monitor` and `mode` name the validation value that picks the best checkpoint.

    The gradient of a step is that of the mean over all items (samples, or tokens: see `weight`) of
    its batches, accumulated ones and those of all processes, however many each of them has.
    """

    monitor = "val/loss"
    mode = "min"
    #: What the losses and gradients of a step, summed, still have to be multiplied by.
    rescaled = 1.0

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any] | None = None,
        layer_decay: float = 1.0,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.layer_decay = layer_decay
        collection = MetricCollection(dict(metrics or {}), compute_groups=False)
        stages = ("train", "val", "test")
        # "train" is taken: it is a method of every module.
        self.means = nn.ModuleDict({f"{stage}_mean": Mean() for stage in stages})
        self.measures = nn.ModuleDict({f"{stage}_metrics": collection.clone() for stage in stages})
        self.settings: dict[str, Any] = {}  # of the run, which decide what is trained
        self._unit: Tensor | None = None  # the weight that counts as 1 in this step
        self._weights: Tensor | float = 0.0  # the sum of its batches' weights, in units

    def configure_model(self) -> None:
        """Shard the model where the strategy does, once the processes of a run know each other."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDP2) and not isinstance(self.model, FSDPModule):
            strategy.shard(self.model, self.trainer.precision)

    # What an epoch has summed so far goes into its checkpoints, for each process: a metric is then
    # the same, bit for bit, whether or not the epoch was interrupted.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_metrics"] = gather(
            {name: _copied(metric.metric_state) for name, metric in self._train_metrics().items()}
        )

        checkpoint["trained_on"] = self._trained_on()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.state.fn != "fit":
            return
        # First of all: other data may also mean other weights, which say less of what is wrong
        check_unchanged(checkpoint["trained_on"], self._trained_on())
        of_each = checkpoint["train_metrics"]
        if len(of_each) != self.trainer.world_size:
            raise UsageError(
                f"run: {len(of_each)} processes wrote its checkpoint, but "
                f"{self.trainer.world_size} continue it. To continue exactly, start as many "
                "(trainer.devices, trainer.num_nodes)."
            )
        for name, metric in self._train_metrics().items():
            for part, value in of_each[self.trainer.global_rank][name].items():
                setattr(metric, part, move_data_to_device(value, self.device))

    def _trained_on(self) -> dict[str, Any]:
        data = getattr(self.trainer, "datamodule", None)
        return {**self.settings, **(data.fingerprint if isinstance(data, DataModule) else {})}

    def _train_metrics(self) -> dict[str, Metric]:
        collection = self.measures["train_metrics"]
        return {"loss": self.means["train_mean"], **dict(collection.items())}  # type: ignore[dict-item,operator]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Task":
        """Apply `fn` to all tensors, for every cast and move; metrics move, but keep their dtype:
        a sum over an epoch has not room enough in the dtype of the weights."""
        homes = [
            (home, name, metric)
            for home in self.modules()
            for name, metric in home.named_children()
            if isinstance(metric, Metric) and not isinstance(home, Metric)
        ]
        for home, name, _ in homes:
            home._modules[name] = None
        try:
            super()._apply(fn, recurse)
        finally:
            for home, name, metric in homes:
                home._modules[name] = metric
        for _, _, metric in homes if recurse else []:
            metric._apply(lambda tensor: tensor.to(fn(tensor).device))
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this around every hook, dozens of times a step, and each time a module
        # would ask whether it is a parameter, a buffer or a module: a fifth of the harness's cost
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights as `nn.Module` does; those of another model are named, the first of them.

        Raises:
            UsageError: a name or a shape differs.
        """
        ours = self.state_dict()
        differing = [
            f"{name} is missing" if name not in state_dict else f"{name} is not a part of it"
            for name in dict.fromkeys([*ours, *state_dict])
            if (name in ours) != (name in state_dict)
        ] + [
            f"{name} is {tuple(state_dict[name].shape)}, not {tuple(ours[name].shape)}"
            for name in ours
            if name in state_dict and state_dict[name].shape != ours[name].shape
        ]
        if strict and differing:
            more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UsageError(
                f"checkpoint: its weights are not those of {type(self.model).__name__} as "
                f"configured: {'; '.join(differing[:3])}{more}."
            )
        return super().load_state_dict(state_dict, strict, assign)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Return the loss to minimise, a mean over the batch's samples, or what `weight` counts."""
        raise NotImplementedError(f"{type(self).__name__}.loss must return the loss of a batch.")

    def samples(self, batch: Batch) -> int:
        """Return how many samples a batch has; by default as many as targets."""
        return len(target_of(batch))

    def weight(self, batch: Batch) -> Tensor | int:
        """Return how many items the loss of a batch is the mean of; by default its samples."""
        return self.samples(batch)

    def model_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return what of a batch the model is given, by name: everything but `target`. Override it
        where a batch also has what some models make nothing of."""
        return model_inputs(batch)

    def predict(self, batch: Batch, data: DataModule) -> Sequence[Row | list[Row]]:
        """Return what `attn predict` writes of a batch that `data` has read: a row per sample, as
        `predictions` does, or a list of rows per sample, one for each of its parts. Override it
        where more than one pass through the model is needed."""
        return self.predictions(self(**self.model_inputs(batch)))

    def predictions(self, output: Any) -> list[dict[str, Any]]:
        """Return one row per sample of what `attn predict` writes: values by column, the same
        columns in every row, of text, numbers and truth values."""
        raise UsageError(
            f"predict: {type(self).__name__} does not say what to write of an output. Write its "
            "method predictions(output), which returns a row (a dict) per sample."
        )

    def export_inputs(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return the inputs, for a batch, of the program that `attn export` writes: the model's
        arguments by name, and the names of those dimensions of each that vary with the batch.

        By default everything but `target`, each with as many rows as there are samples; what else
        differs from batch to batch, as the length of padded samples does, is found. Override it
        where the model also takes a form whose shapes say more, such as padded texts.
        """
        inputs = self.model_inputs(batch)
        for name, value in inputs.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                raise UsageError(
                    f"export: {name!r} is no tensor with a row per sample, got {value!r:.80}. "
                    f"Write {type(self).__name__}.export_inputs(batch), or export the weights "
                    "alone, by format=safetensors."
                )
        return inputs, {name: {0: "batch"} for name in inputs}

    def attention_figure(self, batch: Batch) -> "Figure | None":
        """Draw attention over one real input of `batch`, or return None; called after every run."""
        return None

    def figures(self, batch: Batch) -> dict[str, "Figure"]:
        """Draw the figures to write after testing, by file name, given the first test batch."""
        figure = self.attention_figure(batch)
        return {} if figure is None else {"attention": figure}

    def pages(self, batch: Batch) -> dict[str, str]:
        """Return the HTML pages to write beside the figures, by file name, given the same batch."""
        return {}

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._step(batch, "train")
        trainer = self.trainer
        if trainer.world_size * trainer.accumulate_grad_batches == 1:
            return loss
        # Lightning takes the mean over processes and accumulated batches, whatever is in them
        weight = torch.as_tensor(self.weight(batch), dtype=torch.float32, device=loss.device)
        mean = trainer.strategy.reduce(weight.clone(), reduce_op="mean")
        if self._unit is None:
            self._unit, self._weights = mean.clamp(min=1), 0.0
        weighed: Tensor = loss * (weight / self._unit)
        self._weights = self._weights + mean / self._unit
        return weighed

    def on_after_backward(self) -> None:
        """Scale the gradients of a step, which are summed over processes by now."""
        if self._unit is None or self.trainer.fit_loop._should_accumulate():
            return
        self._unit = None
        batches = self.trainer.accumulate_grad_batches
        if batches == 1:
            return
        self.rescaled = batches / max(float(self._weights), 1e-6)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self.rescaled)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test")

    def on_train_epoch_end(self) -> None:
        values = self._epoch_values("train")
        self.log_dict(values, logger=False)
        # Straight to the loggers: Lightning would hand these on only after the checkpoint of the
        # epoch is written, and a resumed run would never log them.
        numbers = {name: float(value) for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics({**numbers, "epoch": self.current_epoch}, step=self.global_step - 1)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._epoch_values("val"))

    def on_test_epoch_start(self) -> None:
        # Reset here and not at the end: the figures read the metrics after the test.
        self.means["test_mean"].reset()  # type: ignore[operator]
        self.measures["test_metrics"].reset()  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._epoch_values("test"))

    def configure_optimizers(self) -> Any:
        decay = getattr(self.optimizer, "keywords", {}).get("weight_decay", 0.0)
        groups = decay_groups(self.model, decay, self.layer_decay)
        try:
            optimizer = self.optimizer(groups)
        except (TypeError, ValueError) as error:
            raise UsageError(f"optimizer: {error}") from error
        check_eps(optimizer)
        scale_rates(optimizer)
        if self.schedule is None:
            return optimizer
        total = self.trainer.estimated_stepping_batches  # infinite where time alone ends the run
        schedule = schedule_rates(self.schedule, optimizer, total_steps=total, mode=self.mode)
        config = {"scheduler": schedule, "interval": "step"}
        if isinstance(schedule, ReduceLROnPlateau):
            config["monitor"] = self.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    def update_metrics(self, metrics: MetricCollection, output: Any, batch: Batch) -> None:
        """Add a batch to the metrics; override where they want more than (output, target)."""
        metrics.update(output, target_of(batch))

    def _step(self, batch: Batch, stage: str) -> Tensor:
        with refusals_of(self.model):
            output = self(**self.model_inputs(batch))
        loss = self.loss(output, batch)
        with torch.no_grad():
            self.means[f"{stage}_mean"].update(loss.detach(), weight=self.weight(batch))  # type: ignore[operator]
            self.update_metrics(self.measures[f"{stage}_metrics"], output, batch)  # type: ignore[arg-type]
        return loss

    def _epoch_values(self, stage: str) -> dict[str, Tensor]:
        """The scalars of the epoch that ends; starts the next one."""
        mean, metrics = self.means[f"{stage}_mean"], self.measures[f"{stage}_metrics"]
        values = {"loss": mean.compute(), **metrics.compute()}  # type: ignore[operator]
        if stage != "test":
            mean.reset()  # type: ignore[operator]
            metrics.reset()  # type: ignore[operator]
        return {f"{stage}/{name}": value for name, value in values.items() if value.ndim == 0}


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [part.cpu().clone() for part in value]
        if isinstance(value, list)
        else value.cpu().clone()
        for name, value in state.items()
    }


class ClassificationOptions(TaskOptions, total=False):
    """Options of every `ClassificationTask`, which subclasses pass on."""

    classes: Required[Sequence[str]]
    label_smoothing: float
    class_weights: Sequence[float] | None


class ClassificationTask(Task):
    """Cross-entropy over classes, with accuracy, macro F1 and a confusion matrix.

    The model returns logits (B, C); `target` holds class indices (B,).

    Args:
        classes: the names of the C classes, in the order of the labels.
        label_smoothing: the share of a label spread over all classes (Szegedy et al., 2016).
        class_weights: what a sample of each class counts for in every loss, in the order of
            `classes`; None for 1 each. Metrics count each sample once.
        settings: those of `Task`, without `metrics`.
    """

    monitor = "val/accuracy"
    mode = "max"
    #: The target that asks for nothing, where there is one.
    ignored: int | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[str],
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        **settings: Unpack[TaskOptions],
    ) -> None:
        if len(classes) < 2:
            numbers = (
                " Where targets are numbers, take a task of regression." if not classes else ""
            )
            raise UsageError(
                f"task.classes must name at least two classes, got {list(classes)}.{numbers}"
            )
        counts = None if class_weights is None else torch.tensor([*class_weights]).float()
        if counts is not None and not (len(counts) == len(classes) and counts.min() >= 0):
            raise UsageError(
                f"task.class_weights: {len(classes)} numbers of at least 0, one for each class, "
                f"are needed, got {class_weights}."
            )
        count = len(classes)
        super().__init__(model, metrics=self.class_metrics(count), **settings)
        self.classes = [str(name) for name in classes]
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", counts, persistent=False)
        self.confusion = MulticlassConfusionMatrix(
            count, ignore_index=self.ignored, validate_args=False
        )

    def class_metrics(self, count: int) -> dict[str, Metric]:
        """Return the metrics of `count` classes, by name."""
        shared: Any = {"ignore_index": self.ignored, "validate_args": False}
        return {
            "accuracy": MulticlassAccuracy(count, average="micro", **shared),
            "f1": MulticlassF1Score(count, average="macro", **shared),
        }

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        if output.ndim != 2 or output.shape[1] != len(self.classes):
            raise UsageError(
                f"model: logits of shape (B, {len(self.classes)}) expected, one per class, "
                f"got {tuple(output.shape)}."
            )
        target, smoothing, weights = target_of(batch), self.label_smoothing, self.class_weights
        with refusals_of_classes(target, (len(output),), len(self.classes)):
            if weights is None:
                return F.cross_entropy(output, target, label_smoothing=smoothing)
            # The mean over samples, not over their weights: so the batches of a step are put
            # together
            return F.cross_entropy(
                output,
                target,
                weight=weights,  # type: ignore[arg-type]
                label_smoothing=smoothing,
                reduction="none",
            ).mean()

    @torch.no_grad()
    def probabilities(self, batch: Batch) -> Tensor:
        """Compute the probability of each class for each sample of a batch, (B, C), in float32."""
        output: Tensor = self(**self.model_inputs(batch))
        return output.float().softmax(dim=-1)

    def predictions(self, output: Tensor) -> list[dict[str, Any]]:
        """Return `prediction`, the name of the likeliest class, its `probability`, and the
        probability of each class as `probability_<class>`."""
        # In the shortest digits that give the same float32 again
        shares = output.float().softmax(dim=-1).cpu().numpy().astype(str).astype(float)
        columns = [f"probability_{name}" for name in self.classes]
        return [
            {
                "prediction": self.classes[row.argmax()],
                "probability": row.max().item(),
                **dict(zip(columns, row.tolist(), strict=True)),
            }
            for row in shares
        ]

    def update_metrics(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        super().update_metrics(metrics, output, batch)
        if self.trainer.testing:
            self.confusion.update(output, batch["target"])

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self.confusion.reset()

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        # Here, where every process takes part; only one of them draws.
        self.counts = self.confusion.compute()

    def figures(self, batch: Batch) -> dict[str, "Figure"]:
        from attention_core.training.plots import confusion_matrix

        counts = self.counts.cpu().numpy()
        return {"confusion": confusion_matrix(counts, self.classes), **super().figures(batch)}
