"""`examples/recall.py`: what its sequences ask, and what it reports of both models."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "recall.py"


@pytest.fixture(scope="module")
def recall() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("distance", [0, 20])
def test_every_key_is_asked_for_at_its_distance_and_has_one_value(
    distance: int, recall: dict[str, Any]
) -> None:
    keys, values, noise = (recall[name] for name in ("KEYS", "VALUES", "NOISE"))
    ids, answers = recall["sequences"](50, distance, torch.Generator().manual_seed(0))
    assert ids.shape == (50, 2 * keys + distance) and answers.shape == (50, keys)
    for row, answer in zip(ids.tolist(), answers.tolist(), strict=True):
        known = dict(divmod(pair, values) for pair in row[:keys])
        assert sorted(known) == list(range(keys)), "each key has one value"
        between = row[keys : keys + distance]
        assert all(keys * values <= token < keys * values + noise for token in between)
        asked = [token - keys * values - noise for token in row[keys + distance :]]
        assert sorted(asked) == list(range(keys))
        assert [known[key] for key in asked] == answer
    for part in (ids[:, :keys] // values, ids[:, -keys:]):
        assert len({tuple(row) for row in part.tolist()}) > 40, "in an order of its own"


def test_the_cells_of_the_lstm_begin_to_forget_within_the_length_of_a_sequence(
    recall: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    lstm = recall["Recurrent"](64).lstm
    # torch has the gates in this order: input, forget, cell, output
    entered, kept, *others = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().view(4, -1).sigmoid()
    # A cell that keeps the share f of itself at a token has 1 / e of it left after 1 / (1 - f)
    times = 1 / (1 - kept)
    assert 2 <= float(times.min()) < 10 and 50 < float(times.max()) <= 64
    torch.testing.assert_close(entered, 1 - kept)
    assert all(bool((gate == 0.5).all()) for gate in others)


@pytest.mark.slow
def test_one_command_gives_table_figure_and_numbers(
    recall: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    try:
        recall["main"](["--quick", "--folder", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    results = json.loads((tmp_path / "recall.json").read_text())
    smaller, larger = sorted(results["parameters"].values())
    assert larger <= 1.05 * smaller
    found = {(row["model"], row["distance"]): row for row in results["rows"]}
    assert {key[1] for key in found} == {8, 32} and len(found) == 4
    right = {key: row["runs"][0]["test"] for key, row in found.items()}
    assert right["encoder", 8] > 0.99 and right["encoder", 32] > 0.99
    # It has begun to learn, from a chance of 1/8, and is behind where there is more to remember
    assert 1 / 4 < right["LSTM", 32] < right["LSTM", 8]
    assert all(row["ms"] > 0 for row in found.values())
    assert (tmp_path / "recall.png").stat().st_size > 20_000
    assert "parameters" in capsys.readouterr().out
