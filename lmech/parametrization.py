"""Parametrizations as data: three trees of scalars shaped like the parameters."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
from annotated_types import Ge
from pydantic import FiniteFloat

from lmech.numerics import trees
from lmech.optimizers import Hyperparameters, Optimizer
from lmech.problem import Params, Problem

Tree = Any


class Scales(NamedTuple):
    """Per tensor: scale of the model's own init, forward multiplier, learning-rate multiplier."""

    init: Tree
    multiplier: Tree
    learning_rate: Tree


Parametrization = Callable[[Tree], Scales]  # shapes of the parameters -> three trees of floats


def standard(init_scale: Annotated[FiniteFloat, Ge(0)] = 1.0) -> Parametrization:
    """SP: the model's own stated init times ``init_scale``, and one global learning rate."""

    def scales(shapes: Tree) -> Scales:
        ones = jax.tree.map(lambda _: 1.0, shapes)
        return Scales(jax.tree.map(lambda _: init_scale, shapes), ones, ones)

    return scales


def parametrize(problem: Problem, scales: Scales) -> Problem:
    """The problem with the scales in place: multipliers act on weights, so models need no code.

    f(w) = apply(multiplier · w, x), w₀ = init scale · (the model's init).
    """

    def init(key: jax.Array) -> Params:
        return trees.multiply(scales.init, problem.init(key))

    def scaled(function: Callable[[Params, Any], Any]) -> Callable[[Params, Any], Any]:
        return lambda params, x: function(trees.multiply(scales.multiplier, params), x)

    return problem._replace(
        init=init, apply=scaled(problem.apply), activations=scaled(problem.activations)
    )


def descend(
    optimizer: Optimizer,
    hyperparameters: Hyperparameters,
    scales: Scales,
    gradient: Params,
    state: Any,
    params: Params,
) -> tuple[Params, Any]:
    """What one step adds to the parameters, C · (the optimizer's update), and its new state."""
    transformation = optimizer.transformation(hyperparameters)
    updates, state = transformation.update(gradient, state, params)
    return trees.multiply(scales.learning_rate, updates), state
