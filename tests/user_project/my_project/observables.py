"""Observables: what is measured along a run."""

import jax
import jax.numpy as jnp

from lmech.numerics import trees
from lmech.observables import Observable, State, Values, gradient, memoryless


def participation() -> Observable:
    """(Σg²)² / (P Σg⁴) of the gradient's P entries: 1 if all are as large, 1/P if one is alone."""

    def measure(state: State) -> Values:
        leaves = jax.tree.leaves(gradient(state))
        fourth = sum(jnp.sum(leaf**4) for leaf in leaves)
        entries = sum(leaf.size for leaf in leaves)
        return {"": trees.squared_norm(leaves) ** 2 / (entries * fourth)}

    return memoryless(measure)
