"""What pretraining without labels is worth: 100 labelled digits, with and without it.

    python examples/few_labels.py            # about ten minutes on one core

Pretrains `vision/mnist5k_mae` once on 3,200 images without labels. Then, for each seed, trains
`vision/mnist5k_100` on ten labelled images a class, chosen by the seed: from random weights and
from the pretrained ones, on the same images, with the same augmentation and the same steps. Only
the rates differ; each is the best of those tried for its side, see the experiment's file.

What is finished is not trained again: interrupted, the same command goes on.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

#: What fine-tuning does otherwise than training from scratch does.
TUNING = ["optimizer.lr=3e-3", "task.layer_decay=0.75"]


def main() -> None:
    parser = argparse.ArgumentParser(description="100 labels, with and without pretraining.")
    parser.add_argument("--folder", type=Path, default=Path("outputs/few_labels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every run")
    given = parser.parse_args()
    pretrained = given.folder / "pretrained"
    run(pretrained, ["experiment=vision/mnist5k_mae", *given.overrides])
    accuracy: dict[str, list[float]] = {}
    for seed in given.seeds:
        same = ["experiment=vision/mnist5k_100", f"seed={seed}", *given.overrides]
        for name, more in {
            "from random weights": [],
            "after pretraining": [f"init.run={pretrained}", *TUNING],
        }.items():
            folder = given.folder / f"{name.replace(' ', '_')}-{seed}"
            results = run(folder, [*same, *more])
            accuracy.setdefault(name, []).append(results["test/accuracy"])
    print(f"\ntest accuracy after 100 labels, seeds {', '.join(map(str, given.seeds))}")
    for name, values in accuracy.items():
        each = ", ".join(f"{value:.1%}" for value in values)
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        print(f"{name:20}  {100 * statistics.mean(values):.1f}{spread}  ({each})")


def run(folder: Path, overrides: list[str]) -> dict[str, float]:
    """The results of a run in `folder`, which is started, continued or only read."""
    results = folder / "results.json"
    if not results.exists():
        what = [f"run={folder}"]
        if not (folder / "config.yaml").exists():
            what = [*overrides, f"hydra.run.dir={folder}"]
        subprocess.run(
            [sys.executable, "-m", "attention_core.training", "train", *what], check=True
        )
    found: dict[str, float] = json.loads(results.read_text())
    return found


if __name__ == "__main__":
    main()
