"""Objects from configuration: of listed classes, and of packages that the user trusts.

A `_target_` in a YAML file names something to call. Unchecked, `builtins.open`, `os.system` or
`torch.hub.load` would do as well as a layer, so every target of a configuration is checked before
the first object is built:

1. it is of a kind that can be where it stands: `targets` lists the names of each kind, and nothing
   else of our packages or of those that they need can be named;
2. or it is of a package in `allow`, and *defined* there: `my_package.os.system` is not. `allow` is
   the user's word, never that of a file that somebody else may have written (see `run`);
3. it takes the arguments that the configuration gives, and their types fit.
"""

import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from attention_core.annotated import takes
from attention_core.errors import UsageError, did_you_mean
from attention_core.packages import extra_of
from attention_core.training import own
from attention_core.training.targets import KINDS, OURS, PARTS, derives, is_of, is_within, reason

#: What no list is.
PLAIN = (bool, int, float, str, types.NoneType, torch.Tensor)


def build(config: Any, part: str = "", *, allow: Iterable[str] = (), **extra: Any) -> Any:
    """Build the object that `config` describes, with `extra` as further keyword arguments.

    The keys are Hydra's: `_target_`, `_args_` for positional arguments, and `_partial_: true` for a
    `functools.partial` in place of the call. Hydra's own `instantiate` is not used: it copies what
    is passed in (a copied model is another model) and returns partials that hide their keywords.

    Args:
        config: a mapping with a `_target_`, whose values may hold such mappings in turn.
        part: what of a run it is, one of `targets.PARTS`; by default anything that is listed.
        allow: packages that the user trusts.
        extra: objects that no configuration can hold (a model, a folder).

    Raises:
        UsageError: a target is refused, cannot be found, or rejects the arguments.
    """
    return _build(config, "", check(config, part, allow=allow), extra)


def _build(config: Any, place: str, found_of: Mapping[int, Any], extra: dict[str, Any]) -> Any:
    if isinstance(config, list):
        return [_build(item, f"{place}[{i}]", found_of, {}) for i, item in enumerate(config)]
    if not isinstance(config, dict):
        return config
    built = {
        key: _build(value, f"{place}.{key}" if place else str(key), found_of, {})
        for key, value in config.items()
    }
    if "_target_" not in config:
        return built
    target = built.pop("_target_")
    found = found_of[id(config)]
    arguments = built.pop("_args_", [])
    if built.pop("_partial_", False):
        return functools.partial(found, *arguments, **built, **extra)
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return found(*arguments, **built, **extra)
    except UsageError:
        raise
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UsageError(f"{place or target}: {error}") from error
    except AttributeError as error:
        if "before Module.__init__() call" not in str(error):
            raise
        raise UsageError(
            f"{place or target}: its __init__ must begin with super().__init__()."
        ) from error


def check(
    config: Any, part: str = "", *, place: str = "", allow: Iterable[str] = ()
) -> dict[int, Any]:
    """Check every target inside `config`, and its arguments' names and types; build nothing.

    Args:
        part: as of `build`.
        place: where `config` lies in the whole, for messages.

    Returns: what is named by each mapping with a target, by its `id`. (Keys with dots in them can
    give two of them one place.)

    Raises:
        UsageError: naming the place in the configuration, what came and what was expected.
    """
    allow = tuple(allow)
    own.trust(allow)
    found = {}
    every = list(targets(config, place))
    for where, node in every:
        whole = node is config
        kinds = tuple(KINDS) if not part else (part,) if whole else PARTS[part]
        target = node["_target_"]
        found[id(node)] = locate(target, where, allow, kinds, part=part if whole else "")
        for key, kind in (("_args_", list), ("_partial_", bool)):
            if not isinstance(node.get(key, kind()), kind):
                raise UsageError(f"{where}.{key} must be a {kind.__name__}, got {node[key]!r}.")
    for where, node in every:  # once none of them names what it must not, whatever its place
        check_arguments(found[id(node)], node, where, node["_target_"])
    return found


def nodes(config: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield everything in nested mappings and lists, `config` first, each with where it lies."""
    yield place, config
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from nodes(value, f"{place}.{key}" if place else str(key))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            yield from nodes(value, f"{place}[{index}]")


def targets(config: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping with a `_target_` inside `config`, which lies at `place`, and its
    place."""
    for where, node in nodes(config, place):
        if isinstance(node, dict) and "_target_" in node:
            yield where, node


def locate(
    target: Any,
    place: str,
    allow: Iterable[str] = (),
    kinds: tuple[str, ...] = tuple(KINDS),
    *,
    part: str = "",
) -> Any:
    """Find the class or function that the target of `place` names.

    Args:
        allow: packages that the user trusts.
        kinds: what may stand there, of `targets.KINDS`.
        part: where it is a part of a run, which: then a class of the user's is of that kind, too.
            Inside a part it is whatever the user's code takes.

    Raises:
        UsageError: it is refused or cannot be found.
    """
    where = f"{place}._target_" if place else "_target_"
    if not isinstance(target, str):
        raise UsageError(f"{where} must be a dotted name, got {target!r}.")
    parts = target.split(".")
    if any(not part.isidentifier() or part.startswith("_") for part in parts):
        raise UsageError(f"{where}: {target!r} is refused: it is never safe as a target.")
    if parts[0] in OURS:
        found = _find(parts, where, target)
        if not is_of(found, kinds):
            raise UsageError(f"{where}: {target!r} is refused: {reason(target, kinds)}")
        return found
    if any(target in KINDS[kind].listed for kind in kinds):
        return _find(parts, where, target)
    if own.is_foreign(target):
        raise UsageError(f"{where}: {target!r} is refused: {reason(target, kinds)}")
    if not is_within(target, allow):
        raise UsageError(
            f"{where}: {target!r} is not allowed. To trust a package of your own with running its "
            f"code, say so: allow=[{parts[0]}] in your experiment, or on the command line."
        )
    own.trust([parts[0]])
    found = _find(parts, where, target)
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
    if not callable(found) or not is_within(home, allow):
        raise UsageError(
            f"{where}: {target!r} is refused: it is defined in {home!r}, which is not allowed."
        )
    if part and isinstance(found, type) and not derives(found, KINDS[part]):
        raise UsageError(f"{where}: {KINDS[part].name} is needed, and {target!r} is none.")
    return found


def _find(parts: list[str], where: str, target: str) -> Any:
    found, consumed = _import_longest(parts, where, target)
    for name in parts[consumed:]:
        if not hasattr(found, name):
            near = did_you_mean(name, (n for n in dir(found) if not n.startswith("_")))
            raise UsageError(f"{where}: {target!r} does not exist.{near}{_elsewhere(parts[0])}")
        found = getattr(found, name)
    return found


def _elsewhere(root: str) -> str:
    """Return a hint where a folder was imported that has no more than the name of a package."""
    folder = "" if getattr(sys.modules[root], "__file__", None) else own.hiding([root])
    if not folder:
        return ""
    return (
        f" The folder {folder!r} was imported, which has no __init__.py. To import the module in "
        f"it: --config-dir {folder}"
    )


def _import_longest(parts: list[str], where: str, target: str) -> tuple[Any, int]:
    """Imports the longest prefix of `parts` that is a module; returns it and its length."""
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name and not name.startswith(f"{error.name}."):
                unserved = error.name is not None and own.lies_unserved(error.name)
                extra = None if unserved or error.name is None else extra_of(error.name)
                how = " To import it from your folder, too, add it to allow." if unserved else ""
                how = f" Install it with: pip install 'attention-core[{extra}]'" if extra else how
                raise UsageError(
                    f"{where}: {target!r} needs the package {error.name!r}.{how}"
                ) from error
            if end == 1:
                raise UsageError(
                    f"{where}: the package {name!r} of {target!r} cannot be imported. A package of "
                    "your own is looked for in the current folder and beside --config-dir."
                ) from error
            return module, end - 1
    return module, len(parts)


def check_arguments(found: Any, node: dict[str, Any], place: str, target: str) -> None:
    """Check the names of the arguments in `node`, and the types of plain ones, for `found`.

    Raises:
        UsageError: naming the nearest argument, or what was expected.
    """
    try:
        taken = takes(found)
    except (TypeError, ValueError):
        return  # written in C, says nothing about its arguments
    special = {"_target_", "_partial_", "_args_"}
    for key, value in node.items():
        full = f"{place}.{key}" if place else str(key)
        if key in taken.hints:
            hint = taken.hints[key]
            if not _fits(value, hint) and value != _default(found, key):
                wanted = inspect.formatannotation(hint).replace("typing.", "")
                raise UsageError(f"{full}: {target} expects {wanted}, got {value!r}.")
        elif key not in special and not taken.more:
            raise UsageError(
                f"{full}: {target} takes no argument {key!r}."
                f"{did_you_mean(str(key), taken.hints)}"
                f" It takes {', '.join(sorted(taken.hints)) or 'none'}."
            )


def _default(found: Any, name: str) -> Any:
    parameter = inspect.signature(found).parameters.get(name)
    return inspect.Parameter.empty if parameter is None else parameter.default


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a number, text, truth value or None, or a list of these, fits an annotation; False
    only where certain."""
    if isinstance(value, list):
        return _fits_list(value, annotation)
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
    if annotation is torch.Tensor:
        return not isinstance(value, bool | str)  # no configuration holds one; a number may do
    if annotation in (None, types.NoneType):
        return value is None
    kind = typing.get_origin(annotation) or annotation
    return not (isinstance(kind, type) and issubclass(kind, dict | list | tuple))


def _fits_list(values: list[Any], annotation: Any) -> bool:
    """Whether the elements fit those of an annotated list or tuple; True for any other kind."""
    origin, kinds = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        others = [kind for kind in kinds if kind not in PLAIN]
        return any(_fits_list(values, kind) for kind in others or kinds)
    if origin is tuple and kinds and kinds[-1] is not Ellipsis:
        return len(values) == len(kinds) and all(map(_fits, values, kinds))
    if origin in (list, tuple, Sequence, Iterable) and kinds:
        # YAML reads names such as 1 or no as numbers and truth values
        return kinds[0] is str or all(_fits(value, kinds[0]) for value in values)
    return True
