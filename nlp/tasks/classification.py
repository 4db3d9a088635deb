"""Telling the label of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attention_core.training import ClassificationTask
from nlp.batches import pad
from nlp.data.packing import unpack
from nlp.encoder import TextEncoder
from nlp.tasks.base import MOST_TOKENS, TextTask

if TYPE_CHECKING:
    from nlp.interpret import ReadText


class TextClassification(TextTask, ClassificationTask):
    """Classification of texts; a run ends with attention drawn over texts of its test set.

    Arguments are those of `ClassificationTask`. The data is a `TextData` without an objective.

    Raises:
        UsageError: before training, where the data has longer texts than the model has positions.
    """

    def export_inputs(
        self, batch: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Return the texts padded, `ids` (batch, length), and their `lengths` (batch,)."""
        ids, lengths = batch["ids"], batch["lengths"]
        inputs = {"ids": pad(ids, lengths) if ids.ndim == 1 else ids, "lengths": lengths}
        return inputs, {"ids": {0: "batch", 1: "length"}, "lengths": {0: "batch"}}

    def shown(self, batch: dict[str, Any]) -> list[ReadText]:
        """Choose one test text of each class."""
        from nlp.interpret import read_text

        if not isinstance(self.model, TextEncoder):
            return []
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        rows = unpack(batch["ids"], batch["lengths"])
        shares = self.probabilities(batch)
        texts = []
        for index in choose(batch["lengths"], batch["target"], shares):
            ids = rows[index]
            if len(ids) > MOST_TOKENS:
                continue
            predicted, label = int(shares[index].argmax()), int(batch["target"][index])
            verdict = "rightly" if predicted == label else f"labelled {self.classes[label]}"
            read = f"Read as {self.classes[predicted]} ({shares[index, predicted]:.0%})"
            caption = f"{read}, {verdict}", predicted == label
            texts.append(read_text(self.model, ids, caption, tokenizer=tokenizer))
        return texts


def choose(lengths: Tensor, target: Tensor, shares: Tensor) -> list[int]:
    """Choose one text of each class that is there: of readable length if any is, else the shortest;
    rightly classified if any is, and of those the surest; not only the flattering ones where there
    are no such.

    Args:
        lengths: (B,) tokens.
        target: (B,) classes.
        shares: (B, C) probabilities.
    """
    readable = (lengths >= 8) & (lengths <= 24)
    right = shares.argmax(-1) == target
    chosen = []
    for label in target.unique().tolist():
        # Readable counts most, then right, then how sure the model is
        rank = shares[:, label] + 2 * right + 4 * readable - 8 * (lengths - 24).clamp(min=0)
        chosen.append(int(rank.masked_fill(target != label, -torch.inf).argmax()))
    return chosen
