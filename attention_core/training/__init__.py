"""The Lightning and Hydra harness. It knows no domain: an experiment is added beside it.

To add one, write a data module and a model, then a YAML file that names them.

**1. Data**: a `DataModule` that fills three map-style data sets whose samples are dicts::

    class Rings(DataModule):
        def __init__(self, *, noise: float = 0.1, **settings: Unpack[DataModuleOptions]):
            super().__init__(**settings)          # batch_size, workers, seed, classes
            self.noise = noise

        def load(self):                           # called once per process; `require` a package
            require("sklearn", extra="data")      # here, not at the top of the file
            ...
            self.train_set, self.val_set, self.test_set = ...

        def collate(self, samples):               # only where samples cannot just be stacked
            return {"points": ..., "target": ...}

What a configuration may take from the data, such as `num_classes: ${from_data:num_classes}`, its
method `describe` returns. A batch is a dict: `target` is the label, **everything else is passed to
the model by name**, as in `logits = model(points=...)`. Split the data with a seed of its own,
fixed in `load`, or by `splits.stratified_split`, never with `seed`: another seed is then another
training, tested on the same samples.

**2. Model**: any `nn.Module`; an `attention_core.Model` is one that says in `embed` what tokens its
inputs become, and has the rest of what models have. Name a matrix that multiplies activations
`...weight` and a table that is added or looked up anything else, and weight decay is right
(`optim.decay_groups`).

**3. Task**: nothing to write for classification; `task=regression` is there for numbers, and
`task=segmentation` for a class of each token. To draw attention over a real input after every run,
subclass and return a figure (two lines with `attention_core.record_attention`); for another loss,
subclass `Task`::

    class RingsTask(ClassificationTask):
        def attention_figure(self, batch):        # the first test batch, on the model's device
            with record_attention(self.model, layers=[-1]) as maps:
                self.model(points=batch["points"][:1])
            return draw(maps[-1])                 # a matplotlib.figure.Figure

**4. Configuration**: `conf/data/rings.yaml`, `conf/model/rings_encoder.yaml`, and
`conf/experiment/rings.yaml`, which picks them and sets what differs from the defaults::

    # @package _global_
    defaults:
      - override /data: rings
      - override /model: rings_encoder
    about:
      title: Tells rings apart by a small encoder    # the sentence that `attn list` shows
      data: 600 points made by scikit-learn
      needs: [sklearn]                               # import names, checked by `attn list`
      extra: data                                    # the extra that installs them
      gives: 99% test accuracy in 10 s on two cores
    task:
      _target_: rings.RingsTask                      # where the task is your own
    trainer:
      max_epochs: 30

    # conf/data/rings.yaml
    _target_: rings.Rings
    batch_size: 64
    workers: 0
    seed: ${seed}
    classes: [inner, outer]     # the one place that names the classes; task and model read it

    # conf/model/rings_encoder.yaml
    _target_: rings.RingsEncoder
    dim: 64
    num_classes: ${count:${data.classes}}

Targets are classes of ours, and those of other libraries that `targets` lists. Outside this
repository the same files work from a folder of your own::

    attn train experiment=rings --config-dir my_conf

where the experiment also says `allow: [rings]`, and `rings.py` lies in `my_conf` or in the current
folder. `tests/training/conf` is such a folder, complete. What takes a run folder, as `evaluate`
does, wants to be told the same, `allow=["rings"]`: a folder may come from somebody else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_core.errors import UsageError as UsageError
    from attention_core.training.data import (
        DataModule as DataModule,
        DataModuleOptions as DataModuleOptions,
        Loader as Loader,
        require as require,
    )
    from attention_core.training.export import load_model as load_model
    from attention_core.training.regression import RegressionTask as RegressionTask
    from attention_core.training.run import evaluate as evaluate, resume as resume, train as train
    from attention_core.training.segmentation import SegmentationTask as SegmentationTask
    from attention_core.training.task import (
        ClassificationOptions as ClassificationOptions,
        ClassificationTask as ClassificationTask,
        Task as Task,
        TaskOptions as TaskOptions,
    )

# Loaded on first use: `attn --help` must not wait for Lightning.
_HOMES = {
    "ClassificationOptions": ".task",
    "ClassificationTask": ".task",
    "DataModule": ".data",
    "DataModuleOptions": ".data",
    "Loader": ".data",
    "RegressionTask": ".regression",
    "SegmentationTask": ".segmentation",
    "Task": ".task",
    "TaskOptions": ".task",
    "UsageError": "..errors",
    "evaluate": ".run",
    "load_model": ".export",
    "require": ".data",
    "resume": ".run",
    "train": ".run",
}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
