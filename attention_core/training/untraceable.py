"""Why a model could not be traced into a program: the line of it, and what to write there."""

from __future__ import annotations

import io
import linecache
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, suppress
from pathlib import Path

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import attention_core

Place = tuple[str, int]
#: A pattern of lines, and what to write there; the first that fits is said.
Advice = tuple[tuple[str, str], ...]

#: What a line does to a size that is open, by how it looks, and what to write in its place.
OF_SIZES: Advice = (
    (r"\blen\(", "write x.shape[0] in place of len(x)"),
    (
        r"\b(int|float|round)\(|\bmath\.",
        "keep a size as it is, x.shape[0], or x.shape[0] ** 0.5, without int, float and math",
    ),
    (r"\.tolist\(|\.split\(|\bfor\b|\bunbind\(", "compute all rows at once, and not one by one"),
    (r"", "let no line hold for some sizes alone"),
)
#: The same of what a tensor holds.
OF_VALUES: Advice = (
    (r"\.tolist\(|\bfor\b", "compute all rows at once, and not one by one"),
    (
        r"\bint\(|\bfloat\(|\.item\(|\brange\(|\blen\(",
        "take sizes from x.shape, and leave values in tensors",
    ),
    (
        r"",
        "choose by torch.where or a mask, and put checks under "
        "`if not torch.compiler.is_exporting():`",
    ),
)

_LIBRARIES = (Path(torch.__file__).parent, Path(attention_core.__file__).parent)


def explain(error: Exception, model: nn.Module, trace: Callable[[], object]) -> str:
    """Return in one sentence why tracing `model` failed.

    Args:
        error: what it raised.
        trace: does it again, to see where a size became a number, which torch's errors do not say.
    """
    advice: Advice = ()
    if isinstance(error, GuardOnDataDependentSymNode):
        frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
        place = own_line(frames, model)
        what, advice = "makes a number or a choice of what a tensor holds", OF_VALUES
    elif str(error).startswith("Constraints violated"):
        place = _where_a_size_was_fixed(model, trace)
        what, advice = "makes one number of a size that every batch has another of", OF_SIZES
    elif str(error).startswith(".numpy() is not supported"):
        frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
        place, what = own_line(frames, model), "leaves torch"
        advice = ((r"", "compute with tensors alone"),)
    else:
        place, what = None, ""
    if place is None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return " ".join(" ".join(lines[:2]).split())
    code = linecache.getline(*place).strip()
    do = next(do for pattern, do in advice if re.search(pattern, code))
    return f"line {place[1]} of {Path(place[0]).name} {what}, `{code:.100}`: {do}"


def own_line(frames: Iterable[Place], model: nn.Module) -> Place | None:
    """Return the innermost of the frames that lies in the folder of the model's own file."""
    file = getattr(sys.modules.get(type(model).__module__), "__file__", None)
    if file is None:
        return None
    folder = Path(file).parent
    # An environment may lie in that folder, too
    others = [other for other in _LIBRARIES if not folder.is_relative_to(other)]
    found = None
    for frame in frames:
        path = Path(frame[0])
        if path.is_relative_to(folder) and not any(map(path.is_relative_to, others)):
            found = frame
    return found


def _where_a_size_was_fixed(model: nn.Module, trace: Callable[[], object]) -> Place | None:
    seen = _Sizes(model)
    log = logging.getLogger(torch.fx.experimental.symbolic_shapes.__name__)
    before = log.level, log.propagate
    log.addHandler(seen)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with suppress(Exception), redirect_stderr(io.StringIO()):
            trace()
    finally:
        log.removeHandler(seen)
        log.setLevel(before[0])
        log.propagate = before[1]
    return next(iter([*seen.fixed, *seen.bounded]), None)


class _Sizes(logging.Handler):
    """Reads in torch's log, which is written as it happens, where a size was compared: to be one
    number, or otherwise."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.fixed: list[Place] = []
        self.bounded: list[Place] = []

    def emit(self, record: logging.LogRecord) -> None:
        compared = re.match(r"eval (Eq\(s\d+, \d+\))?", record.getMessage())
        if compared is None:
            return
        frames = [(f.filename, f.lineno or 0) for f in traceback.extract_stack()]
        place = own_line(frames, self.model)
        if place is not None:
            (self.fixed if compared[1] else self.bounded).append(place)
