"""What the shapes of a model's tensors cannot tell, said by the model."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import NamedTuple


class Declared(NamedTuple):
    """By patterns of the tensors' paths, as the shell has them: ``block_*/attention/query/kernel``.

    A module with something to declare has it as its attribute or property ``declared``, as random
    features whose first layer stays as it was drawn: ``declared =
    Declared(constants=("features/*",))``.

    - ``fan_in``: axes that the input is summed over, where they are not all but the last; () for a
      bias.
    - ``branches``: tensors on a residual branch.
    - ``branch_ends``: the last layer of each residual branch, kernel and bias.
    - ``attention``: tensors that scale the attention logits: the query's, or a constant.
    - ``outputs``: readouts that their shapes do not show: a vector, a tied embedding's constant.
    - ``constants``: never trained. Their learning rate is 0; let them enter through
      ``stop_gradient``, so that gradients and Hessians do not have them.
    """

    fan_in: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    branches: tuple[str, ...] = ()
    branch_ends: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns is the path's."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)
