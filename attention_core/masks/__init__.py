"""Which query may attend to which key, as an algebra: ``Causal() & Neighborhood(128) | ...``.

``True`` means "may attend", everywhere. A mask of your own overrides one method::

    class SameColumn(Mask):
        def allowed(self, pairs):
            return pairs.offset[..., 1] == 0

Masks speak of tokens that sit somewhere. Special tokens (class, register, virtual node) are
exempt: they attend and are attended by everyone in their sample, whatever the composition. So a
causal model must not have any, or they would carry the future to the past. Samples (segments) and
padding are no masks at all: the space keeps them apart, and no ``|`` or ``~`` can undo it.
"""

from attention_core.masks.algebra import DenseMask, Mask
from attention_core.masks.edges import Edges
from attention_core.masks.global_tokens import GlobalTokens
from attention_core.masks.lattice import Dilated, Window
from attention_core.masks.nearest import Nearest
from attention_core.masks.neighborhood import Neighborhood
from attention_core.masks.order import Causal, PrefixLM

__all__ = [
    "Causal",
    "DenseMask",
    "Dilated",
    "Edges",
    "GlobalTokens",
    "Mask",
    "Nearest",
    "Neighborhood",
    "PrefixLM",
    "Window",
]
