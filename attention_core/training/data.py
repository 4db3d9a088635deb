"""Data modules, and a loader whose order is a function of (seed, epoch) and can be continued."""

import importlib.util
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Required, TypedDict, cast

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from attention_core.annotated import Unchecked, checked
from attention_core.errors import UsageError
from attention_core.training.fingerprint import fingerprint
from attention_core.training.in_one_sentence import checked_batch, shapes_of
from attention_core.training.inputs import whole_path
from attention_core.training.seeding import derive_seed, seed_generators


def require(package: str, extra: str | None = "data") -> None:
    """Raise a UsageError that names the extra to install, where there is one, if `package` is not
    importable."""
    # Of a dotted name, that of what it is in: to look into it would import it
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        how = f" Install it with: pip install 'attention-core[{extra}]'" if extra else ""
        raise UsageError(f"The package {package!r} is needed for this and is not installed.{how}")


class DataModuleOptions(TypedDict, total=False):
    """Options of every `DataModule`, which subclasses pass on."""

    batch_size: Required[int]
    workers: int
    seed: int
    classes: Sequence[str]
    largest_input: int | None


class DataModule(LightningDataModule):
    """Three map-style data sets and how a list of their samples becomes a batch.

    A domain subclasses it, fills `train_set`, `val_set` and `test_set` in `load`, and overrides
    `collate` where samples cannot simply be stacked. A batch is a dict: `target` is the label,
    everything else goes to the model as keyword arguments.

    For `attn predict`, which needs no data set, it says how to read new data: `inputs` and `read`.

    Args:
        batch_size: samples of one batch and process.
        workers: processes that load ahead; 0 loads in the training process. The batches are the
            same for every number of workers, random augmentation included.
        seed: keys the order of the training samples and what augmentation draws.
        classes: the names of the classes, where there are any. Labels are indices into it.
        largest_input: how large one of the `inputs` may be, in what the subclass counts, such as
            characters of a line or pixels of a picture; a larger one is an error and costs no
            more. By default what the subclass says.

    Attributes:
        budget: where a subclass sets it, a batch holds samples whose sizes, such as numbers of
            tokens, sum to about this much, in place of `batch_size` samples. Each data set then
            has `sizes`, a list with the size of every sample.
    """

    train_set: Dataset[Any] | Sequence[Any] | None = None
    val_set: Dataset[Any] | Sequence[Any] | None = None
    test_set: Dataset[Any] | Sequence[Any] | None = None
    budget: int | None = None
    largest_input: int = 100_000

    @checked
    def __init__(
        self,
        *,
        batch_size: Unchecked[int],
        workers: Unchecked[int] = 0,
        seed: int = 1,
        classes: Unchecked[Sequence[str]] = (),
        largest_input: Unchecked[int | None] = None,
    ) -> None:
        super().__init__()
        if isinstance(classes, str):
            raise UsageError(f"data.classes must be a list of names, got {classes!r}.")
        self.largest_input = self.largest_input if largest_input is None else largest_input
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("workers", workers, 0),
            ("largest_input", self.largest_input, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise UsageError(
                    f"data.{name} must be an integer of at least {least}, got {value!r}."
                )
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.classes = [str(name) for name in classes]
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        if twice:
            raise UsageError(
                f"data.classes names {', '.join(map(repr, twice))} more than once, got {classes!r}."
            )
        self.fingerprint: dict[str, Any] = {}  # of the samples; a checkpoint has it
        self._train_loader: Loader | None = None
        self._loaders: weakref.WeakSet[Loader] = weakref.WeakSet()
        self._restored: dict[str, int] | None = None

    @classmethod
    def located(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that a configuration gives with whole paths, as a run keeps them: it
        may be continued or evaluated from another folder.

        Here it is `root` alone; override it where there are other paths.
        """
        root = arguments.get("root")
        return {**arguments, "root": whole_path(root)} if isinstance(root, str) else arguments

    def describe(self) -> dict[str, Any]:
        """Return what a configuration may take from the data, by name: ``${from_data:classes}``.

        It is asked before anything is trained, of a module that was built without what is to be
        taken. By default the classes that it was given.
        """
        return {"classes": self.classes, "num_classes": len(self.classes)}

    def load(self) -> None:
        """Fill `train_set`, `val_set` and `test_set`; called once per process, before any use."""
        raise UsageError(
            f"{type(self).__name__} must define load(self), which fills train_set, val_set and "
            "test_set."
        )

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        """Make a batch of samples; by default each sample is a dict and its values are stacked."""
        try:
            return cast(dict[str, Any], default_collate(samples))
        except RuntimeError as error:
            for name, shapes in shapes_of(samples).items():
                if len(shapes) > 1:
                    raise UsageError(
                        f"{type(self).__name__}: {name!r} of samples is of different sizes, "
                        f"{shapes[0]} and {shapes[1]}, which are not stacked. Write its method "
                        "collate(samples), which pads them or puts them end to end."
                    ) from error
            raise

    def _collated(self, samples: list[Any]) -> dict[str, Any]:
        return checked_batch(self.collate(samples), type(self).__name__)

    def inputs(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Yield everything to predict in the file or folder `path`: a name for its row, and what
        `read` makes a sample of, such as a path or a line.

        It is iterated in every worker, each of which reads its share: keep it cheap, lazy and in a
        fixed order (`attention_core.training.inputs` has the usual sources, which take
        `largest=self.largest_input`). An item that is an exception is an input that cannot be read,
        and its row says so.

        Raises:
            UsageError: there is nothing at `path`, or nothing of a kind that can be read.
        """
        raise UsageError(
            f"predict: {type(self).__name__} does not say what there is to predict in a file or "
            "folder. Write its methods inputs(path) and read(raw); see DataModule."
        )

    def read(self, raw: Any) -> Any:
        """Make the sample, without its `target`, of one item of `inputs`.

        Raises:
            ValueError, OSError: it is none; the message says why, and the row carries it.
        """
        raise UsageError(
            f"predict: {type(self).__name__} does not say how to read an input. Write its method "
            "read(raw); see DataModule."
        )

    def setup(self, stage: str | None = None) -> None:
        """Load the first time: Lightning's hook, called before fitting and before testing.

        Called with "predict" before `inputs` and `read`; override it where these need anything of
        the run, whose folder is `self.trainer.default_root_dir`.
        """
        if stage != "predict" and self.train_set is None and self.test_set is None:
            self.load()
            if stage == "fit":  # before anything is drawn, which may change what a data set holds
                self.fingerprint = fingerprint(self)

    def train_dataloader(self) -> "Loader":
        self._train_loader = self._loader("train_set", shuffle=True)
        if self._restored is not None:
            self._train_loader.load_state_dict(self._restored)
        return self._train_loader

    def val_dataloader(self) -> "Loader":
        return self._loader("val_set", shuffle=False)

    def test_dataloader(self) -> "Loader":
        return self._loader("test_set", shuffle=False)

    # Lightning keeps the state of loaders, too, but restores it only where nothing has asked for
    # the loader earlier, and counting the steps of a schedule does.
    def state_dict(self) -> dict[str, Any]:
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict.get("train")
        if self._train_loader is not None and self._restored is not None:
            self._train_loader.load_state_dict(self._restored)  # asked for already, as by FSDP2

    def _loader(self, which: str, *, shuffle: bool) -> "Loader":
        dataset = getattr(self, which)
        if dataset is None or not hasattr(dataset, "__len__") or len(dataset) == 0:
            raise UsageError(
                f"{type(self).__name__}.{which} must be a data set with a length of at least 1, "
                f"got {dataset!r}."
            )
        trainer = self.trainer
        loader = Loader(
            dataset,
            self.batch_size,
            collate=self._collated,
            workers=self.workers,
            seed=self.seed,
            shuffle=shuffle,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
            budget=self.budget,
            pin_memory=bool(trainer and trainer.strategy.root_device.type == "cuda"),
        )
        self._loaders.add(loader)
        if trainer:
            # A share of the batches is one at least; Lightning refuses a share of less
            limit = f"limit_{which.removesuffix('_set')}_batches"
            share = getattr(trainer, limit)
            if isinstance(share, float) and 0 < share * len(loader) < 1:
                setattr(trainer, limit, 1)
        return loader

    def teardown(self, stage: str | None = None) -> None:
        """End the workers: Lightning's hook, called after fitting and after testing."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def __getstate__(self) -> dict[str, Any]:
        # `collate` travels to spawned workers with its module; trainer and loaders must not.
        return {**self.__dict__, "trainer": None, "_train_loader": None, "_loaders": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _loaders=weakref.WeakSet())


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the model's arguments in a batch, by name: everything but `target`."""
    return {name: value for name, value in batch.items() if name != "target"}


class Loader:
    """Batches of a data set, in an order that depends on (seed, epoch) alone.

    Training order is a permutation drawn from its own generator and dealt to the processes in
    turn, so that process r of w gets every w-th sample. It is completed from its own start to give
    each process equally many; evaluation deals without repeating any. `state_dict` tells how many
    batches of the epoch were served, and a loader that loaded it serves the rest, whatever the
    number of workers had prefetched.

    Args:
        dataset: map style, with a length.
        batch_size: samples of one batch.
        collate: makes a batch from a list of samples.
        shuffle: permute, and count epochs (training); otherwise the order of the data set.
        rank, world: this process and how many share the data set.
        budget: in place of `batch_size`, the size of a batch: its samples' sizes, which are
            `dataset.sizes`, sum to about this much. The order of the samples is cut where the sum
            of sizes passes equal shares of the whole, so each sample comes once in an epoch, every
            epoch has as many batches, and all processes' batches are about as large. A batch has
            one sample at least, however large that is.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        collate: Any = default_collate,
        workers: int = 0,
        seed: int = 1,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        budget: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.epoch = 0
        self._served = 0
        self._restored: dict[str, int] | None = None
        samples = len(dataset)
        self._plan = (
            _Plan(samples, batch_size, seed, shuffle, rank, world)
            if budget is None
            else _BudgetPlan(samples, budget, seed, shuffle, rank, world, _sizes(dataset))
        )
        self._batches: DataLoader[Any] = DataLoader(
            _Drawn(dataset),
            batch_sampler=cast(Any, self._plan),
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else every epoch draws a number from the global one
        )

    batch_sampler = None  # Lightning looks here, too

    @property
    def sampler(self) -> "Loader":
        """Where Lightning looks for a `set_epoch` to call before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._plan.batches

    def __iter__(self) -> Iterator[Any]:
        # A generator on purpose: Lightning asks for the iterator before it sets the epoch, and
        # nothing below runs until the first batch is asked for.
        restored, self._restored = self._restored, None
        self._served = restored["served"] if restored and restored["epoch"] == self.epoch else 0
        self._plan.epoch, self._plan.start = self.epoch, self._served
        try:
            for batch in self._batches:
                self._served += 1
                yield batch
        except UsageError as error:
            # Of a worker, in front of whose message torch puts a traceback
            message = str(error).rsplit(f"{UsageError.__qualname__}: ", 1)[-1]
            raise UsageError(message.strip()) from error

    def close(self) -> None:
        """End the workers; iterated again, it starts new ones.

        Without it the garbage collector, which takes their queues away first, waits five seconds
        for each.
        """
        workers, self._batches._iterator = self._batches._iterator, None
        if workers is not None:
            workers._shutdown_workers()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "served": self._served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._restored = dict(state)
        self.epoch = state["epoch"]


class _Draw(NamedTuple):
    """A batch to be loaded by a worker: which samples, and the key of its random numbers."""

    key: int
    indices: list[int]


class _Plan:
    """The batches of one epoch from batch `start` on; iterated in the training process."""

    def __init__(
        self, samples: int, batch_size: int, seed: int, shuffle: bool, rank: int, world: int
    ) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.shuffle, self.rank, self.world = shuffle, rank, world
        self.epoch = self.start = 0
        # As many in every process, or one would wait for the others' next step
        self.batches = math.ceil(math.ceil(samples / world) / batch_size)
        if not shuffle and samples // world < self.batches:
            raise UsageError(
                f"{samples} samples to evaluate with cannot be dealt to {world} processes in as "
                f"many batches each of data.batch_size={batch_size}. Take a larger batch, or fewer "
                "processes."
            )

    def order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.rank, self.samples, self.world))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order: list[int] = torch.randperm(self.samples, generator=generator).tolist()
        missing = -self.samples % self.world
        order += (order * (missing // self.samples + 1))[:missing]
        return order[self.rank :: self.world]

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[_Draw]:
        epoch = self.epoch if self.shuffle else 0  # what is drawn to evaluate stays the same
        parts = self.parts()
        for number in range(self.start, self.batches):
            key = derive_seed(self.seed, "draw", epoch, number, self.rank)
            yield _Draw(key, parts[number])

    def parts(self) -> list[list[int]]:
        """The samples of each batch of the epoch."""
        order, size = self.order(), self.batch_size
        ends = [min((number + 1) * size, len(order)) for number in range(self.batches)]
        if len(ends) > 1 and ends[-2] == len(order):
            ends[-2] -= 1  # one sample fewer than other processes have, who have a batch more
        return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class _BudgetPlan(_Plan):
    """Batches whose samples' sizes sum to about `budget`."""

    def __init__(
        self,
        samples: int,
        budget: int,
        seed: int,
        shuffle: bool,
        rank: int,
        world: int,
        sizes: Sequence[int],
    ) -> None:
        if samples < world:
            raise UsageError(f"{samples} samples cannot be dealt to {world} processes.")
        self.samples, self.seed, self.shuffle = samples, seed, shuffle
        self.rank, self.world = rank, world
        self.epoch = self.start = 0
        self.sizes = torch.tensor(sizes)
        wanted = math.ceil(int(self.sizes.sum()) / (budget * world))
        self.batches = max(1, min(wanted, samples // world))

    def parts(self) -> list[list[int]]:
        order = torch.arange(self.samples)
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
            order = torch.randperm(self.samples, generator=generator)
        sizes = self.sizes[order]
        total, cuts = int(sizes.sum()), self.batches * self.world
        # A sample is in the batch in which its middle lies; twice everything, for whole numbers
        middles = 2 * sizes.cumsum(0) - sizes
        shares = torch.tensor([2 * total * cut // cuts for cut in range(1, cuts)])
        ends = [*torch.searchsorted(middles, shares).tolist(), self.samples]
        for cut in range(cuts - 1):  # but none is empty
            first = ends[cut - 1] if cut else 0
            ends[cut] = min(max(ends[cut], first + 1), self.samples - (cuts - 1 - cut))
        parts = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return [part.tolist() for part in parts[self.rank :: self.world]]


def _sizes(dataset: Any) -> Sequence[int]:
    if isinstance(dataset, Subset):  # as debug=overfit makes one
        sizes = _sizes(dataset.dataset)
        return [sizes[index] for index in dataset.indices]
    found: Sequence[int] = dataset.sizes
    return found


class _Drawn(Dataset[Any]):
    """A data set read one draw at a time, under generators seeded by the draw's key."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, draw: _Draw) -> list[Any]:
        seed_generators(draw.key)
        if hasattr(self.dataset, "__getitems__"):
            return list(self.dataset.__getitems__(draw.indices))
        return [self.dataset[index] for index in draw.indices]
