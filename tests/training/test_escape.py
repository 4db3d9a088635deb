r"""Foreign text, wherever it is written: read back by what would obey it."""

import ast
import csv
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from rich.console import Console

from attention_core.escape import (
    csv_cell,
    for_terminal,
    html_text,
    json_line,
    markdown,
    markdown_code,
    on_one_line,
    plot_label,
    shell_word,
)
from attention_core.training import UsageError, evaluate, resume, train
from attention_core.training.cli import main
from attention_core.training.console import rich_text
from attention_core.training.metrics import CSVMetrics, read_metrics, read_rows
from attention_core.training.plots import confusion_matrix, learning_curves
from attention_core.training.predict import predict
from attention_core.training.sweep import Job, report
from tests.training.conftest import CONF

#: Of every kind of what is obeyed somewhere, and of what is not.
ALPHABET = "\x00\x07\t\n\r\x1b\x7f\x85\x9b\u2028\u202e\u2066\ud800\udcff" + (
    "=+-@'\";,|`*_~<>[](){}#&!$:/\\ .109abé漢\u200d🤗\uff1d"
)
foreign = st.text(st.sampled_from(ALPHABET)) | st.text(st.characters(exclude_categories=()))
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
DOCS = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


@pytest.fixture(scope="module")
def figures_as_files() -> None:
    """Not here: figures are rendered."""


def is_obeyed(character: str) -> bool:
    """By Unicode's own tables: a control, a surrogate, an end of a line, a turn of direction."""
    return unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or (
        unicodedata.bidirectional(character) in TURNING
    )


def calm(text: str, but: str = "") -> bool:
    return not any(is_obeyed(c) for c in text if c not in but)


# ----------------------------------------------------------------------------- each for its place


@given(foreign)
@settings(deadline=None)
def test_a_terminal_obeys_nothing(text: str) -> None:
    line, lines = on_one_line(text), for_terminal(text)
    assert calm(line) and calm(lines, but="\n\t")
    assert on_one_line(line) == line and for_terminal(lines) == lines and for_terminal(line) == line
    assert lines.count("\n") == text.count("\n")
    assert line == "".join(ascii(c)[1:-1] if is_obeyed(c) else c for c in text)


@given(foreign)
@settings(deadline=None, max_examples=50)
def test_rich_finds_neither_markup_nor_emoji(text: str) -> None:
    text = text.replace("\t", "")  # which it expands
    for given_text in (text, f"[red]{text}[/]", f"[/]{text}:x:", f"[link=file:///x]{text}\\[b]"):
        file = io.StringIO()
        Console(file=file, force_terminal=True, color_system=None, width=9).print(
            rich_text(given_text), soft_wrap=True
        )
        assert file.getvalue() == for_terminal(given_text) + "\n"


def test_a_shell_reads_the_word_that_was_meant() -> None:
    names = [
        "a b",
        "it's",
        "$(x) `y` $z",
        "new\nline\ttab",
        "\x1b[31m\\n",
        "\udcff\u202eé'\\",
        "~",
        "",
    ]
    words = [shell_word(name) for name in names]
    assert all(calm(word) for word in words)
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True, check=True
    )
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(name) for name in names]


@given(foreign)
@settings(deadline=None)
def test_a_spreadsheet_computes_nothing_and_the_text_can_be_had_back(text: str) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(["first", csv_cell(text)])
    (_, cell), *others = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert not others and calm(cell, but="\n\t")
    if cell[:1] in set("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20") - {""}:
        float(cell)  # a number computes nothing
    (undo,) = re.findall(r'str\.replace\(r"(.*)", "", regex=True\)', DOCS)
    assert re.sub(undo, "", cell) == for_terminal(text)


def test_numbers_stay_numbers_in_a_table() -> None:
    for number in (-0.5, -3, float("-inf"), True, None, torch.tensor(-1.5).numpy()[()]):
        assert csv_cell(number) is number
    for text in ("-0.5", "+1", "-1e-05", "-.5", "1", "-3."):
        assert csv_cell(text) == text
    for text in ("-0.5+1", "-1e", "+", "-", "--1", "-1-1", "+a1", "=1", "@x", "-١", "-inf"):
        assert csv_cell(text) == f"'{text}"


@given(foreign)
@settings(deadline=None)
def test_json_reads_back_as_what_was_written(text: str) -> None:
    line = json_line({"input": text, "probability": -0.5})
    assert calm(line)
    # Half of all readers refuse a surrogate, which no UTF-8 has
    readable = "".join(ascii(c)[1:-1] if unicodedata.category(c) == "Cs" else c for c in text)
    assert json.loads(line) == {"input": readable, "probability": -0.5}


def inline(text: str) -> list[Any]:
    """What Markdown finds in the one paragraph that `text` is."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])
    return tokens[1].children or [] if tokens else []


@given(foreign)
@settings(deadline=None)
def test_markdown_means_nothing(text: str) -> None:
    written, words = markdown(text), on_one_line(" ".join(text.split()))
    parts = inline(written)
    assert {part.type for part in parts} <= {"text"}
    assert "".join(part.content for part in parts) == words
    assert "$" not in written and calm(written)
    table = f"| a | b |\n| --- | --- |\n| {written} | {markdown_code(text)} |\n"
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(table)
    cells = [tokens[i + 1].children for i, token in enumerate(tokens) if token.type == "td_open"]
    assert len(cells) == 2 and tokens[-1].type == "table_close"
    assert "".join(part.content for part in cells[0] or []) == words
    (code,) = cells[1] or []
    assert code.type == "code_inline" and code.content.strip() == words


@given(foreign)
@settings(deadline=None)
def test_a_page_holds_nothing_that_turns_it(text: str) -> None:
    assert calm(html_text(text), but="\n\t")
    if calm(text, but="\n\t"):
        assert html_text(text) == text


@given(foreign)
@settings(deadline=None)
def test_a_label_is_no_formula(text: str) -> None:
    label = plot_label(text)
    assert not is_math_text(label) and calm(label, but="\n")
    assert label.replace(r"\$", "$") == "\n".join(map(on_one_line, text.split("\n")))


# -------------------------------------------------------------------------------- figures, tables


def test_figures_show_the_names_themselves() -> None:
    from attention_core.interpret.plots import put_title
    from attention_core.training.find_lr import _draw
    from graph.interpret.drawing import ReadGraph
    from graph.interpret.plots import attention_over_graphs
    from vision.interpret.plots import attention_sheet

    name = "$\\frac{$ [/]\nlines\x1b[31m\udcff\u202e"
    rows = [{"epoch": 0.0, "step": 0.0, f"val/{name}": 0.5, "step/lr": 0.1}]
    weights = torch.eye(2)
    graph = ReadGraph(torch.tensor([[0], [1]]), [name, "C"], [], weights, weights, name)
    of_text = Figure()
    put_title(of_text, name)
    images, maps = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 2, 2)
    steps = torch.arange(1.0, 30.0).numpy()
    figures = {
        "curves": learning_curves(rows, title=name, best_epoch=0),
        "confusion": confusion_matrix([[1, 0], [0, 1]], [name, "other"]),
        "range": _draw(steps, -steps, 0.1, title=name),
        "graph": attention_over_graphs([graph], title=name),
        "text": of_text,
        "image": attention_sheet(images, maps, [(name, "other", 0.5)]),
    }
    for figure in figures.values():
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()  # refuses what is no formula
    ticks = [label.get_text() for label in figures["confusion"].axes[0].get_xticklabels()]
    assert ticks == [r"\$\frac{\$ [/]\nlin…", "other"]


def test_names_of_metrics_come_back_and_compute_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    values = dict.fromkeys(("test/a\nb", "=1+1", "val/x\u2028\x1b", "ordinary é"), -0.5)
    CSVMetrics(path).log_metrics(values, step=0)
    log = CSVMetrics(path)  # as a continued run
    log.log_metrics(values, step=1)
    assert log.rows == 2 and len(read_rows(path)[0]) == 6
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["epoch", "step", r"test/a\nb", "'=1+1", r"val/x\u2028\x1b", "ordinary é"]
    assert [row[2:] for row in rows] == [["-0.5"] * 4] * 2
    assert all(row["'=1+1"] == -0.5 for row in read_metrics(path))


def test_a_sweep_of_foreign_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, value in enumerate(("=1+1", "-0.5", "[/]x", "\x1b]0;t\x07\nattn: fine")):
        job = Job(number, [f"a={value}", "b=1"], "val/[/]", "min", -0.5, {"test/[/]": 1.0}, "")
        (tmp_path / f"{number}-[red]").mkdir()
        if number == 3:
            job.error = "bad \x1b[31m\nattn: fine"
        job.write(tmp_path / f"{number}-[red]")
    assert report(tmp_path) == 1
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    assert [rows[str(n)]["a"] for n in range(3)] == ["'=1+1", "-0.5", "[/]x"]
    assert rows["0"]["score"] == "-0.5"
    said = capsys.readouterr()
    assert "[/]x" in said.out and "0-[red]" in said.out and "val/[/]" in said.out
    assert calm(said.out + said.err, but="\n")
    assert not re.search("^attn: fine", said.out + said.err, re.MULTILINE)


# ------------------------------------------------------------------------------------- a whole run

HOSTILE = "[/] $x_{$ <img src=x> ![i](j) | \x1b]0;t\x07\u202e\nattn: fine"
CLASSES = [r"$\frac{ [/]", "=two\x1b[31m\n\udcff"]
#: Of inputs: the first is a formula of a folder and a file.
FILES = [
    "=cmd|'/C calc'!A0.csv",
    "a\x1b[31mb.csv",
    "new\nline.csv",
    "[red]x[/].csv",
    "$x$.csv",
    "bytes \udcff.csv",
    "-1.csv",
    "é漢🤗.csv",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose configuration and path hold everything, and what it printed."""
    from attention_core.training.compose import run_hydra

    found: list[dict[str, Any]] = []
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CONF))
        few = ["experiment=toy", "trainer.max_epochs=1", "data.samples=40"]
        run_hydra(
            lambda config, path: found.append(config),
            [*few, f"hydra.run.dir={folder}/composed"],
            flags=[],
            config_dir=CONF,
        )
        (config,) = found
        config["experiment"] = HOSTILE
        config["about"] = {"title": HOSTILE, "data": HOSTILE, "gives": HOSTILE}
        config["data"]["classes"] = CLASSES
        config["model"]["num_classes"] = 2
        config["task"]["classes"] = CLASSES
        path = folder / "a [bold]run[red] =$x$\n```\n'\udcff"
        with (folder / "printed").open("w") as file, pytest.MonkeyPatch.context() as printing:
            printing.setattr(sys, "stdout", file)
            printing.setattr(sys, "stderr", file)
            train(config, path)
        yield path


def test_a_run_with_foreign_texts_comes_to_its_end(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (run.parent / "printed").read_text()
    assert calm(said, but="\n") and "<img src=x> ![i](j)" in " ".join(said.split())
    assert not re.search("^attn: fine", said, re.MULTILINE)
    assert {path.stem for path in (run / "figures").iterdir()} >= {"learning_curves", "confusion"}
    evaluate(run, ["toy_domain"])
    resume(run, ["toy_domain"])
    out = capsys.readouterr().out
    assert "digit for digit" in out and "Finished already" in out
    assert calm(out, but="\n") and "a [bold]run[red] =$x$\\n```\\n'\\udcff" in out


def test_the_card_of_foreign_texts_means_what_it_says(run: Path) -> None:
    text = (run / "README.md").read_text()
    assert calm(text, but="\n")
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert headings[1:] == ["Results", "Use", "Architecture", "Training", "Limits"]
    parts = [part for token in tokens for part in token.children or []]
    assert not any(token.type.startswith("html") for token in (*tokens, *parts))
    assert not any(part.type == "image" for part in parts)
    links = {str(part.attrs["href"]) for part in parts if part.type == "link_open"}
    assert links == {f"figures/{path.name}" for path in (run / "figures").iterdir()}
    assert any("<img src=x> ![i](j) |" in part.content for part in parts)
    shell, python = (token.content for token in tokens if token.type == "fence")
    done = subprocess.run(
        ["bash", "-c", f"attn() {{ printf '%s\\0' \"$2\"; }}\n{shell}"],
        capture_output=True,
        check=True,
    )
    assert set(done.stdout.split(b"\0")[:-1]) == {b"run=" + os.fsencode(run)}
    ((path, allow),) = re.findall(r"load_model\((.*), allow=(.*)\)", python)
    assert ast.literal_eval(path) == str(run)
    assert ast.literal_eval(allow) == ["toy_domain"]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x,y\n1,2\n")
    path.write_text("x,y\n1,2\n1,\x1b[31m\u202e\n")
    return tmp_path / "in"


def test_predictions_of_foreign_names(
    run: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, lines = tmp_path / "new\n[red].csv", tmp_path / "rows.jsonl"
    assert predict(run, inputs, table, ["toy_domain"]) == 1
    assert predict(run, inputs, lines, ["toy_domain"]) == 1
    said = capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["predict", f"run={run}", f"input={inputs}", "allow=[toy_domain]"])
    printed = capsys.readouterr()
    assert calm(said.err + printed.out + printed.err, but="\n")
    assert said.err.count("\n") == 4  # two messages of each
    assert printed.out == table.read_text()
    assert printed.out.count("\n") == 2 + len(FILES) + printed.out.count("'=two")
    with table.open(newline="") as file:
        header, *rows = csv.reader(file)
    names = sorted(f"{on_one_line(name)}:2" for name in FILES)
    names[names.index("=cmd|'/C calc'!A0.csv:2")] = "'=cmd|'/C calc'!A0.csv:2"
    names[names.index("-1.csv:2")] = "'-1.csv:2"
    assert sorted(row[0] for row in rows) == sorted([*names, "é漢🤗.csv:3"])
    assert header == [
        "input",
        "prediction",
        "probability",
        r"probability_$\frac{ [/]",
        r"probability_=two\x1b[31m\n\udcff",
        "error",
    ]
    assert all(float(row[2]) >= 0.5 for row in rows if not row[5])
    read = [json.loads(line) for line in lines.read_text().split("\n")[:-1]]
    assert sorted(row["input"] for row in read) == sorted(
        [f"{name}:2".replace("\udcff", r"\udcff") for name in FILES] + ["é漢🤗.csv:3"]
    )
    assert calm(lines.read_text(), but="\n")


def test_foreign_results_are_shown_or_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("experiment: toy\n...\n")
    (other / "results.json").write_text(json.dumps({"[/]\x1b\n": 0.5, "best_epoch": 0}))
    resume(other)
    said = capsys.readouterr().out
    assert r"[/]\x1b\n" in said and calm(said, but="\n")
    for content in ('{"a": "\\u001b[31m", "best_epoch": 0}', "[1]", "{"):
        (other / "results.json").write_text(content)
        with pytest.raises(UsageError, match="results.json' is damaged") as error:
            resume(other)
        assert calm(str(error.value))


# ------------------------------------------------------------------------------ the command line


def test_the_list_shows_titles_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "experiment"
    folder.mkdir()
    about = {"title": "[/] :x: \x1b[31m", "data": 7, "gives": "[red]\u202e", "needs": ["no_such"]}
    (folder / "[b]x\n.yaml").write_text(json.dumps({"about": {**about, "extra": "[/]"}}))
    main(["list", "--config-dir", str(tmp_path)])
    main(["list", "[b]x\n", "--config-dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert calm(out, but="\n")
    main(["train", "experiment=toy", "--config-dir", str(CONF), "--cfg=job", "+about.x='\u202e'"])
    assert r"x: \u202e" in capsys.readouterr().out
    for shown in (
        r"[/] :x: \x1b[31m",
        r"[red]\u202e",
        r"[b]x\n",
        "pip install 'attention-core[[/]]'",
    ):
        assert shown in out


def test_errors_of_the_command_line_are_calm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    hook = sys.excepthook
    try:
        for arguments in (
            ["evaluate", "run=no \x1b[31m\nattn: fine"],
            ["list", "--\x1b[31m\nattn: fine"],
            ["train", "experiment=x", "--config-dir", "\x1b[31m\udcff"],
        ):
            with pytest.raises(SystemExit) as end:
                main(arguments)
            assert end.value.code == 2
        sys.excepthook(ValueError, ValueError("\x1b[31m\u202e"), None)
    finally:
        sys.excepthook = hook
    said = capsys.readouterr().err
    assert calm(said, but="\n") and r"ValueError: \x1b[31m\u202e" in said
