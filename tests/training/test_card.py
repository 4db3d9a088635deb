"""The model card, read by a Markdown parser and compared with what it is about."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt

from attention_core.training.card import write_card
from attention_core.training.compose import about, config_roots
from attention_core.training.folder import RunFolder
from attention_core.training.run import assemble
from tests.training.conftest import Compose, data_root

Table = dict[str, str]


def read(text: str) -> tuple[list[str], list[Table], list[str]]:
    """Headings, tables (first column to second) and blocks of code, as a reader would see them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    headings = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    tables: list[Table] = []
    cells: list[str] = []
    for i, token in enumerate(tokens):
        if token.type == "td_open":
            cells.append("".join(part.content for part in tokens[i + 1].children or []))
        if token.type == "tr_close" and cells:
            name, value = cells
            tables[-1][name] = value
            cells = []
        if token.type == "table_open":
            tables.append({})
    code = [token.content for token in tokens if token.type == "fence"]
    return [heading.content for heading in headings], tables, code


def stub(parts: Any, **facts: Any) -> Any:
    parts.data.train_set, parts.data.val_set, parts.data.test_set = (
        range(size) for size in (1400, 200, 100)
    )
    return SimpleNamespace(
        datamodule=parts.data,
        lightning_module=parts.task,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        **{
            "world_size": 1,
            "accumulate_grad_batches": 1,
            "current_epoch": 3,
            "global_step": 60,
            "precision": "32-true",
            **facts,
        },
    )


RESULTS = {"test/loss": 0.25, "test/accuracy": 0.9, "best_epoch": 1}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", sorted(about(config_roots(None))))
def test_the_card_of_every_experiment_says_what_was_trained(
    experiment: str, compose: Compose, tmp_path: Path
) -> None:
    config = compose(f"experiment={experiment}", *data_root(experiment, tmp_path / "data"))
    folder = RunFolder(tmp_path)
    parts = assemble(config, folder, log=False)

    write_card(config, folder, RESULTS, stub(parts), seconds=75.0)

    text = (tmp_path / "README.md").read_text()
    headings, tables, code = read(text)
    assert headings[1:] == ["Results", "Use", "Architecture", "Training", "Limits"]
    facts, results, architecture, training = tables
    assert facts["data"] == config["about"]["data"]
    assert facts["samples"] == "1,400 training, 200 validation, 100 test"
    assert facts.get("classes", "") == ", ".join(config["data"].get("classes", []))
    trained = sum(p.numel() for p in parts.task.model.parameters())
    assert facts["parameters"] == f"{trained:,}"
    assert results == {"test/loss": "0.2500", "test/accuracy": "0.9000"}
    arguments = {name: json.loads(value) for name, value in architecture.items()}
    assert arguments == {k: v for k, v in config["model"].items() if k != "_target_"}
    assert config["optimizer"]["_target_"] in training["optimizer"]
    tokens = config["data"].get("tokens")
    size = str(config["data"]["batch_size"]) if tokens is None else f"about {tokens:,} tokens"
    assert training["batch size"] == size
    assert training["time"] == "75 seconds"
    assert "epoch 2 of 3" in text
    assert "82.6% to 94.5%" in text  # Wilson's interval of 90 in 100, as in tables
    assert f"attn export run={tmp_path}" in code[0]
    compile(code[1], "card", "exec")


def test_the_card_after_real_training(compose: Compose, tmp_path: Path) -> None:
    config = compose("experiment=toy", "trainer.max_epochs=2", "data.samples=60")
    folder = RunFolder(tmp_path / "a run")
    parts = assemble(config, folder)
    parts.trainer.fit(parts.task, datamodule=parts.data)
    (values,) = parts.trainer.test(parts.task, datamodule=parts.data, verbose=False)
    folder.figures.mkdir()
    (folder.figures / "learning_curves.png").touch()
    (folder.figures / "attention.html").touch()

    results = {**values, "best_epoch": 1}
    write_card(config, folder, results, parts.trainer, seconds=7200.0, resumed=True)

    text = (folder.path / "README.md").read_text()
    _, tables, code = read(text)
    assert tables[0]["samples"] == "60 training, 30 validation, 30 test"
    assert tables[1]["test/accuracy"] == f"{values['test/accuracy']:.4f}"
    assert "epoch 2 of 2" in text
    assert tables[3]["epochs"] == "2 (8 optimizer steps)"
    assert tables[3]["time"] == "2.00 hours, since the run was last continued"
    assert torch.__version__ in tables[3]["versions"]
    assert "[Learning curves](figures/learning_curves.png)" in text
    assert "[Attention, as a page](figures/attention.html)" in text
    assert f"run='{tmp_path}/a run'" in code[0]  # as a shell needs it
    assert "toy_domain" in text and "--config-dir" in text


def test_texts_of_a_configuration_mean_nothing_to_markdown(
    compose: Compose, tmp_path: Path
) -> None:
    config = compose("experiment=toy")
    folder = RunFolder(tmp_path)
    parts = assemble(config, folder, log=False)
    parts.data.classes = ["a|b", "`c`", "*d* <e>"]
    config["about"] = {"title": "# One\n| two |", "data": "1. [x](y) &amp; | z_z_z\n\n- w"}
    config["model"]["note"] = "a | `b` ``c`` \\| d"
    trainer = stub(parts, world_size=2, accumulate_grad_batches=4)

    write_card(config, folder, {"test/loss": 1.0, "best_epoch": 0}, trainer, seconds=1.0)

    text = (tmp_path / "README.md").read_text()
    headings, tables, _ = read(text)
    assert headings[1:] == ["Results", "Use", "Architecture", "Training", "Limits"]
    assert "\\# One \\| two \\|.\n" in text
    assert tables[0]["data"] == "1. [x](y) &amp; | z_z_z - w"
    assert tables[0]["classes"] == "a|b, `c`, *d* <e>"
    assert json.loads(tables[2]["note"]) == "a | `b` ``c`` \\| d"
    assert tables[3]["batch size"] == "128 (16 × 2 processes × 4 accumulated)"
    assert "95% interval" not in text
