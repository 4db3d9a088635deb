"""What all families of language models share: the settings of the parts that a model reads."""

from __future__ import annotations

from typing import Any

from attention_core.errors import UsageError
from attention_core.pretrained import Checkpoint
from attention_core.pretrained.files import read_json
from attention_core.pretrained.names import CLASSIFIER, SCORES, TRANSFORM

WORDS = "embedding.table.weight"
POSITIONS = "embedding.positions.table"


def part_settings(
    checkpoint: Checkpoint,
    *,
    pooler: str | None = None,
    pooling: str = "class",
    transform: str | None = None,
    transform_bias: bool = True,
) -> dict[str, Any]:
    """Return what a model takes for its parts: a classifier's, a masked model's, or scores'.

    Args:
        pooler: the function behind theirs, where the weights have one.
        pooling: of the published classifier.
        transform: the function in front of the scores of masked tokens.
        transform_bias: whether the linear layer there has one.
    """
    if CLASSIFIER in checkpoint.parts:
        found: dict[str, Any] = {
            "num_classes": checkpoint.length("classifier.weight") or None,
            "pooling": pooling,
            "pooler": pooler if checkpoint.length("pooler.linear.weight") else None,
        }
        return {**found, **sentence_pooling(checkpoint)}
    if TRANSFORM in checkpoint.parts:
        return {"transform": transform, "transform_bias": transform_bias}
    assert SCORES in checkpoint.parts
    scores = checkpoint.ours.get("scores.weight")
    if scores is None:  # of a file without scores only the configuration knows
        return {"tied": checkpoint.config.get("tie_word_embeddings") is not False}
    return {"tied": scores.equal(checkpoint.tensor(WORDS))}


def sentence_pooling(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the pooling of a sentence encoder, which sentence-transformers keeps in a folder
    beside the weights.

    Raises:
        UsageError: it is another than of `TextEncoder`; or several are joined or a layer follows,
            where outputs are to be the published ones, and not those of a new head.
    """
    folder = checkpoint.folder
    found = {} if folder is None else read_json(folder / "1_Pooling" / "config.json")
    kinds = {"cls": "class", "mean": "mean", "max": "max"}
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    if folder is None or not found:
        return {}
    named = [
        kind
        for kind in kinds
        if found.get("pooling_mode") == kind or found.get(f"pooling_mode_{names[kind]}")
    ]
    if not named:
        raise UsageError(f"weights: their pooling is none of {', '.join(kinds)}: {found}.")
    dense = sorted(path.name for path in folder.glob("*_Dense"))
    exact = not {"num_classes", "pooling"} & checkpoint.options.keys()
    if exact and (dense or named[1:]):
        what = f"go through {dense[0]}" if dense else f"are joined of {' and '.join(named)}"
        raise UsageError(
            f"weights: pooled tokens {what}, which TextEncoder does not have. Give pooling= or "
            "num_classes= for outputs of your own."
        )
    return {"pooling": kinds[named[0]], "pooler": None}
