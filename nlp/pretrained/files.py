"""A folder of a published model: weights, in one file or several, and its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attention_core.errors import UsageError
from attention_core.training.weights import Weights, read_weights, without_prefix
from nlp.loading import located

NAMES = ("model.safetensors", "pytorch_model.bin")


def read(weights: Mapping[str, Any] | str | Path) -> Weights:
    """The tensors of a state dict, of a file, or of a folder with one or several.

    Raises:
        UsageError: as of `read_weights`; or a folder without weights.
    """
    if isinstance(weights, Mapping):
        return without_prefix(read_weights(weights), "module.")
    folder = located(weights)
    if not folder.is_dir():
        return without_prefix(read_weights(folder), "module.")
    for name in NAMES:
        if (folder / name).is_file():
            return without_prefix(read_weights(folder / name), "module.")
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(_json(index).get("weight_map", {}).values()))
            return {k: v for part in parts for k, v in read_weights(folder / part).items()}
    raise UsageError(f"weights: the folder {str(folder)!r} has none of {', '.join(NAMES)}.")


def read_config(weights: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """The `config.json` beside a file of weights or in their folder; empty where there is none."""
    return {} if isinstance(weights, Mapping) else _json(_folder(weights) / "config.json")


def read_pooling(weights: Mapping[str, Any] | str | Path, *, exact: bool) -> dict[str, Any]:
    """The pooling of a sentence encoder, which sentence-transformers keeps in a folder beside it.

    Args:
        exact: whether outputs are to be the published ones, and not those of a new head.

    Raises:
        UsageError: it is another than of `TextEncoder`; or several are joined or a layer follows,
            where outputs are to be exact.
    """
    if isinstance(weights, Mapping):
        return {}
    folder = _folder(weights)
    found = _json(folder / "1_Pooling" / "config.json")
    kinds = {"cls": "class", "mean": "mean", "max": "max"}
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    if not found:
        return {}
    named = [
        kind
        for kind in kinds
        if found.get("pooling_mode") == kind or found.get(f"pooling_mode_{names[kind]}")
    ]
    if not named:
        raise UsageError(f"weights: their pooling is none of {', '.join(kinds)}: {found}.")
    dense = sorted(path.name for path in folder.glob("*_Dense"))
    if exact and (dense or named[1:]):
        what = f"go through {dense[0]}" if dense else f"are joined of {' and '.join(named)}"
        raise UsageError(
            f"weights: pooled tokens {what}, which TextEncoder does not have. Give pooling= or "
            "num_classes= for outputs of your own."
        )
    return {"pooling": kinds[named[0]], "pooler": None}


def _folder(weights: str | Path) -> Path:
    path = located(weights)
    return path if path.is_dir() else path.parent


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"weights: {str(path)!r} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"weights: {str(path)!r} must hold an object, got {content!r:.60}.")
    return content
