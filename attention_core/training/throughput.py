"""How fast a run trains, and what it takes: tokens a second, FLOPs, memory."""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attention_core.backends.blocks.flops  # noqa: F401  # counts what `blocks` does
from attention_core.errors import UsageError
from attention_core.layers import Encoder
from attention_core.training.folder import RunFolder
from attention_core.training.in_one_sentence import refusals_of
from attention_core.training.metrics import CSVMetrics
from attention_core.training.task import Task


class Throughput(Callback):
    """Logs speed and memory every `log_every_n_steps` steps, to `speed.csv` and to the loggers.

    Not to `metrics.csv`, which is the same, byte for byte, whenever a run is repeated. The columns:

    - `speed/samples_per_second`, `speed/tokens_per_second`: over all processes, loading included,
      validation not. Tokens are those that enter an `Encoder`, padding too; without one there is
      no such column.
    - `speed/model_tflops`: floating-point operations of the model per second and device, in 10¹²:
      three times those of the forward pass (backward counts double, what activation checkpointing
      repeats does not), measured once, on the first batch, and scaled with the tokens, or samples.
    - `speed/mfu`: model FLOPs utilisation, that rate over the peak rate of the device (Chowdhery et
      al., PaLM, 2022); only where the peak is known.
    - `speed/memory_mib`: the most memory so far, of the GPU or else of the process.

    Args:
        peak_tflops: peak rate of one device; by default that of its data sheet, for known GPUs.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise UsageError(
                f"callbacks.throughput.peak_tflops must be positive, got {peak_tflops}."
            )
        self.peak_tflops = peak_tflops
        self._flops_each: float | None = None  # of a token, or of a sample where none are counted
        self._mark: float | None = None  # when the last batch ended; None: the next one starts anew
        self._seconds, self._samples, self._tokens = 0.0, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file = CSVMetrics(RunFolder(Path(trainer.default_root_dir)).speed)
        self._hooks = [
            module.register_forward_pre_hook(self._count)
            for module in pl_module.modules()
            if isinstance(module, Encoder)
        ]
        if self.peak_tflops is None and pl_module.device.type == "cuda":
            dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
            peak = get_available_flops(pl_module.device, dtype)
            self.peak_tflops = peak / 1e12 if peak else None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._flops_each is None:
            flops = _forward_flops(trainer, pl_module, batch)
            self._flops_each = 3 * flops / (self._tokens or pl_module.samples(batch))  # type: ignore[operator]
            self._tokens = 0
            self._mark = None
        if self._mark is None:
            self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        self._samples += pl_module.samples(batch)  # type: ignore[operator]
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = trainer.global_step % every == 0 and not trainer.fit_loop._should_accumulate()
        if due and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # steps are queued, not done
        now = time.perf_counter()
        assert self._mark is not None
        self._seconds += now - self._mark
        self._mark = now
        if due:
            self._log(trainer, pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, encoder: nn.Module, inputs: tuple[Any, ...]) -> None:
        if encoder.training or self._flops_each is None:
            self._tokens += inputs[0].shape[:-1].numel()

    def _log(self, trainer: Trainer, device: torch.device) -> None:
        rate = 1 / self._seconds
        counted = self._tokens or self._samples
        tflops = self._flops_each * counted * rate / 1e12  # type: ignore[operator]
        values = {"samples_per_second": self._samples * rate * trainer.world_size}
        if self._tokens:
            values["tokens_per_second"] = self._tokens * rate * trainer.world_size
        values |= {"model_tflops": tflops, "memory_mib": _peak_memory(device)}
        if self.peak_tflops is not None:
            values["mfu"] = tflops / self.peak_tflops
        row = {f"speed/{name}": value for name, value in values.items()}
        for logger in (self._file, *trainer.loggers):
            if logger is self._file or not isinstance(logger, CSVMetrics):
                logger.log_metrics(
                    {"epoch": trainer.current_epoch, **row}, step=trainer.global_step - 1
                )
        self._seconds, self._samples, self._tokens = 0.0, 0, 0


def _forward_flops(trainer: Trainer, task: LightningModule, batch: Any) -> int:
    """FLOPs of the forward pass. Runs the model once, in eval mode: nothing is changed or drawn."""
    modes = [(module, module.training) for module in task.modules()]
    task.eval()
    assert isinstance(task, Task)
    inputs = task.model_inputs(batch)
    counter = FlopCounterMode(display=False)
    # Not under no_grad, where the counter fails on views of parameters
    with (
        torch.compiler.set_stance("force_eager"),  # compiled code hides its operations
        trainer.precision_plugin.forward_context(),
        counter,
        refusals_of(task),
    ):
        task(**inputs)
    for module, mode in modes:
        module.training = mode
    return int(counter.get_total_flops())


def _peak_memory(device: torch.device) -> float:
    """MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere
