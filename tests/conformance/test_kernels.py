"""The suite once more with the kernels in numba, which take work of any size here.

Whatever a test of these modules asks of a backend, it asks of the backend's kernels.
"""

from collections.abc import Callable, Iterator
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch

from attention_core.backends import fast
from tests.conformance import (
    test_derivatives,
    test_empty,
    test_finite,
    test_scores,
    test_values_and_gradients,
)

pytest.importorskip("numba")

BACKENDS = ["blocks", "edges"]
#: Those that `make test` has time for.
QUICK = [test_empty, test_scores, test_values_and_gradients]
MODULES = [
    test_derivatives,
    test_empty,
    test_finite,
    test_scores,
    test_values_and_gradients,
]


def cases(module: ModuleType) -> Iterator[Any]:
    """The tests of a module that are asked of one of `BACKENDS`, each with its arguments."""
    for name, test in vars(module).items():
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        if not name.startswith("test_") or not marks:
            continue
        for values in product(*(mark.args[1] for mark in marks)):
            arguments: dict[str, Any] = {}
            for mark, value in zip(marks, values, strict=True):
                value = value.values if hasattr(value, "marks") else value
                names = mark.args[0]
                names = names.replace(" ", "").split(",") if isinstance(names, str) else names
                value = value if len(names) > 1 or hasattr(value, "_fields") else (value,)
                arguments |= zip(names, value, strict=True)
            if arguments.get("backend") in BACKENDS:
                # Of functions and objects their names, as processes shall agree on them
                words = "-".join(
                    str(x if isinstance(x, str | int | torch.dtype) else getattr(x, "name", "x"))
                    for x in arguments.values()
                )
                slow = [] if module in QUICK else [pytest.mark.slow]
                yield pytest.param(test, arguments, id=f"{name}-{words}", marks=slow)


CASES = [case for module in MODULES for case in cases(module)]


def test_there_are_cases() -> None:
    assert len(CASES) > 300


@pytest.mark.parametrize(("test", "arguments"), CASES)
def test_with_kernels(
    test: Callable[..., None],
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setenv(fast.SWITCH, "always")
    code = test.__code__
    wanted = code.co_varnames[: code.co_argcount]
    fixtures = {name: request.getfixturevalue(name) for name in wanted if name not in arguments}
    test(**arguments, **fixtures)
