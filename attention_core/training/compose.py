"""Configurations by name: Hydra composes them, and mistakes are explained in one sentence.

The groups come from the package `attention_core.conf` (the repository's `conf/`) and from the
folder given as `--config-dir`. Never from `pkg://conf`: that would be whatever `conf` the current
folder holds.
"""

import importlib.resources
import io
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from attention_core.errors import UsageError, did_you_mean, reading
from attention_core.escape import for_terminal, shell_word
from attention_core.training.hydra_rules import check_calls, check_jobs, check_plugins
from attention_core.training.installed import installed_roots
from attention_core.training.overrides import (
    exact,
    is_sweep,
    parsed,
    quoted,
    read_overrides,
    shell_override,
    texts,
)
from attention_core.training.own import serve, served

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = "attention_core.conf"
#: Whether a configuration is composed, and is now resolved for good.
_is_complete: ContextVar[bool] = ContextVar("complete", default=False)
HOW = ("sweep=", "launcher=", "debug=")  # groups that say how to run and not what


def config_roots(config_dir: Path | None) -> list[Path]:
    """Return the folders that configuration is looked for in, the first first: ours, those of
    installed packages, and the user's own.

    Raises:
        UsageError: `config_dir` is not a folder.
    """
    roots = [Path(str(importlib.resources.files(CONF))), *installed_roots()]
    if config_dir is not None:
        if not config_dir.is_dir():
            raise UsageError(f"--config-dir: {str(config_dir)!r} is not a folder.")
        roots.append(config_dir.resolve())
    return roots


def options(group: str, roots: Iterable[Path]) -> list[str]:
    """Return the choices of a group, nested ones as `vision/digits`."""
    return sorted(
        {
            path.relative_to(root / group).with_suffix("").as_posix()
            for root in roots
            for path in (root / group).rglob("*.yaml")
        }
    )


def about(roots: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Read the `about` section of every experiment, by name."""
    found: dict[str, dict[str, Any]] = {}
    for root in roots:
        for name in options("experiment", [root]):
            found.setdefault(name, _about(root / "experiment" / f"{name}.yaml"))
    return found


def _about(path: Path) -> dict[str, Any]:
    with reading(path, "experiment"):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(content, dict):
            raise ValueError("it holds no configuration")
        section = content.get("about") or {}
        if not isinstance(section, dict) or not isinstance(section.get("needs") or [], list):
            raise ValueError("about must be a mapping, and its needs a list of packages")
    return section


@dataclass
class _Task:
    """The function that Hydra calls with each configuration: here, or in a launcher's process."""

    job: Callable[[dict[str, Any], Path], Any]
    mistakes: list[Exception] = field(default_factory=list)
    search: list[str] = field(default_factory=lambda: list(sys.path))
    served: list[Path] = field(default_factory=served)

    def __call__(self, composed: "DictConfig") -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)

        def config() -> dict[str, Any]:
            with _complete():
                values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            return {"experiment": hydra.runtime.choices.get("experiment"), **values}

        if hydra.mode is RunMode.MULTIRUN:
            from attention_core.training.sweep import run_job

            return run_job(
                self.job,
                config,
                folder,
                number=hydra.job.num,
                overrides=[o for o in hydra.overrides.task if not o.startswith(HOW)],
                direction=hydra.sweeper.get("direction"),
            )
        try:
            return self.job(config(), folder)
        except (UsageError, OmegaConfBaseException) as error:
            self.mistakes.append(error)
            return None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a process that a launcher has started, before Hydra resolves anything there
        self.__dict__.update(state)
        sys.path += [place for place in self.search if place not in sys.path]
        serve(self.served)
        check_jobs()
        _register_resolvers()


def run_hydra(
    job: Callable[[dict[str, Any], Path], Any],
    overrides: list[str],
    *,
    flags: list[str],
    config_dir: Path | None,
    sweeps: bool = False,
) -> int:
    """Compose the configuration and call `job(config, folder)`, once or once per sweep job.

    Args:
        job: in a sweep, a training: it leaves metrics in `folder`, by which jobs are compared.
        flags: of Hydra's command line.
        sweeps: whether several jobs may be asked for.

    Returns:
        The number of jobs of a sweep that failed. They are reported, and stop no other job.

    Raises:
        UsageError: in place of what Hydra raises for a wrong name, key or value.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    roots = config_roots(config_dir)
    given, overrides = overrides, read_overrides(overrides)
    check_choices(overrides, roots)
    _register_resolvers()
    check_jobs()
    # Hydra's own report prints and exits; with this it raises, and we report. A user who has set
    # it sees every traceback.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    task = _Task(job)
    argv = sys.argv
    folder, failed = None, 0
    try:
        plain = [each for each in overrides if not is_sweep(each)]
        composed = _compose(plain, roots)
        check_calls(composed)
        HydraConfig.instance().set_config(composed)
        check_plugins(composed, overrides)
        if "--cfg" not in flags:
            folder = _sweep_folder(
                composed, swept=len(plain) < len(overrides), multirun="--multirun" in flags
            )
        if folder is not None:
            from attention_core.training.sweep import begin

            if not sweeps:
                raise UsageError("A sweep is for attn train; this command works on one run.")
            _quiet_sweepers()
            begin(folder, overrides, flags)
            overrides = [*overrides, f"hydra.sweep.dir={exact(str(folder))}"]
        sys.argv = ["attn", *flags, *_search(roots), *overrides]
        try:
            with _calmed() if "--cfg" in flags else nullcontext():
                hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name="config")(
                    task
                )()
        finally:
            sys.argv = argv
            if folder is not None:
                from attention_core.training.sweep import report

                failed = report(folder)
        if task.mistakes:
            raise task.mistakes[0]
    except UsageError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, dict(zip(overrides, given, strict=False)), roots) from error
    except Exception as error:
        if not failed:
            raise
        # A launcher lost a job, or a sampler was left without any score
        print(f"attn: {type(error).__name__}: {for_terminal(error)}", file=sys.stderr)
    return failed


@contextmanager
def _complete() -> Iterator[None]:
    """Let values be taken from the data: OmegaConf resolves also what is about to be overridden."""
    token = _is_complete.set(True)
    try:
        yield
    finally:
        _is_complete.reset(token)


@contextmanager
def _calmed() -> Iterator[None]:
    """Escapes the configuration that Hydra prints: YAML leaves what turns the direction of text."""
    printed = io.StringIO()
    with redirect_stdout(printed), _complete():
        yield
    print(for_terminal(printed.getvalue()), end="")


def _sweep_folder(composed: "DictConfig", *, swept: bool, multirun: bool) -> Path | None:
    """Where the sweep that is asked for writes, None for a single run.

    Args:
        composed: of the overrides that give one value.
        swept: whether others give several.

    Raises:
        UsageError: a sweep of nothing, or one that would look for the worst.
    """
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    hydra = composed.hydra
    launcher = hydra.runtime.choices["hydra/launcher"]
    local = launcher == "basic"
    if not multirun and hydra.mode is not RunMode.MULTIRUN:
        if not local:
            raise UsageError(
                f"launcher: {launcher!r} starts the jobs of a sweep. Add sweep=grid and values "
                "separated by commas, as in seed=1,2,3; or -m, to start a single job by it."
            )
        return None
    if local and not swept and not hydra.sweeper.get("params"):
        raise UsageError(
            "There is nothing to sweep over. Give values separated by commas, as in seed=1,2,3, or "
            "leave out sweep=... and -m to train once."
        )
    if "direction" in hydra.sweeper:
        from attention_core.training.sweep import check_direction

        task = {"_target_": composed.task.get("_target_")}
        allow = OmegaConf.to_container(composed.allow)
        check_direction({"task": task, "allow": allow}, hydra.sweeper.direction)
    return Path(hydra.sweep.dir).absolute()


def _quiet_sweepers() -> None:
    # What failed is said in our own words, and a table tells the scores
    import logging

    logging.getLogger("hydra_plugins").setLevel(logging.CRITICAL)
    logging.getLogger("optuna.storages").setLevel(logging.WARNING)


WHERE_OWN = " One of your own is found with --config-dir FOLDER."


def check_choices(overrides: Iterable[str], roots: list[Path]) -> None:
    """Check the choices made among groups.

    Raises:
        UsageError: naming the nearest choice.
    """
    for override in overrides:
        read = parsed(override)
        if read is None or read.is_delete() or read.key_or_group.startswith("hydra"):
            continue
        group = read.key_or_group
        known = options(group, roots) if re.fullmatch(r"[\w/]+", group) else []
        for choice in texts(read.value()) if known else []:
            if choice not in known and "${" not in choice:
                raise UsageError(
                    f"{group}: there is no {choice!r}.{did_you_mean(choice, known)}"
                    f" There are {', '.join(known)}." + (WHERE_OWN if group == "experiment" else "")
                )


def explain(error: Exception, overrides: Mapping[str, str], roots: list[Path]) -> UsageError:
    """Turn the error that Hydra raised into what a user needs to know.

    Args:
        overrides: as Hydra has read them, each with what was given.
    """
    from omegaconf.errors import MissingMandatoryValue

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UsageError):
            return cause  # of a resolver
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MissingMandatoryValue):
        return UsageError(f"{error.full_key}: a value is needed: {error.full_key}=...")
    message = str(error)
    plugin = re.search(r"Could not find 'hydra/(?:launcher|sweeper)/([a-z]+)", message)
    if plugin:
        name = plugin.group(1)
        return UsageError(
            f"{name}: it needs a package that is not installed. Install it with: "
            f"pip install 'attention-core[{'ray' if name == 'ray' else 'sweep'}]'"
        )
    for read, given in overrides.items():
        if message.startswith(f"Ambiguous value for argument '{read}'"):
            key, _, values = given.partition("=")
            return UsageError(
                f"{key}: several values, {values}. To train once with each, add sweep=grid. "
                f"A list is written {shell_word(f'{key}=[{values}]')}, and a text with a comma "
                f"{shell_override(key, values)}"
            )
    wrong = re.search(r"Could not (?:override|delete) '?([\w./@]+)'?", message)
    if wrong:
        key = wrong.group(1).rstrip(".")
        near = did_you_mean(key, _known_keys(overrides, roots))
        from attention_core.training.run import KEYS  # here: it imports torch

        inner = key if key.partition(".")[0] in KEYS else f"model.{key}"
        how = f"A key that is new on purpose is written with a plus: +{key}=..."
        if inner != key:
            how = (
                f"No key can be added beside {', '.join(KEYS)}; inside one of these, with a plus: "
                f"+{inner}=..."
            )
        return UsageError(f"{key}: not a key of this configuration.{near} {how}")
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "reference"))
    ]
    return UsageError(" ".join(lines))


def _compose(overrides: list[str], roots: list[Path]) -> "DictConfig":
    """The configuration with Hydra's own part, not yet resolved."""
    from hydra import compose, initialize_config_module

    with initialize_config_module(CONF, version_base="1.3"):
        return compose("config", [*overrides, *_search(roots)], return_hydra_config=True)


def _search(roots: list[Path]) -> list[str]:
    """The override that makes Hydra look into all `roots`, of which it knows the first."""
    others = [quoted(f"file://{root}") for root in roots[1:]]
    return [f"hydra.searchpath=[{','.join(others)}]"] if others else []


def _known_keys(overrides: Iterable[str], roots: list[Path]) -> list[str]:
    """All keys of the configuration that the group choices among `overrides` give."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    chosen = [o for o in overrides if options(o.partition("=")[0].lstrip("+"), roots)]
    try:
        composed = _compose([o.split(",")[0] for o in chosen], roots)
    except HydraException:
        return []
    config = OmegaConf.to_container(composed, resolve=False)
    return [key for key in _flatten(config, "") if not key.startswith("hydra")]


def _flatten(config: Any, place: str) -> Iterable[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            full = f"{place}.{key}" if place else str(key)
            yield full
            yield from _flatten(value, full)


def _register_resolvers() -> None:
    """`${count:${data.classes}}`: how many; `${slug:a/b}`: as part of a file name; `${unique:}`: of
    this run alone; `${monitor:TARGET}`, `${mode:TARGET}`, `${direction:TARGET}`: the value that a
    task is judged by, which way is better, and what a sweeper does with it;
    `${from_data:classes}`: what the data that is configured says of itself, see
    `DataModule.describe`."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("count", len, replace=True)
    OmegaConf.register_new_resolver("slug", lambda name: str(name).replace("/", "-"), replace=True)
    OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:12], replace=True)
    # OmegaConf hands in the whole configuration by the name _root_
    for place, name in enumerate(("monitor", "mode")):
        OmegaConf.register_new_resolver(
            name, lambda target, *, _root_, at=place: _monitored(target, _root_)[at], replace=True
        )
    OmegaConf.register_new_resolver("direction", _direction, replace=True)
    OmegaConf.register_new_resolver("from_data", _from_data, replace=True)


def _monitored(target: str, root: "DictConfig") -> tuple[str, str]:
    from attention_core.training.sweep import monitored

    # By what the configuration as a whole allows
    return monitored({"task": {"_target_": target}, "allow": list(root.get("allow") or ())})


def _direction(target: str, *, _root_: "DictConfig") -> str:
    from attention_core.training.sweep import DIRECTIONS

    return DIRECTIONS[_monitored(target, _root_)[1]]


def _from_data(name: str, *, _root_: "DictConfig") -> Any:
    from omegaconf import OmegaConf

    from attention_core.training.data import DataModule
    from attention_core.training.instantiate import build, check

    if not _is_complete.get():
        raise UsageError(f"${{from_data:{name}}}: the data is asked once all is composed.")
    given: Any = OmegaConf.to_container(_root_.data, resolve=False)
    if not isinstance(given, dict) or "_target_" not in given:
        raise UsageError(f"data: a mapping with a _target_ is needed, got {given!r}.")
    arguments: dict[str, Any] = {}
    for key, raw in given.items():
        if raw == "???":
            raise UsageError(f"data.{key}: a value is needed: data.{key}=...")
        if "${from_data:" not in str(raw):  # what is to be taken cannot be an argument
            value = _root_.data[key]
            plain = OmegaConf.is_config(value)
            arguments[key] = OmegaConf.to_container(value, resolve=True) if plain else value
    # Several values are taken, and the data is read once for all
    read = OmegaConf.get_cache(_root_).setdefault("from_data", {})
    key = repr(arguments)
    if key not in read:
        allow = list(_root_.get("allow") or ())
        check(arguments, "data", place="data", allow=allow)
        module = build(arguments, "data", allow=allow)
        if not isinstance(module, DataModule):
            raise UsageError(f"data: a DataModule is needed, got {type(module).__name__}.")
        read[key] = module.describe()
    if name not in read[key]:
        raise UsageError(
            f"data: {given['_target_']} does not say what its {name} are, as ${{from_data:{name}}} "
            f"asks; it says {', '.join(read[key])}."
        )
    return read[key][name]
