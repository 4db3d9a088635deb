"""What a test allocates."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocated(TorchDispatchMode):
    """The `largest` storage, in bytes, behind any tensor that an operation returns.

    Views of the tensors `given` are not counted.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {x.untyped_storage().data_ptr() for x in given}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in self.given:
                    self.largest = max(self.largest, storage.nbytes())
        return result
