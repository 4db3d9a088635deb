"""The order of the training samples, and what a loader continues with."""

import itertools
import math
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from lightning.pytorch import LightningModule, Trainer

from attention_core.training import DataModule, Loader, UsageError, require


class Noisy(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sample i is i and a random number, as augmentation would draw it."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"index": torch.tensor(index), "noise": torch.rand(())}


def epoch_of(loader: Loader, epoch: int) -> list[dict[str, Any]]:
    loader.set_epoch(epoch)
    return [{name: value.tolist() for name, value in batch.items()} for batch in loader]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = Loader(Noisy(50), 8, seed=1, shuffle=True)
    epochs = [epoch_of(first, epoch) for epoch in range(3)]
    torch.manual_seed(99)
    second = Loader(Noisy(50), 8, seed=1, shuffle=True)
    assert [epoch_of(second, epoch) for epoch in (2, 0, 1)] == [epochs[2], epochs[0], epochs[1]]
    assert epochs[0] != epochs[1]
    assert epoch_of(Loader(Noisy(50), 8, seed=2, shuffle=True), 0) != epochs[0]


def test_a_loader_leaves_the_global_generator_unread() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    iter(Loader(Noisy(4), 2, shuffle=True))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("shuffle", [True, False])
def test_workers_change_nothing(shuffle: bool) -> None:
    alone = Loader(Noisy(20), 4, shuffle=shuffle)
    helped = Loader(Noisy(20), 4, shuffle=shuffle, workers=2)
    for epoch in range(2):
        assert epoch_of(alone, epoch) == epoch_of(helped, epoch)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_where_another_stopped(workers: int) -> None:
    whole = epoch_of(Loader(Noisy(30), 4, shuffle=True), 3)
    stopped = Loader(Noisy(30), 4, shuffle=True, workers=workers)
    stopped.set_epoch(3)
    list(itertools.islice(stopped, 5))
    continued = Loader(Noisy(30), 4, shuffle=True, workers=workers)
    continued.load_state_dict(stopped.state_dict())
    assert stopped.state_dict() == {"epoch": 3, "served": 5}
    assert epoch_of(continued, 3) == whole[5:]
    # The state is used up: the next epoch begins at its beginning.
    assert epoch_of(continued, 4) == epoch_of(Loader(Noisy(30), 4, shuffle=True), 4)


def test_a_state_of_an_earlier_epoch_skips_nothing() -> None:
    loader = Loader(Noisy(10), 2, shuffle=True)
    loader.load_state_dict({"epoch": 1, "served": 5})
    assert epoch_of(loader, 2) == epoch_of(Loader(Noisy(10), 2, shuffle=True), 2)


@settings(deadline=None, max_examples=60)
@given(
    samples=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    world=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_shards_together_are_the_data_set(
    samples: int, batch_size: int, world: int, epoch: int
) -> None:
    def shards(shuffle: bool) -> list[list[int]]:
        found, steps = [], set()
        for rank in range(world):
            loader = Loader(Noisy(samples), batch_size, shuffle=shuffle, rank=rank, world=world)
            batches = epoch_of(loader, epoch)
            assert len(batches) == len(loader)
            assert all(1 <= len(batch["index"]) <= batch_size for batch in batches)
            steps.add(len(batches))
            found.append([index for batch in batches for index in batch["index"]])
        assert len(steps) == 1  # none waits for a step of another that never comes
        return found

    training = shards(True)
    assert {len(shard) for shard in training} == {-(-samples // world)}
    assert set(itertools.chain(*training)) == set(range(samples))
    try:
        evaluation = shards(False)
    except UsageError as error:
        assert samples // world < math.ceil(math.ceil(samples / world) / batch_size), error
    else:  # every sample exactly once, so that the metrics are exact
        assert sorted(itertools.chain(*evaluation)) == list(range(samples))


class Sized(Noisy):
    """Sample i has size `sizes[i]`."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(len(sizes))
        self.sizes = sizes


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=5, max_size=60),
    budget=st.integers(1, 200),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
)
def test_batches_of_a_budget(sizes: list[int], budget: int, world: int, shuffle: bool) -> None:
    total, found = sum(sizes), []
    for rank in range(world):
        loader = Loader(Sized(sizes), 1, shuffle=shuffle, rank=rank, world=world, budget=budget)
        epochs = [epoch_of(loader, epoch) for epoch in range(2)]
        assert len(epochs[0]) == len(epochs[1]) == len(loader)
        found.append([batch["index"] for batch in epochs[0]])
    assert len({len(batches) for batches in found}) == 1
    batches = [batch for of_rank in found for batch in of_rank]
    assert all(batches)
    assert sorted(itertools.chain(*batches)) == list(range(len(sizes)))
    if len(sizes) >= 2 * len(batches) and max(sizes) <= total / len(batches):
        assert total / len(batches) <= budget
        # Half a sample more at either end, at most
        assert max(sum(sizes[i] for i in batch) for batch in batches) <= budget + max(sizes)


def test_a_budget_is_kept_where_a_run_continues_and_in_a_part() -> None:
    sizes = [1 + 7 * i % 13 for i in range(50)]
    whole = epoch_of(Loader(Sized(sizes), 1, shuffle=True, budget=20), 3)
    continued = Loader(Sized(sizes), 1, shuffle=True, budget=20, workers=1)
    continued.load_state_dict({"epoch": 3, "served": 5})
    assert epoch_of(continued, 3) == whole[5:]
    continued.close()
    part = torch.utils.data.Subset(Sized(sizes), [3, 1, 4])
    batches = [batch["index"] for batch in epoch_of(Loader(part, 1, budget=1000), 0)]
    assert batches == [[3, 1, 4]]
    with pytest.raises(UsageError, match="3 samples cannot be dealt to 4 processes"):
        Loader(part, 1, budget=10, world=4)


def test_what_is_drawn_to_evaluate_stays_the_same() -> None:
    loader = Loader(Noisy(10), 4)
    assert epoch_of(loader, 0) == epoch_of(loader, 1)


def test_a_closed_loader_leaves_no_worker_and_can_be_iterated_again() -> None:
    loader = Loader(Noisy(20), 4, workers=2)
    before = epoch_of(loader, 0)
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    loader.close()
    assert multiprocessing.active_children() == []
    assert epoch_of(loader, 0) == before
    loader.close()


def test_a_data_module_travels_to_other_processes() -> None:
    """With its `collate` to spawned workers, as a whole to spawned ranks: there it loads anew."""
    data = DataModule(batch_size=4)
    data.train_set = data.val_set = Noisy(8)
    data.train_dataloader()
    sent = pickle.loads(pickle.dumps(data))
    assert epoch_of(sent.val_dataloader(), 0) == epoch_of(data.val_dataloader(), 0)


def test_no_worker_outlives_the_training(tmp_path: Path) -> None:
    class Data(DataModule):
        def load(self) -> None:
            self.train_set = self.val_set = self.test_set = Noisy(8)

    class Module(LightningModule):
        def training_step(self, batch: Any) -> None:
            return None

        def validation_step(self, batch: Any) -> None: ...
        def test_step(self, batch: Any) -> None: ...
        def configure_optimizers(self) -> None: ...

    data, module = Data(batch_size=4, workers=1), Module()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    assert multiprocessing.active_children() == []
    trainer.test(module, data)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["pos", "pos"], "data.classes names 'pos' more than once, got"),
        ([1, "neg", "1"], "data.classes names '1' more than once, got"),
        ("pos", "data.classes must be a list of names, got 'pos'"),
    ],
)
def test_classes_are_a_list_of_names(classes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataModule(batch_size=1, classes=classes)


def test_a_missing_package_names_the_extra() -> None:
    require("torch")
    with pytest.raises(UsageError, match=r"pip install 'attention-core\[data\]'"):
        require("a_package_nobody_has")
