"""Models from published weights: whose they are, the model that they are for, all of them in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from torch import nn

from attention_core.errors import UsageError, did_you_mean
from attention_core.escape import on_one_line
from attention_core.pretrained.family import Checkpoint, Config, Family, same
from attention_core.pretrained.files import folder_of, read, read_json
from attention_core.pretrained.names import PARTS, POOLER
from attention_core.pretrained.own import build_own, is_own
from attention_core.pretrained.renaming import Weights, some
from attention_core.pretrained.strict import load_strictly

Published = Mapping[str, Any] | str | Path


@dataclass(frozen=True)
class LoadReport:
    """The fate of the weights that were loaded into a model.

    Attributes:
        source: where they come from, such as "timm".
        dropped: each weight that was left out deliberately, by its own name, and why.
        kept: the model's parameters that stay as they were.
    """

    source: str
    dropped: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"weights: from {self.source}"]
        by_reason: dict[str, list[str]] = {}
        for name, why in self.dropped.items():
            by_reason.setdefault(why, []).append(name)
        lines += [f"  dropped, {why}: {some(names)}" for why, names in by_reason.items()]
        if self.kept:
            lines.append(f"  kept as they were: {some(self.kept)}")
        return "\n".join(map(on_one_line, lines))  # names come from files


class Pretrained(nn.Module):
    """A model that can be made from the weights of a published one.

    Attributes:
        families: the published models that it can be made from, by name, what is more particular
            first.
        parts: what of theirs, beside the transformer itself, it reads, one or several of
            `names.PARTS`, to what it calls it; a fine-tuning starts these parts anew.
    """

    families: ClassVar[Mapping[str, Family]] = {}
    parts: ClassVar[Mapping[str, str]] = {}

    def weights_of(self, other: Any) -> Weights:
        """Return the weights of another model of this class, as this one has their shapes."""
        return other.state_dict()

    @classmethod
    def from_pretrained(
        cls,
        weights: Published,
        *,
        source: str | None = None,
        heads: int | None = None,
        config: Config | None = None,
        **options: object,
    ) -> Self:
        """Return the model that published weights are for, with these weights, in training mode.

        Args:
            weights: a state dict, a `.safetensors` or torch file of one, or the folder of a
                published model; ``package:NAME/PATH`` is one inside an installed package. By our
                own names, too: what `attn export` has written also says what model it is of; to
                others give the model's arguments.
            source: one of the class's `families`; by default it is recognised by the configuration,
                or by the names.
            heads: which shapes do not tell; by default those of the configuration, and else those
                of the published model of this size, or heads of 64 features.
            config: transformers' `config.json` as a dict: what shapes do not tell. By default that
                of the folder or beside the file. ALBERT's depth and all of Llama's heads need it.
            options: arguments that replace those found, such as `num_classes`, whose head is new,
                even where there are as many;
                `image_size`, to which positions are resampled; or `pooling`.

        Raises:
            UsageError: as of `load_pretrained`; or something cannot be told.

        Example::

            model = VisionTransformer.from_pretrained("dinov2_vits14.pth", image_size=224)
            model = TextEncoder.from_pretrained("all-MiniLM-L6-v2", num_classes=3)
        """
        return build(cls, weights, source=source, heads=heads, config=config, **options)


Model = TypeVar("Model", bound=Pretrained)


def load_pretrained(
    model: nn.Module, weights: Published, source: str | None = None, *, head: bool = True
) -> LoadReport:
    """Load published weights into `model`, all of them or none.

    The model's configuration must be the one that they were trained with: shapes are checked, but
    what has none, such as `eps`, `activation`, rotary positions or the number of heads, cannot be.
    The model's `from_pretrained` chooses it. Learned positions of images are resampled to the
    model's image size.

    Args:
        model: one with `families`, such as a `VisionTransformer` or a `TextEncoder`.
        weights: a state dict, a `.safetensors` or torch file of one, or the folder of a published
            model.
        source: one of `model.families`; by default it is recognised by the configuration beside
            the file, or by the names.
        head: False leaves the model's head as it is, and a pooler that the weights have none for,
            to fine-tune it on other classes.

    Returns: what was dropped, and why, and what of the model is as before.

    Raises:
        UsageError: the file cannot be read, the source is unknown, or something of theirs has no
            place in the model, or the reverse; the message has the first names and shapes.

    Example::

        model = VisionTransformer.preset("small", patch_size=16, num_classes=10, image_size=96)
        print(load_pretrained(model, "vit_small_patch16_224.safetensors", head=False))
    """
    if not isinstance(model, Pretrained) or not model.families:
        known = ", ".join(kind.__name__ for kind in _kinds())
        raise TypeError(f"model must be one of {known}; got {type(model).__name__}")
    checkpoint = open_checkpoint(type(model), read(weights), source, folder=folder_of(weights))
    return _load(model, checkpoint, head=head)


def build(
    model_type: type[Model],
    weights: Published,
    *,
    source: str | None = None,
    heads: int | None = None,
    config: Config | None = None,
    **options: object,
) -> Model:
    """Return the model that published weights are for, with them; see `from_pretrained`."""
    theirs = read(weights)
    if source is None and is_own(theirs):
        if config is not None:
            raise UsageError(
                "config: it is transformers', of published weights. These are of a model of this "
                "package: give its arguments by name, where the file does not say them."
            )
        own = {} if heads is None else {"heads": heads}
        return build_own(model_type, theirs, weights, {**own, **options})
    checkpoint = open_checkpoint(
        model_type,
        theirs,
        source,
        folder=folder_of(weights),
        heads=heads,
        config=config,
        options=options,
    )
    model = model_type(**{**checkpoint.family.settings(checkpoint), **options})
    _load(model, checkpoint, head="num_classes" not in options)
    return model


def open_checkpoint(
    model_type: type[Pretrained],
    weights: Weights,
    source: str | None = None,
    *,
    folder: Path | None = None,
    heads: int | None = None,
    config: Config | None = None,
    options: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Return published weights recognised and by our names.

    Args:
        weights: as `read` gives them.
        folder: where they lie, perhaps beside a `config.json`.

    The other arguments are those of `build`.
    """
    if not isinstance(config, Mapping | None):
        raise UsageError(
            f"config: a dict is needed, what config.json holds; got a {type(config).__name__}."
        )
    found = {} if folder is None else read_json(folder / "config.json")
    source = recognise(model_type, weights, found if config is None else config, source)
    family = model_type.families[source]
    return Checkpoint(
        source=source,
        family=family,
        parts=model_type.parts,
        **family.translate(weights, model_type.parts)._asdict(),
        config=found if config is None else config,
        given_config=config,
        folder=folder,
        heads=heads,
        options=options or {},
    )


def recognise(
    model_type: type[Pretrained],
    weights: Weights,
    config: Config | None = None,
    source: str | None = None,
) -> str:
    """Return the name of the family, of those of `model_type`, that weights are of.

    Raises:
        UsageError: they are of none, or of one that another model loads; the message says which.
    """
    families = model_type.families
    if source is not None:
        if source in families:
            return source
        _refuse_another(model_type, lambda name, family: name == source)
        raise UsageError(
            f"source must be one of {', '.join(families)}, got {source!r}."
            f"{did_you_mean(source, families)}"
        )
    named = (config or {}).get("model_type")
    if named is not None:
        for name, family in families.items():
            if named in family.model_types:
                return name
        _refuse_another(model_type, lambda name, family: named in family.model_types)
        known = [one for family in families.values() for one in family.model_types]
        # It may have the names of one of these, and yet compute something else
        raise UsageError(
            f"config: model_type {named!r} is none of {', '.join(known)}. Where it computes the "
            "same as one of them, give source=."
        )
    for name, family in families.items():
        if family.owns(weights):
            return name
    if is_own(weights):
        raise UsageError(
            f"weights: they have our own names; {model_type.__name__}.from_pretrained makes a "
            "model of them, model.load_state_dict and init.weights= load them into one."
        )
    _refuse_another(model_type, lambda name, family: family.owns(weights))
    why = f"they are of none of {', '.join(families)}"
    if not families:
        why = f"a {model_type.__name__} loads those by its own names alone, which these are not"
    raise UsageError(f"weights: {why}; the first are {some(list(weights))}.")


def _refuse_another(model_type: type[Pretrained], fits: Callable[[str, Family], bool]) -> None:
    """Refuse the weights of an encoder for a decoder, and the like, where any model loads them."""
    found = [
        (name, kind.__name__)
        for kind in _kinds()
        for name, family in kind.families.items()
        if fits(name, family)
    ]
    if found:
        own, source = model_type.__name__, found[0][0]
        fitting = list(dict.fromkeys(kind for name, kind in found if name == source))
        raise UsageError(
            f"weights: they are of {source!r}, for {' or '.join(fitting)}, not for {own}: "
            f"{own}.from_pretrained cannot make one of them, {fitting[0]}.from_pretrained does."
        )


def is_published(weights: Weights) -> bool:
    """Return whether weights are of a family of any model imported so far."""
    return any(family.owns(weights) for kind in _kinds() for family in kind.families.values())


def _kinds() -> list[type[Pretrained]]:
    """Return all models imported so far that name families of their own, the plainest first."""
    found, below = [], [Pretrained]
    while below:
        kind = below.pop()
        below += [one for one in kind.__subclasses__() if one not in found]
        found.append(kind)
    named = [kind for kind in dict.fromkeys(found) if vars(kind).get("families")]
    return sorted(named, key=lambda kind: (len(kind.__mro__), kind.__name__))


def weights_for(
    model: Pretrained, checkpoint: Checkpoint, *, head: bool = True
) -> tuple[Weights, dict[str, str]]:
    """Return the weights of a checkpoint by the names of `model`, and what was dropped, and why.

    Args:
        head: False leaves out those of its parts, but for a pooler.

    Raises:
        UsageError: one is of a part that no model reads, or is no copy where it has to be.
    """
    family, state = checkpoint.family, model.state_dict()
    ours: Weights = {}
    dropped = dict(checkpoint.dropped)
    for name, value in family.fit(model, checkpoint).items():
        part, _, rest = name.partition(".")
        place = f"{model.parts[part]}.{rest}" if part in PARTS else name
        theirs = checkpoint.names.get(name, name)
        copied = family.copies.get(theirs)
        why = None
        if part == POOLER and place not in state:
            why = f"the model has no {part}"
        elif part in PARTS and part != POOLER and not head:
            why = "the model keeps its own head"
        elif part in family.refused:
            raise UsageError(f"weights: {family.refused[part]}")
        elif copied in checkpoint.theirs and place not in state:
            why = same(checkpoint.theirs, theirs, copied)
        if why is None:
            ours[place] = value
        elif name in checkpoint.names:  # and not made up, as a bias of zeros is
            dropped[theirs] = why
    return ours, dropped


def _load(model: Pretrained, checkpoint: Checkpoint, *, head: bool) -> LoadReport:
    ours, dropped = weights_for(model, checkpoint, head=head)
    kept = []
    if not head:
        state = model.state_dict()
        own = tuple(f"{part}." for part in model.parts.values())
        kept = [name for name in state if name.startswith(own) and name not in ours]
    load_strictly(model, ours, keep=kept)
    return LoadReport(checkpoint.source, dropped, kept)
