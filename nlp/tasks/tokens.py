"""Language modelling: what is asked is tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from attention_core import KVCache
from attention_core.training import DataModule, TaskOptions, UsageError
from nlp.data.packing import IGNORED, unpack
from nlp.decoder import TextDecoder
from nlp.encoder import MaskedLanguageModel
from nlp.generation import generate
from nlp.tasks.base import TextTask, readable

if TYPE_CHECKING:
    from nlp.interpret import ReadText

#: A text is shown with so many tokens of its own, and so many that the model writes after them.
GIVEN, WRITTEN = 12, 24


class TokenTaskOptions(TaskOptions, total=False):
    """Options of every `TokenTask`, which subclasses pass on."""

    label_smoothing: float


class TokenTask(TextTask):
    """Cross-entropy over tokens, each with the same weight, however they are dealt to batches.

    The model returns logits (..., V) for `target` (...), in which `IGNORED` asks for nothing. The
    data is a `TokenData`.

    Args:
        model: any such.
        label_smoothing: the share of a target spread over all tokens (Szegedy et al., 2016), in
            training alone: what is validated and tested is the cross-entropy.
        metrics, settings: as in `Task`.

    Raises:
        UsageError: before training, where the data has longer texts than the model has positions.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        label_smoothing: float = 0.0,
        metrics: Mapping[str, Metric] | None = None,
        **settings: Unpack[TaskOptions],
    ) -> None:
        super().__init__(model, metrics=metrics, **settings)
        self.label_smoothing = label_smoothing

    def samples(self, batch: dict[str, Any]) -> int:
        return len(batch["lengths"])

    def weight(self, batch: dict[str, Any]) -> Tensor:
        """Count the tokens that are asked for."""
        asked: Tensor = (batch["target"] != IGNORED).sum()
        return asked

    def loss(self, output: Tensor, batch: dict[str, Any]) -> Tensor:
        smoothing = self.label_smoothing if self.model.training else 0.0
        return nats(output, batch["target"], smoothing) / self.weight(batch).clamp(min=1)

    def export_inputs(self, batch: dict[str, Any]) -> NoReturn:
        """Refuse: a program would have to generate."""
        raise UsageError(
            f"export: {type(self).__name__} asks a model for tokens, which no fixed program is "
            "written for. Its weights can be written, by format=safetensors."
        )


def nats(output: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the cross-entropy of logits (..., V) with `target` (...), summed.

    Raises:
        UsageError: logits of another shape.
    """
    if output.shape[:-1] != target.shape:
        raise UsageError(
            f"model: logits of shape {(*target.shape, 'V')} expected, one row per token that is "
            f"asked for, got {tuple(output.shape)}."
        )
    return F.cross_entropy(
        output.flatten(0, -2).float(),
        target.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


class BitsPerByte(Metric):
    """The mean number of bits in which a model writes a byte of text: comparable between models
    with different tokens, and with compressors."""

    nats: Tensor
    bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nats", "bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, bytes: Tensor) -> None:
        """Add the cross-entropy of tokens, summed, and the number of bytes that they stand for."""
        self.nats += nats
        self.bytes += bytes

    def compute(self) -> Tensor:
        return (self.nats / math.log(2) / self.bytes).float()


def check_generation(options: Mapping[str, Any], max_length: int | None = None) -> None:
    """Refuse wrong options of `nlp.generate`, before an epoch is spent.

    Args:
        options: those of a task.
        max_length: positions of the model, where the prompt is a single token.

    Raises:
        UsageError: an unknown option, or one out of its range.
    """
    try:
        generate(_Ended(max_length), torch.zeros(1, 1, dtype=torch.long), **{**options, "stop": 0})
    except (TypeError, ValueError) as error:
        raise UsageError(f"task.generation: {error}.") from error


class _Ended:
    """A model of one token, which ends every text."""

    def __init__(self, max_length: int | None) -> None:
        self.max_length = max_length

    def modules(self) -> Iterator[nn.Module]:
        return iter(())

    def new_cache(self, max_length: int | None = None) -> KVCache:
        return KVCache()

    def next_scores(self, ids: Tensor, lengths: Tensor | None, cache: KVCache | None) -> Tensor:
        return torch.zeros(len(ids), 1)


class CausalLanguageModelling(TokenTask):
    """Telling the next token, with the data's objective `NextToken`. `attn predict` completes.

    The metric `bits_per_byte` counts all tokens, the one that ends a text too, and the bytes of the
    text alone.

    Args:
        model: an `nlp.TextDecoder`.
        generation: options of `nlp.generate` for `attn predict`.
        settings: those of `TokenTask`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        generation: Mapping[str, Any] | None = None,
        **settings: Unpack[TokenTaskOptions],
    ) -> None:
        super().__init__(model, metrics={"bits_per_byte": BitsPerByte()}, **settings)
        self.generation = dict(generation or {})
        self._bytes: Tensor | None = None

    def on_fit_start(self) -> None:
        super().on_fit_start()
        check_generation(self.generation)
        self.trainer.datamodule.tokenizer.byte_counts()  # type: ignore[attr-defined]

    def update_metrics(
        self, metrics: MetricCollection, output: Tensor, batch: dict[str, Any]
    ) -> None:
        target = batch["target"]
        if self._bytes is None:
            tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
            self._bytes = torch.tensor(tokenizer.byte_counts(), device=target.device)
        asked = target != IGNORED  # as a factor, for whose size no GPU is waited
        count = (self._bytes[target * asked] * asked).sum()
        metrics["bits_per_byte"].update(nats(output, target), count)

    def predict(self, batch: dict[str, Any], data: DataModule) -> list[dict[str, Any]]:
        """Return `completion`: what the model writes after each prompt."""
        tokenizer = data.tokenizer  # type: ignore[attr-defined]
        options = {"stop": tokenizer.end, **self.generation}
        written = self.model.generate(batch["ids"], batch["lengths"], **options)  # type: ignore[operator]
        return [{"completion": tokenizer.decode(row.tolist())} for row in written]

    def shown(self, batch: dict[str, Any]) -> list[ReadText]:
        """Choose two test texts that the model completes from their first tokens."""
        from nlp.interpret import ReadText, attention_maps

        if not isinstance(self.model, TextDecoder):
            return []
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        limit = self.model.max_length or GIVEN + WRITTEN
        texts = []
        for row in unpack(batch["ids"], batch["lengths"])[:2]:
            given = row[: min(GIVEN, limit // 2)]
            options = {"stop": tokenizer.end, **self.generation, "generator": self._seeded()}
            options["max_tokens"] = min(WRITTEN, limit - len(given))
            (written,) = self.model.generate(given[None], **options)
            seen = attention_maps(self.model, torch.cat([given, written]), tokenizer=tokenizer)
            caption = f"{tokenizer.decode(given.tolist())!r} goes on: "
            caption += repr(tokenizer.decode(written.tolist()))
            texts.append(ReadText(caption, seen, written=len(written)))
        return texts


class MaskedLanguageModelling(TokenTask):
    """Naming masked tokens, with the data's objective `Masking`. `attn predict` embeds.

    Args:
        model: an `nlp.MaskedLanguageModel`.
        settings: those of `TokenTask`.
    """

    def __init__(self, model: nn.Module, **settings: Unpack[TokenTaskOptions]) -> None:
        count = getattr(
            getattr(getattr(model, "embedding", None), "table", None), "num_embeddings", 0
        )
        accuracy = MulticlassAccuracy(max(2, count), average="micro", validate_args=False)
        super().__init__(model, metrics={"accuracy": accuracy}, **settings)

    def predict(self, batch: dict[str, Any], data: DataModule) -> list[dict[str, Any]]:
        """Return `embedding_0` ...: the mean of each text's encoded tokens."""
        from attention_core import pool
        from nlp.batches import token_space

        tokens, _ = self.model.encode(batch["ids"], batch["lengths"])  # type: ignore[operator]
        pooled = pool(tokens, token_space(batch["ids"], batch["lengths"]), "mean").float()
        return [
            {f"embedding_{place}": value for place, value in enumerate(row)}
            for row in pooled.tolist()
        ]

    def shown(self, batch: dict[str, Any]) -> list[ReadText]:
        """Choose two test texts as the model sees them, and what it takes the hidden tokens for."""
        from nlp.interpret import ReadText, attention_maps

        if not isinstance(self.model, MaskedLanguageModel):
            return []
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        lengths, padded = batch["lengths"], batch["ids"].ndim == 2
        starts = lengths.cumsum(0) - lengths
        if padded:
            starts = torch.arange(len(lengths), device=lengths.device) * batch["ids"].shape[1]
        rows, texts = unpack(batch["ids"], lengths), []
        for index in readable(lengths, 2):
            at, ids = batch["at"] - starts[index], rows[index]
            inside = (at >= 0) & (at < lengths[index])
            meant = tokenizer.pieces(batch["target"][inside].tolist())
            named = tokenizer.pieces(self.model(ids, at=at[inside]).argmax(-1).tolist())
            asked = [
                f"{name} ({'right' if name == true else f'was {true}'})"
                for name, true in zip(named, meant, strict=True)
            ]
            caption = f"Asked for {len(asked)}, says {', '.join(asked)}" if asked else "Nothing hid"
            texts.append(ReadText(caption, attention_maps(self.model, ids, tokenizer=tokenizer)))
        return texts
