"""The model of a run as one file: its weights, or a program that runs without its code."""

import inspect
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from attention_core.errors import UsageError, did_you_mean
from attention_core.escape import json_line, on_one_line
from attention_core.pretrained import read_weights
from attention_core.pretrained.serialization import save_safetensors
from attention_core.training.data import DataModule, require
from attention_core.training.folder import RunFolder, read_config
from attention_core.training.predict import load_trained
from attention_core.training.task import Task
from attention_core.training.untraceable import explain

Inputs = dict[str, Tensor]
OpenDims = dict[str, dict[int, str]]

SUFFIXES = {"safetensors": ".safetensors", "torch_export": ".pt2", "onnx": ".onnx"}
PACKAGES = {
    "safetensors": [],
    "torch_export": [],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
}

# Between two orders of the same float32 operations, as a share of the largest output
TOLERANCE = 1e-4


def load_model(path: Path, allow: Sequence[str] = ()) -> nn.Module:
    """Load the model of the run in the folder `path`, its best weights, on the CPU, in eval mode.

    Args:
        allow: packages that you trust with running their code, where the run uses any.

    Raises:
        UsageError: as of `load_trained`.
    """
    _, task = load_trained(Path(path), allow, "export")
    return task.model.cpu().eval()


def export(
    folder: Path, format: str, output: Path | None = None, allow: Sequence[str] = ()
) -> None:
    """Write the model of the run in `folder`, with its best weights, as one file.

    "safetensors" holds the weights by name. "torch_export" (`torch.export.load`) and "onnx" hold a
    program, too: it takes what the task's `export_inputs` names, with as many samples as there are.
    A program has been compared with the model on two other batches before its file is there. It
    checks no values: an id that is none, or a text longer than it was made for, goes unnoticed.

    Args:
        format: "safetensors", "torch_export" or "onnx".
        output: a new file; by default `export/model.*` in the run folder, which is replaced.
        allow: packages that you trust with running their code, where the run uses any.

    Raises:
        UsageError: an argument is wrong, a package is missing, or the model has no such form.
    """
    path = _checked_output(RunFolder(folder).existing(), format, output)
    for package in PACKAGES[format]:
        require(package, extra="export")
    data, task = load_trained(folder, allow, "export")
    task.cpu()
    config = read_config(RunFolder(folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it comes there whole and checked, or not at all
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as temporary:
        file = Path(temporary, path.name)
        if format == "safetensors":
            said = _write_weights(task.model, file, _about(config))
        else:
            write = _write_torch if format == "torch_export" else _write_onnx
            with torch.compiler.set_stance("force_eager"):  # where the run compiled its blocks
                said = _write_program(write, data, task, file, _about(config))
        shutil.copymode(RunFolder(folder).config, file)  # safetensors hides its file from others
        for part in sorted(Path(temporary).iterdir(), reverse=True):  # model.onnx.data goes first
            part.replace(path.with_name(part.name))
    print(on_one_line(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, {said}"))


def _checked_output(folder: RunFolder, format: str, output: Path | None) -> Path:
    if format not in SUFFIXES:
        raise UsageError(
            f"format: {format!r} is none.{did_you_mean(format, SUFFIXES)} "
            f"The formats are {', '.join(SUFFIXES)}."
        )
    suffix = SUFFIXES[format]
    if output is None:
        return folder.path / "export" / f"model{suffix}"
    if output.suffix != suffix:
        raise UsageError(f"output: {str(output)!r} must end in {suffix} for format={format}.")
    if output.exists():
        raise UsageError(f"output: {str(output)!r} exists already. It is never overwritten.")
    if not output.parent.is_dir():
        raise UsageError(f"output: there is no folder {str(output.parent)!r} to write it in.")
    return output


def _about(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what every format carries with the model, as texts."""
    return {
        "experiment": on_one_line(config.get("experiment") or ""),
        "classes": json_line(config["data"].get("classes") or []),
        "model": json_line(config["model"]),
        "attention_core": version("attention-core"),
        "torch": torch.__version__,
    }


def _write_weights(model: nn.Module, file: Path, about: dict[str, str]) -> str:
    # Clones: the format refuses tensors that share memory, as tied weights do
    weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_safetensors(weights, file, about)
    read = read_weights(file)
    if read.keys() != weights.keys() or any(
        read[name].dtype != value.dtype or not torch.equal(read[name], value)
        for name, value in weights.items()
    ):
        raise UsageError(f"export: {file.name} reads back as something else; it was not written.")
    return f"{len(weights)} tensors, read back equal"


Run = Callable[[Inputs], list[Tensor]]


def _write_program(
    write: Callable[[ExportedProgram, OpenDims, Path, dict[str, str]], Run],
    data: DataModule,
    task: Task,
    file: Path,
    about: dict[str, str],
) -> str:
    examples = _examples(data, task)
    inputs, open_dims = examples[0]
    try:
        run = write(_traced(task.model, inputs, open_dims), open_dims, file, about)
    except Exception as error:  # tracing a model of the user's own can fail in any way
        reason = explain(error, task.model, lambda: _traced(task.model, inputs, open_dims))
        raise UsageError(
            f"export: {type(task.model).__name__} cannot be written as a program: {reason} "
            "(HYDRA_FULL_ERROR=1 shows where). Its weights can, by format=safetensors."
        ) from error
    worst = max(_difference(run, task.model, inputs) for inputs, _ in examples[1:])
    shapes = ", ".join(
        f"{name} ({', '.join(open_dims[name].get(i, str(n)) for i, n in enumerate(x.shape))})"
        for name, x in inputs.items()
    )
    return f"takes {shapes}; within {worst:.1e} of the model on two other batches"


def _examples(data: DataModule, task: Task) -> list[tuple[Inputs, OpenDims]]:
    """Test samples as the program takes them: three to trace it, then one, then seven."""
    data.setup("test")
    samples: Any = data.test_set
    start = 0
    examples = []
    for count in (3, 1, 7):
        chosen = [samples[i % len(samples)] for i in range(start, start + count)]
        start += count
        inputs, open_dims = task.export_inputs(data.collate(chosen))
        sizes: dict[str, tuple[str, int]] = {}
        for name, dims in open_dims.items():
            for index, dim in dims.items():
                size = inputs[name].shape[index]
                other, same = sizes.setdefault(dim, (name, size))
                if size != same:
                    raise UsageError(
                        f"export: {type(task).__name__}.export_inputs calls a dimension of both "
                        f"{other!r} and {name!r} {dim!r}, but their sizes are {same} and {size}."
                    )
        examples.append((inputs, {name: open_dims.get(name, {}) for name in inputs}))
    _open_what_varies(examples)
    return examples


def _open_what_varies(examples: list[tuple[Inputs, OpenDims]]) -> None:
    """Open those dimensions, too, whose sizes differ between batches, as of padded samples: one
    name for all of equal sizes."""
    named: dict[tuple[int, ...], str] = {}
    every = [inputs for inputs, _ in examples]
    open_dims = examples[0][1]
    for known in (True, False):
        for name, value in every[0].items():
            if any(name not in inputs or inputs[name].ndim != value.ndim for inputs in every):
                continue
            for index in range(value.ndim):
                sizes = tuple(inputs[name].shape[index] for inputs in every)
                if known and index in open_dims[name]:
                    named.setdefault(sizes, open_dims[name][index])
                elif not known and index not in open_dims[name] and len(set(sizes)) > 1:
                    new = f"{name}_{index}" if "length" in named.values() else "length"
                    for _, dims in examples:
                        dims[name] = {**dims[name], index: named.setdefault(sizes, new)}


def _traced(model: nn.Module, inputs: Inputs, open_dims: OpenDims) -> ExportedProgram:
    _check_names(model)
    symbols = {dim: Dim(dim) for dims in open_dims.values() for dim in dims.values()}
    shapes = {
        name: {index: symbols[dim] for index, dim in dims.items()}
        for name, dims in open_dims.items()
    }
    # Of torch about itself: warnings, and a listing of what it has traced where it fails
    named = _arguments_by_name(model, inputs)
    with torch.no_grad(), _silence(), redirect_stderr(io.StringIO()), named:
        return torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)


@contextmanager
def _arguments_by_name(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Give a `forward(*inputs, **more)` the arguments that it is called with: those within `more`
    the program would look for where they are not, to compare their sizes."""
    kinds = [one.kind for one in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        yield
        return
    forward = model.forward

    def named(*inputs: Any, **more: Any) -> Any:
        return forward(*inputs, **more)

    place = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, place) for name in names]
    )
    model.forward = named
    try:
        yield
    finally:
        del model.forward


@contextmanager
def _silence() -> Iterator[None]:
    """Keep to themselves what torch and its packages say of themselves."""
    # Their handlers, not their loggers: `untraceable` has one that reads what they say
    handlers = [*logging.root.handlers, *logging.getLogger("torch").handlers]
    handlers += [logging.lastResort] if logging.lastResort else []
    before = [handler.level for handler in handlers]
    try:
        for handler in handlers:
            handler.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler, level in zip(handlers, before, strict=True):
            handler.setLevel(level)


def _check_names(model: nn.Module) -> None:
    """Refuses a name that is more than a name once it stands, quoted but not escaped, in the Python
    code that torch writes for a program."""
    for name, _ in [*model.named_modules(), *model.named_buffers()]:
        if '"' in name or "\\" in name or not name.isprintable():
            raise UsageError(f"a part of it has the name {name!r:.80}, which can be no code")


def _write_torch(
    program: ExportedProgram, open_dims: OpenDims, file: Path, about: dict[str, str]
) -> Run:
    with _silence():
        torch.export.save(program, file, extra_files={"about.json": json.dumps(about)})
    read = torch.export.load(file).module()
    return lambda inputs: _tensors(read(**inputs))


def _write_onnx(
    program: ExportedProgram, open_dims: OpenDims, file: Path, about: dict[str, str]
) -> Run:
    import onnxruntime

    count = len(program.graph_signature.user_outputs)
    names = [f"output_{index}" for index in range(count)]
    with _silence():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            output_names=names if count > 1 else ["output"],
            dynamic_shapes=open_dims,  # for their names
        )
    assert converted is not None
    converted.model.metadata_props.update(about)
    converted.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> list[Tensor]:
        arrays = {name: value.numpy() for name, value in inputs.items()}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def _difference(run: Run, model: nn.Module, inputs: Inputs) -> float:
    """The largest difference between a program and its model on `inputs`.

    Raises:
        UsageError: it is more than rounding.
    """
    with torch.no_grad():
        expected = _tensors(model(**inputs))
    got = run(inputs)
    shapes = {name: tuple(value.shape) for name, value in inputs.items()}
    if [x.shape for x in got] != [x.shape for x in expected]:
        raise UsageError(
            f"export: on inputs of shape {shapes} the program returns shapes "
            f"{[tuple(x.shape) for x in got]}, the model {[tuple(x.shape) for x in expected]}. "
            "Nothing was written."
        )
    worst = 0.0
    for ours, theirs in zip(expected, got, strict=True):
        if not ours.numel():
            continue
        difference = float((ours.double() - theirs.double()).abs().max())
        allowed = TOLERANCE * max(1.0, float(ours.abs().max()))
        if not difference <= allowed:  # NaN, too
            raise UsageError(
                f"export: on inputs of shape {shapes} the program differs from the model by "
                f"{difference:.2g}, where rounding explains {allowed:.2g}. Nothing was written."
            )
        worst = max(worst, difference)
    return worst


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output.detach()]
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | list | tuple):
        raise UsageError(f"export: the model must return tensors, got {type(output).__name__}.")
    return [tensor for value in values for tensor in _tensors(value)]
