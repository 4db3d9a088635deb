"""Ten labels a class: a graph transformer beside label spreading and logistic regression.

    python examples/graph_few_labels.py            # about a minute on one core

For each seed, 100 of 1,797 handwritten digits have a known class, and 100 others choose: of the
transformer (the experiment `graph/digits_knn`) the epoch, of label spreading (Zhou et al., 2004)
the number of neighbors and alpha, of logistic regression on the raw pixels C. All are tested on the
digits that are left.

What is finished is not trained again: interrupted, the same command goes on. It needs scikit-learn.
"""

import argparse
import contextlib
import itertools
import json
import statistics
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from attention_core.training import require
from attention_core.training.compose import run_hydra
from attention_core.training.run import resume, train
from graph.data import DigitsKNN


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Digits as a graph, ten labels a class.")
    parser.add_argument("--folder", type=Path, default=Path("outputs/graph_few_labels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every run")
    given = parser.parse_intermixed_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    accuracy: dict[str, list[float]] = {}
    for seed in given.seeds:
        found = {
            "graph transformer": ours(given.folder / f"seed{seed}", seed, given.overrides),
            **theirs(seed),
        }
        for name, value in found.items():
            accuracy.setdefault(name, []).append(value)
    for name, values in accuracy.items():
        each = " ".join(f"{100 * value:.1f}" for value in values)
        mean, deviation = statistics.mean(values), statistics.pstdev(values)
        print(f"{name:20} {100 * mean:.1f} ± {100 * deviation:.1f}%  ({each})")


def ours(folder: Path, seed: int, overrides: list[str]) -> float:
    """The test accuracy of a run in `folder`, which is started, continued or only read."""
    if not (folder / "results.json").exists():
        log = folder.with_suffix(".log").open("a")
        with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            if (folder / "config.yaml").exists():
                resume(folder)
            else:
                options = ["experiment=graph/digits_knn", f"seed={seed}", f"hydra.run.dir={folder}"]
                run_hydra(train, [*options, *overrides], flags=[], config_dir=None)
    results: dict[str, float] = json.loads((folder / "results.json").read_text())
    return results["test/accuracy"]


def theirs(seed: int) -> dict[str, float]:
    """The test accuracies of scikit-learn's methods, each with what the validation digits chose."""
    require("sklearn", extra="graph")
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import LabelSpreading

    data = DigitsKNN(batch_size=1, seed=seed)
    data.setup()
    parts = [part[0] for part in (data.train_set, data.val_set, data.test_set)]  # type: ignore[index]
    x, y = parts[0]["x"].numpy(), parts[0]["target"]
    train, val, test = (part["node_mask"] for part in parts)

    def accuracies(predicted: Any) -> tuple[float, float]:
        right = torch.from_numpy(predicted) == y
        return float(right[val].float().mean()), float(right[test].float().mean())

    known = torch.where(train, y, -1).numpy()
    spread = []
    for neighbors, alpha in itertools.product((5, 7, 10, 15), (0.1, 0.2, 0.5, 0.8)):
        model = LabelSpreading(kernel="knn", n_neighbors=neighbors, alpha=alpha, max_iter=200)
        spread.append(accuracies(model.fit(x, known).transduction_))
    fitted = []
    for inverse in (0.01, 0.1, 1.0, 10.0, 100.0):
        model = LogisticRegression(C=inverse, max_iter=5000).fit(x[train], y[train].numpy())
        fitted.append(accuracies(model.predict(x)))
    return {
        "label spreading": max(spread, key=itemgetter(0))[1],
        "logistic regression": max(fitted, key=itemgetter(0))[1],
    }


if __name__ == "__main__":
    main()
