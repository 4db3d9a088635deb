"""Ten-fold cross-validation of a graph transformer beside a Weisfeiler-Lehman kernel's SVM.

    python examples/graph_cross_validation.py mutag
    python examples/graph_cross_validation.py cuneiform
    python examples/graph_cross_validation.py mutag --quick     # three of the folds, in a minute

Both see the same folds, which are stratified and fixed. The transformer is that of the experiment:
of nine folds it trains on eight, and one chooses the epoch. The SVM (Shervashidze et al., 2011) is
fitted to all nine, after a cross-validation among them has chosen the kernel's iterations and C. It
sees the types of nodes and edges, and no coordinates.

Two processes train, each a fold. What is finished is not trained again: interrupted, the same
command goes on. It needs the extra `graph`; the kernel, Python 3.12 or older.
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy

from attention_core.training import UsageError, require
from attention_core.training.compose import run_hydra
from attention_core.training.run import resume, train
from attention_core.training.splits import stratified_folds
from graph.data import read_tu
from graph.data.mutag import grakel_folder

FOLDS = 10  # those of the data sets
FILES = {"mutag": "MUTAG", "cuneiform": "Cuneiform"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A graph transformer beside a WL-kernel SVM.")
    parser.add_argument("name", choices=FILES)
    parser.add_argument("--quick", action="store_true", help="three of the ten folds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("outputs/graph_cross_validation"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the experiment")
    given = parser.parse_intermixed_args(arguments)
    folds = range(3 if given.quick else FOLDS)
    start = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.processes, mp_context=spawn) as pool:
        jobs = [
            pool.submit(ours, given.name, fold, given.folder / given.name, given.overrides)
            for fold in folds
        ]
        accuracies = [job.result() for job in jobs]
    report("graph transformer", accuracies, time.perf_counter() - start)
    start = time.perf_counter()
    report("WL-kernel SVM", [*kernel_machine(given.name, folds)], time.perf_counter() - start)


def report(name: str, accuracies: list[float], seconds: float) -> None:
    mean, deviation = statistics.mean(accuracies), statistics.pstdev(accuracies)
    each = " ".join(f"{100 * accuracy:.0f}" for accuracy in accuracies)
    print(f"{name:18} {100 * mean:.1f} ± {100 * deviation:.1f}%  ({each}; {seconds:.0f} s)")


def ours(name: str, fold: int, folder: Path, overrides: list[str]) -> float:
    """The test accuracy of one fold, whose run is started, continued or only read."""
    import torch

    torch.set_num_threads(1)
    path = folder / f"fold{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (path / "results.json").exists():
        log = (folder / f"fold{fold}.log").open("a")
        with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            if (path / "config.yaml").exists():
                resume(path)
            else:
                options = [
                    f"experiment=graph/{name}",
                    f"data.fold={fold}",
                    f"hydra.run.dir={path}",
                    *overrides,
                ]
                run_hydra(train, options, flags=[], config_dir=None)
    results: dict[str, float] = json.loads((path / "results.json").read_text())
    return results["test/accuracy"]


def kernel_machine(name: str, folds: range) -> list[float]:
    """The test accuracies of an SVM with the WL subtree kernel."""
    require("sklearn", extra="graph")
    if sys.version_info >= (3, 13):
        raise UsageError("grakel's kernels are compiled for Python 3.12 and older.")
    from grakel import Graph
    from grakel.kernels import VertexHistogram, WeisfeilerLehman
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import SVC

    samples = read_tu(grakel_folder(FILES[name]))
    target = numpy.array([int(sample["target"]) for sample in samples])
    graphs = []
    for sample in samples:
        kinds = sample["x"] if sample["x"].ndim == 1 else sample["x"][:, 3:]
        bonds = sample["edge_attr"] if sample["edge_attr"].ndim == 1 else sample["edge_attr"][:, 2:]
        edges = map(tuple, sample["edge_index"].T.tolist())
        labels = dict(zip(edges, map(str, bonds.tolist()), strict=True))
        graphs.append(Graph(list(labels), dict(enumerate(map(str, kinds.tolist()))), labels))
    kernels = {
        h: WeisfeilerLehman(h, base_graph_kernel=VertexHistogram, normalize=True).fit_transform(
            graphs
        )
        for h in range(1, 8)
    }
    accuracies = []
    parts = stratified_folds(target.tolist(), FOLDS, name)
    for fold in folds:
        test = numpy.array(parts[fold])
        train = numpy.setdiff1d(numpy.arange(len(target)), test)
        inner = StratifiedKFold(5, shuffle=True, random_state=0)
        best = None
        for kernel in kernels.values():
            search = GridSearchCV(
                SVC(kernel="precomputed"), {"C": 10.0 ** numpy.arange(-3, 4)}, cv=inner
            )
            search.fit(kernel[numpy.ix_(train, train)], target[train])
            if best is None or search.best_score_ > best[0].best_score_:
                best = search, kernel
        assert best is not None
        search, kernel = best
        accuracies.append(search.score(kernel[numpy.ix_(test, train)], target[test]))
    return accuracies


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # grakel's, of the versions of others
    main()
