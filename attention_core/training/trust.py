"""Whose code a run folder may run: that of packages that the user, and not the folder, trusts."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attention_core.errors import UsageError
from attention_core.escape import shell_word
from attention_core.training.folder import RunFolder, read_config
from attention_core.training.installed import allowed_by, installed_roots
from attention_core.training.instantiate import targets
from attention_core.training.own import is_foreign, needed_config_dir
from attention_core.training.targets import OURS, is_within

Config = dict[str, Any]


def again(command: str, path: Path, allow: Iterable[str] | None) -> str:
    """Return the command line for the run in `path`, with the packages that have to be allowed."""
    return f"attn {command} run={shell_word(path)}{trusting(allow or ())}"


def trusting(names: Iterable[str]) -> str:
    """Return the end of a command that trusts the packages `names`, and finds them from where it is
    given: in the current folder."""
    names = list(names)
    place = needed_config_dir(names)
    allowed = allowed_by([Path(place)]) if place else []
    rest = [name for name in names if not is_within(name, allowed)]
    words = [shell_word(f"allow=[{','.join(rest)}]")] if rest else []
    words += ["--config-dir", shell_word(place)] if place else []
    return "".join(f" {word}" for word in words)


def trusted_config(folder: RunFolder, allow: Sequence[str], command: str) -> Config:
    """Read the configuration of a run folder, with no more in its `allow` than the user trusts:
    what is in `allow` here, and what the experiments of installed packages allow.

    Args:
        command: for which it is read, for the message.

    Raises:
        UsageError: it names code of other packages; says how they are allowed.
    """
    if isinstance(allow, str):
        raise UsageError(f"allow must be a list of names of packages, got {allow!r}.")
    config = read_config(folder)
    asked = config.get("allow")
    # Names alone: they become part of a command that the user may copy
    asked = [n for n in asked if _is_name(n)] if isinstance(asked, list) else []
    trusted, missing = list(allow), _beyond(config, asked, allow)
    if missing:
        trusted += allowed_by(installed_roots())
        missing = _beyond(config, asked, trusted)
    if missing:
        place, target = next(iter(missing.values()))
        names = [*allow, *missing]
        more = {"predict": " input=...", "export": " format=..."}.get(command, "")
        raise UsageError(
            f"{place}._target_: {target!r} is code of the package {next(iter(missing))!r}, and not "
            "of attention-core. A run folder can come from anybody, so other code in it runs only "
            f"where you say that you trust it: {again(command, folder.path, names)}{more} "
            f"(in Python: allow={names!r})."
        )
    return {
        **config,
        "allow": list(dict.fromkeys([n for n in asked if is_within(n, trusted)] + [*allow])),
    }


def _beyond(
    config: Config, asked: Iterable[str], trusted: Iterable[str]
) -> dict[str, tuple[str, str]]:
    """The packages that a configuration asks for and uses, and the user has not said to trust: for
    each a place that uses it, and the name there."""
    found: dict[str, tuple[str, str]] = {}
    for place, node in targets(config, ""):
        target = node["_target_"]
        for name in asked:
            if (
                isinstance(target, str)
                and is_within(target, [name])
                and not is_within(target, trusted)
                and not is_foreign(name)
                and name.partition(".")[0] not in OURS
            ):
                found.setdefault(name, (place, target))
    return found


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
