"""Translation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from attention_core.training import DataModule, require
from attention_core.training.processes import gather
from nlp.data.packing import unpack
from nlp.seq2seq import Seq2SeqTransformer
from nlp.tasks.base import readable
from nlp.tasks.tokens import TokenTask, TokenTaskOptions, check_generation

if TYPE_CHECKING:
    from nlp.interpret import ReadText


class Translation(TokenTask):
    """Translation (Vaswani et al., 2017): the next token of the target, given the source.

    Validation and test also translate, and log the scores of `scores`: `test/bleu`, `test/chrf`,
    and beside it `test/chrf_copy`, the chrF of the untranslated sources. The best weights are those
    of the highest chrF in validation: translations go on improving after the cross-entropy has
    passed its minimum. `attn predict` translates.

    Args:
        model: an `nlp.Seq2SeqTransformer`.
        generation: options of `nlp.generate`, wherever it translates.
        settings: those of `TokenTask`.
    """

    subject = "Attention of translations to their sources"
    monitor = "val/chrf"
    mode = "max"

    def __init__(
        self,
        model: nn.Module,
        *,
        generation: Mapping[str, Any] | None = None,
        **settings: Unpack[TokenTaskOptions],
    ) -> None:
        super().__init__(model, **settings)
        self.generation = dict(generation or {})
        self._said: list[tuple[str, str, str]] = []

    def on_fit_start(self) -> None:
        super().on_fit_start()
        require("sacrebleu", extra="translation")
        options = {name: value for name, value in self.generation.items() if name != "start"}
        check_generation(options, getattr(self.model, "max_length", None))

    def on_validation_epoch_start(self) -> None:
        self._said = []

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self._translate(batch)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._log_scores("val")

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._said = []

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self._translate(batch)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._log_scores("test")

    def _translate(self, batch: dict[str, Any]) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        decode = data.tokenizer.decode
        sources = [decode(row.tolist()) for row in unpack(batch["ids"], batch["lengths"])]
        targets = unpack(batch["target_ids"], batch["target_lengths"])
        references = [decode(row.tolist()) for row in targets]
        self._said += zip(sources, references, self.translated(batch, data), strict=True)

    def _log_scores(self, stage: str) -> None:
        said = [row for part in gather(self._said) for row in part]
        found = scores(*zip(*said, strict=True))
        self.log_dict({f"{stage}/{name}": value for name, value in found.items()})

    def translated(self, batch: dict[str, Any], data: DataModule) -> list[str]:
        """Translate a batch's sources."""
        tokenizer = data.tokenizer  # type: ignore[attr-defined]
        options = {"start": tokenizer.start, "stop": tokenizer.end, **self.generation}
        written = self.model.generate(batch["ids"], batch["lengths"], **options)  # type: ignore[operator]
        return [tokenizer.decode(row.tolist()) for row in written]

    def shown(self, batch: dict[str, Any]) -> list[ReadText]:
        """Choose four test texts and translate them by the model."""
        from nlp.interpret import ReadText, alignment

        if not isinstance(self.model, Seq2SeqTransformer):
            return []
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        sources = unpack(batch["ids"], batch["lengths"])
        targets = unpack(batch["target_ids"], batch["target_lengths"])
        options = {"start": tokenizer.start, "stop": tokenizer.end, **self.generation}
        texts = []
        for index in readable(batch["lengths"], 4):
            ids, meant = sources[index], tokenizer.decode(targets[index].tolist())
            options["generator"] = self._seeded()
            (written,) = self.model.generate(ids[None], **options)
            if self.model.max_length is not None:  # one position is for the start
                written = written[: self.model.max_length - 1]
            seen = alignment(self.model, ids, written, tokenizer=tokenizer)
            caption = f"{tokenizer.decode(ids.tolist())!r} becomes "
            caption += f"{tokenizer.decode(written.tolist())!r} (reference: {meant!r})"
            texts.append(ReadText(caption, seen))
        return texts

    def predict(self, batch: dict[str, Any], data: DataModule) -> list[dict[str, Any]]:
        """Return the `translation` of each text."""
        return [{"translation": text} for text in self.translated(batch, data)]


def scores(
    sources: Sequence[str], references: Sequence[str], translations: Sequence[str]
) -> dict[str, float]:
    """Measure how good translations are, by sacrebleu (Post, 2018): "bleu" (Papineni et al., 2002)
    and "chrf" (Popović, 2015), each 0 to 100, over all texts together; and "chrf_copy", the chrF of
    the sources, as if nothing were translated.
    """
    require("sacrebleu", extra="translation")
    import sacrebleu

    listed = [list(references)]
    return {
        "bleu": sacrebleu.corpus_bleu(list(translations), listed).score,
        "chrf": sacrebleu.corpus_chrf(list(translations), listed).score,
        "chrf_copy": sacrebleu.corpus_chrf(list(sources), listed).score,
    }
