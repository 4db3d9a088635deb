"""Objects from configuration, from an allow-list of targets only.

A `_target_` in a YAML file names something to call. Unchecked, `builtins.open`, `os.system` or
`torch.hub.load` would do as well as a layer, so every target of a configuration is checked before
the first object is built:

1. its name begins with one of `ALLOWED` (our packages, and the parts of the libraries that hold
   layers, optimizers, data sets, callbacks, loggers) or of the configuration's `allow` list;
2. what the name finds is *defined* there too: `vision.os.system` is found but defined elsewhere;
3. it is neither private nor part of the standard library, whatever `allow` says;
4. it takes the arguments that the configuration gives, and their types fit.

`allow` is trust: the code of a package named there runs. Read that line in files of others.
"""

import contextlib
import functools
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from attention_core.training.errors import UsageError, did_you_mean

ALLOWED = (
    "attention_core",
    "vision",
    "graph",
    "nlp",
    "torch.nn",
    "torch.optim",
    "torch.utils.data",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "torch_geometric.data",
    "torch_geometric.datasets",
    "torch_geometric.nn",
    "torch_geometric.transforms",
    "torchmetrics",
    "lightning.Trainer",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.trainer.trainer",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
)
# These load pickles or code, or write files that the network sends: not even `allow: [torch]`
# reaches them.
REFUSED = (
    # What runs, reads and writes whole configurations, in which another `allow` could hide
    *(
        f"attention_core.training.{module}"
        for module in (
            *("card", "checkpoint", "cli", "compose", "export", "folder", "inputs", "installed"),
            *("instantiate", "metrics", "new_domain", "predict", "processes", "run"),
            *("serialization", "sweep"),
        )
    ),
    "torch.hub",
    "torch.jit",
    "torch.load",
    "torch.package",
    "torch.serialization",
    "torch.utils.cpp_extension",
    "torch.utils.data.datapipes",
    "torch.utils.model_zoo",
    "torch_geometric.data.download",
    "torch_geometric.data.extract",
    "torchvision.datasets.utils",
)


def build(config: Any, *, allow: Iterable[str] = (), **extra: Any) -> Any:
    """Builds the object that `config` describes, with `extra` as further keyword arguments.

    The keys are Hydra's: `_target_`, `_args_` for positional arguments, and `_partial_: true` for a
    `functools.partial` in place of the call. Hydra's own `instantiate` is not used: it copies what
    is passed in (a copied model is another model) and returns partials that hide their keywords.

    Args:
        config: a mapping with a `_target_`, whose values may hold such mappings in turn.
        allow: package prefixes to allow beyond `ALLOWED`.
        extra: objects that no configuration can hold (a model, a folder).

    Raises:
        UsageError: a target is refused, cannot be found, or rejects the arguments.
    """
    allow = tuple(allow)
    check(config, allow=allow)
    return _build(config, "", allow, extra)


def _build(config: Any, place: str, allow: tuple[str, ...], extra: dict[str, Any]) -> Any:
    if isinstance(config, list):
        return [_build(item, f"{place}[{i}]", allow, {}) for i, item in enumerate(config)]
    if not isinstance(config, dict):
        return config
    built = {
        key: _build(value, f"{place}.{key}" if place else str(key), allow, {})
        for key, value in config.items()
    }
    if "_target_" not in config:
        return built
    target = built.pop("_target_")
    found = locate(target, place, allow)
    arguments = built.pop("_args_", [])
    if built.pop("_partial_", False):
        return functools.partial(found, *arguments, **built, **extra)
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return found(*arguments, **built, **extra)
    except UsageError:
        raise
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UsageError(f"{place or target}: {error}{_nearest(error, found)}") from error


def _nearest(error: Exception, found: Any) -> str:
    """The nearest argument, where `error` says that one is unexpected.

    What `found` passes on by **options is refused far below it; the functions on the way there, and
    the classes that `found` inherits from, know what it could have been.
    """
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not unexpected:
        return ""
    names: set[str] = set()
    for home in getattr(found, "__mro__", [found])[:-1]:
        with contextlib.suppress(TypeError, ValueError):
            names.update(inspect.signature(home).parameters)
    frame = error.__traceback__.tb_next if error.__traceback__ else None  # ours is the first
    while frame is not None:
        code = frame.tb_frame.f_code
        names.update(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        frame = frame.tb_next
    return did_you_mean(unexpected[1], names - {"self"})


def check(config: Any, *, allow: Iterable[str] = ()) -> None:
    """Checks every target inside `config`, and its arguments' names and types; builds nothing.

    Raises:
        UsageError: naming the place in the configuration, what came and what was expected.
    """
    allow = tuple(allow)
    for prefix in allow:
        if _is_refused(prefix):
            raise UsageError(f"allow: {prefix!r} cannot be allowed: it is never safe as a target.")
    for place, node in targets(config, ""):
        target = node["_target_"]
        found = locate(target, place, allow)
        check_arguments(found, node, place, target)


def targets(config: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_` inside `config`, which lies at `place`, and where it lies."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield place, config
        for key, value in config.items():
            yield from targets(value, f"{place}.{key}" if place else str(key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from targets(value, f"{place}[{index}]")


def _begins(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _is_refused(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names or _begins(name, REFUSED)


def locate(target: Any, place: str, allow: Iterable[str] = ()) -> Any:
    """The class or function that the target of `place` names.

    Raises:
        UsageError: it is refused or cannot be found.
    """
    where = f"{place}._target_" if place else "_target_"
    if not isinstance(target, str):
        raise UsageError(f"{where} must be a dotted name, got {target!r}.")
    parts = target.split(".")
    if _is_refused(target) or any(part.startswith("_") for part in parts):
        raise UsageError(f"{where}: {target!r} is refused: it is never safe as a target.")
    prefixes = (*ALLOWED, *allow)
    if not _begins(target, prefixes):
        raise UsageError(
            f"{where}: {target!r} is not allowed. To trust a package of your own, add its name to "
            f"the list `allow` of the configuration, as in allow=[{parts[0]}]. Targets otherwise "
            f"begin with one of {', '.join(sorted(prefixes))}."
        )
    found, consumed = _import_longest(parts, where, target)
    for name in parts[consumed:]:
        if not hasattr(found, name):
            near = did_you_mean(name, (n for n in dir(found) if not n.startswith("_")))
            raise UsageError(f"{where}: {target!r} does not exist.{near}")
        found = getattr(found, name)
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
    if not callable(found) or _is_refused(home) or not _begins(home, prefixes):
        raise UsageError(
            f"{where}: {target!r} is refused: it is defined in {home!r}, which is not allowed."
        )
    return found


def _import_longest(parts: list[str], where: str, target: str) -> tuple[Any, int]:
    """Imports the longest prefix of `parts` that is a module; returns it and its length."""
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name and not name.startswith(f"{error.name}."):
                raise UsageError(
                    f"{where}: {target!r} needs the package {error.name!r}."
                ) from error
            if end == 1:
                raise UsageError(
                    f"{where}: the package {name!r} of {target!r} cannot be imported. A package of "
                    "your own is looked for in the current folder and beside --config-dir."
                ) from error
            return module, end - 1
    return module, len(parts)


def check_arguments(found: Any, node: dict[str, Any], place: str, target: str) -> None:
    """Checks the names of the arguments in `node`, and the types of plain ones, for `found`.

    Raises:
        UsageError: naming the nearest argument, or what was expected.
    """
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # written in C, says nothing about its arguments
    with contextlib.suppress(Exception):  # annotations kept as text that cannot be evaluated
        signature = inspect.signature(found, eval_str=True)
    parameters = signature.parameters.values()
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    special = {"_target_", "_partial_", "_args_"}
    for key, value in node.items():
        full = f"{place}.{key}" if place else str(key)
        if key in names:
            parameter = signature.parameters[key]
            if not _fits(value, parameter.annotation) and value != parameter.default:
                wanted = inspect.formatannotation(parameter.annotation).replace("typing.", "")
                raise UsageError(f"{full}: {target} expects {wanted}, got {value!r}.")
        elif key not in special and not open_ended:
            raise UsageError(
                f"{full}: {target} takes no argument {key!r}.{did_you_mean(str(key), names)}"
                f" It takes {', '.join(sorted(names)) or 'none'}."
            )


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a number, text, truth value or None fits an annotation; False only where certain."""
    if not isinstance(value, bool | int | float | str | None):
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if annotation in (None, types.NoneType):
        return value is None
    return not (isinstance(annotation, type) and issubclass(annotation, dict | list | tuple))
