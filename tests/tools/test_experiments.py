"""What the experiments state, README's table of it, and the tool that trains them again."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attention_core.training import UsageError
from attention_core.training.compose import about
from tools import experiments as tool
from tools.claims import BEGIN, END, ROOT, UNITS, Claim, Experiment, claims, experiments, rewrite

STATED = {experiment.name: experiment for experiment in experiments()}
HOMES = [ROOT / "conf", *(path.parent for path in ROOT.glob("examples/*/experiment"))]
SECTIONS = {name: section for home in HOMES for name, section in about([home]).items()}
NUMBER = re.compile(r"(?<![\w/.,@])\d+(?:\.\d+)?")  # none that is part of a name


# ----------------------------------------------------------------------------------- what is stated


def test_the_table_of_readme_says_what_the_experiments_state() -> None:
    text = (ROOT / "README.md").read_text()
    rows = {name: row for name, each in STATED.items() if (row := each.row())}
    body = text.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    assert {row.split("`")[1] for row in body} == rows.keys()
    assert sorted(body) == sorted(rows.values())
    assert rewrite(text, rows) == text


def test_a_table_is_of_an_experiment_that_states_something() -> None:
    for name, section in SECTIONS.items():
        assert "table" not in section or name in STATED


def figures(claim: Claim) -> list[float]:
    """What is stated, or else between what bounds."""
    found = [claim.mean] if claim.averaged else claim.values or [claim.least, claim.most]
    return [UNITS[claim.metric][0] * value for value in found]


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_who_gives_a_figure_states_it(name: str) -> None:
    numbers = NUMBER.findall(SECTIONS[name]["gives"])
    if name not in STATED:
        assert not numbers
        return
    for claim in STATED[name].claims:
        # To the digits that are said, and either way where a figure is in the middle
        units = {number: 10.0 ** -len(number.partition(".")[2]) for number in numbers}
        assert any(
            abs(float(number) - figure) <= unit / 2 + 1e-9
            for number, unit in units.items()
            for figure in figures(claim)
        ), f"{name}: about.gives has none of {figures(claim)}"


def test_what_every_seed_keeps_is_kept_by_what_is_stated() -> None:
    for experiment in STATED.values():
        for claim in experiment.claims:
            for figure in [claim.mean] if claim.averaged else claim.values:
                assert claim.least <= figure <= claim.most


def test_an_example_trains_with_the_overrides_of_its_claim() -> None:
    claim, random = STATED["vision/mnist5k_100"].claims
    tuning = runpy.run_path(str(ROOT / "examples" / "few_labels.py"))["TUNING"]
    assert list(claim.overrides) == tuning and claim.after == "vision/mnist5k_mae"
    # Both as stated, pretraining is worth three points
    assert claim.mean - claim.tolerance > random.mean + random.tolerance + 0.03


GOOD = {"metric": "test/accuracy", "tolerance": 0.01, "values": [0.9]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tolerence": 0.01}, "no key 'tolerence'. Did you mean tolerance?"),
        ({"metric": "accuracy"}, "metric: one of test/accuracy, .* got 'accuracy'"),
        ({"tolerance": 0}, "tolerance: more than 0 is needed, got 0"),
        ({"seeds": 3}, "one of values, seeds and folds is needed"),
        ({"mean": 0.9, "deviation": 0.1}, "mean and deviation go together, and in place of values"),
        ({"values": [], "folds": 10, "mean": 0.9}, "mean and deviation go together"),
        ({"values": [], "seeds": 3}, "one of values, mean, least and most is needed"),
    ],
)
def test_a_wrong_claim_is_named(changed: dict[str, Any], said: str) -> None:
    assert claims("domain/name", [GOOD]) == [Claim("test/accuracy", (0.9,), tolerance=0.01)]
    with pytest.raises(UsageError, match=rf"domain/name.yaml: about.states: .*{said}"):
        claims("domain/name", [GOOD | changed])


# ------------------------------------------------------------------ training again, and comparing

SEEDS = {"metric": "test/accuracy", "values": [0.9, 0.8], "tolerance": 0.02, "least": 0.7}
FOLDS = {"metric": "test/mrr", "mean": 0.5, "deviation": 0.1, "folds": 2, "tolerance": 0.02}
AFTER = {"metric": "test/chrf", "values": [30.0], "tolerance": 1, "after": "a/first"}
README = f"""\
Before.
{BEGIN}| experiment | data | stated | beside |
| --- | --- | --- | --- |
| `a/seeds` | images | 90.0, 80.0% | 70% |
| `a/folds` | graphs | filtered MRR 0.500 ± 0.100, 2 folds | |
{END}After.
"""


class Trainer:
    """Stands for the processes that train: it keeps their arguments, and writes results."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.fails = False

    def __call__(self, command: list[str], *, env: dict[str, str], **_: Any) -> None:
        assert command[:4] == [sys.executable, "-m", "attention_core.training", "train"]
        assert env["OMP_NUM_THREADS"] == "1"
        self.started.append(command[4:])
        (where,) = (o.partition("=")[2] for o in command if o.startswith(("run=", "hydra.run.dir")))
        if not self.fails:
            measured(Path(where), **{"test/accuracy": 0.85, "test/chrf": 30.5})


def measured(run: Path, **results: float) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "results.json").write_text(json.dumps(results))


Again = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(subprocess, "run", trainer)
    return trainer


@pytest.fixture
def again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trainer: Trainer,
) -> Again:
    """Runs the tool on three experiments; the exit code, what it printed, and README then."""
    readme = tmp_path / "README.md"
    readme.write_text(README)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(tool, "README", readme)
    stated = {
        "a/seeds": ([SEEDS], {"data": "images", "beside": "70%"}),
        "a/folds": ([FOLDS], {"data": "graphs"}),
        "a/after": ([AFTER], {}),
    }
    found = [
        Experiment(
            name,
            {"table": table, "needs": ["json"]} if table else {},
            claims(name, states),
            tmp_path / "conf" if name == "a/seeds" else None,
        )
        for name, (states, table) in stated.items()
    ]
    monkeypatch.setattr(tool, "experiments", lambda: found)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = tool.main(["--folder", str(tmp_path / "runs"), *arguments])
        return code, capsys.readouterr().out, readme.read_text()

    return run


def test_figures_within_their_tolerance_hold_and_stand_in_readme(
    tmp_path: Path, again: Again, trainer: Trainer
) -> None:
    for seed, value in ((1, 0.919), (2, 0.781)):
        measured(tmp_path / "runs" / f"a-seeds-seed-{seed}", **{"test/accuracy": value})
    code, printed, readme = again("--only", "a/seeds")
    assert code == 0 and not trainer.started
    assert "+0.0190" in printed and "-0.0190" in printed and "0 of 2 figures are wrong" in printed
    assert readme == README.replace("90.0, 80.0%", "91.9, 78.1%")
    assert "README.md has other figures now: a/seeds." in printed


def test_a_figure_outside_its_tolerance_is_named(tmp_path: Path, again: Again) -> None:
    for seed, value in ((1, 0.9), (2, 0.821)):
        measured(tmp_path / "runs" / f"a-seeds-seed-{seed}", **{"test/accuracy": value})
    code, printed, _ = again("--only", "a/seeds")
    assert code == 1
    assert "a/seeds, seed=2, test/accuracy: differs\n1 of 2 figures are wrong" in printed


@pytest.mark.parametrize(
    ("value", "code", "verdict"),
    [(0.71, 0, "ok"), (0.69, 1, "less than 0.7"), (float("nan"), 1, "not measured")],
)
def test_a_seed_without_a_stated_figure_keeps_the_least(
    value: float, code: int, verdict: str, tmp_path: Path, again: Again
) -> None:
    measured(tmp_path / "runs" / "a-seeds-seed-7", **{"test/accuracy": value})
    found, printed, readme = again("--only", "a/seeds", "--seeds", "7")
    assert found == code and verdict in printed
    assert readme == README  # a row is rewritten whole or not at all


def test_folds_are_compared_by_their_mean(tmp_path: Path, again: Again) -> None:
    for fold, value in ((0, 0.35), (1, 0.67)):
        measured(tmp_path / "runs" / f"a-folds-data.fold-{fold}", **{"test/mrr": value})
    code, printed, readme = again("--only", "a/f*", "--seeds", "5")
    assert code == 0 and "mean of 2 folds" in printed
    assert readme == README.replace("0.500 ± 0.100", "0.510 ± 0.160")


def test_what_is_missing_is_trained_and_what_was_begun_goes_on(
    tmp_path: Path, again: Again, trainer: Trainer
) -> None:
    begun = tmp_path / "runs" / "a-seeds-seed-2"
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_text("seed: 2")
    code, printed, _ = again("--only", "a/seeds")
    home = ["--config-dir", str(tmp_path / "conf")]
    new = ["experiment=a/seeds", "seed=1", f"hydra.run.dir={tmp_path}/runs/a-seeds-seed-1"]
    assert trainer.started == [[*new, *home], [f"run={begun}", *home]]
    assert code == 1 and "seed=1, test/accuracy: differs" in printed
    again("--only", "a/seeds")
    assert len(trainer.started) == 2


def test_what_others_start_from_is_trained_first(
    tmp_path: Path, again: Again, trainer: Trainer
) -> None:
    code, _, readme = again("--only", "a/after", "--seeds", "1", "2", "--workers", "2")
    runs = tmp_path / "runs"
    assert trainer.started[0] == ["experiment=a/first", f"hydra.run.dir={runs}/a-first"]
    assert sorted(trainer.started[1:]) == [
        [
            *("experiment=a/after", f"seed={seed}"),
            f"hydra.run.dir={runs}/a-after-seed-{seed}-after-a-first",
            f"init.run={runs}/a-first",
        ]
        for seed in (1, 2)
    ]
    assert code == 0 and readme == README  # it has no row


def test_a_run_that_fails_is_said(tmp_path: Path, again: Again, trainer: Trainer) -> None:
    trainer.fails = True
    code, printed, readme = again("--only", "a/folds")
    assert code == 1 and readme == README
    assert f"failed, see {tmp_path}/runs/a-folds-data.fold-0.log" in printed
    assert "a/folds, mean of 2 folds, test/mrr: not measured" in printed


def test_what_needs_a_package_is_skipped(
    again: Again, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (seeds, *_) = tool.experiments()
    monkeypatch.setitem(seeds.about, "needs", ["json", "no_such_package"])
    monkeypatch.setitem(seeds.about, "extra", "data")
    code, printed, readme = again("--only", "a/seeds")
    assert code == 0 and not trainer.started and readme == README
    assert "a/seeds is skipped, it needs no_such_package: pip install" in printed


def test_a_wrong_name_and_a_readme_without_marks_cost_no_training(
    again: Again, trainer: Trainer
) -> None:
    with pytest.raises(UsageError, match=r"called 'a/seed'. Did you mean a/seeds"):
        again("--only", "a/seed")
    tool.README.write_text("No table.")
    with pytest.raises(UsageError, match="README.md: the lines .* are needed"):
        again()
    assert not trainer.started


def test_runs_are_kept_by_the_version_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    file, readme = tmp_path / "conf" / "some.yaml", tmp_path / "README.md"
    file.parent.mkdir()
    for path in (file, readme):
        path.write_text("first")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    versions = [tool.version()]
    readme.write_text("figures of a run")
    assert tool.version() == versions[0]
    for text in ("second", "third"):
        file.write_text(text)
        versions.append(tool.version())
    assert len(set(versions)) == 3 and all(v.startswith(versions[0]) for v in versions)


@pytest.mark.slow
def test_it_trains_for_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(README)
    monkeypatch.setattr(tool, "README", tmp_path / "README.md")
    claim = Claim("test/accuracy", least=0.4, seeds=1, overrides=("trainer.max_epochs=1",))
    toy = Experiment("toy", {}, [claim], ROOT / "tests" / "training" / "conf")
    monkeypatch.setattr(tool, "experiments", lambda: [toy])
    assert tool.main(["--folder", str(tmp_path / "runs")]) == 0, capsys.readouterr()
    run = tmp_path / "runs" / "toy-seed-1-trainer.max_epochs-1"
    assert "test/accuracy" in json.loads((run / "results.json").read_text())
