"""How exactly products of float32 are computed: torch's setting, for the time of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from attention_core.errors import UsageError, did_you_mean

KEY = "float32_matmul_precision"
#: torch's names, and what they mean on a GPU that has such tensor cores.
PRECISIONS = {"highest": "float32", "high": "TF32", "medium": "bfloat16"}


def check_matmul_precision(config: Mapping[str, Any]) -> None:
    """Check the precision that a configuration asks for.

    Raises:
        UsageError: naming the key, what came and what was expected.
    """
    given = config.get(KEY)
    if given is None or given in PRECISIONS:
        return
    guess = did_you_mean(given, PRECISIONS) if isinstance(given, str) else ""
    raise UsageError(f"{KEY}: one of {', '.join(PRECISIONS)} is needed, got {given!r}.{guess}")


@contextmanager
def matmul_precision(config: Mapping[str, Any]) -> Iterator[None]:
    """Compute products as a configuration says, and put back torch's setting in the end.

    A configuration without the key leaves the setting as it is.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(config.get(KEY) or before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
