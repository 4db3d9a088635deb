"""What all tasks on texts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attention_core import LearnedPosition
from attention_core.lasting import version
from attention_core.training import Task, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nlp.interpret import ReadText

#: Attention of a longer text is not drawn: a layer has as many weights as pairs of tokens.
MOST_TOKENS = 1024


class TextTask(Task):
    """A task whose batches are texts: see `nlp.data`. A run ends with attention drawn on texts of
    its test set, as figures and as a page, where the model is one of `nlp`.

    Raises:
        UsageError: before training, where the data has longer texts than the model has positions.
    """

    #: What is shown, the beginning of titles.
    subject = "Attention"

    _last_read: tuple[dict[str, Any], list[int], list[ReadText]] | None = None

    def on_fit_start(self) -> None:
        check_positions(self.model, self.trainer.datamodule)  # type: ignore[attr-defined]

    def shown(self, batch: dict[str, Any]) -> list[ReadText]:
        """Choose what of a batch attention is drawn on, the same at every call; by default nothing,
        and nothing where the model is another than `nlp.interpret` sees into."""
        return []

    def figures(self, batch: dict[str, Any]) -> dict[str, Figure]:
        """Draw those of the task, and `text_figures` of what `shown` chooses."""
        from nlp.interpret import text_figures

        shown = self._read(batch)
        drawn = text_figures(shown, subject=self.subject) if shown else {}
        return {**super().figures(batch), **drawn}

    def pages(self, batch: dict[str, Any]) -> dict[str, str]:
        """Write those of the task, and the `attention_page` of what `shown` chooses."""
        from nlp.interpret import attention_page

        shown = self._read(batch)
        drawn = {"attention": attention_page(shown, title=self.subject)} if shown else {}
        return {**super().pages(batch), **drawn}

    def _read(self, batch: dict[str, Any]) -> list[ReadText]:
        """What `shown` chooses: once for the figures and the page of a batch, read by the same
        weights."""
        weights = [version(w) for w in self.parameters()]
        known = self._last_read
        if known is None or known[0] is not batch or known[1] != weights:
            known = self._last_read = batch, weights, self.shown(batch)
        return known[2]

    def _seeded(self) -> torch.Generator:
        """For what is drawn at random to be the same whenever it is shown."""
        return torch.Generator(self.device).manual_seed(0)


def check_positions(model: nn.Module, data: Any) -> None:
    """Refuse data with texts that are longer than the learned positions of the model.

    Raises:
        UsageError: naming both numbers.
    """
    limits = [part.size[0] for part in model.modules() if isinstance(part, LearnedPosition)]
    longest = getattr(data, "longest", 0)
    if limits and longest > min(limits) and not getattr(model, "windowed", False):
        raise UsageError(
            f"data: its longest text has {longest:,} tokens, but the model has {min(limits):,} "
            "positions. Take a larger model.max_length, other model.positions, or windows "
            "(model.windowed=true to tell labels, data.window to model language)."
        )


def readable(lengths: Tensor, count: int) -> list[int]:
    """Choose up to `count` texts to draw: of 8 to 24 tokens first, then those closest to that.

    Args:
        lengths: (B,) tokens.
    """
    off = (8 - lengths).clamp(min=0) + (lengths - 24).clamp(min=0)
    order = off.argsort(stable=True).tolist()
    return [index for index in order if 0 < lengths[index] <= MOST_TOKENS][:count]
