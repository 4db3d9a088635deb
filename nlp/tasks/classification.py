"""Telling the label of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attention_core import record_attention
from attention_core.training import ClassificationTask
from nlp.batches import pad
from nlp.data.packing import unpack
from nlp.tasks.tokens import check_positions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: The most tokens that are drawn of a text.
DRAWN = 48


class TextClassification(ClassificationTask):
    """Classification of texts; a run ends with attention drawn over texts of its test set.

    Arguments are those of `ClassificationTask`. The data is a `TextData` without an objective.

    Raises:
        UsageError: before training, where the data has longer texts than the model has positions.
    """

    def on_fit_start(self) -> None:
        check_positions(self.model, self.trainer.datamodule)  # type: ignore[attr-defined]

    def export_inputs(
        self, batch: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """The texts padded, `ids` (batch, length), and their `lengths` (batch,)."""
        ids, lengths = batch["ids"], batch["lengths"]
        inputs = {"ids": pad(ids, lengths) if ids.ndim == 1 else ids, "lengths": lengths}
        return inputs, {"ids": {0: "batch", 1: "length"}, "lengths": {0: "batch"}}

    def attention_figure(self, batch: dict[str, Any]) -> Figure | None:
        """The attention of the last layer over one test text of each class, or its beginning."""
        from nlp.figures import ReadText, attention_over_text

        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        rows = unpack(batch["ids"], batch["lengths"])
        shares = self.probabilities(batch)
        texts = []
        for index in choose(batch["lengths"], batch["target"], shares):
            with record_attention(self.model, layers=[self._last_layer()]) as maps:
                self.model(rows[index], batch["lengths"][index : index + 1])
            predicted = int(shares[index].argmax())
            texts.append(
                ReadText(
                    tokenizer.pieces(rows[index].tolist()[:DRAWN]),
                    maps[0][0][..., :DRAWN, :DRAWN],
                    self.classes[predicted],
                    self.classes[int(batch["target"][index])],
                    float(shares[index, predicted]),
                )
            )
        return attention_over_text(texts, title="Attention of the last layer, mean of its heads")

    def _last_layer(self) -> int:
        # A pooling layer attends, too, and comes after the encoder
        return len(self.model.encoder.blocks) - 1  # type: ignore[union-attr, arg-type]


def choose(lengths: Tensor, target: Tensor, shares: Tensor) -> list[int]:
    """One text of each class that is there: of readable length if any is, else the shortest;
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
