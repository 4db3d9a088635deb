"""The model card of a run: what was trained, how, on what, with what result, and what is not known.

After Mitchell et al., Model Cards for Model Reporting, 2019.
"""

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, get_args
from urllib.parse import quote

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from lightning.pytorch import Trainer

from attention_core.escape import markdown, markdown_code, shell_word
from attention_core.files import replace_file
from attention_core.interpret.plots import Format
from attention_core.training.data import DataModule
from attention_core.training.folder import RunFolder, from_here
from attention_core.training.matmul import KEY, PRECISIONS
from attention_core.training.own import needed_config_dir
from attention_core.training.trust import trusting


def write_card(
    config: Mapping[str, Any],
    folder: RunFolder,
    results: Mapping[str, float],
    trainer: Trainer,
    *,
    seconds: float,
    resumed: bool = False,
) -> None:
    """Write `README.md` of the run in `folder`, once it is tested and its figures are drawn.

    Args:
        config: resolved.
        results: of the test, by name, with "best_epoch".
        trainer: that has trained and tested; it knows data, model and devices.
        seconds: that this process trained and tested.
        resumed: whether another process had trained before it.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    task: Any = trainer.lightning_module
    sizes = {
        "training": len(data.train_set),
        "validation": len(data.val_set),
        "test": len(data.test_set),
    }
    about = config.get("about") or {}
    target, arguments = _described(config["model"])
    allow = config.get("allow") or []
    text = _template().render(
        experiment=config.get("experiment") or "A run",
        title=str(about.get("title") or "").rstrip("."),
        source=str(about.get("data") or ""),
        samples=", ".join(f"{size:,} {name}" for name, size in sizes.items()),
        reader=_call({k: v for k, v in config["data"].items() if k != "classes"}),
        classes=data.classes,
        parameters=sum(parameter.numel() for parameter in task.parameters()),
        test_samples=sizes["test"],
        epoch=int(results["best_epoch"]) + 1,
        epochs=trainer.current_epoch,
        monitor=task.monitor,
        mode=task.mode,
        results={name: f"{value:.4f}" for name, value in results.items() if name != "best_epoch"},
        interval=_interval(results.get("test/accuracy"), sizes["test"]),
        figures=_links(folder, *get_args(Format)),
        pages=_links(folder, "html"),
        allow=allow,
        config_dir=needed_config_dir(allow),
        trust=trusting(allow),
        run=from_here(folder.path),
        predicts=type(data).inputs is not DataModule.inputs,
        model={"target": target, "arguments": arguments},
        training=_training(config, trainer, data, seconds, resumed),
        seed=config.get("seed", 1),
    )
    with replace_file(folder.path / "README.md", "w") as file:
        file.write(text)


def _links(folder: RunFolder, *endings: str) -> list[tuple[str, str]]:
    """Return a title for each figure, and its address."""
    return [
        (path.stem.replace("_", " ").capitalize(), quote(bytes(path.relative_to(folder.path))))
        for path in sorted(folder.figures.glob("*"))
        if path.suffix[1:] in endings
    ]


def _training(
    config: Mapping[str, Any], trainer: Trainer, data: DataModule, seconds: float, resumed: bool
) -> dict[str, str]:
    world, accumulated = trainer.world_size, trainer.accumulate_grad_batches
    each, about = (data.batch_size, "") if data.budget is None else (data.budget, "about ")
    batch = f"{about}{each * world * accumulated:,}"
    if world * accumulated > 1:
        batch += f" ({each:,} × {world} processes × {accumulated} accumulated)"
    if data.budget is not None:
        batch += " tokens"
    device = trainer.strategy.root_device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    time = f"{seconds / 3600:.2f} hours" if seconds >= 3600 else f"{seconds:.0f} seconds"
    rows = {
        **_tuning(config),
        "optimizer": markdown_code(_call(config["optimizer"])),
        "schedule": markdown_code(_call(config["schedule"])) if config.get("schedule") else "none",
        "epochs": f"{trainer.current_epoch:,} ({trainer.global_step:,} optimizer steps)",
        "batch size": batch,
        "precision": markdown(trainer.precision) + _products(config),
        "seed": markdown(config.get("seed", 1)),
        "time": time + (", since the run was last continued" if resumed else ""),
        "hardware": markdown(f"{world} × {where}" if world > 1 else where),
    }
    versions = {"Python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: version(name) for name in ("lightning", "attention-core")}
    return {**rows, "versions": ", ".join(f"{name} {number}" for name, number in versions.items())}


def _tuning(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows that a fine-tuning has, and a training from scratch has not."""
    init = {name: value for name, value in (config.get("init") or {}).items() if value}
    layer_decay = config["task"].get("layer_decay", 1)
    rows = {}
    if "run" in init or "weights" in init:
        rows["starts from"] = markdown_code(", ".join(f"{name}={init[name]}" for name in init))
    if config.get("freeze"):
        rows["frozen"] = markdown_code(", ".join(config["freeze"]))
    if layer_decay != 1:
        rows["rates"] = f"each layer's is {markdown(layer_decay)} times that of the one above"
    return rows


def _products(config: Mapping[str, Any]) -> str:
    """How products of float32 were computed, where not as float32."""
    given = config.get(KEY) or "highest"
    return "" if given == "highest" else f"; products of float32: {given} ({PRECISIONS[given]})"


def _processor() -> str:
    kind = platform.processor() or platform.machine()
    return f"CPU ({kind}), {torch.get_num_threads()} threads of {os.cpu_count()}"


def _described(part: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return part["_target_"], {name: value for name, value in part.items() if name[:1] != "_"}


def _call(part: Mapping[str, Any]) -> str:
    target, arguments = _described(part)
    return f"{target}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def _interval(accuracy: float | None, n: int) -> str:
    """How far chance in the choice of the test samples reaches (Wilson, 1927)."""
    if accuracy is None or not 0 <= accuracy <= 1:
        return ""
    z = 1.96
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (
        "With so many samples, the 95% interval of the accuracy is "
        f"{100 * (middle - half):.1f}% to {100 * (middle + half):.1f}% (Wilson)."
    )


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("attention_core.training"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        text=markdown, code=markdown_code, json=_json, shell=shell_word, python=repr
    )
    return environment.get_template("card.md.j2")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
