"""What the harness costs: training the digits ViT by `attn train` against a bare PyTorch loop.

    python benchmarks/harness_overhead.py [--pairs 12] [--epochs 4] [--batch 128]

Both train the same model with the same optimizer, schedule, clipping, number of threads and batches
(drawn and augmented by the same loader), sum up loss and accuracy of the training set, and write
one checkpoint an epoch. The bare loop does nothing else. The harness seeds every step, keeps F1,
too, logs, draws its progress and writes checkpoints that survive a kill. Neither validates. The two take
turns; the overhead is the median over pairs of harness / bare − 1, by the clock and by CPU time,
which other programs on the machine disturb less but which leaves out waiting for the disk.
"""

import argparse
import contextlib
import io
import platform
import statistics
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    config = configured(given.batch, given.epochs)
    ratios: list[Times] = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(given.pairs + 1):
            times = {}
            for name in ("bare", "harness") if pair % 2 else ("harness", "bare"):
                run = {"bare": bare, "harness": harness}[name]
                times[name] = run(config, Path(folder) / f"{name}-{pair}")
            if pair == 0:
                continue  # warms up
            ours, theirs = times["harness"], times["bare"]
            ratios.append(Times(ours.clock / theirs.clock - 1, ours.cpu / theirs.cpu - 1))
            print(
                f"pair {pair:2}: bare {theirs.clock:.2f} s, harness {ours.clock:.2f} s, "
                f"{ratios[-1].clock:+.1%}; CPU {ratios[-1].cpu:+.1%}",
                flush=True,
            )
    print(
        f"\nvision/digits, batch {given.batch}, {torch.get_num_threads()} thread(s), torch "
        f"{torch.__version__}, {platform.machine()}: the harness takes"
    )
    for name, values in zip(("clock", "CPU"), zip(*ratios, strict=True), strict=True):
        quarter, middle, three = statistics.quantiles(values, n=4)
        spread = f"half of them {quarter:+.1%} to {three:+.1%}"
        print(f"  {middle:+.1%} by {name} (median of {given.pairs} pairs; {spread})")


if __name__ == "__main__":
    main()
