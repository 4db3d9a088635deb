"""Packages of the user's own: which may be trusted with running, and where they are found.

They are looked for among what is installed and, behind that, in the folders of the user's: that of
`--config-dir` and the current one. Those serve the trusted names and nothing else. On `sys.path` a
folder would serve every name that is asked for, such as that of an optional package which some
library tries to import: a `hydra_plugins`, an `accelerate.py` that lies there would run.
"""

import functools
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

from attention_core.errors import UsageError
from attention_core.training.folder import from_here
from attention_core.training.targets import OURS

TOLD = "ATTENTION_CORE_SERVES"
UNKNOWN = "FOLDER_WITH_ITS_CODE"  # in a command, to be filled in

# Where attention-core is run from its sources, nothing says what it requires
_CORE = (
    *("attention-core", "torch", "torchvision", "torch-geometric", "lightning", "hydra-core"),
    *("torchmetrics", "jinja2", "matplotlib", "numpy", "pyyaml", "rich", "safetensors"),
)


class _Finder:
    """Finds the trusted top-level modules in the user's folders; the last of `sys.meta_path`."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.names: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or name not in self.names:
            return None
        return PathFinder.find_spec(name, self.places)


_finder = _Finder()


def serve(folders: Iterable[Path]) -> None:
    """Let trusted packages be imported from `folders`, whatever was served before."""
    _finder.places = [str(folder.resolve()) for folder in folders]
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    _tell_children()


def serve_as_parent() -> None:
    """Serve what the process serves that has started this one, such as to load its data."""
    told = json.loads(os.environ[TOLD])
    _finder.names.update(told["names"])
    serve(map(Path, told["places"]))


def _tell_children() -> None:
    # Where they are not forked, multiprocessing hands them sys.path, but not sys.meta_path
    told = {"places": _finder.places, "names": sorted(_finder.names)}
    os.environ[TOLD] = json.dumps(told)


def served() -> list[Path]:
    """Return the folders that trusted packages are looked for in, beside what is installed."""
    return [Path(place) for place in _finder.places]


def trust(names: Iterable[str]) -> None:
    """Let the packages `names` be found in the served folders.

    Raises:
        UsageError: one of them is Python's own or one that attention-core is made of: they hold
            functions that do anything, so the word of a user is no answer there.
    """
    for name in names:
        parts = name.split(".") if isinstance(name, str) else [""]
        if not all(part.isidentifier() and not part.startswith("_") for part in parts):
            raise UsageError(f"allow: {name!r} is no name of a package.")
        if is_foreign(name):
            raise UsageError(
                f"allow: {name!r} cannot be allowed: it is Python's, or is what attention-core is "
                "made of, and never safe as a target as a whole. Of such packages a configuration "
                "may name what attention_core.training.targets lists; for more, call it from a "
                "package of your own."
            )
        root = name.partition(".")[0]
        if root not in _finder.names:
            _finder.names.add(root)
            _tell_children()


def is_foreign(name: str) -> bool:
    """Return whether `name` is in the standard library or in what ours need, directly or not."""
    root = name.partition(".")[0]
    return root in sys.stdlib_module_names or (root not in OURS and root in _needed())


def lies_unserved(name: str) -> bool:
    """Return whether a module is in the served folders, but not among the trusted."""
    root = name.partition(".")[0]
    return root not in _finder.names and PathFinder.find_spec(root, _finder.places) is not None


def needed_config_dir(names: Sequence[str]) -> str:
    """Return the `--config-dir` with which a command that is given in the current folder finds the
    packages `names`: "" where it needs none, UNKNOWN where only the user can tell.

    Nothing is imported, and nothing but the user's words and the current folder is asked.
    """
    given = served()[:-1]  # the last is the current folder
    if given and names:
        return from_here(given[0])
    specs = {root: _spec(root) for root in dict.fromkeys(n.partition(".")[0] for n in names)}
    missing = [root for root, spec in specs.items() if not _is_module(spec)]
    return hiding(missing) or (UNKNOWN if None in specs.values() else "")


def hiding(names: Sequence[str]) -> str:
    """Return the folder of the current one that has the modules `names` in it, and the name of one
    of them, or "". As `attn new-domain tides` writes tides/tides.py: before the module the folder
    is found, as a package without __init__.py."""
    for folder in names:
        inside = [str(Path.cwd() / folder)]
        if all(_is_module(PathFinder.find_spec(name, inside)) for name in names):
            return folder
    return ""


def _spec(root: str) -> ModuleSpec | None:
    with suppress(ImportError, ValueError):  # of __main__
        found = importlib.util.find_spec(root)
        if _is_module(found):
            return found
    return PathFinder.find_spec(root, [os.getcwd()])


def _is_module(spec: ModuleSpec | None) -> bool:
    return spec is not None and spec.origin is not None


@functools.cache
def _needed() -> frozenset[str]:
    """The top-level modules of all that attention-core requires, but for its developers' tools."""
    found: dict[str, Distribution] = {}
    waiting = list(_CORE)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for requirement in found[name].requires or ():
            extra = re.search(r"extra *== *['\"]([^'\"]+)", requirement)
            if extra is None or (name == "attention-core" and extra[1] not in ("dev", "all")):
                required = re.match(r"[\w.-]+", requirement)
                waiting += [re.sub(r"[-_.]+", "-", required[0]).lower()] if required else []
    found.pop("attention-core", None)
    # setuptools comes with many an environment, whether or not it is asked for
    return frozenset({"pip", "pkg_resources", "setuptools"}.union(*map(_modules, found.values())))


def _modules(package: Distribution) -> set[str]:
    listed = package.read_text("top_level.txt")
    if listed:
        return set(listed.split())
    tops = {(file.parts[0], len(file.parts) > 1) for file in package.files or ()}
    return {name if inside else name.partition(".")[0] for name, inside in tops}
