"""Comparisons: what is measured of two runs' weights."""

import jax
import jax.numpy as jnp

from lmech.comparisons import Comparison
from lmech.comparisons.alignment import by_weights
from lmech.numerics import trees
from lmech.observables import State, Values
from lmech.problem import Params


def cosine() -> Comparison:
    """Cosine of two runs' weights, the second one's units put in the first one's order."""

    def compare(a: State, _: State, aligned: Params) -> Values:
        product = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a.params, aligned)))
        return {"cosine": product / (trees.norm(a.params) * trees.norm(aligned))}

    return Comparison(compare, align=by_weights)
