"""Collecting leaves a million objects that are never garbage: nobody looks for any among them."""

import gc
import os

import pytest

gc.disable()
#: What `attn check` has measured on a developer's machine must not decide what tests see.
os.environ["ATTENTION_CORE_COSTS"] = "0"


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or extensions report a leak of all that they hold
