"""Files of tensors: written with a checksum of every byte, and checked before they are read.

torch's own reader compares nothing, and where a bit of an archive's headers is flipped it may hand
out memory that nobody has written. So no file comes to it unchecked:

- What `save_torch` has written ends in the CRC-32 of all that precedes. (A SHA-256 of it would take
  more than twice as long, and reading a checkpoint half as long again.)
- Of another zip archive of torch's, each part is compared with its own CRC-32, and its header with
  the archive's directory.
- What `save_safetensors` has written has a SHA-256 of tensors and metadata in its metadata.
- Another safetensors file, and one of torch before 1.6, which is no zip archive, have no checksum:
  damage to their structure is seen, a changed weight is not.
"""

import json
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from attention_core.errors import Damaged, UsageError, reading

# The comment of a zip file, which ends it; the two bytes before it are its length.
COMMENT = b"attention-core crc32="
LENGTH = len(COMMENT) + 8
ENDING = 2 + LENGTH

DIRECTORY = 0x10  # of the attributes of a zip entry

# Keys of the metadata of a safetensors file of ours: the version that has written it, which
# `export` gives, and the digest of all else. Where either is, both are, or the file is damaged.
WRITER, DIGEST = "attention_core", "attention_core_sha256"


class _Checksummed:
    """A file with the CRC-32 of what has been written to it."""

    def __init__(self, file: IO[Any]) -> None:
        self.file, self.crc = file, 0
        self.flush = file.flush

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.file.write(data)


def save_torch(content: Any, file: IO[Any]) -> None:
    """Write `content` as `torch.save` does, with a checksum at the end; `torch.load` reads it."""
    checksummed = _Checksummed(file)
    torch.save(content, checksummed)  # type: ignore[arg-type]
    file.seek(-2, os.SEEK_END)  # the length of the archive's comment, of which torch writes none
    file.write(_ending(checksummed.crc))


def load_torch(
    path: Path,
    what: str,
    *,
    ours: bool,
    map_location: Any = "cpu",
    plain: Container[str] = (),
) -> Any:
    """Load the plain data in a file that `torch.save` or `save_torch` has written.

    Args:
        what: `path` is a part of; begins every message.
        ours: whether only what `save_torch` has written will do.
        plain: further classes that are no more than what they hold, by dotted names.

    Raises:
        Damaged: it is not as it was written.
        UsageError: it holds more than plain data, such as code, which is not run.
    """
    with reading(path, what), path.open("rb") as file:
        checked = _check(file, ours)
        file.seek(0)
        try:
            with torchs_own_globals(plain):
                return torch.load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            if not checked and code is None:
                raise Damaged(
                    f"{what}: {str(path)!r} is damaged, or is no file of torch's; only the suffix "
                    ".safetensors says that a file has that format."
                ) from error
            raise UsageError(
                f"{what}: {str(path)!r} is refused: it holds more than plain data, and reading "
                f"that could run code ({code[1] if code else str(error).splitlines()[0]})."
            ) from error


@contextmanager
def torchs_own_globals(more: Container[str] = ()) -> Iterator[None]:
    """Let `torch.load(weights_only=True)` make what torch itself has listed, and `more`.

    Packages add classes of theirs to the list as they are imported, and files may call these with
    any arguments: PyG's `ClusterData` opens, and unpickles, the file that it is told to.
    """
    known = torch.serialization.get_safe_globals()
    names = {id(one): f"{one.__module__}.{one.__qualname__}" for one in known if callable(one)}
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([one for one in known if names.get(id(one)) in more])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)


def _check(file: BinaryIO, ours: bool) -> bool:
    """Compares a file with its checksums; returns False where it is of a kind that has none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - ENDING))
    ending = file.read()
    file.seek(0)
    if ending[2:].startswith(COMMENT):
        if ending != _ending(zlib.crc32(b"\0\0", _crc(file, size - ENDING))):
            raise ValueError("it does not match its checksum")
        return True
    if ours:
        raise ValueError("it does not end in a checksum, so it is cut short or of another program")
    if file.read(2) != b"PK":
        return False
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if archive.comment:
            raise ValueError("it does not end as torch's files do")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("it has two parts of one name")
        if any(entry.external_attr & DIRECTORY for entry in entries):
            raise ValueError("a part of it says that it is a folder")
        wrong = archive.testzip()
        if wrong is not None:
            raise ValueError(f"its part {wrong!r} does not match its checksum")
    return True


def _crc(file: BinaryIO, size: int) -> int:
    buffer = memoryview(bytearray(2**18))  # remains in the cache of the processor
    crc = 0
    while size > 0:
        count = file.readinto(buffer[: min(size, len(buffer))])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("it has become shorter")
        crc = zlib.crc32(buffer[:count], crc)
        size -= count
    return crc


def _ending(crc: int) -> bytes:
    return LENGTH.to_bytes(2, "little") + COMMENT + b"%08x" % crc


def save_safetensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str]) -> None:
    """Write tensors by name, with `about` and a digest of all of it in the metadata."""
    metadata = {"format": "pt", **about}
    save_file(dict(tensors), path, {**metadata, DIGEST: _digest(tensors, metadata)})


def load_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file, by name.

    Args:
        what: `path` is a part of; begins every message.

    Raises:
        Damaged: it is no such file, or it has a digest and is not as it was written.
    """
    with reading(path, what):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if WRITER in metadata or DIGEST in metadata:
            digest = metadata.pop(DIGEST, "")
            if digest != _digest(tensors, metadata):
                raise ValueError("it does not match its digest")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts that a safetensors file has beside its tensors.

    Raises:
        Damaged: it is no such file.
    """
    with reading(path, "weights"), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    names = sorted(tensors)
    shapes = [(name, str(tensors[name].dtype), list(tensors[name].shape)) for name in names]
    digest = sha256(json.dumps([sorted(metadata.items()), shapes]).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
