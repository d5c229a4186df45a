"""Loss and accuracy between two runs: along the line, layer by layer, and the line's curvature."""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, MultipleOf
from jax import lax

from lmech.comparisons import Comparison
from lmech.comparisons.alignment import ALIGN, Alignment
from lmech.numerics import trees
from lmech.observables import State, Values
from lmech.problem import Params, evaluate


def linear_path(
    intervals: Annotated[int, Ge(2), MultipleOf(2)] = 24, align: Alignment = "none"
) -> Comparison:
    """Loss and accuracy at w_t = (1 − t)a + tb, t = 0, 1/``intervals``, …, 1, on a's data.

    Of ``train_loss``, ``test_loss``, ``train_accuracy`` and ``test_accuracy`` (the latter two where
    targets are labels), each as a vector over t: ``…_barrier``, the most by which the loss is above
    the chord between its ends, or the accuracy below (Frankle et al. 2020, Entezari et al. 2021), 0
    or more; and ``…_midpoint``, the same at t = ½ alone, of either sign.

    b is ``align``ed first. ``output_change`` is what that does to b's outputs, the largest change
    over the largest output on the test data; ``distance`` ‖a − b‖ over √(‖a‖² + ‖b‖²), after it.
    """
    return Comparison(_on_line(intervals), ALIGN[align])


@cache  # one function for every alignment, so that they share a compiled program
def _on_line(intervals: int) -> Callable[[State, State, Params], Values]:
    position = np.linspace(0, 1, intervals + 1)

    def compare(a: State, b: State, aligned: Params) -> Values:
        def at(t: jax.Array) -> Values:
            return _performance(a, between(a.params, aligned, t))

        dtype = jax.tree.leaves(a.params)[0].dtype
        curves = lax.map(at, jnp.asarray(position, dtype))
        values = {"position": jnp.asarray(position, dtype), **curves}
        for name, curve in curves.items():
            above = _above_chord(curve) * (-1 if name.endswith("accuracy") else 1)
            values[f"{name}_barrier"] = above.max()
            values[f"{name}_midpoint"] = above[intervals // 2]
        return {**values, **_moved(a, b, aligned)}

    return compare


def between(a: Params, b: Params, t: Any) -> Params:
    """(1 − t)a + tb."""
    return jax.tree.map(lambda a, b: (1 - t) * a + t * b, a, b)


def _above_chord(curve: jax.Array) -> jax.Array:
    t = jnp.linspace(0, 1, len(curve), dtype=curve.dtype)
    return curve - ((1 - t) * curve[0] + t * curve[-1])


def _performance(state: State, params: Params) -> Values:
    """Loss and accuracy of both splits at other weights than the state's."""
    values = {}
    for name, examples in state.data.splits.items():
        found = evaluate(state.problem, params, examples, state.microbatch)
        values[f"{name}_loss"] = found.loss
        if found.accuracy is not None:
            values[f"{name}_accuracy"] = found.accuracy
    return values


def _moved(a: State, b: State, aligned: Params) -> Values:
    """What the alignment does to b's outputs, and how far b is from a after it."""
    before, after = (
        b.problem.apply(params, b.data.splits["test"].x) for params in (b.params, aligned)
    )
    norms = [trees.squared_norm(params) for params in (a.params, aligned)]
    return {
        "output_change": jnp.abs(after - before).max() / jnp.abs(before).max(),
        "distance": trees.norm(trees.subtract(a.params, aligned)) / jnp.sqrt(sum(norms)),
    }


def layer_averages(align: Alignment = "none") -> Comparison:
    """What averaging one layer with b's costs a, which keeps its others (Adilova et al. 2024).

    For each layer ``LAYER_test_loss``, …: the loss with that layer at (a + b)/2, less a's own; of
    an accuracy how much it falls. ``all_…``: with every layer averaged. b is ``align``ed first.
    """
    return Comparison(_layer_by_layer, ALIGN[align])


def _layer_by_layer(a: State, _: State, aligned: Params) -> Values:
    middle = between(a.params, aligned, 0.5)
    averaged = {layer: {**a.params, layer: middle[layer]} for layer in a.params}
    own, values = _performance(a, a.params), {}
    for layer, params in {**averaged, "all": middle}.items():
        for name, value in _performance(a, params).items():
            sign = -1 if name.endswith("accuracy") else 1
            values[f"{layer}_{name}"] = sign * (value - own[name])
    return values


def path_curvature(nodes: Annotated[int, Ge(1)] = 16, align: Alignment = "none") -> Comparison:
    """What of the midpoint's training loss is curvature along the line: an identity where L is C².

    For L(t), the training loss at (1 − t)a + tb, twice continuously differentiable::

        (L(0) + L(1))/2 − L(½) = ½ ∫₀¹ min(t, 1 − t) L″(t) dt

    since min(t, 1 − t)/2 is Green's function of −d²/dt² with zero ends, G(½, t). ``deficit`` is
    the left side (a barrier makes it negative), ``curvature`` the right, by Gauss and Legendre's
    rule of ``nodes`` points on each half, and ``kinks`` what is left: of a smooth net the rule's
    error, of a piecewise linear one above all the jumps of L′ where a unit of an example switches
    on or off, of which L″ knows nothing. b is ``align``ed first.
    """
    return Comparison(_second_order(nodes), ALIGN[align])


@cache
def _second_order(nodes: int) -> Callable[[State, State, Params], Values]:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    half = (points + 1) / 4  # of [0, ½]; the other half is its mirror image
    position = np.concatenate([half, 1 - half])
    weights = np.tile(weights / 4 * half, 2)  # times min(t, 1 − t)

    def compare(a: State, _: State, aligned: Params) -> Values:
        dtype = jax.tree.leaves(a.params)[0].dtype

        def loss(t: jax.Array) -> jax.Array:
            params, train = between(a.params, aligned, t), a.data.train
            return evaluate(a.problem, params, train, a.microbatch).loss

        def second(t: jax.Array) -> jax.Array:
            one = jnp.ones_like(t)
            return jax.jvp(lambda t: jax.jvp(loss, (t,), (one,))[1], (t,), (one,))[1]

        start, middle, end = (loss(jnp.asarray(t, dtype)) for t in (0, 0.5, 1))
        curvature = lax.map(second, jnp.asarray(position, dtype))
        curved = (jnp.asarray(weights, dtype) * curvature).sum() / 2
        deficit = (start + end) / 2 - middle
        return {"deficit": deficit, "curvature": curved, "kinks": deficit - curved}

    return compare
