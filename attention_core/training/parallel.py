"""Larger models on existing engines: blocks that recompute or compile, and FSDP2 by block."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from attention_core.errors import UsageError
from attention_core.layers import Block
from attention_core.training.checkpoint import SHAPE, PlainCheckpointIO, shard_path


def blocks(model: nn.Module) -> list[Block]:
    """Return the blocks of `model`, by which it is recomputed, compiled and sharded."""
    return [module for module in model.modules() if isinstance(module, Block)]


def checkpoint_activations(model: nn.Module) -> None:
    """Let every block keep its input alone and compute the rest again in the backward pass (Chen et
    al., 2016): memory of one block instead of all, for about a third more time."""
    for block in blocks(model):
        # Not a wrapping module, which would rename every parameter in checkpoints
        block.forward = _recomputed(block.forward)  # type: ignore[method-assign]


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # A function, not a partial of `checkpoint`: torch.compile looks into functions of ours alone
    def recomputed(*args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return output

    return recomputed


def compile_blocks(model: nn.Module) -> None:
    """Compile every block with `torch.compile`: one small graph, compiled once for all of them."""
    for block in blocks(model):
        block.compile()


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism (Zhao et al., 2023; torch's `fully_shard`), block by block.

    Every process holds a share of each weight, its gradient and its optimizer state, and gathers a
    block while it computes it. A checkpoint is a folder, where each process writes its own shards
    as plain data; `load_checkpoint` puts them together, so that a sharded run is evaluated and
    exported like any other. (torch.distributed.checkpoint is not used: it reads pickles, and so
    would run code that lies in a checkpoint.)
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1)

    # The base class loads model and optimizers itself, from the format that it writes.
    lightning_restore_optimizer = True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, model: nn.Module, precision: str) -> None:
        """Shard each block and then what remains; called once the processes know each other.

        Args:
            model: the same weights in every process.
            precision: of the trainer. Under "bf16-mixed" weights are gathered and computed with as
                bfloat16, while gradients are summed and weights kept in float32. Those of a
                BatchNorm stay float32 throughout, as its running statistics do.
        """
        mesh = self.device_mesh["data_parallel"]
        policy = MixedPrecisionPolicy()
        if precision == "bf16-mixed":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    fully_shard(module, mesh=mesh)
        for module in [*blocks(model), model]:
            fully_shard(module, mesh=mesh, mp_policy=policy)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        path = Path(filepath)
        temporary = path.with_name(f".{path.name}.tmp")
        if self.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.barrier()
        self.checkpoint_io.save_checkpoint(
            _to_shards({**checkpoint, "processes": self.world_size}),
            shard_path(temporary, self.global_rank),
        )
        self.barrier()
        if self.is_global_zero:
            shutil.rmtree(path, ignore_errors=True)
            os.replace(temporary, path)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        assert isinstance(self.checkpoint_io, PlainCheckpointIO)
        content = self.checkpoint_io.load_shard(Path(checkpoint_path), self.global_rank)
        written_by = content.get("processes", 1)
        if written_by != self.world_size:
            raise UsageError(
                f"run: its checkpoint is sharded over {written_by} processes, but "
                f"{self.world_size} were started to continue it."
            )
        loaded: dict[str, Any] = self._from_shards(content)
        return loaded

    def _from_shards(self, value: Any) -> Any:
        if isinstance(value, dict):
            if SHAPE in value:
                shape = torch.Size(value[SHAPE])
                stride = torch.empty(shape, device="meta").stride()
                mesh = self.device_mesh["data_parallel"]
                local = value["local"].to(self.root_device)
                return DTensor.from_local(local, mesh, [Shard(0)], shape=shape, stride=stride)
            return {key: self._from_shards(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._from_shards(item) for item in value]
        return value


def _to_shards(value: Any) -> Any:
    """Replace every sharded tensor in `value` by this process's part of it."""
    if isinstance(value, DTensor):
        if value.placements != (Shard(0),):
            raise NotImplementedError(f"a tensor placed as {value.placements} cannot be saved")
        return {SHAPE: list(value.shape), "local": value.to_local().detach().cpu()}
    if isinstance(value, Mapping):
        return {key: _to_shards(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_shards(item) for item in value]
    return value
