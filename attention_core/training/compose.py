"""Configurations by name: Hydra composes them, and mistakes are explained in one sentence.

The groups come from the package `attention_core.conf` (the repository's `conf/`) and from the
folder given as `--config-dir`. Never from `pkg://conf`: that would be whatever `conf` the current
folder holds.
"""

import importlib.resources
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from attention_core.training.errors import UsageError, did_you_mean

CONF = "attention_core.conf"


def config_roots(config_dir: Path | None) -> list[Path]:
    """The folders that configuration is looked for in.

    Raises:
        UsageError: `config_dir` is not a folder.
    """
    roots = [Path(str(importlib.resources.files(CONF)))]
    if config_dir is not None:
        if not config_dir.is_dir():
            raise UsageError(f"--config-dir: {str(config_dir)!r} is not a folder.")
        roots.append(config_dir.resolve())
    return roots


def options(group: str, roots: Iterable[Path]) -> list[str]:
    """The choices of a group, nested ones as `vision/digits`."""
    return sorted(
        path.relative_to(root / group).with_suffix("").as_posix()
        for root in roots
        for path in (root / group).rglob("*.yaml")
    )


def about(roots: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The `about` section of every experiment, by name."""
    found = {}
    for root in roots:
        for name in options("experiment", [root]):
            content = yaml.safe_load((root / "experiment" / f"{name}.yaml").read_text()) or {}
            found[name] = content.get("about") or {}
    return found


def run_hydra(
    job: Callable[[dict[str, Any], Path], Any],
    overrides: list[str],
    *,
    flags: list[str],
    config_dir: Path | None,
) -> None:
    """Composes the configuration and calls `job(config, folder)`, once or once per sweep job.

    Raises:
        UsageError: in place of what Hydra raises for a wrong name, key or value.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    roots = config_roots(config_dir)
    check_choices(overrides, roots)
    _register_resolvers()
    # Hydra's own report prints and exits; with this it raises, and we report. A user who has set
    # it sees every traceback.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    mistakes: list[Exception] = []

    def task(composed: DictConfig) -> Any:
        choices = HydraConfig.get().runtime.choices
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            return job({"experiment": choices.get("experiment"), **config}, folder)  # type: ignore[dict-item]
        except (UsageError, OmegaConfBaseException) as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise  # Hydra adds a line that names the job
            mistakes.append(error)
            return None

    argv = sys.argv
    extra = [f"--config-dir={roots[1]}"] if config_dir else []
    sys.argv = ["attn", *flags, *extra, *overrides]
    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name="config")(task)()
        if mistakes:
            raise mistakes[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides, roots) from error
    finally:
        sys.argv = argv


def check_choices(overrides: Iterable[str], roots: list[Path]) -> None:
    """Checks the form of the overrides, and the choices made among groups.

    Raises:
        UsageError: naming the nearest choice.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals and not key.startswith("~"):
            raise UsageError(f"{override!r}: an override is written key=value, as in seed=2.")
        group = key.lstrip("+")
        if group.startswith(("~", "hydra")):
            continue
        known = options(group, roots) if re.fullmatch(r"[\w/]+", group) else []
        for choice in value.split(",") if known else []:
            choice = choice.strip().strip("'\"")
            if choice not in known and re.fullmatch(r"[\w/.-]+", choice) and choice != "null":
                raise UsageError(
                    f"{group}: there is no {choice!r}.{did_you_mean(choice, known)}"
                    f" There are {', '.join(known)}."
                )


def explain(error: Exception, overrides: list[str], roots: list[Path]) -> UsageError:
    """The error that Hydra raised, as what a user needs to know."""
    message = str(error)
    wrong = re.search(r"Could not (?:override|delete) '?([\w./@]+)'?", message)
    if wrong:
        key = wrong.group(1).rstrip(".")
        near = did_you_mean(key, _known_keys(overrides, roots))
        return UsageError(
            f"{key}: not a key of this configuration.{near} A key that is new on purpose is "
            f"written with a plus: +{key}=..."
        )
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "reference"))
    ]
    return UsageError(" ".join(lines))


def _known_keys(overrides: list[str], roots: list[Path]) -> list[str]:
    """All keys of the configuration that the group choices among `overrides` give."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    chosen = [o for o in overrides if options(o.partition("=")[0].lstrip("+"), roots)]
    chosen = [o.split(",")[0] for o in chosen]
    if len(roots) > 1:
        chosen.append(f"hydra.searchpath=[file://{roots[1]}]")
    try:
        with initialize_config_module(CONF, version_base="1.3"):
            config = OmegaConf.to_container(compose("config", chosen), resolve=False)
    except HydraException:
        return []
    return list(_flatten(config, ""))


def _flatten(config: Any, place: str) -> Iterable[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            full = f"{place}.{key}" if place else str(key)
            yield full
            yield from _flatten(value, full)


def _register_resolvers() -> None:
    """`${count:${data.classes}}`: how many; `${slug:a/b}`: as part of a file name."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("count", len, replace=True)
    OmegaConf.register_new_resolver("slug", lambda name: str(name).replace("/", "-"), replace=True)
