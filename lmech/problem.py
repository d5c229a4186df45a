"""A problem: how to initialise, what to compute, what to minimise, on which examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmech.datasets import Examples
from lmech.losses import Loss, by_example
from lmech.numerics import trees

Params = Any


class Problem(NamedTuple):
    """Pure functions: ``init(key) → params``, ``apply(params, x) → outputs``, ``loss``.

    Outputs are [N, C], of sequences [N, T, C]; ``loss(outputs, targets)`` is one value an example.

    ``activations(params, x)`` gives what each layer puts out, by the layer's path in the order of
    the forward pass, the outputs last; {} for a model that does not tell.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, Any], Any]
    loss: Loss
    activations: Callable[[Params, Any], dict[str, Any]] = lambda _params, _x: {}


class Evaluation(NamedTuple):
    """Means over the examples: loss, and accuracy in [0, 1] (None for real targets).

    The accuracy of a sequence is the mean over its positions.
    """

    loss: jax.Array
    accuracy: jax.Array | None


def has_labels(examples: Examples) -> bool:
    """Whether the targets are class labels, so that there is an accuracy."""
    return jnp.issubdtype(examples.y.dtype, jnp.integer)


def count(examples: Examples) -> Any:
    """How many of the examples count."""
    return examples.x.shape[0] if examples.weight is None else examples.weight.sum()


def masked(examples: Examples, values: jax.Array, other: float = 0) -> jax.Array:
    """``values`` [N, …], one an example, with ``other`` for those that do not count.

    Selected, not multiplied: what does not count spoils no sum, not even where it overflows.
    """
    if examples.weight is None:
        return values
    counts = (examples.weight > 0).reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(counts, values, jnp.asarray(other, values.dtype))


def total(problem: Problem, params: Params, examples: Examples) -> tuple[jax.Array, Evaluation]:
    """Sum of the losses, twice: alone (to differentiate) and with the sum of the accuracies."""
    outputs = problem.apply(params, examples.x)
    loss = masked(examples, problem.loss(outputs, examples.y)).sum()
    if not has_labels(examples):
        return loss, Evaluation(loss, None)
    correct = (jnp.argmax(outputs, axis=-1) == examples.y).astype(loss.dtype)
    return loss, Evaluation(loss, masked(examples, by_example(correct)).sum())


def total_loss(problem: Problem) -> Callable[[Params, Examples], jax.Array]:
    """(params, examples) ↦ Σᵢ ℓᵢ, the form that the curvature operators take."""
    return lambda params, examples: total(problem, params, examples)[0]


def evaluate(
    problem: Problem, params: Params, examples: Examples, microbatch: int | None
) -> Evaluation:
    """Mean loss and accuracy over the examples."""
    sums = trees.accumulate(lambda batch: total(problem, params, batch)[1], examples, microbatch)
    return trees.divide(sums, count(examples))


def loss_and_gradient(
    problem: Problem, params: Params, examples: Examples, microbatch: int | None
) -> tuple[Evaluation, Params]:
    """Mean loss and accuracy over the examples, and the gradient of the mean loss."""

    def one(batch: Examples) -> tuple[Evaluation, Params]:
        def differentiated(params: Params) -> tuple[jax.Array, Evaluation]:
            return total(problem, params, batch)

        gradient, evaluation = jax.grad(differentiated, has_aux=True)(params)
        return evaluation, gradient

    return trees.divide(trees.accumulate(one, examples, microbatch), count(examples))
