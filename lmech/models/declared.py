"""What a model says of its tensors because their shapes cannot."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Declared(NamedTuple):
    """The property ``declared`` of a module; one that has nothing to say has no such property.

    Patterns are ``fnmatch``'s over a tensor's path, as in ``block_*/attention/query/kernel``.
    """

    fan_in: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """Axes that the input is summed over, where they are not all but the last."""
    branches: tuple[str, ...] = ()
    """Tensors on a residual branch."""
    branch_ends: tuple[str, ...] = ()
    """The last layer of each residual branch, kernel and bias: gets the L^-α of depth scaling."""
    attention: tuple[str, ...] = ()
    """Tensors whose multiplier scales the attention logits."""
    outputs: tuple[str, ...] = ()
    """Readouts that their shape does not show."""
    constants: tuple[str, ...] = ()
    """Never trained: they enter through a ``stop_gradient``."""
