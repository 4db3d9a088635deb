"""Configurations that come with installed packages: the entry-point group `attention_core.conf`.

A package that declares, in its pyproject.toml,

    [project.entry-points."attention_core.conf"]
    sound = "sound.conf"

has the YAML files of its package `sound.conf` found beside ours: `attn list` shows its experiments,
and its groups can be chosen. Ours come first, so it cannot replace one of them. Targets of its code
must still be allowed, in its experiments, with `allow: [sound]`.
"""

import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from attention_core.training.escape import on_one_line

GROUP = "attention_core.conf"


def installed_roots() -> list[Path]:
    """The configuration folders of installed packages, by name.

    One that cannot be found is named on standard error and left out: it must not keep anybody from
    training something else.
    """
    roots = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        folder = _folder(entry)
        if folder is None:
            print(
                f"attn: the configurations {entry.value!r} of {_package(entry)} are left out: "
                f"there is no such package, which its entry point {entry.name!r} names.",
                file=sys.stderr,
            )
        elif folder not in roots:
            roots.append(folder)
    return roots


def _folder(entry: EntryPoint) -> Path | None:
    try:
        spec = importlib.util.find_spec(entry.value)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0]).resolve() if places and Path(places[0]).is_dir() else None


def _package(entry: EntryPoint) -> str:
    return on_one_line(entry.dist.name) if entry.dist is not None else "an installed package"
