"""One computation on several devices, each with its share of the examples."""

from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

EXAMPLES = "examples"


def mesh(devices: int, axis: str) -> Mesh:
    """The first so many devices, of all processes, along an axis of that name."""
    return Mesh(np.asarray(jax.devices()[:devices]), (axis,))


def over_examples(tree: Any, devices: int) -> Any:
    """The same arrays, of which each device works on its share of the leading axis.

    What is computed from them is divided so too, and sums over examples are added up between the
    devices. Arrays whose number of examples is no multiple of ``devices`` are everybody's.
    """
    if devices == 1:
        return tree
    place = NamedSharding(mesh(devices, EXAMPLES), PartitionSpec(EXAMPLES))

    def shared(array: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(array, place) if len(array) % devices == 0 else array

    return jax.tree.map(shared, tree)
