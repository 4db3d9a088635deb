"""The contract of every model: tokens and where they sit, encoded, pooled and read by a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from attention_core.annotated import takes
from attention_core.checks import check_whole
from attention_core.errors import did_you_mean
from attention_core.layers import AttentionPool, Encoder, Pool
from attention_core.pretrained import Pretrained
from attention_core.spaces import Space

#: What a subclass sets, and how.
_PARTS = {
    "encoder": "Encoder(dim, depth, heads)",
    "pool": 'Pool("mean"), or another of make_pool',
    "head": "by self.reset_head(num_classes)",
}


def _of_any_inputs(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method, which a type checker lets subclasses write for inputs of their own."""
    return method


class Model(Pretrained):
    """The base of every model, also of a domain of your own.

    A subclass makes its parts, `encoder` and `pool`, and with `reset_head` the `head`; and it says
    in `embed` what tokens its inputs become and where these sit. The rest follows::

        class SeriesEncoder(Model):
            def __init__(
                self, dim: int, depth: int, heads: int, *, num_classes: int | None,
                **encoder: Unpack[EncoderOptions],
            ) -> None:
                super().__init__()
                self.embedding = nn.Linear(1, dim)
                self.encoder = Encoder(dim, depth, heads, **encoder)
                self.pool = Pool("mean")
                self.reset_head(num_classes)

            def embed(self, series: Tensor, lengths: Tensor) -> tuple[Tensor, Sequence]:
                return self.embedding(series), Sequence.padded(lengths)

        model = SeriesEncoder(64, depth=4, heads=4, num_classes=3)
        logits = model(series, lengths)                          # (B, 3)
        tokens, space = model.encode(series, lengths)            # (B, L, 64)
        maps = model.features(series, lengths, layers=[1, -1])   # two of (B, L, 64)

    Attributes:
        encoder: what `encode` runs.
        pool: from tokens to one vector for each sample, see `make_pool`.
        head: from this vector to the outputs.
        num_classes: number of outputs; None where the head is none, or gives no classes.
    """

    #: Arguments by the names that the literature has for them, see `preset`.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    encoder: Encoder
    pool: AttentionPool | Pool
    head: nn.Module
    num_classes: int | None = None

    def __init__(self) -> None:
        super().__init__()

    @property
    def stack(self) -> Encoder:
        """The layers that `encode` runs, by default `encoder`."""
        encoder: Encoder = self._part("encoder")
        return encoder

    @classmethod
    def preset(cls, name: str, **options: object) -> Self:
        """Make a model of the sizes that the literature calls `name`, see `presets`.

        Args:
            name: a key of `presets`.
            options: all other arguments; they may replace those of the preset.

        Raises:
            ValueError: there is no such preset.
        """
        if not isinstance(name, str) or name not in cls.presets:
            if not cls.presets:
                raise ValueError(f"{cls.__name__} has no presets; got name={name!r:.80}")
            raise ValueError(
                f"name must be one of {', '.join(cls.presets)}; got {name!r:.80}."
                f"{did_you_mean(str(name), cls.presets)}"
            )
        return cls(**{**cls.presets[name], **options})

    def embed(self, *inputs: Any, **more: Any) -> tuple[Tensor, Space]:
        """Return what the encoder gets: tokens (B, L, D), or (T, D) packed, and where they sit."""
        raise NotImplementedError(
            f"{type(self).__name__} must define embed(self, ...) -> (tokens, space)"
        )

    def encode(self, *inputs: Any, backend: str | None = None, **more: Any) -> tuple[Tensor, Space]:
        """Return the encoded tokens (B, L, D), or (T, D) packed, and where they sit.

        Args:
            inputs, more: as of `embed`.
            backend: a name to override the plan's choice.
        """
        tokens, space = self._embedded(inputs, more)
        return self.stack(tokens, space, backend=backend), space

    def read(self, tokens: Tensor, space: Space) -> Tensor:
        """Return the outputs (samples, num_classes) for encoded tokens, by `pool` and `head`."""
        output: Tensor = self._part("head")(self._part("pool")(tokens, space))
        return output

    @_of_any_inputs
    def forward(self, *inputs: Any, backend: str | None = None, **more: Any) -> Any:
        """Return the outputs (samples, num_classes).

        Args:
            inputs, more: as of `embed`.
            backend: a name to override the plan's choice.
        """
        return self.read(*self.encode(*inputs, backend=backend, **more))

    def features(
        self,
        *inputs: Any,
        layers: Sequence[int] = (-1,),
        norm: bool = True,
        backend: str | None = None,
        **more: Any,
    ) -> list[Any]:
        """Return the tokens after some layers, in the shape of the inputs: no special ones.

        Args:
            inputs, more: as of `embed`.
            layers: which blocks, in the order wanted; negative numbers count from the last.
            norm: normalise them as the encoder does its output.
            backend: a name to override the plan's choice.

        Raises:
            ValueError: there is no such layer.
        """
        tokens, space = self._embedded(inputs, more, "layers", "norm")
        outputs = self.stack.intermediates(tokens, space, layers=layers, norm=norm, backend=backend)
        return [self._shaped(*space.without_special(x)) for x in outputs]

    def _embedded(
        self, inputs: tuple[Any, ...], more: Mapping[str, Any], *others: str
    ) -> tuple[Tensor, Space]:
        """Return what `embed` does, or say what is wrong with it in the words of the caller, which
        takes `others`, too."""
        try:
            embedded = self.embed(*inputs, **more)
        except TypeError as error:
            known = takes(self.embed)
            for name in more:
                if name not in known.hints and not known.more:
                    near = did_you_mean(name, [*known.hints, "backend", *others])
                    raise TypeError(
                        f"{type(self).__name__} takes no argument {name!r}.{near or known.listed()}"
                    ) from error
            raise
        if not (isinstance(embedded, tuple) and isinstance(embedded[-1], Space)):
            raise TypeError(
                f"{type(self).__name__}.embed must return (tokens, space), the latter a Space, got "
                f"{type(embedded).__name__}"
            )
        return embedded

    def _part(self, name: str) -> Any:
        part = getattr(self, name, None)
        if part is None:
            raise TypeError(f"{type(self).__name__}.__init__ must set self.{name}: {_PARTS[name]}")
        return part

    def _shaped(self, tokens: Tensor, space: Space) -> Any:
        """Tokens that sit somewhere, as the inputs are: on a grid, say."""
        return tokens

    def reset_head(self, num_classes: int | None) -> None:
        """Replace the head by a new one of `num_classes` outputs; None: the pooled vector itself.

        It lies where the model does, and in its dtype.

        Raises:
            TypeError, ValueError: the model has no such head.
        """
        check_whole(num_classes=num_classes, or_none=True)
        head = self._new_head(num_classes)
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        self.head, self.num_classes = head.to(like.device, like.dtype), num_classes

    def _new_head(self, num_classes: int | None) -> nn.Module:
        return nn.Identity() if num_classes is None else nn.Linear(self.stack.dim, num_classes)
