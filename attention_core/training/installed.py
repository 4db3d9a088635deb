"""What installed packages bring: configurations of the entry-point group `attention_core.conf`,
and files.

A package that declares, in its pyproject.toml,

    [project.entry-points."attention_core.conf"]
    sound = "sound.conf"

has the YAML files of its package `sound.conf` found beside ours: `attn list` shows its experiments,
and its groups can be chosen. Ours come first, so it cannot replace one of them. Targets of its code
must still be allowed, in its experiments, with `allow: [sound]`; who has installed it trusts these,
in run folders, too. No package is imported to look into it.
"""

import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import yaml

from attention_core.escape import on_one_line
from attention_core.packages import package_folder

GROUP = "attention_core.conf"


def allowed_by(roots: Iterable[Path]) -> list[str]:
    """Return the packages that the experiments in the configuration folders `roots` allow."""
    found: dict[str, None] = {}
    for root in roots:
        for path in sorted((root / "experiment").rglob("*.yaml")):
            try:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (yaml.YAMLError, ValueError, OSError, RecursionError):
                continue  # it is named where it is asked for
            allow = content.get("allow") if isinstance(content, dict) else None
            if isinstance(allow, list):
                found.update((name, None) for name in allow if isinstance(name, str))
    return list(found)


def installed_roots() -> list[Path]:
    """Return the configuration folders of installed packages, by name.

    One that cannot be found is named on standard error and left out: it must not keep anybody from
    training something else.
    """
    roots = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        folder = package_folder(entry.value)
        if folder is None:
            print(
                f"attn: the configurations {entry.value!r} of {_package(entry)} are left out: "
                f"there is no such package, which its entry point {entry.name!r} names.",
                file=sys.stderr,
            )
        elif folder not in roots:
            roots.append(folder)
    return roots


def _package(entry: EntryPoint) -> str:
    return on_one_line(entry.dist.name) if entry.dist is not None else "an installed package"
