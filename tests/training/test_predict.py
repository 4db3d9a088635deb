"""`attn predict` on the toy domain: rows in order, errors in their place, constant memory."""

import csv
import io
import json
import os
import resource
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_core.training import Task, UsageError, evaluate, train
from attention_core.training.data import DataModule
from attention_core.training.inputs import csv_rows, files, json_lines, json_object, text_lines
from attention_core.training.predict import _predicted, _sample, load_trained, predict
from tests.command_line import attn
from tests.training.conftest import CONF, Compose


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, trained once for all tests."""
    from attention_core.training.compose import run_hydra

    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CONF))
        run_hydra(
            lambda config, path: train(config, path),
            ["experiment=toy", "trainer.max_epochs=1", f"hydra.run.dir={folder}/run"],
            flags=[],
            config_dir=CONF,
        )
    return folder / "run"


@pytest.fixture(autouse=True)
def toy_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CONF))


def write_points(path: Path, points: Any) -> Path:
    path.write_text("x,y\n" + "".join(f"{float(x)!r},{float(y)!r}\n" for x, y in points))
    return path


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        return list(rows.fieldnames or []), list(rows)


def set_workers(run: Path, workers: int) -> None:
    text = (run / "config.yaml").read_text()
    lines = [f"  workers: {workers}" if "workers:" in line else line for line in text.split("\n")]
    (run / "config.yaml").write_text("\n".join(lines))


def test_rows_are_what_the_model_says_of_the_test_set(run: Path, tmp_path: Path) -> None:
    data, task = load_trained(run, ["toy_domain"])
    data.load()
    points, target = data.test_set.points, data.test_set.target  # type: ignore[union-attr]
    source = write_points(tmp_path / "points.csv", points)
    assert predict(run, source, tmp_path / "rows.csv", ["toy_domain"]) == 0
    columns, rows = read_rows(tmp_path / "rows.csv")
    assert columns == [
        "input",
        "prediction",
        "probability",
        "probability_inner",
        "probability_outer",
        "error",
    ]
    expected = task.model(points).softmax(-1)
    written = [[float(r["probability_inner"]), float(r["probability_outer"])] for r in rows]
    torch.testing.assert_close(torch.tensor(written), expected, atol=1e-6, rtol=0)
    predicted = [row["prediction"] for row in rows]
    assert predicted == [data.classes[i] for i in expected.argmax(-1)]
    assert [row["input"] for row in rows] == [f"points.csv:{i + 2}" for i in range(len(points))]
    # An independent witness that these are the best weights: the accuracy of `attn evaluate`
    right = [data.classes[int(t)] == p for t, p in zip(target, predicted, strict=True)]
    assert sum(right) / len(right) == pytest.approx(evaluate(run, ["toy_domain"])["test/accuracy"])


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_keep_their_order_and_errors_their_place(
    workers: int, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    points = torch.randn(150, 2, generator=torch.Generator().manual_seed(0))
    write_points(folder / "a.csv", points[:70])
    with (folder / "a.csv").open("a") as file:
        file.write("1.0,abc\n1.0\n")
    (folder / "b.csv").write_text("x,z\n1,2\n")
    (folder / ".hidden.csv").write_text("x,y\n1,2\n")
    (folder / "notes.md").write_text("not an input")
    write_points(folder / "sub" / "c.csv", points[70:])
    set_workers(run, workers)
    try:
        assert predict(run, folder, tmp_path / "rows.jsonl", ["toy_domain"]) == 3
    finally:
        set_workers(run, 0)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    names = [f"a.csv:{i + 2}" for i in range(72)] + ["b.csv"]
    assert [r["input"] for r in rows] == names + [f"sub/c.csv:{i + 2}" for i in range(80)]
    errors = {row["input"]: row["error"] for row in rows if "error" in row}
    assert errors == {
        "a.csv:72": "could not convert string to float: 'abc'",
        "a.csv:73": "it has no value for 'y'",
        "b.csv": "it has no column 'y'; its first line names 'x', 'z'",
    }
    _, task = load_trained(run, ["toy_domain"])
    expected = task.model(points).softmax(-1)[:, 0]
    written = torch.tensor([row["probability_inner"] for row in rows if "error" not in row])
    torch.testing.assert_close(written, expected, atol=1e-6, rtol=0)


class Counted:
    """A stream of `length` points that knows how many of its samples are alive."""

    def __init__(self, length: int) -> None:
        self.length, self.served, self.most = length, 0, 0
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        for index in range(self.length):
            self.served = max(self.served, index + 1)
            yield str(index), index

    def read(self, raw: int) -> dict[str, Tensor]:
        point = torch.tensor([raw / self.length, 0.0])
        self.alive.add(point)
        self.most = max(self.most, len(self.alive))
        return {"points": point}


def test_ten_thousand_inputs_are_never_in_memory_together(run: Path) -> None:
    data, task = load_trained(run, ["toy_domain"])
    stream = Counted(10_000)
    data.inputs, data.read = stream.inputs, stream.read  # type: ignore[method-assign]
    count = 0
    for rows in _predicted(data, task, Path("anything")):
        count += len(rows)
        assert stream.served - count <= 2 * data.batch_size  # written as they are read
    assert count == 10_000 and stream.most <= 3 * data.batch_size


def test_what_the_model_refuses_is_an_error_of_that_input_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy_domain  # type: ignore[import-not-found]

    forward = toy_domain.MLP.forward

    def picky(self: Any, points: Tensor) -> Tensor:
        if (points[:, 0] > 5).any():
            raise ValueError("too far out")
        out: Tensor = forward(self, points)
        return out

    monkeypatch.setattr(toy_domain.MLP, "forward", picky)
    source = write_points(tmp_path / "points.csv", [(0, 1), (9, 9), (1, 0), (float("inf"), 0)])
    source.write_text(source.read_text().replace("inf", "nan"))
    assert predict(run, source, tmp_path / "rows.csv", ["toy_domain"]) == 2
    _, rows = read_rows(tmp_path / "rows.csv")
    assert [r["error"] for r in rows] == ["", "too far out", "", "the output is not finite"]
    assert [bool(r["prediction"]) for r in rows] == [True, False, True, False]


def test_the_header_is_known_though_the_first_inputs_are_bad(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "points.csv"
    source.write_text("x,y\n" + "a,b\n" * 40 + "1,2\n")
    assert predict(run, source, tmp_path / "rows.csv", ["toy_domain"]) == 40
    _, rows = read_rows(tmp_path / "rows.csv")
    assert [bool(row["prediction"]) for row in rows] == [False] * 40 + [True]
    source.write_text("x,y\na,b\n")
    assert predict(run, source, tmp_path / "bad.csv", ["toy_domain"]) == 1
    assert read_rows(tmp_path / "bad.csv")[0] == ["input", "error"]


def test_every_mistake_is_named_before_the_model_is_loaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_points(tmp_path / "points.csv", [(0, 1)])
    (tmp_path / "taken.csv").write_text("mine")
    (tmp_path / "in").mkdir()
    monkeypatch.setattr("attention_core.training.predict.load_trained", lambda *given: 1 / 0)
    for output, folder, message in (
        ("rows.txt", source, "'.*rows.txt' must end in one of .csv, .jsonl, .json-lines"),
        ("taken.csv", source, "'.*taken.csv' exists already. It is never overwritten"),
        ("nowhere/rows.csv", source, "there is no folder '.*nowhere'"),
        ("in/rows.csv", tmp_path / "in", "'.*' lies in the input"),
    ):
        with pytest.raises(UsageError, match=f"output: {message}"):
            predict(run, folder, tmp_path / output, ["toy_domain"])
    assert (tmp_path / "taken.csv").read_text() == "mine"


def test_nothing_to_predict(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "empty.csv").write_text("x,y\n")
    (tmp_path / "points.xml").write_text("")
    for source, message in (
        ("empty.csv", "holds nothing to predict"),
        ("in", "holds no file that ends in one of .csv"),
        ("points.xml", "does not end in one of .csv"),
        ("nowhere", "there is no file or folder"),
    ):
        with pytest.raises(UsageError, match=f"input: .*{message}"):
            predict(run, tmp_path / source, tmp_path / "rows.csv", ["toy_domain"])
    assert not (tmp_path / "rows.csv").exists()


def test_a_folder_that_no_model_can_be_had_from(
    compose: Compose, run: Path, tmp_path: Path
) -> None:
    source = write_points(tmp_path / "points.csv", [(0, 1)])
    with pytest.raises(UsageError, match="is not a run folder"):
        predict(tmp_path, source, None, ["toy_domain"])
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(UsageError, match="has no best checkpoint yet"):
        predict(begun, source, None, ["toy_domain"])
    (begun / "checkpoints").symlink_to(run / "checkpoints")
    config = (run / "config.yaml").read_text()
    (begun / "config.yaml").write_text(config.replace("dim: 32", "dim: 33"))
    with pytest.raises(UsageError, match=r"its weights are not those of MLP .*layers.0.weight"):
        predict(begun, source, None, ["toy_domain"])


def test_domains_say_what_they_cannot_do() -> None:
    with pytest.raises(UsageError, match="Write its methods inputs"):
        DataModule(batch_size=1).inputs(Path("x"))
    with pytest.raises(UsageError, match="Write its method read"):
        DataModule(batch_size=1).read(1)
    with pytest.raises(UsageError, match="Write its method predictions"):
        Task(torch.nn.Linear(1, 1), optimizer=torch.optim.SGD).predictions(torch.ones(1))


@pytest.mark.slow
def test_the_command_line_writes_csv_and_nothing_else_to_the_terminal(
    run: Path, tmp_path: Path
) -> None:
    source = write_points(tmp_path / "points.csv", [(0, 1), (2, 0)])
    command = ("predict", f"run={run}", f"input={source}", "--config-dir", str(CONF))
    done = attn(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["input"] for row in rows] == ["points.csv:2", "points.csv:3"]
    assert sum(float(rows[0][f"probability_{name}"]) for name in ("inner", "outer")) == (
        pytest.approx(1, abs=1e-6)
    )
    with source.open("a") as file:
        file.write("a,b\n")
    done = attn(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of 3 inputs could not be predicted; the first is points.csv:4:" in done.stderr
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == 3


def test_files_are_sorted_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.CSV", "a.csv", "z/a.csv", "c/d/e.csv", "c/.x.csv", ".git/f.csv", "c/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [name for name, _ in files(tmp_path, [".csv"])] == [
        "a.csv",
        "b.CSV",
        "c/d/e.csv",
        "z/a.csv",
    ]
    assert list(files(tmp_path / "b.CSV", [".csv"])) == [("b.CSV", tmp_path / "b.CSV")]


def test_lines_rows_and_objects(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("\ufeffé\n\nlast".encode() + b"\xff")
    assert list(text_lines("f", path)) == [("f:1", "é"), ("f:2", ""), ("f:3", "last\ufffd")]
    path.write_text('text,n\n"two\nlines",1\nb,2\n')
    assert [(name, row["text"]) for name, row in csv_rows("f", path, ["text"])] == [
        ("f:3", "two\nlines"),
        ("f:4", "b"),
    ]
    path.write_bytes(b'{"a": 1}\n\n \n[1]\n')
    (first, (name, second)) = json_lines("f", path)
    assert first == ("f:1", b'{"a": 1}\n') and name == "f:4"
    assert json_object(first[1], ["a"]) == {"a": 1}
    for line, message in (
        (second, "it is no JSON object, but list"),
        (b'{"a": 1}', "it has no key 'b'; its keys are a"),
        (b'{"a": ', "it is no JSON: "),
        (b"\xff\xfe\xfa", "it is no JSON: "),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a": 1, "b": 2, "b": 3}', "the key 'b' comes 2 times"),
    ):
        with pytest.raises(ValueError, match=message):
            json_object(line, ["b"])


def test_a_row_that_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    def read(content: str, **options: Any) -> dict[str, str]:
        path.write_text(content, newline="")
        return {
            name: f"! {row}" if isinstance(row, Exception) else row["text"]
            for name, row in csv_rows("f", path, ["text"], **options)
        }

    path, balanced = tmp_path / "file.csv", '! its quotes (") are not balanced: '
    end, within = f"{balanced}unexpected end of data", f"{balanced}',' expected after '\"'"
    long = "x" * 200_000
    assert read(f'text\n"{long}"\nb\n') == {"f:2": long, "f:3": "b"}
    assert read('text\r\na\r\n"b\r\nc\r\n\r\nd') == {
        "f:2": "a",
        "f:3": end,
        "f:4": "c",
        "f:6": "d",
    }
    assert read('text\n"a\nb\n"c" d\n"e\nf"\n') == {
        "f:2": within,
        "f:3": "b",
        "f:4": within,
        "f:6": "e\nf",
    }
    assert read("text,n\na,1\nb, c,2\n") == {
        "f:2": "a",
        "f:3": "! it has 3 cells, but there are 2 columns",
    }
    assert read("text\n" + 'x","y\n' * 20_000) == dict.fromkeys(
        (f"f:{line}" for line in range(2, 20_002)), end
    )  # each line but twice, or this would take half an hour
    assert read("text,n,text\na,1,b\n") == {"f": "! its first line names the column 'text' 2 times"}
    assert read('te"xt\n"text\na\n') == {
        "f": "! it has no column 'text'; its first line names 'te\"xt'"
    }


def test_an_input_that_is_too_large_is_read_no_further(tmp_path: Path) -> None:
    def read(content: str, items: Any, **options: Any) -> dict[str, Any]:
        path.write_text(content, newline="")
        found = items("f", path, *options.pop("columns", ()), **options)
        return {name: str(one) if isinstance(one, Exception) else one for name, one in found}

    path, long = tmp_path / "file", "x" * 200_000
    more = "it has more than 10 {}; data.largest_input says how many are read"
    chars, size = more.format("characters"), more.format("bytes")
    for end in ("\n", "\r\n"):
        content = end.join(["a", long, "x" * 10, "x" * 11, f"y{' ' * 50}z", "b"])
        assert read(content, text_lines, largest=10) == {
            "f:1": "a",
            "f:2": chars,
            "f:3": "x" * 10,
            "f:4": chars,
            "f:5": chars,
            "f:6": "b",
        }
        content = end.join(
            ["text", "a", f'"{long}"', f'"b{end}{long}"', '"c', "12345678", 'd"', "e"]
        )
        assert read(content, csv_rows, columns=[["text"]], largest=10) == {
            "f:2": {"text": "a"},
            "f:3": chars,
            "f:4": chars,
            "f:5": chars,
            "f:6": chars,
            "f:7": {"text": "12345678"},
            "f:8": {"text": 'd"'},
            "f:9": {"text": "e"},
        }
    content = '{"a": 1}\n{"a": "' + long + '"}\n\n[2]'
    assert read(content, json_lines, largest=10) == {
        "f:1": b'{"a": 1}\n',
        "f:2": size,
        "f:4": b"[2]",
    }


def test_what_is_no_file_is_an_error_of_its_own(run: Path, tmp_path: Path) -> None:
    """A named pipe that nobody writes to would be waited for, and a device has no end."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.csv", "d.csv"):
        write_points(folder / name, [(0, 1)])
    os.mkfifo(folder / "b.csv")
    (folder / "c.csv").symlink_to("/dev/zero")
    assert predict(run, folder, tmp_path / "rows.jsonl", ["toy_domain"]) == 2
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert [row["input"] for row in rows] == ["a.csv:2", "b.csv", "c.csv", "d.csv:2"]
    assert rows[1]["error"] == "it is no file, but a named pipe"
    assert rows[2]["error"] == "it is no file, but a device"
    for items in (text_lines, json_lines):
        ((_, error),) = items("b", folder / "b.csv")
        assert str(error) == "it is no file, but a named pipe"
    # Of a path that a domain reads itself
    data = DataModule(batch_size=1)
    data.read = lambda path: path.read_text()  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="it is no file, but a named pipe"):
        _sample(data, folder / "b.csv")


def test_memory_that_an_input_does_not_get_costs_no_other(run: Path) -> None:
    data, task = load_trained(run, ["toy_domain"])

    def read(raw: int) -> dict[str, Tensor]:
        if raw == 1:
            raise MemoryError
        if raw == 2:
            raise RuntimeError("can't allocate memory")
        return {"points": torch.zeros(2)}

    data.inputs = lambda path: ((str(n), n) for n in range(4))  # type: ignore[method-assign]
    data.read = read  # type: ignore[method-assign]
    rows = [row for rows in _predicted(data, task, Path("anything")) for row in rows]
    errors = [row.get("error") for row in rows]
    assert errors == [None, "MemoryError", "can't allocate memory", None]


def test_an_output_that_cannot_be_written_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_points(tmp_path / "points.csv", torch.rand(400, 2))
    with monkeypatch.context() as patch:
        patch.setattr("attention_core.training.predict.load_trained", lambda *given: 1 / 0)
        with pytest.raises(UsageError, match="output: '/proc/rows.csv' cannot be written: "):
            predict(run, source, Path("/proc/rows.csv"), ["toy_domain"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("rows.csv", "rows.jsonl"):
        # A file that may grow no further, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
        try:
            with pytest.raises(UsageError, match=f"output: '.*{name}' cannot be written: File too"):
                predict(run, source, tmp_path / name, ["toy_domain"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / name).stat().st_size == 5_000
    for buffering in (1, -1):  # one line, which is the header, or many
        full = open("/dev/full", "w", buffering)  # noqa: SIM115
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(UsageError, match="'standard output' cannot be written: No space left"):
            predict(run, source, None, ["toy_domain"])
        full.close()  # without a word of what it still holds


def test_a_file_that_cannot_be_opened_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "gone.csv"
    for items in (text_lines("f", path), csv_rows("f", path, ["x"]), json_lines("f", path)):
        ((name, error),) = items
        assert name == "f" and isinstance(error, FileNotFoundError)
