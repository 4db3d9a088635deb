"""The examples around the experiments on graphs: folds, few labels, and what they compare with."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
def test_cross_validation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pytest.importorskip("grakel")
    (tmp_path / "mutag" / "fold1").mkdir(parents=True)
    (tmp_path / "mutag" / "fold1" / "results.json").write_text('{"test/accuracy": 0.123}')
    script = [sys.executable, str(EXAMPLES / "graph_cross_validation.py"), "mutag", "--quick"]
    options = ["--processes", "1", "--folder", str(tmp_path), "trainer.max_epochs=1"]
    # A process of its own, because its folds are trained in processes that import the script
    run = subprocess.run([*script, *options], capture_output=True, text=True, check=True)
    ours, theirs = run.stdout.strip().splitlines()
    assert ours.startswith("graph transformer") and theirs.startswith("WL-kernel SVM")
    assert ours.partition("(")[2].split()[1] == "12"  # read, not trained
    for fold in (0, 2):
        config = (tmp_path / "mutag" / f"fold{fold}" / "config.yaml").read_text()
        assert f"fold: {fold}" in config
    # Three folds of nearly 19 molecules; the larger class is 66%
    values = [float(value) for value in theirs.partition("(")[2].split(";")[0].split()]
    assert len(values) == 3 and min(values) > 60


@pytest.mark.slow
def test_few_labels_are_reported_beside_label_spreading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(EXAMPLES / "graph_few_labels.py"))["main"]
    main(["trainer.max_epochs=1", "--folder", str(tmp_path), "--seeds", "1", "2"])
    lines = capsys.readouterr().out.strip().splitlines()
    mean = {line[:20].strip(): float(line[20:].split()[0]) for line in lines}
    assert mean.keys() == {"graph transformer", "label spreading", "logistic regression"}
    assert mean["label spreading"] > mean["logistic regression"] > 80
    found = json.loads((tmp_path / "seed2" / "results.json").read_text())
    ours = lines[0].partition("(")[2].rstrip(")").split()
    assert float(ours[1]) == pytest.approx(100 * found["test/accuracy"], abs=0.05)
