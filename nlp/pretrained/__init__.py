"""The weights of published language models in models of ours.

One module for each kind of family has its names and settings; `attention_core.training.weights`
reads files and loads strictly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from attention_core.errors import UsageError, did_you_mean
from attention_core.training.weights import (
    LoadReport,
    Weights,
    join_projections,
    load_strictly,
    rename,
    some,
    without_prefix,
)
from nlp.decoder import TextDecoder
from nlp.encoder import MaskedLanguageModel, TextEncoder
from nlp.pretrained.bert import ALBERT, BERT, DISTILBERT, ROBERTA
from nlp.pretrained.decoders import GPT2, LLAMA
from nlp.pretrained.family import Family
from nlp.pretrained.files import read, read_config, read_pooling
from nlp.pretrained.modernbert import MODERNBERT
from nlp.pretrained.t5 import T5
from nlp.seq2seq import Seq2SeqTransformer

__all__ = ["SOURCES", "LoadReport", "build", "load_pretrained"]

Model = TypeVar("Model", bound=nn.Module)

#: By name, what is more particular first.
SOURCES: dict[str, Family] = {
    "modernbert": MODERNBERT,
    "albert": ALBERT,
    "distilbert": DISTILBERT,
    "roberta": ROBERTA,
    "bert": BERT,
    "gpt2": GPT2,
    "t5": T5,
    "llama": LLAMA,
}

#: Others that have the names of one of these: what their configuration calls them.
ALIASES = {"xlm-roberta": "roberta", "camembert": "roberta", "mistral": "llama", "mt5": "t5"}

_ENCODERS = ("modernbert", "albert", "distilbert", "roberta", "bert")

#: The sources that a model can be made from.
FAMILIES: dict[type[nn.Module], tuple[str, ...]] = {
    TextEncoder: _ENCODERS,
    MaskedLanguageModel: _ENCODERS,
    TextDecoder: ("gpt2", "llama"),
    Seq2SeqTransformer: ("t5",),
}

#: The parts that a model reads, beside its tokens.
PARTS: dict[type[nn.Module], tuple[str, ...]] = {
    TextEncoder: ("pooler", "classifier"),
    MaskedLanguageModel: ("transform", "scores"),
    TextDecoder: ("scores",),
    Seq2SeqTransformer: ("scores",),
}

#: Parts of our models that a fine-tuning starts anew.
HEADS = ("head.", "transform.", "pool.", "pooler.")


def load_pretrained(
    model: nn.Module,
    weights: Mapping[str, Any] | str | Path,
    source: str | None = None,
    *,
    head: bool = True,
) -> LoadReport:
    """Loads the weights of a published model into `model`, all of them or none.

    The model's configuration must be the one that they were trained with: shapes are checked, but
    what has none, such as `eps`, `activation`, rotary positions or the number of heads, cannot be.
    ``TextEncoder.from_pretrained`` and that of the other models choose it.

    Args:
        model: a `TextEncoder`, `MaskedLanguageModel`, `TextDecoder` or `Seq2SeqTransformer`.
        weights: a state dict of transformers, a `.safetensors` or torch file of one, or the folder
            of a published model.
        source: one of `SOURCES` (MiniLM is a "bert"); by default it is recognised by the
            configuration beside the file, or by the names.
        head: False leaves the model's head as it is, and a pooler that the weights have none for,
            to fine-tune it on other classes.

    Returns: what was dropped, and why, and what of the model is as before.

    Raises:
        UsageError: the file cannot be read, the source is unknown, or something of theirs has no
            place in the model, or the reverse; the message has the first names and shapes.

    Example::

        print(load_pretrained(model, "all-MiniLM-L6-v2/model.safetensors", head=False))
    """
    source = _recognised(read(weights), source, read_config(weights))
    return _load(model, read(weights), source, head=head)


def build(
    model_type: type[Model],
    weights: Mapping[str, Any] | str | Path,
    *,
    source: str | None = None,
    heads: int | None = None,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Model:
    """The model that published weights are for, with them; see `TextEncoder.from_pretrained`."""
    theirs = read(weights)
    config = read_config(weights) if config is None else config
    source = _recognised(theirs, source, config)
    one = SOURCES[source]
    prepared, _ = one.prepare(without_prefix(theirs, *one.prefixes))
    _check_type(model_type, source)
    found = one.settings(prepared, config, heads)
    found = _of_type(model_type, one, prepared, found, config)
    if issubclass(model_type, TextEncoder):
        exact = not {"num_classes", "pooling"} & options.keys()
        found.update(read_pooling(weights, exact=exact))
    model = model_type(**{**found, **options})
    _load(model, theirs, source, head="num_classes" not in options)
    return model


def _check_type(model_type: type[nn.Module], source: str) -> None:
    """Refuses the weights of an encoder for a decoder, and the reverse."""
    fitting = [kind for kind, sources in FAMILIES.items() if source in sources]
    if not issubclass(model_type, tuple(fitting)):
        raise UsageError(
            f"weights: they are of {source!r}, for {' or '.join(k.__name__ for k in fitting)}, "
            f"not for {model_type.__name__}."
        )


def _of_type(
    model_type: type[nn.Module],
    one: Family,
    weights: Weights,
    found: dict[str, Any],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """What of `found` a model of this type takes, and what only it has."""
    found = dict(found)
    pooler = found.pop("pooler", None)
    named = ("transform", "transform_bias")
    transform: dict[str, Any] = {key: found.pop(key) for key in named if key in found}
    if issubclass(model_type, MaskedLanguageModel):
        return {**found, "transform": found["activation"], **transform}
    if issubclass(model_type, TextEncoder):
        classes = [w for name, w in weights.items() if _is(one, "classifier", name)]
        found["num_classes"] = len(classes[0]) if classes else None
        if one.has(weights, "pooler"):
            return {**found, "pooling": "class", "pooler": pooler}
        first = one is not MODERNBERT or config.get("classifier_pooling", "cls") == "cls"
        return {**found, "pooling": "class" if first else "mean"}
    head = weights.get("lm_head.weight")
    if head is None:  # of a file without scores only the configuration knows
        return {**found, "tied": config.get("tie_word_embeddings") is not False}
    return {**found, "tied": head.equal(weights[next(iter(one.copies.values()))])}


def _is(one: Family, part: str, name: str) -> bool:
    return part in one.parts and re.fullmatch(one.parts[part], name) is not None


def _recognised(theirs: Weights, source: str | None, config: Mapping[str, Any]) -> str:
    if source is not None:
        if source not in SOURCES:
            raise UsageError(
                f"source must be one of {', '.join(SOURCES)}, got {source!r}."
                f"{did_you_mean(source, SOURCES)}"
            )
        return source
    named = config.get("model_type")
    if named is not None:
        known = ALIASES.get(str(named), str(named))
        if known in SOURCES:
            return known
        # It may have the names of one of these, and yet compute something else
        raise UsageError(
            f"config: model_type {named!r} is none of {', '.join([*SOURCES, *ALIASES])}. Where it "
            "computes the same as one of them, give source=."
        )
    for name, one in SOURCES.items():
        if one.recognises(without_prefix(theirs, *one.prefixes)):
            return name
    own = " Those of a model of this package are for its load_state_dict."
    raise UsageError(
        f"weights: they are of none of {', '.join(SOURCES)}; the first are {some(list(theirs))}."
        f"{own if 'embedding.table.weight' in theirs else ''}"
    )


def _load(model: nn.Module, theirs: Weights, source: str, *, head: bool) -> LoadReport:
    one = SOURCES[source]
    weights, dropped = one.prepare(without_prefix(theirs, *one.prefixes))
    state = model.state_dict()
    read_parts = {part for kind in PARTS for part in PARTS[kind] if isinstance(model, kind)}
    if not read_parts:
        known = ", ".join(kind.__name__ for kind in PARTS)
        raise TypeError(f"model must be one of {known}; got {type(model).__name__}")
    left = {}
    for name, value in weights.items():
        why = _reason(one, name, weights, state, read_parts, head=head)
        if why is None:
            left[name] = value
        else:
            dropped[name] = why
    classified = head and "classifier" in read_parts and one.has(weights, "classifier")
    if source == "modernbert" and classified:
        raise UsageError(
            "weights: ModernBERT's classifier normalises what it reads, which TextEncoder does "
            "not. Give num_classes=, or head=False, for a head of your own."
        )
    ours = join_projections(rename(left, one.table))
    kept = [] if head else [n for n in state if n.startswith(HEADS) and n not in ours]
    load_strictly(model, ours, keep=kept)
    return LoadReport(source, dropped, kept)


def _reason(
    one: Family,
    name: str,
    weights: Weights,
    state: Mapping[str, Any],
    read_parts: set[str],
    *,
    head: bool,
) -> str | None:
    """Why the weight of this name is left out, or None."""
    for pattern, why in one.unused.items():
        if re.fullmatch(pattern, name):
            return why
    for part in one.parts:
        if not _is(one, part, name):
            continue
        if part not in read_parts:
            return f"a model of this type has no {part}"
        if part == "pooler" and "pooler.linear.weight" not in state:
            return "the model has no pooler"
        if part != "pooler" and not head:
            return "the model's own head stays"
    copied = one.copies.get(name)
    if copied is None or (name == "lm_head.weight" and "head.weight" in state):
        return None
    if copied in weights and not torch.equal(weights[name], weights[copied]):
        raise UsageError(
            f"weights: {name} is to be the same as {copied}, as the model has one for both, but it "
            "differs."
        )
    return f"the same as {copied}" if copied in weights else None
