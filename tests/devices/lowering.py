"""Lower compiled programs for a GPU that is not there: Inductor's code, its kernels in machine
code.

`torch.compile(f, backend=Lowering(90))` runs dynamo and autograd on tensors of the CPU, moves both
graphs, as fake tensors, to a GPU of that capability, and has Inductor write what it would run
there, forward and backward. (Autograd itself refuses fake tensors of a GPU where there is none.)
Nothing is run: calls end in `NotRun`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
import torch.nn.attention.flex_attention as flex
import triton
from torch import fx
from torch._guards import TracingContext, tracing
from torch._inductor import compile_fx
from torch._inductor.codecache import PyCodeCache
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_map
from torch.utils._triton import has_triton

from tests.devices.ahead import Compiled, numbers, standing_in

CUDA = torch.device("cuda", 0)
#: Processors, and bytes of shared memory that a program may have.
KINDS = {80: ("A100", 108, 166_912), 90: ("H100", 132, 232_448)}


class NotRun(RuntimeError):
    """What is lowered for another machine has been called."""


class _Written(Exception):
    """Inductor has written its code, which is all that it shall do."""


class Lowering:
    """A backend of `torch.compile` that lowers for a GPU of a compute capability, as 90.

    Attributes:
        sources: what Inductor wrote, one text for each graph: forward, then backward.
    """

    def __init__(self, capability: int, cache: Path) -> None:
        self.capability, self.cache = capability, cache
        self.sources: list[str] = []

    def __call__(self, graph: fx.GraphModule, inputs: Any) -> Any:
        return compile_fx.compile_fx(graph, inputs, inner_compile=self._lower)

    def _lower(self, graph: fx.GraphModule, inputs: Any, **options: Any) -> Any:
        mode = FakeTensorMode()
        inputs = _moved(graph, inputs, mode)

        def write(lowering: GraphLowering) -> Any:
            self.sources.append(lowering.codegen()[0].value)
            raise _Written

        with (
            _gpu(self.capability),
            standing_in(self.capability, self.cache),
            mock.patch.object(GraphLowering, "compile_to_module", write),
            tracing(TracingContext(mode)),
            V.set_fake_mode(mode),
        ):
            try:
                compile_fx.compile_fx_inner(graph, inputs, **options)
            except Exception as error:
                if not isinstance(_first(error), _Written):
                    raise

        def call(*args: Any) -> Any:
            raise NotRun("lowered for another machine")

        call._boxed_call = True  # type: ignore[attr-defined]
        return call

    def compile(self) -> list[Compiled]:
        """Compile every kernel that Inductor wrote, in the first of its configurations."""
        found: list[Compiled] = []
        for source in self.sources:
            kernels = re.findall(r"async_compile\.triton\('(\w+)', '''\n(.*?)\n'''", source, re.S)
            for name, text in kernels:
                with _gpu(self.capability), standing_in(self.capability, self.cache):
                    tuner = getattr(PyCodeCache.load(text), name)
                    found.append(_compiled(tuner))
        return found


@contextmanager
def lowering(capability: int, cache: Path) -> Iterator[Lowering]:
    """Lower what is compiled with this backend; flex attention, too, whose backward pass on a CPU
    torch refuses to compile.

    Args:
        cache: a folder to keep nothing in that was compiled before.
    """
    with (
        mock.patch.object(flex, "_validate_device", lambda *tensors: None),
        inductor_config.patch(compile_threads=1, fx_graph_cache=False, max_autotune=False),
        functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
    ):
        yield Lowering(capability, cache)


def _moved(graph: fx.GraphModule, inputs: Any, mode: FakeTensorMode) -> list[Any]:
    """Move a graph, and those in it, to the GPU; and its inputs, which are returned."""
    torch._C._ensureCUDADeviceGuardSet()

    def move(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        with mode:
            return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=CUDA)

    for module in graph.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            if "val" in node.meta:
                node.meta["val"] = tree_map(move, node.meta["val"])
            if isinstance(node.kwargs.get("device"), torch.device):
                node.kwargs = {**node.kwargs, "device": CUDA}
            # Which a GPU writes whenever there is a gradient, and a CPU only where it is asked for
            node.args = tuple(
                {**arg, "OUTPUT_LOGSUMEXP": True}
                if isinstance(arg, dict) and "OUTPUT_LOGSUMEXP" in arg
                else arg
                for arg in node.args
            )
    graph.recompile()
    inputs = [move(x) for x in inputs]
    FakeTensorProp(graph, mode=mode).propagate_dont_convert_inputs(*inputs)
    return inputs


def _compiled(tuner: Any) -> Compiled:
    kernels: list[Any] = []
    compile_ = triton.compile

    def kept(*args: Any, **options: Any) -> Any:
        kernels.append(compile_(*args, **options))
        return kernels[-1]

    log = io.StringIO()
    with (
        mock.patch.object(triton, "compile", kept),
        redirect_stdout(log),
    ):
        tuner._precompile_config(tuner.configs[0])
    metadata = kernels[0].metadata
    return Compiled(metadata.name, metadata.num_warps, *numbers(log.getvalue()), metadata.shared)


@contextmanager
def _gpu(capability: int) -> Iterator[None]:
    """What torch says of a GPU, for Inductor to ask."""
    name, processors, shared = KINDS[capability]
    properties = SimpleNamespace(
        name=name, major=capability // 10, minor=capability % 10, total_memory=80 << 30,
        multi_processor_count=processors, max_threads_per_multi_processor=2048, warp_size=32,
        regs_per_multiprocessor=65536, shared_memory_per_block=49_152, gcnArchName="",
        shared_memory_per_block_optin=shared, shared_memory_per_multiprocessor=shared + 1024,
        L2_cache_size=50 << 20, is_integrated=0,
    )  # fmt: skip
    known = {
        "is_available": True, "device_count": 1, "current_device": 0, "_lazy_init": None,
        "get_device_properties": properties, "_get_device_properties": properties,
        "get_device_capability": divmod(capability, 10), "get_device_name": name,
        "synchronize": None, "set_device": None, "is_current_stream_capturing": False,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
        "_exchange_device": 0, "_maybe_exchange_device": 0,
    }  # fmt: skip
    with ExitStack() as patches:
        # What is asked once: it may have been before, and will be after, without this GPU
        has_triton.cache_clear()
        patches.callback(has_triton.cache_clear)
        patches.enter_context(mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        for function, answer in known.items():
            said = mock.Mock(return_value=answer)
            patches.enter_context(mock.patch.object(torch.cuda, function, said, create=True))
        yield


def _first(error: BaseException) -> BaseException:
    """What an error was raised from, at the bottom."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error
