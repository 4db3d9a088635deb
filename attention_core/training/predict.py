"""Predictions for whatever a file or folder holds, written row by row as they are made."""

import csv
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from attention_core.errors import UsageError, did_you_mean
from attention_core.escape import csv_cell, json_line, on_one_line
from attention_core.training.checkpoint import load_checkpoint
from attention_core.training.data import DataModule
from attention_core.training.folder import RunFolder
from attention_core.training.inputs import check_file
from attention_core.training.run import look, trained_config
from attention_core.training.task import Task

Row = dict[str, Any]

CSV = (".csv",)
JSON_LINES = (".jsonl", ".json-lines")


def predict(folder: Path, source: Path, output: Path | None, allow: Sequence[str] = ()) -> int:
    """Predict everything in `source` with the best weights of the run in `folder`.

    The inputs are read in batches of the run's `data.batch_size`, by its `data.workers`, and no
    more than a few batches are in memory at any time, however many there are. A row has `input`,
    the name of what was read, and then what the task's `predictions` says of it, or an `error`
    where it could not be read, or is larger than the run's `data.largest_input`. Rows come in the
    order of the inputs; of an input that has parts, such as the nodes of a graph, a row for each.

    Args:
        source: a file or folder, of a kind that the run's data module reads.
        output: a new file, CSV or JSON lines by its suffix; None writes CSV to standard output.
        allow: packages that you trust with running their code, where the run uses any.

    Returns: how many inputs could not be predicted.

    Raises:
        UsageError: before any work, where an argument is wrong or there is nothing to read; and
            where `output` takes no more.
    """
    if output is not None:
        _check_output(output, source)
    data, task = load_trained(folder, allow)
    data.setup("predict")
    if next(iter(data.inputs(source)), None) is None:
        raise UsageError(f"input: {str(source)!r} holds nothing to predict.")
    count = failed = 0
    first = ""
    with _opened(output, lambda: _columns(data, task, source)) as write:
        for rows in _predicted(data, task, source):
            write(rows)
            count += len(rows)
            for row in rows:
                if "error" in row:
                    failed += 1
                    first = first or f"{row['input']}: {row['error']}"
    place = "" if output is None else f" in {on_one_line(output)}"
    print(f"{count - failed:,} predictions{place}", file=sys.stderr)
    if failed:
        print(
            f"{failed:,} of {count:,} inputs could not be predicted; the first is "
            f"{on_one_line(first)}",
            file=sys.stderr,
        )
    return failed


def load_trained(
    path: Path, allow: Sequence[str] = (), command: str = "predict"
) -> tuple[DataModule, Task]:
    """Load the data module and the task of a run, with the best weights, in evaluation mode.

    They are on one device, however many trained: that of the run, or the CPU where there is none.

    Args:
        allow: packages that you trust with running their code, where the run uses any.
        command: that this is for, named where one has to be allowed.

    Raises:
        UsageError: `path` is no run folder, has no best checkpoint, or one of another model; or it
            uses a package that is not in `allow`.
    """
    folder = RunFolder(path).existing()
    parts = look(trained_config(folder, allow, command), folder)
    parts.data.trainer = parts.trainer  # tells it the run folder
    parts.task.load_state_dict(load_checkpoint(folder.best)["state_dict"])
    return parts.data, parts.task.to(parts.trainer.strategy.root_device).eval()


@dataclass
class _Chunk:
    """The inputs of one batch: what was read of them, and the samples that came of it."""

    names: list[str]
    raws: list[Any]
    errors: dict[int, str]
    batch: dict[str, Any] | None


class _Chunks(IterableDataset[Any]):
    """Worker k of n reads the chunks k, k + n, ...; the loader, which takes from its workers in
    turn, then gives them in order. A UsageError is given and not raised: it would arrive as the
    text of a traceback."""

    def __init__(self, data: DataModule, source: Path) -> None:
        self.data, self.source = data, source

    def __iter__(self) -> Iterator[_Chunk | UsageError]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        inputs = iter(self.data.inputs(self.source))
        number = 0
        try:
            while pairs := list(islice(inputs, self.data.batch_size)):
                if number % workers == mine:
                    yield self._read(pairs)
                number += 1
        except UsageError as error:
            yield error

    def _read(self, pairs: list[tuple[str, Any]]) -> _Chunk:
        names, raws = [name for name, _ in pairs], [raw for _, raw in pairs]
        samples, errors = [], {}
        for index, raw in enumerate(raws):
            try:
                samples.append(_sample(self.data, raw))
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                errors[index] = _in_words(error)
        try:
            batch = self.data.collate(samples) if samples else {}
        except (ValueError, TypeError, RuntimeError, MemoryError):
            batch = None  # one of them does not go with the others: each is tried alone
        return _Chunk(names, raws, errors, batch)


def _sample(data: DataModule, raw: Any) -> Any:
    if isinstance(raw, Exception):
        raise ValueError(_in_words(raw))
    return data.read(check_file(raw) if isinstance(raw, Path) else raw)


def _predicted(data: DataModule, task: Task, source: Path) -> Iterator[list[Row]]:
    """The rows of one batch after another."""
    loader: DataLoader[Any] = DataLoader(
        _Chunks(data, source),
        batch_size=None,
        num_workers=data.workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),
    )
    for chunk in loader:
        if isinstance(chunk, UsageError):
            raise chunk
        yield _rows(data, task, chunk)


def _rows(data: DataModule, task: Task, chunk: _Chunk) -> list[Row]:
    """The rows of the inputs of one batch, in their order."""
    readable = [index for index in range(len(chunk.names)) if index not in chunk.errors]
    found = {index: [{"error": error}] for index, error in chunk.errors.items()}
    try:
        if chunk.batch is None:
            raise ValueError("the samples of a batch do not go together")
        if readable:
            rows = _run(data, task, chunk.batch, len(readable))
            found.update(zip(readable, rows, strict=True))
    except UsageError:
        raise
    except (ValueError, TypeError, RuntimeError, MemoryError):
        # The model refuses one of them, as a text longer than it has positions for. Alone, that
        # one fails and the others do not.
        for index in readable:
            found[index] = _alone(data, task, chunk.raws[index])
    return [
        {"input": name, **row} for index, name in enumerate(chunk.names) for row in found[index]
    ]


def _alone(data: DataModule, task: Task, raw: Any) -> list[Row]:
    try:
        (rows,) = _run(data, task, data.collate([_sample(data, raw)]), 1)
    except UsageError:
        raise
    except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
        return [{"error": _in_words(error)}]
    return rows


def _columns(data: DataModule, task: Task, source: Path) -> list[str]:
    """Find the columns by the first readable input: the header of a CSV file comes before any."""
    for _, raw in data.inputs(source):
        for row in _alone(data, task, raw):
            if "error" not in row:
                return list(row)
    return []


def _run(data: DataModule, task: Task, batch: dict[str, Any], count: int) -> list[list[Row]]:
    """The rows of each of `count` inputs."""
    batch = data.transfer_batch_to_device(batch, task.device, 0)
    with torch.inference_mode():
        rows = task.predict(batch, data)
    if len(rows) != count:
        raise UsageError(
            f"{type(task).__name__}.predict must return one row for each of {count} inputs, "
            f"got {len(rows)}."
        )
    of_each = [parts if isinstance(parts, list) else [parts] for parts in rows]
    return [
        [row if _is_finite(row) else {"error": "the output is not finite"} for row in parts]
        or [{"error": "there is nothing in it to predict"}]
        for parts in of_each
    ]


def _is_finite(row: Row) -> bool:
    return all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _as_it_is(chunk: Any) -> Any:
    return chunk


def _check_output(output: Path, source: Path) -> None:
    suffix, known = output.suffix.lower(), (*CSV, *JSON_LINES)
    if suffix not in known:
        raise UsageError(
            f"output: {str(output)!r} must end in one of {', '.join(known)}, which says what is "
            f"written.{did_you_mean(suffix, known)}"
        )
    if output.exists():
        raise UsageError(f"output: {str(output)!r} exists already. It is never overwritten.")
    if not output.parent.is_dir():
        raise UsageError(f"output: there is no folder {str(output.parent)!r} to write it in.")
    if source.is_dir() and source.resolve() in output.resolve().parents:
        raise UsageError(
            f"output: {str(output)!r} lies in the input {str(source)!r}, where it would be read as "
            "one of the inputs. Write it elsewhere."
        )
    with _writing(str(output)):
        output.touch(exist_ok=False)
        output.unlink()


@contextmanager
def _opened(
    output: Path | None, columns: Callable[[], list[str]]
) -> Iterator[Callable[[list[Row]], None]]:
    """A function that writes rows to `output`; it has written them when it returns."""
    if output is None:
        try:
            yield _said(_csv_writer, sys.stdout, "standard output", columns())
        except (BrokenPipeError, _NotWritten) as error:
            # Python would complain once more at its end about what it cannot flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, _NotWritten):
                raise
            sys.exit(1)  # `attn predict ... | head` has read enough
        return
    with _writing(str(output)):
        file = output.open("x", encoding="utf-8", newline="")
    try:
        if output.suffix.lower() in CSV:
            yield _said(_csv_writer, file, str(output), columns())
        else:
            yield _said(_json_writer, file, str(output))
    except BaseException:
        with suppress(OSError):  # of what is still to be written, which has been said
            file.close()
        raise
    with _writing(str(output)):
        file.close()


class _NotWritten(UsageError):
    """The output takes no more."""


@contextmanager
def _writing(output: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _NotWritten(f"output: {output!r} cannot be written: {error.strerror}.") from error


def _said(
    writer: Callable[..., Callable[[list[Row]], None]], file: IO[str], output: str, *columns: Any
) -> Callable[[list[Row]], None]:
    """Return `writer(file, *columns)`, with a UsageError where the file takes no more."""
    with _writing(output):  # the header
        write = writer(file, *columns)

    def said(rows: list[Row]) -> None:
        with _writing(output):
            write(rows)

    return said


def _csv_writer(file: IO[str], columns: list[str]) -> Callable[[list[Row]], None]:
    header = ["input", *columns, "error"]
    writer = csv.DictWriter(file, header, lineterminator="\n")
    writer.writerow({column: csv_cell(on_one_line(column)) for column in header})

    def write(rows: list[Row]) -> None:
        for row in rows:
            # A name is one line; what a model writes may be several
            values = {**row, "input": on_one_line(row["input"])}
            writer.writerow({column: csv_cell(value) for column, value in values.items()})
        file.flush()

    return write


def _json_writer(file: IO[str]) -> Callable[[list[Row]], None]:
    def write(rows: list[Row]) -> None:
        file.writelines(json_line(row) + "\n" for row in rows)
        file.flush()

    return write
