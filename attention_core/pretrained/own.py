"""Weights by our own names: those of a run, or of a `state_dict`, in a model made for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from attention_core.errors import UsageError
from attention_core.masks import Mask
from attention_core.pretrained.files import located
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
    replace them. A head for another `num_classes` is new.

    Args:
        weights: by name, read from `source`, a path or a state dict.

    Raises:
        UsageError: nothing says what model they are of; or they are of another.
    """
    weights = without_prefix(weights, "model.")  # as the checkpoint of a run has them
    found = arguments(model_type, source)
    known = dict(options)
    wanted = known.pop("num_classes", None) if found else None
    try:
        model = model_type(**{**found, **known})
    except TypeError as error:
        if found:
            raise
        raise UsageError(
            "weights: they have our own names, and nothing beside them says what model they are "
            f"of. Give its arguments, too, or the .safetensors that attn export writes: {error}"
        ) from error
    load_strictly(model, weights)
    if found and "num_classes" in options:
        model.reset_head(wanted)  # type: ignore[operator]
    return model


def arguments(model_type: type[nn.Module], source: object) -> dict[str, Any]:
    """Return the arguments of the model whose weights `attn export` has written to `source`.

    Raises:
        UsageError: it was another model; or an argument is none that a file may name.
    """
    if not isinstance(source, str | Path) or located(source).suffix != ".safetensors":
        return {}
    written = json.loads(read_metadata(located(source)).get("model") or "{}")
    name = str(written.pop(TARGET, "")).rpartition(".")[2]
    if name == "from_pretrained":  # whose arguments are not the model's
        return {}
    if name and name not in [kind.__name__ for kind in model_type.__mro__]:
        raise UsageError(f"weights: they are of a {name}, not of a {model_type.__name__}.")
    return {key: _made(value, key, model_type) for key, value in written.items()}


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
    return kind(*made.pop(POSITIONAL, ()), **made)


def _part(target: str, model_type: type[nn.Module]) -> Any:
    """The class of a mask, bias, ... of ours or of the model's package, or its constructor."""
    names = target.split(".")
    if names[0] not in ("attention_core", model_type.__module__.partition(".")[0]):
        return None
    found: Any = None
    for place, name in enumerate(names):
        inside = getattr(found, name, None)
        if inside is None:
            try:
                inside = import_module(".".join(names[: place + 1]))
            except ImportError:
                return None
        found = inside
    owner = getattr(found, "__self__", found)  # of a classmethod such as RelativeTable.swin
    return found if isinstance(owner, type) and issubclass(owner, PARTS) else None
