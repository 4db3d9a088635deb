"""Installed packages, found without importing them."""

import importlib.util
import re
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

#: Projects whose module goes by another name.
_PROJECTS = {"sklearn": "scikit-learn"}


def is_installed(name: str) -> bool:
    """Return whether the top-level module of `name` is there; nothing is imported."""
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):  # no name, or __main__
        return False


def package_folder(name: str) -> Path | None:
    """Find the folder of a package, None where there is no such package. Nothing is imported, not
    even the package that `name` is in, as by `importlib.util.find_spec`."""
    top, *inner = name.split(".")
    if not all(part.isidentifier() for part in (top, *inner)):
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for part in inner:
        if spec is None or not spec.submodule_search_locations:
            return None
        top = f"{top}.{part}"
        spec = PathFinder.find_spec(top, list(spec.submodule_search_locations))
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0]).resolve() if places and Path(places[0]).is_dir() else None


def extra_of(package: str) -> str | None:
    """Return the extra of attention-core that installs the top-level module `package`, or None."""
    try:
        needs = requires("attention-core") or []
    except PackageNotFoundError:
        return None
    name = re.escape(_PROJECTS.get(package, package)).replace("_", "[-_.]")
    for need in needs:
        if found := re.match(rf"{name}\b.*\bextra == ['\"]([\w-]+)['\"]", need, re.IGNORECASE):
            return found[1]
    return None
