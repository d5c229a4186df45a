"""What the shapes of a model's tensors cannot tell, said by the model."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import NamedTuple


class Declared(NamedTuple):
    """By patterns of the tensors' paths, as the shell has them: ``block_*/attention/query/kernel``.

    A module with something to declare has it as its property ``declared``.
    """

    fan_in: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """Axes that the input is summed over, where they are not all but the last; () for a bias."""
    branches: tuple[str, ...] = ()
    """Tensors on a residual branch."""
    branch_ends: tuple[str, ...] = ()
    """The last layer of each residual branch, kernel and bias."""
    attention: tuple[str, ...] = ()
    """Tensors that scale the attention logits: the query's, or a constant."""
    outputs: tuple[str, ...] = ()
    """Readouts that their shapes do not show: a vector, a tied embedding's constant."""
    constants: tuple[str, ...] = ()
    """Never trained: they enter through ``stop_gradient``."""


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns is the path's."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)
