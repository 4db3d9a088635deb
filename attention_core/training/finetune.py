"""Fine-tuning: the weights that a run starts from, and the parts of its model that do not train."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from attention_core.errors import UsageError, did_you_mean
from attention_core.pretrained import Pretrained, load_strictly
from attention_core.pretrained.files import folder_of, read
from attention_core.pretrained.loading import is_published, open_checkpoint, weights_for
from attention_core.pretrained.renaming import Weights
from attention_core.training.checkpoint import load_checkpoint
from attention_core.training.folder import RunFolder
from attention_core.training.targets import is_within


def start_from(
    model: nn.Module,
    *,
    run: str | None = None,
    weights: str | None = None,
    prefix: str = "",
    new: Iterable[str] = (),
) -> str:
    """Load weights into `model` in place of its random ones; say which.

    Weights of a published model, of one of the model's `families`, are recognised and translated;
    the model must be configured as theirs is, see `load_pretrained`.

    The rule: what the source has under `prefix` is the model, but for the parts that are `new`. A
    classifier starts from a masked autoencoder, whose transformer is its part `vit`, by
    ``prefix="vit", new=["head"]``. Everything else of the model must be there, in its shape; what
    the source has beyond is left where it is.

    Args:
        run: the folder of another run, whose best weights are taken.
        weights: or a file, such as the `.safetensors` of `attn export`, or one of a published
            model, or the folder of that.
        prefix: the part of the source to take, by name; "" for all of it.
        new: parts of the model, by name, that stay random.

    Returns: what was taken, what is new and what was left; "" where neither `run` nor `weights`
    is given, and nothing is loaded.

    Raises:
        UsageError: a part of the model is neither in the source nor new, or has another shape; or
            an argument is wrong. The model is then as it was.
    """
    file = find_weights(run=run, weights=weights)
    if file is None:
        return ""
    new, ours = list(new), model.state_dict()
    _check_parts("init.new", new, ours)
    if run is None:
        source = _under(read(file), prefix)
    else:  # its checkpoint is the task's, of which the model is one part
        source = _under(_under(load_checkpoint(file)["state_dict"], "model"), prefix)
    kept = [name for name in ours if is_within(name, new)]
    family = ""
    own = source.keys() >= ours.keys() - set(kept)
    if isinstance(model, Pretrained) and not own and is_published(source):
        # The configuration beside a file may say that it has but the names of a family
        folder = None if run or prefix else folder_of(file)
        checkpoint = open_checkpoint(type(model), source, folder=folder)
        head = not any(is_within(part, new) for part in model.parts.values())
        source, dropped = weights_for(model, checkpoint, head=head)
        # All that theirs computes with has to be in the model
        taken = {name: value for name, value in source.items() if not is_within(name, new)}
        left, family = list(dropped), f", by the names of {checkpoint.source}"
    else:
        taken = {name: source[name] for name in ours if name in source and name not in kept}
        left = [name for name in source if name not in taken]
    try:
        load_strictly(model, taken, keep=kept)
    except UsageError as error:
        where = f" under {prefix!r}" if prefix else ""
        raise UsageError(
            f"init: {error} They are from {str(file)!r}, which has{where}: {_parts(source)}. "
            "init.prefix chooses the part of it to take, init.new names the parts of the model "
            "that are to stay random."
        ) from error
    if not taken:
        raise UsageError(f"init.new: {', '.join(new)} is all of the model; nothing was loaded.")
    said = f"{len(taken)} of {len(ours)} tensors from {file}{family}"
    if new:
        said += f"; new: {', '.join(new)}"
    return f"{said}; not taken: {_parts(left)}" if left else said


def find_weights(*, run: str | None = None, weights: str | None = None) -> Path | None:
    """Find the file that a run starts from, None for random weights. Arguments: as of `start_from`.

    Raises:
        UsageError: both are given, or what is given does not exist.
    """
    if run is not None and weights is not None:
        raise UsageError(f"init: either run={run} or weights={weights} can be given, not both.")
    if run is not None:
        path = RunFolder(Path(run)).existing().best
        if not path.exists():
            raise UsageError(f"init.run: {run!r} has no best checkpoint yet.")
        return path
    if weights is None:
        return None
    if not Path(weights).exists():
        raise UsageError(f"init.weights: there is no file {weights!r}.")
    return Path(weights)


def freeze(model: nn.Module, parts: Iterable[str]) -> None:
    """Keep `parts` of the model, by name, from training: a linear probe freezes all but the head.

    Only their weights stand still: dropout in them is that of training.

    Raises:
        UsageError: the model has no such part.
    """
    parts = list(parts)
    _check_parts("freeze", parts, dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        if is_within(name, parts):
            parameter.requires_grad_(False)


def _under(weights: Weights, part: str) -> Weights:
    """Return the weights in `part`, by the names that they have there."""
    if not part:
        return weights
    start = part.rstrip(".") + "."
    return {name.removeprefix(start): w for name, w in weights.items() if name.startswith(start)}


def _check_parts(key: str, parts: Iterable[str], names: Mapping[str, Any]) -> None:
    for part in parts:
        if not any(is_within(name, [part]) for name in names):
            known = {name.rpartition(".")[0] or name for name in names}
            raise UsageError(
                f"{key}: the model has no part {part!r}.{did_you_mean(part, known)} Its parts are "
                f"{_parts(names)}."
            )


def _parts(names: Iterable[str]) -> str:
    """The first component of each name, once."""
    return ", ".join(dict.fromkeys(name.partition(".")[0] for name in names)) or "nothing"
