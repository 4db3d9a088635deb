"""What an argument must be: errors name it, what came and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from numbers import Real

import torch
from torch import Tensor, nn


def check_whole(least: int | None = 1, *, or_none: bool = False, **arguments: object) -> None:
    """Raise unless each argument is a whole number of at least `least`.

    Args:
        least: the smallest that is allowed; None for any.
        or_none: whether None is, too.
        arguments: by name.

    Raises:
        TypeError: an argument is no number.
        ValueError: it is a number, but not a whole one, or a smaller one.
    """
    if torch.compiler.is_compiling():  # sizes are symbols there
        return
    alternative = ", or None" if or_none else ""
    for name, value in arguments.items():
        if type(value) is int and (least is None or value >= least):
            continue
        # A size that an exported program leaves open is not looked at either
        if isinstance(value, torch.SymInt) or (or_none and value is None):
            continue
        if isinstance(value, bool) or not is_whole(value):
            error = ValueError if isinstance(value, float) else TypeError
            bound = "" if least is None else f" of at least {least}"
            what = f"a whole number{bound}{alternative}"
            raise error(f"{name} must be {what}, got {value!r}")
        if least is not None and int(value) < least:  # type: ignore[call-overload]
            raise ValueError(f"{name} must be at least {least}{alternative}, got {value!r}")


def check_whole_each(least: int | None = 1, **arguments: Iterable[object]) -> None:
    """Check each number in lists as `check_whole` does; none of the lists may be empty."""
    for name, values in arguments.items():
        given = list(values)
        if not given:
            raise ValueError(f"{name} must have a number for each axis, got none")
        for value in given:
            check_whole(least, **{name: value})  # type: ignore[arg-type]


def is_whole(value: object) -> bool:
    """Return whether a value stands for a whole number, as those of numpy and of tensors do."""
    if isinstance(value, int):
        return True
    try:  # arrays and tensors have the method, and only some of them the number
        operator.index(value)  # type: ignore[arg-type]
    except Exception:
        return False
    return getattr(value, "dtype", None) != torch.bool


def check_number(
    *,
    above: float | None = None,
    least: float | None = None,
    or_none: bool = False,
    **arguments: object,
) -> None:
    """Raise unless each argument is a finite number, above or at least a bound where one is given.

    Raises:
        TypeError: an argument is no number.
        ValueError: it is NaN or infinite, or out of bounds.
    """
    if torch.compiler.is_compiling():
        return
    for name, value in arguments.items():
        if or_none and value is None:
            continue
        what = "a finite number"
        what += "" if above is None else f" above {above:g}"
        what += "" if least is None else f" of at least {least:g}"
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be {what}, got {value!r}")
        low = (above is not None and value <= above) or (least is not None and value < least)
        if low or value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{name} must be {what}, got {value!r}")


def check_chance(**arguments: object) -> None:
    """Raise unless each argument is a chance in [0, 1).

    Raises:
        TypeError: an argument is no number.
        ValueError: it is out of bounds.
    """
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be in [0, 1), got {value!r}")
        if not 0 <= float(value) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_kind(kind: type, *, or_none: bool = True, **arguments: object) -> None:
    """Raise unless each argument is a `kind`, or None where that is allowed, too.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in arguments.items():
        if not isinstance(value, kind) and not (or_none and value is None):
            alternative = " or None" if or_none else ""
            raise TypeError(
                f"{name} must be of type {kind.__name__}{alternative}, got {type(value).__name__}"
            )


def check_dense(*, or_meta: bool = False, **tensors: Tensor | None) -> None:
    """Raise unless each tensor that is given is dense, and not without values on meta.

    Raises:
        ValueError: naming the argument.
    """
    for name, x in tensors.items():
        if x is not None and x.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got {x.layout}")
        if x is not None and not or_meta and x.is_meta:
            raise ValueError(f"{name} must be a tensor with values, got one on the meta device")


def may_look(x: Tensor) -> bool:
    """Return whether a check may look at numbers: those of a CPU alone, as any other device would
    have to be waited for, and not in a program that is compiled or exported."""
    compiler = torch.compiler
    return x.is_cpu and not (compiler.is_compiling() or compiler.is_exporting())


def check_index(count: int, shape: str, **tensors: Tensor) -> None:
    """Raise unless each tensor holds integers from 0 to `count` - 1.

    Only a CPU is asked for values, as another device would have to be waited for.

    Args:
        count: of what they are an index into.
        shape: "(P,)" or "(2, E)", in words.
        tensors: by name.

    Raises:
        ValueError: naming the argument.
    """
    sizes = shape.strip("()").rstrip(",").split(", ")
    for name, x in tensors.items():
        check_dense(**{name: x})  # type: ignore[arg-type]
        known = [int(n) for n in sizes if n.isdigit()]
        fits = x.ndim == len(sizes) and list(x.shape[: len(known)]) == known
        if not fits or x.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name} must hold integers {shape}, got {x.dtype} {tuple(x.shape)}")
        if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.numel():
            continue
        low, high = int(x.min()), int(x.max())
        if not 0 <= low <= high < count:
            raise ValueError(f"{name} runs from {low} to {high}, but must be 0 to {count - 1}")


def check_tokens(layer: nn.Module, shape: str, size: int | None = None, **tokens: object) -> None:
    """Raise unless each argument is a dense float tensor (..., D) that `layer` can multiply.

    Args:
        layer: a linear layer, see `check_dtype`.
        shape: of the tokens, in words.
        size: D, the layer's own by default.
        tokens: by name.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: of another size or dtype, or on the meta device while the layer is not.
    """
    weight = getattr(layer, "weight", None)
    for name, x in tokens.items():
        if type(x) is Tensor and isinstance(weight, Tensor) and x.dtype is weight.dtype:
            fits = x.ndim and x.shape[-1] == (layer.in_features if size is None else size)
            if fits and x.is_floating_point() and not x.is_sparse and not x.is_meta:
                continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor {shape}, got {type(x).__name__}")
        size = layer.in_features if size is None else size  # type: ignore[assignment]
        if x.ndim < 1 or x.shape[-1] != size or not x.is_floating_point() or x.is_sparse:
            sparse = "sparse " if x.is_sparse else ""
            raise ValueError(
                f"{name} must be float {shape.replace('D', str(size))}, got "
                f"{sparse}{x.dtype} {tuple(x.shape)}"
            )
        check_dtype(layer, **{name: x})


def check_dtype(layer: nn.Module, **tensors: Tensor) -> None:
    """Raise ValueError unless each tensor has the dtype of the layer's weights, and their device
    where that is none without values.

    Args:
        layer: what stands in its place, as in quantized models, has its own dtype.
        tensors: by name.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return
    for name, x in tensors.items():
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"{name} must have the dtype of the layer's weights, {weight.dtype}, got {x.dtype}"
            )
        if x.is_meta and not weight.is_meta:
            raise ValueError(f"{name} must be on {weight.device}, as the layer is, got meta")


def check_flag(**arguments: object) -> None:
    """Raise unless each argument is True or False: any text but "" would be taken for True.

    Raises:
        TypeError: naming the argument.
    """
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_choice(known: Iterable[object], **arguments: object) -> None:
    """Raise unless each argument is one of the known words, of which None may be one.

    Raises:
        ValueError: naming the argument, and what is known.
    """
    listed = list(known)
    for name, value in arguments.items():
        if not isinstance(value, str | None) or value not in listed:
            words = ", ".join(map(repr, listed))
            raise ValueError(f"{name} must be one of {words}; got {value!r:.80}")


def check_options(owner: object, options: Mapping[str, object], **reasons: str) -> None:
    """Raise where options that are passed on hold one that `owner` sets itself.

    Args:
        owner: what is made of them.
        options: by name.
        reasons: of each name that is taken, what to give instead.

    Raises:
        TypeError: naming the option.
    """
    for name, reason in reasons.items():
        if name in options:
            raise TypeError(f"{type(owner).__name__} takes no {name}=: {reason}")


def gpus() -> tuple[int, str]:
    """Return how many CUDA devices torch sees here, and the same in words."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has = f"{count} of them, cuda:0 to cuda:{count - 1}" if count else "none"
    if not count and torch.version.cuda is None and torch.version.hip is None:
        has += f": torch {torch.__version__} is built without CUDA"
    return count, has
