"""Batches of loaders: what models need to know on the host stays known there."""

from typing import Any

import torch
from lightning.pytorch.utilities import move_data_to_device
from torch.utils.data import DataLoader

from attention_core import Neighborhood, Sequence, attend
from attention_core.transfer import on_host, original, remember_original
from nlp import TextEncoder
from nlp.data import TextData
from tests.devices.counting import CUDA, CountingDevice


class Words(TextData):
    def rows(self):
        return {"train": [("one two three", "a"), ("four five", "b")], "test": []}


def test_lengths_that_lightning_moves_are_remembered():
    batch = {"ids": torch.randint(20, (8,)), "lengths": torch.tensor([5, 3]), "target": 1}
    data = Words(vocab_size=20, batch_size=2)
    torch.manual_seed(0)
    with CountingDevice() as device:
        model = device.moved(TextEncoder(20, 16, 2, 2, num_classes=2))
        there = data.transfer_batch_to_device(batch, CUDA, 0)
        assert there["lengths"].device == CUDA and there["target"] == 1
        assert original(there["lengths"]) is batch["lengths"]
        with device.counting() as counts:
            out = model(there["ids"], there["lengths"])
        assert counts.totals[:2] == (0, 1), counts
        wanted = model(there["ids"], batch["lengths"])
        assert torch.equal(out, wanted)
    here = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert here["lengths"] is batch["lengths"]


def collate(lengths: list[int]) -> dict[str, Any]:
    space = Sequence.packed(lengths)
    return {"space": space, "x": torch.randn(1, 2, len(space), 8)}


def test_a_space_made_in_a_worker_keeps_its_original():
    loader = DataLoader([40, 24], batch_size=2, collate_fn=collate, num_workers=1)  # type: ignore[arg-type]
    (batch,) = loader
    wanted = attend(*[batch["x"]] * 3, space=batch["space"], mask=Neighborhood(3))
    with CountingDevice() as device:
        x = device.moved(batch["x"])
        with device.counting() as counts:
            space = move_data_to_device(batch["space"], CUDA)
            out = attend(x, x, x, space=space, mask=Neighborhood(3), backend="blocks")
        assert not counts.waits and counts.copies.total() == 2, counts  # the space, its plan
        assert space.device == CUDA and space.host is batch["space"]
        torch.testing.assert_close(out.cpu(), wanted)


def test_what_is_written_to_is_remembered_no_longer():
    here = torch.tensor([5, 3])
    with CountingDevice() as device:
        there = here.to("cuda")
        remember_original(there, here)
        with device.counting() as counts:
            assert on_host(there) is here
        assert not counts.waits
        there += 1
        with device.counting() as counts:
            assert on_host(there).tolist() == [6, 4]
        assert counts.waits.total() == 1 and original(there) is None


def test_lengths_on_the_device_are_waited_for_once():
    with CountingDevice() as device:
        lengths = device.moved(torch.tensor([5, 3]))
        with device.counting() as counts:
            space = Sequence.packed(lengths, device="cuda")
        assert counts.totals[:2] == (1, 2), counts
        assert space.num_segments == 2 and space.length == 8


def test_originals_are_remembered_in_inference_mode_as_when_a_model_is_evaluated():
    lengths = torch.tensor([3, 5])
    with torch.inference_mode():
        there = torch.empty(2, dtype=torch.long, device="meta")
        remember_original(there, lengths)
        assert original(there) is lengths
    assert original(there) is lengths
