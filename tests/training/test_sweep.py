"""Sweeps: their table, what they leave where a job fails, and every launcher."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_core.training import UsageError, run
from attention_core.training.cli import main
from attention_core.training.compose import _compose, _register_resolvers, config_roots, run_hydra
from attention_core.training.folder import RunFolder
from attention_core.training.metrics import read_metrics
from attention_core.training.sweep import Job, check_direction, report, run_job
from tests.command_line import attn
from tests.training.conftest import CONF

SHORT = ("experiment=toy", "debug=fast_dev_run")


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> tuple[int, list[dict[str, str]]]:
    """Runs a sweep in this process; returns how many jobs failed, and its table."""
    from attention_core.training.cli import _job

    monkeypatch.syspath_prepend(str(CONF))
    monkeypatch.chdir(tmp_path)
    given = [f"hydra.sweep.dir={tmp_path}/sweep", *SHORT, *overrides]
    failed = run_hydra(_job, given, flags=[], config_dir=CONF, sweeps=True)
    return failed, read(tmp_path / "sweep" / "sweep.csv")


def test_grid_runs_every_combination_and_ranks_by_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = ("seed=1,2", "trainer.max_epochs=2", "optimizer.lr=1e-2,1e-9", "debug=none")
    failed, rows = sweep(tmp_path, monkeypatch, "sweep=grid", *values)
    assert failed == 0
    assert sorted((row["seed"], float(row["optimizer.lr"])) for row in rows) == [
        *[("1", 1e-9), ("1", 1e-2), ("2", 1e-9), ("2", 1e-2)],
    ]
    for row in rows:
        folder = RunFolder(tmp_path / "sweep" / row["folder"])
        accuracies = [m["val/accuracy"] for m in read_metrics(folder.metrics) if "val/loss" in m]
        assert float(row["score"]) == max(accuracies)
        results = json.loads(folder.results.read_text())
        assert float(row["test/accuracy"]) == results["test/accuracy"]
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1
    printed = capsys.readouterr().out
    table = printed[printed.index("sweep of 4 jobs") :]
    order = [line.split("│")[-2].strip() for line in table.splitlines() if "-toy" in line]
    assert order == [row["folder"] for row in rows]


@pytest.mark.slow
def test_texts_of_any_characters_reach_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["sweep=grid", "about.title=don't,Ä=Ö", "about.gives=(#1) & ~more"]
    for _ in ("begun", "continued"):
        failed, rows = sweep(tmp_path, monkeypatch, *texts)
        assert failed == 0
    about = [
        yaml.safe_load((tmp_path / "sweep" / row["folder"] / "config.yaml").read_text())["about"]
        for row in sorted(rows, key=lambda row: row["job"])
    ]
    assert [each["title"] for each in about] == ["don't", "Ä=Ö"]
    assert {each["gives"] for each in about} == {"(#1) & ~more"}


def test_a_failed_job_costs_no_other_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed, rows = sweep(tmp_path, monkeypatch, "sweep=grid", "data.batch_size=0,8,oops")
    assert failed == 2
    assert [row["data.batch_size"] for row in rows] == ["8", "0", "oops"]
    assert rows[0]["error"] == "" and float(rows[0]["test/accuracy"]) > 0
    assert "data.batch_size must be an integer of at least 1, got 0" in rows[1]["error"]
    assert "data.batch_size" in rows[2]["error"] and "oops" in rows[2]["error"]
    err = capsys.readouterr().err
    assert "2 of 3 jobs failed" in err
    assert "job 0: data.batch_size must be an integer of at least 1, got 0" in err


def test_the_command_line_ends_with_1_where_a_job_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attention_core.training.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["train", "-m", *SHORT, "--config-dir", str(CONF), "data.batch_size=0,8"])
    assert end.value.code == 1
    assert len(list(tmp_path.glob("outputs/*/*/*/results.json"))) == 1


@pytest.mark.slow
def test_optuna_looks_for_the_best_and_survives_a_failed_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ("model.dim=-1,16", "optimizer.weight_decay=0.1", "hydra.sweeper.n_trials=5")
    failed, rows = sweep(tmp_path, monkeypatch, "sweep=optuna", *search)
    assert len(rows) == 5
    dims = [row["model.dim"] for row in rows]
    assert failed == dims.count("-1") > 0
    assert all(row["error"] for row in rows if row["model.dim"] == "-1")
    rates = [float(row["optimizer.lr"]) for row in rows]
    assert len(set(rates)) == 5 and all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert "optimizer.weight_decay" not in rows[0]  # given, and so the same for all
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert found["best_value"] == max(float(row["score"]) for row in rows if row["score"])
    assert found["best_params"]["optimizer.lr"] in rates


def test_optuna_where_every_trial_fails_reports_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ("sweep=optuna", "data.batch_size=0", "hydra.sweeper.n_trials=2")
    search += ("about.title=don't (1)",)
    failed, _ = sweep(tmp_path, monkeypatch, *search)
    assert failed == 2
    assert "job 0, 1: data.batch_size must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("experiment", "direction"), [("vision/digits", "minimize"), ("graph/mutag", "maximize")]
)
def test_the_direction_is_the_task_s(experiment: str, direction: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    _register_resolvers()
    roots = config_roots(None)
    composed = _compose(["sweep=optuna", f"experiment={experiment}"], roots)
    assert composed.hydra.sweeper.direction == direction
    config = {"task": {"_target_": composed.task._target_}}
    check_direction(config, direction)
    other = {"minimize": "maximize", "maximize": "minimize"}[direction]
    with pytest.raises(UsageError, match=f"direction is {other!r}.*{direction!r} is needed"):
        check_direction(config, other)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sweep=grid", "seed=1"], "nothing to sweep over. Give values separated by commas"),
        (["sweep=optuna", "hydra.sweeper.direction=minimize"], "'maximize' is needed"),
        (["launcher=joblib"], "launcher: 'joblib' starts the jobs of a sweep"),
        (["sweep=gird", "seed=1,2"], "sweep: there is no 'gird'. Did you mean grid?"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_before_it_starts(
    overrides: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for plugin in ("optuna_sweeper", "joblib_launcher"):
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}")
    with pytest.raises(UsageError, match=expected):
        sweep(tmp_path, monkeypatch, *overrides)
    assert not (tmp_path / "sweep").exists()
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_is_not_written_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep" / "0-toy").mkdir(parents=True)
    Job(0, []).write(tmp_path / "sweep" / "0-toy")
    with pytest.raises(UsageError, match="holds a sweep already"):
        sweep(tmp_path, monkeypatch, "sweep=grid", "seed=1,2")


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(("sweep=grid", "seed=1,2,3"), marks=pytest.mark.slow),
        pytest.param(
            ("sweep=optuna", "hydra.sweeper.n_trials=3"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_sweep_goes_on_as_a_sweep(
    values: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "sweep=optuna" in values:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.setattr(run, "_draw", lambda *_: None)
    (tmp_path / "whole").mkdir()
    values = (*values, "debug=none", "trainer.max_epochs=1", "checkpoint.every_steps=2")
    failed, expected = sweep(tmp_path / "whole", monkeypatch, *values)
    assert failed == 0
    import toy_domain

    def cut(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if "/1-toy" in trainer.default_root_dir and trainer.global_step == 5:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(toy_domain.KillAt, "on_train_batch_end", cut)
        with pytest.raises(PowerCut):
            sweep(tmp_path, monkeypatch, *values)
    trained: list[str] = []

    def started(self: Any, trainer: Any, *args: Any) -> None:
        trained.append(f"{Path(trainer.default_root_dir).name} from {trainer.global_step}")

    monkeypatch.setattr(toy_domain.KillAt, "on_train_start", started)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # which run_hydra sets
    with pytest.raises(SystemExit):  # only its own command says what is to be trusted
        main(["train", f"run={tmp_path}/sweep"])
    assert "hydra.sweep.dir=" in capsys.readouterr().err
    with pytest.raises(UsageError, match="holds another sweep already, begun with"):
        sweep(tmp_path, monkeypatch, *values, "trainer.log_every_n_steps=2")
    sweep(tmp_path, monkeypatch, *values)
    assert trained == ["1-toy from 4", "2-toy from 0"]
    assert read(tmp_path / "sweep" / "sweep.csv") == expected
    sweep(tmp_path, monkeypatch, *values)
    assert len(trained) == 2


def test_a_job_is_not_written_over_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"task": {"_target_": "attention_core.training.task.ClassificationTask"}}
    Job(0, ["a=1"]).write(tmp_path)
    before = (tmp_path / "job.json").read_text()
    score = run_job(
        lambda *_: pytest.fail("trained"), lambda: config, tmp_path, number=0, overrides=["a=2"]
    )
    assert score is None
    assert (tmp_path / "job.json").read_text() == before


def test_only_train_sweeps(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="A sweep is for attn train"):
        run_hydra(print, [*SHORT, "sweep=grid", "seed=1,2"], flags=[], config_dir=CONF)


def test_a_missing_plugin_is_answered_with_its_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['hydra_plugins'] = None\n"
    code += "from attention_core.training.cli import main; main(sys.argv[1:])"
    for choice, name in (("sweep=optuna", "sweep"), ("launcher=ray", "ray")):
        ran = subprocess.run(
            [sys.executable, "-c", code, "train", "-m", choice, "seed=1,2"],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 2
        assert f"pip install 'attention-core[{name}]'" in ran.stderr


def test_the_report_puts_the_lowest_loss_first_and_the_unfinished_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = {"monitor": "val/loss", "mode": "min", "error": ""}
    for number, score in enumerate((0.5, 0.1, 0.3)):
        (tmp_path / f"{number}-x").mkdir()
        results = {"test/loss": score + 1, "test/f1": 0.0, "best_epoch": 3.0}
        Job(number, ["a=1", f"b.c={number}"], score=score, results=results, **done).write(
            tmp_path / f"{number}-x"
        )
    (tmp_path / "3-x").mkdir()
    Job(3, ["a=1", "b.c=3"]).write(tmp_path / "3-x")  # killed
    assert report(tmp_path) == 1
    rows = read(tmp_path / "sweep.csv")
    assert [row["job"] for row in rows] == ["1", "2", "0", "3"]
    assert [row["b.c"] for row in rows] == ["1", "2", "0", "3"]
    assert "a" not in rows[0]
    assert rows[0]["test/loss"] == "1.1"
    assert "job 3: it has not finished" in capsys.readouterr().err


def test_an_unexpected_error_is_kept_with_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(config: dict[str, Any], folder: Path) -> None:
        raise ZeroDivisionError("by naught")

    config = {"task": {"_target_": "attention_core.training.task.ClassificationTask"}}
    run_job(broken, lambda: config, tmp_path, number=0, overrides=["a=1"])
    assert json.loads((tmp_path / "job.json").read_text())["error"] == (
        "ZeroDivisionError: by naught"
    )
    assert "in broken" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_launchers_give_what_the_local_one_gives(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = launcher.removesuffix("_local")
    pytest.importorskip(package)
    pytest.importorskip(f"hydra_plugins.hydra_{package}_launcher")
    _, expected = sweep(tmp_path, monkeypatch, "sweep=grid", "seed=1,2", "model.dim=8,-1")
    ran = attn(
        *["train", *SHORT, "sweep=grid", "seed=1,2", "model.dim=8,-1", f"launcher={launcher}"],
        *["--config-dir", str(CONF)],
        cwd=tmp_path,
        cold=True,
        HOME=str(tmp_path),  # ray writes there
    )
    assert ran.returncode == 1, ran.stderr  # model.dim=-1
    (table,) = tmp_path.glob("outputs/*/*/sweep.csv")
    assert read(table) == expected
    assert "2 of 4 jobs failed" in ran.stderr
    assert all((table.parent / row["folder"] / "config.yaml").exists() for row in expected)


# Stand-ins for SLURM's commands: the jobs of an array run at once, on this machine.
SLURM = {
    "sbatch": """#!/bin/bash
cp "$1" submitted.sh
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
export SLURM_ARRAY_JOB_ID=7 SLURM_JOB_NAME=attn SLURM_JOB_NODELIST=here SLURM_JOB_NUM_NODES=1
export SLURM_NTASKS=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
for task in $(seq 0 "$last"); do
  SLURM_JOB_ID=$((7 + task)) SLURM_ARRAY_TASK_ID=$task bash "$1" >/dev/null 2>&1 </dev/null &
done
echo "Submitted batch job 7"
""",
    "srun": """#!/bin/bash
while [[ "$1" == -* ]]; do
  case "$1" in --output|--error) shift 2;; *) shift;; esac
done
exec "$@"
""",
    "sacct": """#!/bin/bash
printf 'JobID|State|NodeList\\n7_0|RUNNING|here\\n7_1|RUNNING|here\\n'
""",
}


@pytest.mark.slow
def test_jobs_of_slurm(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name, script in SLURM.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    ran = attn(
        *["train", *SHORT, "--config-dir", str(CONF), "sweep=grid", "seed=1,2"],
        *["launcher=submitit", "hydra.launcher.partition=long", "hydra.launcher.timeout_min=5"],
        cwd=tmp_path,
        cold=True,
        PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    )
    assert ran.returncode == 0, ran.stderr
    (table,) = tmp_path.glob("outputs/*/*/sweep.csv")
    assert {row["seed"] for row in read(table) if row["score"]} == {"1", "2"}
    asked = (tmp_path / "submitted.sh").read_text()
    for wanted in ("partition=long", "time=5", "gpus-per-node=1", "cpus-per-task=4"):
        assert f"#SBATCH --{wanted}\n" in asked


@pytest.mark.slow
def test_ranks_agree_in_a_job_of_another_process(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    ran = attn(
        *["train", "experiment=toy", "--config-dir", str(CONF), "sweep=grid", "launcher=joblib"],
        *["optimizer.lr=1e-2,1e-3", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
        "trainer.max_epochs=1",
        cwd=tmp_path,
        cold=True,
    )
    assert ran.returncode == 0, ran.stderr
    for path, rate in zip(sorted(tmp_path.glob("outputs/*/*/*-toy")), (1e-2, 1e-3), strict=True):
        rates = [row["step/lr"] for row in read_metrics(path / "metrics.csv") if "step/lr" in row]
        assert max(rates) == pytest.approx(rate)
        assert len(rates) == 4  # 120 samples, 2 processes, batches of 16


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job": 0}', '{"job": 0, "overrides": [1]}'])
def test_a_damaged_job_is_one_that_failed(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    (tmp_path / "0" / "job.json").write_text(text)
    Job(1, ["seed=1"], "val/loss", "min", 0.5, {"test/loss": 0.5}, error="").write(tmp_path / "1")
    assert report(tmp_path) == 1
    assert "job 0: sweep: " in capsys.readouterr().err
    assert [row["job"] for row in read(tmp_path / "sweep.csv")] == ["1", "0"]
