"""Random numbers keyed on where training is, so that a resumed run draws what the first one drew.

No generator state is ever saved: before every batch is fetched and before every step, all
generators are seeded from (run seed, purpose, epoch, batch, rank). Whatever was drawn earlier, by
whom and in which process, then makes no difference.
"""

import hashlib
import random

import numpy
import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all of `parts`, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_generators(*parts: int | str) -> None:
    """Seed the generators of Python, NumPy and torch (CPU and CUDA) from `parts`."""
    seed = derive_seed(*parts)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    # Not torch.manual_seed: without CUDA in use it formats and keeps a stack trace per call, which
    # costs more than a small training step and never ends growing.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
