"""Weights by our own names: those of a run, or of a `state_dict`, in a model made for them."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from attention_core.errors import UsageError
from attention_core.masks import Mask
from attention_core.pretrained.files import NAMES, located
from attention_core.pretrained.renaming import without_prefix
from attention_core.pretrained.serialization import read_metadata
from attention_core.pretrained.strict import load_strictly
from attention_core.rotary_scaling import LinearScaling, Llama3Scaling, NTKScaling, YaRN
from attention_core.scores import Score

M = TypeVar("M", bound=nn.Module)

#: What an argument of a model may be an object of, besides numbers, words and lists of them.
PARTS = (Mask, Score, LinearScaling, NTKScaling, Llama3Scaling, YaRN, nn.Module)

TARGET, POSITIONAL = "_target_", "_args_"


def is_own(weights: Mapping[str, Tensor]) -> bool:
    """Return whether weights have the names of a model of ours."""
    return any(".attention_residual." in name for name in weights)


def build_own(
    model_type: type[M], weights: Mapping[str, Tensor], source: object, options: Mapping[str, Any]
) -> M:
    """Return the model that weights by our own names are for, with them.

    Its arguments are those that `attn export` has written beside the weights, and `options`, which
    replace them. Where the file says all, the head of `num_classes` and the pool of another
    `pooling` that are given are new.

    Args:
        weights: by name, read from `source`, a path or a state dict.

    Raises:
        UsageError: nothing says what model they are of; or they are of another.
    """
    weights = without_prefix(weights, "model.")  # as the checkpoint of a run has them
    found = arguments(model_type, source)
    known = {**found, **options}
    missing = [
        name
        for name, parameter in inspect.signature(model_type).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in known
    ]
    if missing:
        name = model_type.__name__
        raise UsageError(
            f"weights: they are of a model of this package, but do not say of which {name}. Give "
            f"its arguments, too, {name}.from_pretrained(weights, {missing[0]}=..., ...): "
            f"{', '.join(missing)} are missing. What attn export writes as .safetensors has them."
        )
    model = model_type(**known)
    if not found or not options:
        load_strictly(model, weights)
        return model
    exported = model_type(**found)
    load_strictly(exported, weights)
    new = {"head"} if "num_classes" in options else set()
    if known.get("pooling") != found.get("pooling"):
        new.add("pool")
    kept = [name for name in model.state_dict() if name.partition(".")[0] in new]
    taken = model.weights_of(exported).items()  # type: ignore[operator]
    load_strictly(model, {k: v for k, v in taken if k.partition(".")[0] not in new}, keep=kept)
    return model


def arguments(model_type: type[nn.Module], source: object) -> dict[str, Any]:
    """Return the arguments of the model whose weights `attn export` has written to `source`.

    Raises:
        UsageError: it was another model; or an argument is none that a file may name.
    """
    if not isinstance(source, str | Path):
        return {}
    path = located(source)
    if path.is_dir():
        path /= NAMES[0]
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    written = _written(path)
    name = str(written.pop(TARGET, "")).rpartition(".")[2]
    if name == "from_pretrained":  # whose arguments are not the model's
        return {}
    if name and name not in [kind.__name__ for kind in model_type.__mro__]:
        raise UsageError(f"weights: they are of a {name}, not of a {model_type.__name__}.")
    return {key: _made(value, key, model_type) for key, value in written.items()}


def _written(path: Path) -> dict[str, Any]:
    """Return what a file says of its model, nothing where it says nothing.

    Raises:
        UsageError: it says something else than a name and arguments.
    """
    text = read_metadata(path).get("model") or "{}"
    try:
        written = json.loads(text)
    except (ValueError, RecursionError):
        written = None
    if not isinstance(written, dict):
        raise UsageError(
            f"weights: {str(path)!r} must name a model and its arguments, got {text!r:.60}."
        )
    return written


def _made(value: Any, key: str, model_type: type[nn.Module]) -> Any:
    """What a file has for an argument, with the masks, biases, ... that it names."""
    if isinstance(value, list):
        return [_made(one, key, model_type) for one in value]
    if not isinstance(value, dict):
        return value
    made = {name: _made(one, key, model_type) for name, one in value.items()}
    if TARGET not in made:
        return made
    target = str(made.pop(TARGET))
    kind = _part(target, model_type)
    if kind is None:
        raise UsageError(f"weights: {key} is a {target}, which a file cannot name: give {key}=.")
    places = made.pop(POSITIONAL, [])
    try:
        return kind(*places, **made)
    except (TypeError, ValueError) as error:
        raise UsageError(f"weights: {key} is a {target}, but {error}.") from error


def _part(target: str, model_type: type[nn.Module]) -> Any:
    """The class of a mask, bias, ... of ours or of the model's package, or its constructor."""
    names = target.split(".")
    packages = ("attention_core", model_type.__module__.partition(".")[0])
    public = all(name.isidentifier() and not name.startswith("_") for name in names)
    # The weights of another file come with that file's word alone
    if names[0] not in packages or not public or names[-1] == "from_pretrained":
        return None
    # Of what is imported already: to import a module is to run it
    found: Any = sys.modules.get(names[0])
    for place, name in enumerate(names[1:], start=2):
        found = getattr(found, name, None) or sys.modules.get(".".join(names[:place]))
    owner = getattr(found, "__self__", found)  # of a classmethod such as RelativeTable.swin
    if not isinstance(owner, type) or not issubclass(owner, PARTS):
        return None
    return found if owner.__module__.partition(".")[0] in packages else None  # torch's are none
