"""What a trained vision model attends to in an image: figures, and the maps as arrays.

    python examples/attention_maps.py outputs/<run> digit.png maps/
    python examples/attention_maps.py outputs/<run> digit.png maps/ --layer 0 --query 1 2

The image is read as `attn predict` reads it for this run. The folder gets the figures of a run, for
this image, and `maps.npz` with the arrays `maps` (heads, rows, columns) of one layer, `rollout`
(rows, columns; of a VisionTransformer) and `distance` (layers, heads) in pixels.
"""

import argparse
from pathlib import Path

import numpy
import torch

from attention_core.escape import on_one_line
from attention_core.interpret.plots import save_figure
from attention_core.training.predict import load_trained
from vision import VisionTransformer
from vision.interpret import (
    attention_figures,
    attention_maps,
    attention_rollout,
    mean_attention_distance,
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run of vision classification")
    parser.add_argument("image", type=Path, help="file that the run's data module reads")
    parser.add_argument("output", type=Path, help="folder for the maps")
    parser.add_argument("--layer", type=int, default=-1, help="which block; the last by default")
    parser.add_argument(
        "--query", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="patch; or all that is pooled"
    )
    given = parser.parse_args(arguments)

    data, task = load_trained(given.run)
    data.setup("predict")
    _, raw = next(iter(data.inputs(given.image)))
    batch = data.transfer_batch_to_device(data.collate([data.read(raw)]), task.device, 0)
    image, model = batch["image"], task.model

    with torch.no_grad():
        (prediction,) = task.predictions(task(**batch))
    label = (None, prediction["prediction"], prediction["probability"])
    for name, figure in attention_figures(model, image, [label]).items():
        save_figure(figure, given.output / f"{name}.png")

    query = None if given.query is None else tuple(given.query)
    arrays = {
        "maps": attention_maps(model, image, layers=[given.layer], query=query)[0][0],
        "distance": mean_attention_distance(model, image),
    }
    if isinstance(model, VisionTransformer):
        arrays["rollout"] = attention_rollout(model, image)[0]
    numpy.savez(
        given.output / "maps.npz", **{name: maps.cpu().numpy() for name, maps in arrays.items()}
    )
    said = f"{label[1]} ({label[2]:.0%}): {len(arrays)} arrays and the figures in {given.output}"
    print(on_one_line(said))


if __name__ == "__main__":
    main()
