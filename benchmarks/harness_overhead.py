"""What the harness costs: training the digits ViT by `attn train` against a bare PyTorch loop.

    python benchmarks/harness_overhead.py [--pairs 8] [--epochs 20] [--batch 128]

Both train the same model with the same optimizer, schedule, clipping, number of threads and batches
(drawn and augmented by the same loader), sum up loss and accuracy of the training set, and write
one checkpoint an epoch. The bare loop does nothing else. The harness seeds every step, keeps F1,
too, logs, draws its progress and writes checkpoints that survive a kill. Neither validates.

The two take turns, each in a new process and after a warm-up. The overhead is the median over pairs
of harness / bare − 1, by the clock and by CPU time, which other programs on the machine disturb
less but which leaves out waiting for the disk.
"""

import argparse
import contextlib
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from attention_core.training.compose import run_hydra
from attention_core.training.folder import RunFolder
from attention_core.training.instantiate import build
from attention_core.training.optim import decay_groups
from attention_core.training.run import assemble


class Times(NamedTuple):
    """Seconds by the clock, and of CPU."""

    clock: float
    cpu: float

    def __sub__(self, other: "Times") -> "Times":
        return Times(self.clock - other.clock, self.cpu - other.cpu)


def now() -> Times:
    return Times(time.perf_counter(), time.process_time())


def configured(batch: int, epochs: int) -> dict[str, Any]:
    """The resolved configuration of `attn train experiment=vision/digits`, without validation."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"hydra.run.dir={folder}", f"data.batch_size={batch}"]
        overrides += [f"trainer.max_epochs={epochs}", "trainer.limit_val_batches=0"]
        run_hydra(lambda c, _: found.append(c), overrides, flags=[], config_dir=None)
    return found[0]


def harness(config: dict[str, Any], path: Path) -> Times:
    """Times of `fit`, data in memory."""
    parts = assemble(config, RunFolder(path))
    parts.data.setup()
    start = now()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        parts.trainer.fit(parts.task, datamodule=parts.data)
    return now() - start


def bare(config: dict[str, Any], path: Path) -> Times:
    """Times of the loop that everybody has written."""
    torch.manual_seed(config["seed"])
    data, model = build(config["data"]), build(config["model"])
    data.setup()
    start = now()
    loader = data.train_dataloader()
    epochs = config["trainer"]["max_epochs"]
    optimizer = build(config["optimizer"])(decay_groups(model, config["optimizer"]["weight_decay"]))
    schedule = build(config["schedule"])(optimizer, total_steps=epochs * len(loader))
    smoothing = config["task"]["label_smoothing"]
    log = io.StringIO()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        total, right = 0.0, 0
        for batch in loader:
            logits = model(batch["image"])
            loss = F.cross_entropy(logits, batch["target"], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(logits)
            right += int((logits.argmax(1) == batch["target"]).sum())
        print(f"{total / len(data.train_set):.4f} {right / len(data.train_set):.4f}", file=log)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return now() - start


def measure(what: str, batch: int, epochs: int) -> Times:
    """In a process of its own, where neither inherits what the other has set up."""
    command = [sys.executable, __file__, "--measure", what]
    command += ["--batch", str(batch), "--epochs", str(epochs)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return Times(*json.loads(ran.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--measure", choices=["bare", "harness"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        run = {"bare": bare, "harness": harness}[given.measure]
        with tempfile.TemporaryDirectory() as folder:
            run(configured(given.batch, 1), Path(folder) / "warm-up")
            print(json.dumps(run(configured(given.batch, given.epochs), Path(folder) / "timed")))
        return
    ratios: list[Times] = []
    for pair in range(given.pairs):
        order = ("bare", "harness") if pair % 2 else ("harness", "bare")
        times = {name: measure(name, given.batch, given.epochs) for name in order}
        ours, theirs = times["harness"], times["bare"]
        ratios.append(Times(ours.clock / theirs.clock - 1, ours.cpu / theirs.cpu - 1))
        print(
            f"pair {pair + 1:2}: bare {theirs.clock:.2f} s, harness {ours.clock:.2f} s, "
            f"{ratios[-1].clock:+.1%}; CPU {ratios[-1].cpu:+.1%}",
            flush=True,
        )
    print(
        f"\nvision/digits, {given.epochs} epochs at batch {given.batch}, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, {platform.machine()}: "
        "the harness takes"
    )
    for name, values in zip(("clock", "CPU"), zip(*ratios, strict=True), strict=True):
        quarter, middle, three = statistics.quantiles(values, n=4)
        spread = f"half of them {quarter:+.1%} to {three:+.1%}"
        print(f"  {middle:+.1%} by {name} (median of {given.pairs} pairs; {spread})")


if __name__ == "__main__":
    main()
