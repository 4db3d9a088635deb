"""Checks of a space, a mask or a bias of one's own: one call compares all that has to agree.

Each raises AssertionError that says which promise is broken, by which tokens::

    from attention_core.testing import check_space

    def test_sphere():
        check_space(Sphere(latitude, longitude))
"""

from attention_core.testing.biases import check_bias
from attention_core.testing.masks import check_mask
from attention_core.testing.spaces import check_space

__all__ = ["check_bias", "check_mask", "check_space"]
