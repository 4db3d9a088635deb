"""What signatures and docstrings say of public classes and functions, in all packages."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from attention_core.training import DataModule, RegressionTask
from attention_core.training.new_domain import TASKS, new_domain
from nlp.data import TextFiles
from vision.data import Digits
from vision.tasks import ImageClassification

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("attention_core", "vision", "graph", "nlp")
EXAMPLES = sorted(ROOT.glob("examples/*/*.py"))


def modules() -> Iterator[ModuleType]:
    """Every public module of the packages."""
    for package in PACKAGES:
        yield importlib.import_module(package)
        inner = pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
        names = [found.name for found in inner if "._" not in found.name]
        yield from map(importlib.import_module, names)


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def public_classes(module: ModuleType) -> Iterator[type]:
    """The public classes that a module defines."""
    for name, found in vars(module).items():
        if inspect.isclass(found) and found.__module__ == module.__name__ and name[0] != "_":
            yield found


def untyped(kind: type) -> str | None:
    """Return how the constructor that a class writes takes options that no editor knows."""
    if not inspect.isfunction(vars(kind).get("__init__")) or getattr(kind, "_is_protocol", False):
        return None  # inherited, written in C, or of typing
    for parameter in inspect.signature(kind.__init__).parameters.values():  # type: ignore[misc]
        typed = "Unpack" in str(parameter.annotation)
        loose = parameter.annotation in (Any, "Any", object, "object", parameter.empty)
        if parameter.kind is parameter.VAR_KEYWORD and loose and not typed:
            return f"{kind.__module__}.{kind.__qualname__}(**{parameter.name})"
    return None


def test_no_public_constructor_takes_options_that_no_editor_knows() -> None:
    found = [untyped(kind) for module in modules() for kind in public_classes(module)]
    assert not list(filter(None, found))


def test_examples_and_what_new_domain_writes_have_typed_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in TASKS:
        new_domain(f"tides_{task}", tmp_path, task)
    for path in (*EXAMPLES, *tmp_path.glob("*.py")):
        kinds = list(public_classes(load(path, monkeypatch)))
        assert any(issubclass(kind, DataModule) for kind in kinds)
        assert not list(filter(None, map(untyped, kinds)))


def test_untyped_options_are_found() -> None:
    class Loose:
        def __init__(self, size: int, **options: Any) -> None: ...

    assert "Loose(**options" in str(untyped(Loose))
    assert untyped(Digits) is untyped(ImageClassification) is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Digits(batch_size=2, rotatoin=3), r"Digits .*'rotatoin'. Did you mean rotation"),
        (lambda: Digits(bach_size=2), r"Digits .*'bach_size'. Did you mean batch_size"),
        (
            lambda: TextFiles(root=".", vocab_size=9, batch_size=1, objectiv=None),
            "TextFiles .*'objectiv'. Did you mean objective",
        ),
        (
            lambda: ImageClassification(
                nn.Identity(), classes=["a", "b"], optimizer=torch.optim.SGD, mix_up=0.1
            ),
            "ImageClassification .*'mix_up'. Did you mean mixup",
        ),
        (
            lambda: RegressionTask(nn.Identity(), optimizer=torch.optim.SGD, lose="squared"),
            "RegressionTask .*'lose'. Did you mean loss",
        ),
    ],
)
def test_a_misspelt_option_is_answered_with_the_nearest_of_all_that_a_class_takes(
    call: Any, said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        call()


# -------------------------------------------------------------- the first words of a docstring

#: Of anything, and of what can be called: it says first what it does, "Return the ...".
NEVER = re.compile(r"(What|The same|As|Of)\b")
NEVER_OF_CALLS = re.compile(r"(The|A|An|Those|Whether|How)\b|[(`]")


def documented(module: ModuleType) -> Iterator[tuple[str, str, bool]]:
    """Yield name and docstring of what a module defines, and whether it can be called."""
    assert module.__file__ is not None

    def inside(node: ast.AST, place: str) -> Iterator[tuple[str, str, bool]]:
        for part in ast.iter_child_nodes(node):
            if not isinstance(part, ast.ClassDef | ast.FunctionDef) or part.name[0] == "_":
                continue
            said = ast.get_docstring(part)
            calls = isinstance(part, ast.FunctionDef)
            decorators = [ast.unparse(one) for one in part.decorator_list]
            if said is not None:
                attribute = any(word in "".join(decorators) for word in ("property", "computed"))
                yield f"{place}.{part.name}", said, calls and not attribute
            if isinstance(part, ast.ClassDef):
                yield from inside(part, f"{place}.{part.name}")

    yield from inside(ast.parse(Path(module.__file__).read_text()), module.__name__)


def test_public_docstrings_say_first_what_it_does() -> None:
    wrong = [
        f"{name}: {said.splitlines()[0]}"
        for module in modules()
        for name, said, calls in documented(module)
        if NEVER.match(said) or (calls and NEVER_OF_CALLS.match(said))
    ]
    assert not wrong, "\n".join(wrong)
