"""The text of a kernel with its constants, compiled once a machine.

numba caches what it compiles beside the file that the code is in, for functions of a file that has
its own name; closures over constants are compiled anew in each process. So a kernel is a file of
this package whose lines ``NAME = value  # constant`` stand for its constants, and each set of them
is a file of its own in the user's cache. numba does not see that another file has changed, hence
the folder is named by a hash of all sources and versions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import stat
import sys
import tempfile
import threading
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import llvmlite
import numba

from attention_core.backends.fast import llvm, loads, tiles, vectors
from attention_core.files import user_cache

_CONSTANT = re.compile(r"^([A-Z_]+) = .*  # constant$", re.MULTILINE)

_modules: dict[tuple[str, tuple[tuple[str, Any], ...]], ModuleType] = {}
_lock = threading.RLock()


def kernel(source: str, **constants: Any) -> ModuleType:
    """Return the module of a kernel's file, with these constants; compiled when first called.

    Args:
        source: the dotted name of the file's module, such as
            "attention_core.backends.edges.rows"; that module itself is not imported.
        constants: numbers, strings and booleans for all lines ``NAME = value  # constant``. The
            line ``CACHED`` is this function's own: whether there is a folder to cache in.
    """
    key = source, tuple(constants.items())
    if (found := _modules.get(key)) is None:
        with _lock:  # two threads would compile the same
            if (found := _modules.get(key)) is None:
                found = _modules[key] = _load(source, constants)
    return found


def _load(source: str, constants: dict[str, Any]) -> ModuleType:
    text = _text(source)
    words = [source.rpartition(".")[2], *(f"{name}_{value}" for name, value in constants.items())]
    name = re.sub(r"\W+", "_", "_".join(words).lower())
    folder = cache_folder(_fingerprint(text))
    if folder is not None:
        # Unwritable, taken away meanwhile, not ours: then it is compiled for this process alone
        with suppress(OSError, RuntimeError):
            path = folder / f"{name}.py"
            _write(path, _filled(text, constants | {"CACHED": True}))
            return _forgiving(_run(name, path))
    module = ModuleType(f"attention_core_kernels.{name}")
    filled = _filled(text, constants | {"CACHED": False})
    exec(compile(filled, f"<{module.__name__}>", "exec"), module.__dict__)
    return module


def _text(source: str) -> str:
    package, _, name = source.rpartition(".")
    return files(package).joinpath(f"{name}.py").read_text(encoding="utf-8")


def _filled(text: str, constants: dict[str, Any]) -> str:
    named = _CONSTANT.findall(text)
    if sorted(named) != sorted(constants):
        raise TypeError(f"the kernel's constants are {sorted(named)}, got {sorted(constants)}")
    return _CONSTANT.sub(lambda line: f"{line[1]} = {constants[line[1]]!r}  # constant", text)


def _run(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"attention_core_kernels.{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where numba looks for the module of what it has cached
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all; leave it as it is, and its time, if it holds the text."""
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return
    descriptor, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


# -- The folder ------------------------------------------------------------------------------------


def cache_folder(fingerprint: str) -> Path | None:
    """Return the folder of such sources and versions, created if need be; None if there is none.

    It is in `NUMBA_CACHE_DIR`, if set, else in the user's cache. Its files are code that will run,
    so a folder that someone else owns or may write to is not used.
    """
    try:
        folder = _base() / "attention_core" / f"kernels-{fingerprint}"
        # Into a folder that is given numba itself writes, too
        given = [_base()] if "NUMBA_CACHE_DIR" in os.environ else []
        for one in (*given, folder.parent, folder):
            one.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _own(one):
                return None
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None


def _base() -> Path:
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given)
    return user_cache()


def _own(folder: Path) -> bool:
    """Whether only the user may write to a folder. Windows keeps its own lists of who may."""
    if not hasattr(os, "getuid"):
        return True
    found = folder.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not (found.st_mode & others)
    )


def _fingerprint(text: str) -> str:
    """A hash of what the machine code of a kernel follows from, but for its constants."""
    digest = hashlib.sha256()
    versions = numba.__version__, llvmlite.__version__, sys.version
    for word in (*versions, *(_text(one.__name__) for one in (llvm, vectors, loads, tiles)), text):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:16]


class _Forgiving:
    """numba's cache of a function, but what it cannot read or write it does without."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, target: Any) -> Any:
        with suppress(Exception):
            return self._cache.load_overload(signature, target)
        return None

    def save_overload(self, signature: Any, data: Any) -> None:
        with suppress(Exception):  # a full disk, a folder that was taken away
            self._cache.save_overload(signature, data)


def _forgiving(module: ModuleType) -> ModuleType:
    for x in vars(module).values():
        if isinstance(x, numba.core.dispatcher.Dispatcher) and hasattr(x, "_cache"):
            x._cache = _Forgiving(x._cache)
    return module


def _forget() -> None:
    """In a forked child: a lock that another thread of the parent held is never released there."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
