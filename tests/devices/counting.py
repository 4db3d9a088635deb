"""A device to count on: its tensors say `cuda:0` and compute on the CPU, so that no GPU is needed.

It counts what makes a GPU slow, and where in our code it comes from:

- waits: the host stands still until the device has come as far, as it does to read a number
  (`item`, `tolist`, `bool`), to learn a size (`nonzero`, `unique`, an index of bools), or to copy
  from memory that is not pinned;
- copies between host and device;
- kernels: operations that are neither views nor allocations, and launches in Triton, which here
  compute nothing and leave zeros. FlexAttention, which cannot be compiled for such tensors, is one
  kernel that computes in plain torch.

Operations that mix devices raise, as they do on a GPU. Our own operators run their real code on
these tensors, so they take the branches that a GPU takes. ::

    with CountingDevice() as device:
        model, x = device.moved(model), device.moved(x)
        with device.counting() as counts:
            model(x).sum().backward()
    assert not counts.waits, counts

A tensor is on the CPU for all that torch does in C++, so autograd needs no thread of a device and
nothing of torch is left changed: what is patched is put back on leaving. Counts are those of the
operations that torch dispatches; a kernel that CUDA splits or fuses otherwise is not seen.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from attention_core.backends.flex import compiled
from attention_core.backends.flex.eager import attend_blocks

T = TypeVar("T")

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")

_ROOT = Path(__file__).parents[2]
_OURS = tuple(f"{_ROOT / name}/" for name in ("attention_core", "vision", "graph", "nlp"))

#: What launches no kernel: views, and memory that nobody has written.
_VIEWS = frozenset(
    """_reshape_alias _unsafe_view alias as_strided chunk detach diagonal expand lift_fresh permute
    select slice split split_with_sizes squeeze t transpose unbind unfold unsqueeze view
    view_as_complex view_as_real""".split()  # noqa: SIM905
)
_ALLOCATIONS = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"])

#: What the host waits for, as its result is a number or has a size that the device knows alone.
_WAITS = {
    **dict.fromkeys(("_local_scalar_dense",), "item"),
    **dict.fromkeys(("nonzero", "masked_select", "equal", "bincount", "argwhere")),
    **dict.fromkeys(("_unique", "_unique2", "unique_dim"), "unique"),
    **dict.fromkeys(("unique_consecutive", "unique_dim_consecutive"), "unique_consecutive"),
}
_INDEXED = frozenset(["index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"])


#: Where no line of our code runs.
_OUTSIDE = "outside"


class Counts:
    """What happened, by what it was and where: waits, copies and kernels."""

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[tuple[str, str]] = Counter()

    @property
    def totals(self) -> tuple[int, int, int]:
        """How many waits, copies and kernels there were."""
        return self.waits.total(), self.copies.total(), self.kernels.total()

    def __str__(self) -> str:
        lines = ["{} waits, {} copies, {} kernels".format(*self.totals)]
        for kind, found in (("wait", self.waits), ("copy", self.copies)):
            lines += [f"  {n:4d} {kind}: {what} at {at}" for (what, at), n in found.most_common()]
        places = Counter[str]()
        for (_, at), n in self.kernels.items():
            places[at] += n
        lines += [f"  {n:4d} kernels at {at}" for at, n in places.most_common(12)]
        return "\n".join(lines)

    __repr__ = __str__


class CountedTensor(Tensor):
    """A tensor that says it is on `cuda:0`; `inner` holds its numbers, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> CountedTensor:
        made: CountedTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is not cls for kind in types):  # such as what traces masks: its own affair
            return NotImplemented
        if _device is None:
            raise RuntimeError("a CountedTensor is used after its CountingDevice was left")
        return _device._compute(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        if _device is not None:
            _device._wait("tolist")
        return self.inner.tolist()

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> CountedTensor:
        copied = CountedTensor(self.inner.clone())
        return copied.requires_grad_(self.requires_grad)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CountedTensor({self.inner})"


#: The one that is entered.
_device: CountingDevice | None = None


def _bare(x: Any) -> Any:
    return x.inner if isinstance(x, CountedTensor) else x


def _counted(x: Any) -> Any:
    return CountedTensor(x) if isinstance(x, Tensor) and not isinstance(x, CountedTensor) else x


def _is_cuda(device: object) -> bool:
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _is_pinned(x: Tensor) -> bool:
    base = x if x._base is None else x._base
    return getattr(x, "_pinned", False) or getattr(base, "_pinned", False)


class CountingDevice(TorchFunctionMode):
    """The device `cuda:0`, while it is entered.

    It is no mode of dispatch, as those have plans and layouts made anew with each call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counts | None = None
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        global _device
        if self is not _device:  # else it is entered again, inside of one of its own functions
            if _device is not None:
                raise RuntimeError("one CountingDevice is entered already")
            _device = self
            self._depth = 0
            self._patch()
        self._depth += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        global _device
        super().__exit__(*error)
        self._depth -= 1
        if not self._depth:
            _device = None
            self._patches.close()

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count what happens meanwhile."""
        before, self._counts = self._counts, Counts()
        try:
            yield self._counts
        finally:
            self._counts = before

    def moved(self, tree: T) -> T:
        """Return tensors, or nested ones, on this device, and modules themselves; uncounted."""
        if isinstance(tree, nn.Module):
            for module in tree.modules():
                for held in (module._parameters, module._buffers):
                    for name, x in held.items():
                        if x is not None:
                            own = CountedTensor(x.detach().clone())
                            held[name] = own.requires_grad_(x.requires_grad)  # type: ignore[assignment]
            return tree
        moved: T = tree_map(lambda x: CountedTensor(x.clone()) if type(x) is Tensor else x, tree)
        return moved

    # What is counted

    def _wait(self, what: str) -> None:
        if self._counts is not None:
            self._counts.waits[what, _where()] += 1

    def _copy(self, what: str, *, waits: bool) -> None:
        if self._counts is not None:
            self._counts.copies[what, _where()] += 1
        if waits:
            self._wait(f"copy {what}")

    def _kernel(self, what: str) -> None:
        if self._counts is not None:
            self._counts.kernels[what, _where()] += 1

    # What torch dispatches for tensors of this device

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace != "aten":
            own = OPDEFS.get(func.overloadpacket._qualified_op_name)
            if own is not None:
                with self:  # as an operator of ours may make tensors
                    return own._init_fn(*args, **kwargs)
        elif _is_composite(func):  # as they come where no gradient is taken
            return func.decompose(*args, **kwargs)
        if kwargs.get("device") == torch.device("meta"):
            return func(*tree_map(_bare, args), **kwargs)
        if name == "copy_" and isinstance(args[1], Tensor):
            return self._copy_into(*args, **kwargs)
        self._check_devices(name, args, kwargs)
        if name in _WAITS:
            self._wait(_WAITS[name] or name)
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            self._wait("repeat_interleave without output_size")
        elif name in _INDEXED:
            self._check_index(args[1])
        if name not in _VIEWS and name not in _ALLOCATIONS and name != "_local_scalar_dense":
            self._kernel(name)
        if func is torch.ops.aten.bmm.dtype:  # which a CPU has not
            found = _bare(args[0]).to(args[2]) @ _bare(args[1]).to(args[2])
        else:
            found = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
        if name in _ALLOCATIONS:
            found.zero_()
        if "out" in kwargs:
            return kwargs["out"]
        if name.endswith("_") and isinstance(args[0], Tensor):
            return args[0]
        return tree_map(_counted, found)

    def _copy_into(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(to, CountedTensor) and isinstance(source, CountedTensor):
            self._kernel("copy_")
        elif isinstance(to, CountedTensor):
            self._copy("to the device", waits=not (non_blocking and _is_pinned(source)))
        else:
            self._copy("to the host", waits=not (non_blocking and _is_pinned(to)))
        _bare(to).copy_(_bare(source))
        return to

    def _check_index(self, index: list[Tensor | None]) -> None:
        for one in index:
            if one is None:
                continue
            if one.dtype in (torch.bool, torch.uint8):
                self._wait("an index of bools")
            if not isinstance(one, CountedTensor):
                self._copy("of an index to the device", waits=True)

    def _check_devices(self, name: str, args: Any, kwargs: Any) -> None:
        """Raise for what a GPU refuses: tensors of two devices, numbers without axes aside.

        What torch's own derivatives make in C++ is on the CPU here, as the tensors are for it.
        """
        if torch._C._current_graph_task_id() != -1 and _where() == _OUTSIDE:
            return
        if name in _INDEXED:
            args = (args[0], *args[2:])
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and not isinstance(x, CountedTensor) and x.ndim:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, cuda:0 and cpu, in {name} at {_where()}"
                )

    # What is called with the device, or moves between it and the host

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        special = _SPECIAL.get(func)
        if special is not None:
            return special(self, func, *args, **kwargs)
        if not _is_cuda(kwargs.get("device")):
            return func(*args, **kwargs)
        del kwargs["device"]
        found = func(*args, **kwargs)
        if isinstance(found, CountedTensor):  # such as zeros_like, which was dispatched
            return found
        name = getattr(func, "__name__", str(func))
        if name not in _ALLOCATIONS:
            self._kernel(name)
        else:
            found.zero_()
        return tree_map(_counted, found)

    def _from_data(
        self, func: Any, data: Any, *args: Any, device: Any = None, **kwargs: Any
    ) -> Any:
        """`torch.tensor` and `torch.as_tensor`: from a list, always from memory not pinned."""
        if isinstance(data, CountedTensor):
            if device is not None and not _is_cuda(device):
                return self._to(Tensor.to, data, device, **kwargs)
            copied = data.clone().detach() if func is torch.tensor else data
            dtype = kwargs.get("dtype")
            return copied if dtype is None else copied.to(dtype)
        if isinstance(data, Tensor) and device is not None:
            return self._to(Tensor.to, func(data, *args, **kwargs), device)
        found = func(data, *args, **kwargs)
        if not _is_cuda(device):
            return found
        self._copy("to the device", waits=True)
        return CountedTensor(found)

    def _new_tensor(self, func: Any, x: Tensor, data: Any, **kwargs: Any) -> Tensor:
        device = kwargs.pop("device", x.device)
        kwargs["dtype"] = kwargs.get("dtype") or x.dtype
        return self._from_data(torch.tensor, data, device=device, **kwargs)  # type: ignore[no-any-return]

    def _to(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device = kwargs.pop("device", None)
        dtype = kwargs.pop("dtype", None)
        flags = iter(("non_blocking", "copy"))
        for one in (*args, kwargs.pop("other", None)):
            if isinstance(one, Tensor):
                device, dtype = one.device, one.dtype
            elif isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, bool):
                kwargs[next(flags)] = one
            elif one is not None:
                device = CUDA if isinstance(one, int) else torch.device(one)
        x = x if dtype is None and not kwargs.get("copy") else func(x, dtype or x.dtype, **kwargs)
        if device is None or _is_cuda(device) == isinstance(x, CountedTensor):
            return x
        if torch.device(device).type == "meta":
            return _bare(x).to(device)  # type: ignore[no-any-return]
        free = kwargs.get("non_blocking", False)
        if _is_cuda(device):
            self._copy("to the device", waits=not (free and _is_pinned(x)))
            return CountedTensor(x.detach().clone())
        self._copy("to the host", waits=True)
        return x.inner.clone()  # type: ignore[attr-defined, no-any-return]

    def _cuda(self, func: Any, x: Tensor, device: Any = None, **kwargs: Any) -> Tensor:
        return self._to(Tensor.to, x, CUDA, **kwargs)

    def _cpu(self, func: Any, x: Tensor, **kwargs: Any) -> Tensor:
        return self._to(Tensor.to, x, CPU)

    def _pin(self, func: Any, x: Tensor, device: Any = None) -> Tensor:
        pinned = x.clone()
        pinned._pinned = True  # type: ignore[attr-defined]
        return pinned

    def _asked_pinned(self, func: Any, x: Tensor, device: Any = None) -> bool:
        return _is_pinned(x)

    def _empty(self, func: Any, *size: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        if _is_cuda(kwargs.get("device")):
            del kwargs["device"]
            return CountedTensor(torch.zeros(*size, **kwargs))
        found: Tensor = func(*size, **kwargs)
        if pin_memory:
            found._pinned = True  # type: ignore[attr-defined]
        return found

    def _backward(
        self, func: Any, x: Tensor, gradient: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        with self:  # which torch leaves out inside of one of its own functions
            torch.autograd.backward(x, gradient, *args, **kwargs)

    def _sparse(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Sparse tensors are those of the CPU: they live inside of one function of ours."""
        self._kernel(func.__name__)
        kwargs.pop("device", None)
        return func(*tree_map(_bare, args), **tree_map(_bare, kwargs))

    def _flex(
        self, q: Any, k: Any, v: Any, lists: Any, size: int, mask: Any, score: Any, scale: float,
        needs_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Compute what a kernel of FlexAttention does; its backward pass is not one kernel here."""
        self._kernel("flex_attention")
        counts, self._counts = self._counts, None
        try:
            mods = (None if one is None else one.mod for one in (mask, score))
            out, lse = attend_blocks(q, k, v, lists, size, *mods, scale)
            return out, lse if needs_lse else None
        finally:
            self._counts = counts

    # What is no function of tensors

    def _patch(self) -> None:
        replaced: list[Any] = [
            patch.object(torch, "Generator", _Generator),
            patch.object(torch.cuda, "current_device", lambda: 0),
            patch.object(torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
        ]
        replaced.append(patch.object(compiled, "attend", self._flex))
        if find_spec("triton") is not None:
            from triton.runtime import autotuner, jit

            def launch(kernel: Any, *args: Any, **options: Any) -> None:
                while not isinstance(kernel, jit.JITFunction):
                    kernel = kernel.fn
                self._kernel(f"triton {kernel.fn.__name__}")

            kinds: list[Any] = [jit.JITFunction, autotuner.Autotuner, autotuner.Heuristics]
            replaced += [patch.object(kind, "run", launch) for kind in kinds]
        for one in replaced:
            self._patches.enter_context(one)


_SPECIAL: dict[Any, Callable[..., Any]] = {
    torch.tensor: CountingDevice._from_data,
    torch.as_tensor: CountingDevice._from_data,
    torch.empty: CountingDevice._empty,
    torch.sparse_csr_tensor: CountingDevice._sparse,
    torch.sparse.sampled_addmm: CountingDevice._sparse,
    Tensor.new_tensor: CountingDevice._new_tensor,
    Tensor.to: CountingDevice._to,
    Tensor.cuda: CountingDevice._cuda,
    Tensor.cpu: CountingDevice._cpu,
    Tensor.pin_memory: CountingDevice._pin,
    Tensor.is_pinned: CountingDevice._asked_pinned,
    Tensor.backward: CountingDevice._backward,
}

_RealGenerator = torch.Generator


class _GeneratorType(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RealGenerator)


class _Generator(metaclass=_GeneratorType):
    """Generators of the device draw on the CPU."""

    def __new__(cls, device: object = "cpu") -> torch.Generator:  # type: ignore[misc]
        return _RealGenerator("cpu")


@cache
def _is_composite(func: Any) -> bool:
    """Whether it is made of other operations, which are what is dispatched elsewhere."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _where() -> str:
    """The innermost line of our code that runs; a backward pass of torch's own has none."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS):
            return f"{name.removeprefix(f'{_ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return _OUTSIDE
