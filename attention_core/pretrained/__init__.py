"""The weights of published models in ours: read, recognised, renamed, loaded strictly.

A domain declares a `Family` for each kind of published model; a model names its `families`. Nothing
here knows a domain, and neither Lightning nor Hydra is loaded.
"""

from attention_core.pretrained.family import Checkpoint, Family
from attention_core.pretrained.files import read_weights
from attention_core.pretrained.loading import (
    LoadReport,
    Pretrained,
    build,
    load_pretrained,
    load_strictly,
    recognise,
)

__all__ = [
    "Checkpoint",
    "Family",
    "LoadReport",
    "Pretrained",
    "build",
    "load_pretrained",
    "load_strictly",
    "read_weights",
    "recognise",
]
