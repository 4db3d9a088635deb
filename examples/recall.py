"""Recall over a distance: an LSTM and the encoder of equal size, their accuracy and time per step.

    python examples/recall.py            # about six minutes on one core
    python examples/recall.py --quick    # two short distances, in half a minute

A sequence gives each of eight keys a value, a pair in one token, in any order; then come as many
tokens of noise as the distance says; then it asks for every key, in another order, and the model
names the values (associative recall: Ba et al., 2016; Arora et al., Zoology, 2024).

Both models have one layer and equally many parameters. Both learn from the same sequences for at
most as many steps, and stop when they have the validation sequences right. Each gets, at each
distance, a learning rate of its own: with the first seed the `RATES` are tried in turn until one
has the validation sequences right, and the best of those tried is taken. The LSTM's gates begin
open for as long as the sequence is (chrono initialisation, Tallec & Ollivier, 2018): as torch
begins them, it learns nothing at a distance of 64.

The folder gets `recall.png` and `recall.json`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from attention_core.interpret.plots import INK, RIGHT, save_figure
from attention_core.training.console import rich_text
from nlp import TextEncoder

KEYS, VALUES, NOISE = 8, 8, 8
PAIRS = KEYS * VALUES  # ids: first those of pairs, then of noise, then of keys
VOCABULARY = PAIRS + NOISE + KEYS
RATES = (3e-3, 1e-2, 2e-2)
BATCH, WARMUP, CHECK = 32, 50, 50
DONE = 0.999  # of the validation values: then a model is done
NAMES = ("LSTM", "encoder")


def sequences(count: int, distance: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids (count, 8 + distance + 8), and the values (count, 8) of the keys at their ends."""
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)
    values = torch.randint(VALUES, (count, KEYS), generator=generator)
    noise = torch.randint(NOISE, (count, distance), generator=generator)
    asked = torch.rand(count, KEYS, generator=generator).argsort(1)
    questions = keys.gather(1, asked)
    ids = [keys * VALUES + values, PAIRS + noise, PAIRS + NOISE + questions]
    return torch.cat(ids, 1), values.gather(1, asked)


class Attending(nn.Module):
    """One block of the encoder, with rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TextEncoder(VOCABULARY, 48, depth=1, heads=4, num_classes=VALUES)

    def forward(self, ids: Tensor) -> Tensor:
        """The scores (B, 8, 8) of the values of the last eight ids."""
        scores: Tensor = self.encoder.head(self.encoder.encode(ids)[0][:, -KEYS:])
        return scores


class Recurrent(nn.Module):
    """One layer of an LSTM (Hochreiter & Schmidhuber, 1997) for sequences of `length` tokens."""

    def __init__(self, length: int, dim: int = 58) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, dim)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.head = nn.Linear(dim, VALUES)
        spans = torch.empty(dim).uniform_(1, length - 1).log()
        with torch.no_grad():
            self.lstm.bias_ih_l0.zero_()
            self.lstm.bias_hh_l0.zero_()
            self.lstm.bias_hh_l0[: 2 * dim] = torch.cat([-spans, spans])  # input and forget gates

    def forward(self, ids: Tensor) -> Tensor:
        """The scores (B, 8, 8) of the values of the last eight ids."""
        scores: Tensor = self.head(self.lstm(self.table(ids))[0][:, -KEYS:])
        return scores


def make(name: str, distance: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Attending() if name == "encoder" else Recurrent(2 * KEYS + distance)


class Run(NamedTuple):
    """One training: shares of values named rightly, and the steps that it took."""

    rate: float
    validation: float
    test: float
    steps: int


def train(name: str, distance: int, rate: float, steps: int, seed: int) -> Run:
    """Trains a model until it has the validation sequences right, for at most `steps` steps."""
    model = make(name, distance, seed)
    # Streams that both models share, and no seed with another
    streams = [torch.Generator().manual_seed(3 * seed + part) for part in range(3)]
    validation, test = (sequences(512, distance, stream) for stream in streams[1:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1 - step / steps)
    )
    for step in range(1, steps + 1):
        update(model, optimizer, *sequences(BATCH, distance, streams[0]))
        schedule.step()
        if step % CHECK == 0 or step == steps:
            reached = accuracy(model, *validation)
            if reached > DONE:
                break
    return Run(rate, reached, accuracy(model, *test), step)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, values: Tensor) -> None:
    loss = F.cross_entropy(model(ids).flatten(0, 1), values.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, ids: Tensor, values: Tensor) -> float:
    return float((model(ids).argmax(-1) == values).double().mean())


def tune(name: str, distance: int, steps: int) -> Run:
    """The training at the best rate of those tried."""
    runs: list[Run] = []
    for rate in RATES:
        runs.append(train(name, distance, rate, steps, seed=0))
        if runs[-1].validation > DONE:
            break
    return max(runs, key=lambda run: run.validation)


def milliseconds(distance: int, rounds: int) -> dict[str, float]:
    """The medians of a training step of each model, which take turns."""
    batch = sequences(BATCH, distance, torch.Generator().manual_seed(0))
    steps: dict[str, Callable[[], None]] = {}
    for name in NAMES:
        model = make(name, distance)
        optimizer = torch.optim.AdamW(model.parameters())
        steps[name] = lambda m=model, o=optimizer: update(m, o, *batch)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def compare(
    distances: list[int], seeds: int, steps: int, told: Callable[[str], None]
) -> dict[str, Any]:
    """All that is reported, as plain data."""
    counts = {name: sum(p.numel() for p in make(name, 1).parameters()) for name in NAMES}
    if max(counts.values()) > 1.05 * min(counts.values()):
        raise AssertionError(f"the models are to be of equal size, within 5%: {counts}")
    rows = []
    for distance in distances:
        times = milliseconds(distance, rounds=21)
        for name in NAMES:
            runs = [tune(name, distance, steps)]
            runs += [train(name, distance, runs[0].rate, steps, seed) for seed in range(1, seeds)]
            row = {"model": name, "distance": distance, "ms": times[name]}
            rows.append({**row, "runs": [run._asdict() for run in runs]})
            told(f"{name}, distance {distance}: {spread([run.test for run in runs])}")
    return {"parameters": counts, "threads": torch.get_num_threads(), "rows": rows}


def spread(values: list[float]) -> str:
    text = f"{100 * statistics.mean(values):.1f}"
    return text + (f" ± {100 * statistics.stdev(values):.1f}%" if len(values) > 1 else "%")


def table(results: dict[str, Any]) -> Table:
    counts = " and ".join(f"{n:,} ({name})" for name, n in results["parameters"].items())
    shown = Table(title=f"{counts} parameters", title_justify="left")
    for column in ("distance", "model", "accuracy", "steps", "learning rate", "ms a step"):
        shown.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for row in results["rows"]:
        runs, first = row["runs"], row["model"] == NAMES[0]
        shown.add_row(
            str(row["distance"]) if first else "",
            row["model"],
            spread([run["test"] for run in runs]),
            f"{statistics.mean(run['steps'] for run in runs):.0f}",
            f"{runs[0]['rate']:g}",
            f"{row['ms']:.1f}",
            end_section=not first,
        )
    return shown


def figure(results: dict[str, Any]) -> Figure:
    """Accuracy, and milliseconds of a training step, over the distance."""
    drawn = Figure(figsize=(9.6, 3.8), layout="constrained")
    axes = drawn.subplots(1, 2)
    for name, color in zip(NAMES, ("#c46a1b", RIGHT), strict=True):
        rows = [row for row in results["rows"] if row["model"] == name]
        distances = [row["distance"] for row in rows]
        tests = [[run["test"] for run in row["runs"]] for row in rows]
        means = [statistics.mean(values) for values in tests]
        deviations = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in tests]
        style: Any = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1.8}
        axes[0].errorbar(distances, means, deviations, capsize=3, **style)
        axes[1].plot(distances, [row["ms"] for row in rows], **style)
        for axis, last in zip(axes, (means[-1], rows[-1]["ms"]), strict=True):
            at: Any = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
            axis.annotate(name, (distances[-1], last), color=color, annotation_clip=False, **at)
    axes[0].axhline(1 / VALUES, color="#8a8a8a", linewidth=1, linestyle=(0, (4, 2)))
    axes[0].annotate("chance", (distances[0], 1 / VALUES + 0.02), color="#666666", fontsize=9)
    axes[0].set_ylim(0, 1.04)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[1].set_yscale("log")
    axes[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1].yaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes[1].yaxis.set_minor_locator(NullLocator())
    for axis, title in zip(
        axes, ("Values recalled", "Milliseconds per training step"), strict=True
    ):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(distances, [str(distance) for distance in distances])
        axis.set_xlabel("tokens between pairs and questions")
        axis.set_title(title, loc="left", fontsize=11, color=INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two distances, one seed, few steps")
    parser.add_argument("--distances", type=int, nargs="+", help="tokens of noise")
    parser.add_argument("--seeds", type=int, help="how many trainings of each")
    parser.add_argument("--steps", type=int, help="of each training, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("outputs/recall"))
    given = parser.parse_args(arguments)
    distances, seeds, steps = ([8, 32], 1, 150) if given.quick else ([16, 32, 64, 128, 256], 3, 600)
    torch.set_num_threads(given.threads)
    console, start = Console(), time.perf_counter()
    results = compare(
        given.distances or distances,
        given.seeds or seeds,
        given.steps or steps,
        lambda line: console.print(line, highlight=False),
    )
    save_figure(figure(results), given.folder / "recall.png")
    (given.folder / "recall.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(table(results))
    seconds = time.perf_counter() - start
    console.print(rich_text(f"{seconds:.0f} s; figure and numbers in {given.folder}"))


if __name__ == "__main__":
    main()
