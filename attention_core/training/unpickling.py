"""Pickles in files of other people's data sets, read where they hold plain data and refused else.

A pickle names the functions that make its content, and reading it calls them. Some published data
sets come as pickles of arrays, and libraries read them, and their own copies of them, in many ways.
All of these tell Python's audit hooks what they are about to look up; there it is refused.
"""

import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attention_core.errors import UsageError
from attention_core.pretrained.serialization import torchs_own_globals

_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
#: Arrays, tensors, sparse matrices, graphs of PyG, and what holds them.
PLAIN = frozenset(
    {
        *(f"{module}.{name}" for module in _ARRAYS for name in ("_reconstruct", "scalar")),
        *(f"numpy.{name}" for name in ("ndarray", "dtype")),
        *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
        *(
            f"scipy.sparse.{module}.{kind}_{what}"
            for kind in ("csr", "csc", "coo")
            for module in (kind, f"_{kind}")
            for what in ("matrix", "array")
        ),
        *(
            f"{module}.{name}"
            for module in ("builtins", "__builtin__")
            for name in (
                *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int"),
                *("list", "long", "object", "range", "set", "slice", "str", "tuple", "unicode"),
            )
        ),
        *(f"{module}._reconstructor" for module in ("copyreg", "copy_reg")),
        *("collections.OrderedDict", "collections.defaultdict", "_codecs.encode"),
        *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "parameter")),
        *("torch.Size", "torch.device", "torch.storage._load_from_bytes"),
        *("torch.storage.TypedStorage", "torch.storage.UntypedStorage"),
        *("torch.serialization._get_layout",),
        *(
            f"torch.{kind}Storage"
            for kind in (
                *("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long"),
                *("Short", "Untyped"),
            )
        ),
        *(
            f"torch_geometric.data.{name}"
            for name in (
                *("data.Data", "data.DataEdgeAttr", "data.DataTensorAttr"),
                *("storage.BaseStorage", "storage.GlobalStorage"),
            )
        ),
    }
)


_here = threading.local()
_hooked = False


@contextmanager
def plain_pickles(what: str) -> Iterator[None]:
    """Refuse, within it, whatever is unpickled in this thread and is more than plain data.

    Args:
        what: is read, for the message.

    Raises:
        UsageError: a pickle names anything but `PLAIN`; that has not been called then.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)  # for good: Python knows no way to take one back
        _hooked = True
    outer = getattr(_here, "what", None)
    _here.what = what
    try:
        with torchs_own_globals(PLAIN):
            yield
    except pickle.UnpicklingError as error:  # of a reader that refuses such pickles itself
        raise UsageError(
            f"{what} is refused: a file of it is damaged or holds more than plain data: "
            f"{' '.join(str(error).split())}"
        ) from error
    finally:
        _here.what = outer


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "pickle.find_class" or getattr(_here, "what", None) is None:
        return
    name = ".".join(map(str, arguments))
    if name not in PLAIN:
        raise UsageError(
            f"{_here.what} is refused: a file of it holds more than plain data, and reading it "
            f"could run code ({name})."
        )
