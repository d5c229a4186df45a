"""Putting the units of the second network in some order, before two networks are compared."""

from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from lmech.numerics import trees
from lmech.numerics.matching import permuted, weight_matching
from lmech.numerics.symmetry import Units, units
from lmech.observables import State
from lmech.problem import Params

Alignment = Literal["none", "weights", "random"]
"""``weights``: weight matching; ``random``: an order drawn evenly, a control."""
Align = Callable[[State, State], Params]


def groups(state: State) -> list[Units]:
    """The units of a state's model that may change places. Raises ValueError where none may."""
    x = state.data.train.x
    return units(state.problem.apply, state.params, jax.ShapeDtypeStruct(x.shape, x.dtype))


def by_weights(a: State, b: State) -> Params:
    """Weights of b in the order that ``weight_matching`` finds, as they are trained."""
    ours, theirs = (trees.named_leaves(state.params) for state in (a, b))
    return _tree(b, weight_matching(ours, theirs, groups(a)).leaves)


def at_random(a: State, b: State) -> Params:
    """Weights of b in an order drawn evenly, by the two runs' stream "probes"."""
    key = [int(state.seeds["probes"]) for state in (a, b)]
    generator, own = np.random.Generator(np.random.Philox(key=key)), groups(b)
    orders = [generator.permutation(one.size) for one in own]
    return _tree(b, permuted(trees.named_leaves(b.params), own, orders))


ALIGN: dict[Alignment, Align | None] = {"none": None, "weights": by_weights, "random": at_random}


def _tree(state: State, leaves: dict[str, np.ndarray]) -> Params:
    own = [leaves[path] for path in trees.named_leaves(state.params)]
    return jax.tree.unflatten(jax.tree.structure(state.params), own)
