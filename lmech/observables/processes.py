"""Processes beside the run: gradient flow from the same start, and the midpoints of its steps."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Gt
from jax import lax

from lmech.numerics import trees
from lmech.numerics.integration import Course, attempt
from lmech.numerics.tracking import Track
from lmech.observables import Count, Memory, Observable, State, Values
from lmech.observables.curvature import EXTENSIONS, NonNegative, top_pairs
from lmech.problem import Params, evaluate, loss_and_gradient

Positive = Annotated[float, Gt(0)]
MARGIN = 1.2
"""Of the largest eigenvalue, as Sommeijer et al. take an estimate of it."""


class _Flow(NamedTuple):
    """Where the flow is: weights, time, and its own λ₁ with the tracker's memory."""

    params: Params
    time: jax.Array
    track: Track
    sharpness: jax.Array


def at_midpoints(of: Observable) -> Observable:
    """Another observable at ¼(w_{t−2} + 2w_{t−1} + w_t), the midpoint around step t − 1.

    At the edge of stability the iterates bounce along the sharpest direction, w = w̄ + (−1)ᵗδ, and
    this average takes the bounce out: w̄'s curvature is smooth in t where the iterates' is not
    (Cohen et al. 2025, "Understanding optimization in deep learning with central flows"). Not a
    number at the first two steps. The row at step t is about t − 1. Raises ValueError for an
    observable that looks at past weights itself.
    """
    if of.past:
        raise ValueError("at_midpoints takes an observable that looks at no past weights")

    def midpoint(state: State) -> State:
        first, second = state.past[:2]  # another observable may have asked for more
        params = jax.tree.map(lambda a, b, c: (a + 2 * b + c) / 4, second, first, state.params)
        return state._replace(params=params, evaluation=None, gradient=None)

    # Memory is made at step 0, when there is no past yet: from w₀.
    return Observable(
        of.init,
        lambda state, memory: of.measure(midpoint(state), memory),
        past=2,
        needs=of.needs,
        warm=of.warm,
    )


def gradient_flow(
    tolerance: Positive = 1e-4,
    most_steps: Count = 500,
    speed: Positive = 1.0,
    k: Count = 4,
    extensions: NonNegative = EXTENSIONS,
    microbatch: Count | None = None,
) -> Observable:
    """Gradient flow ẇ = −C∇L(w) from the run's initialisation, and how far the run is from it.

    Integrated to the run's time Ση · ``speed`` (1/(1 − β) for heavy-ball momentum) by the
    second-order Runge–Kutta–Chebyshev method (Sommeijer, Shampine & Verwer 1998), whose steps grow
    as the square of their stages, so that the sharpness does not bound them: its stages are as many
    as the largest C times λ₁ at the flow's own point asks for, followed by a block tracker, with a
    margin. A step's estimated error is at most ``tolerance`` of ‖w_flow − w₀‖ or what rounding
    leaves of w; otherwise it is made again, shorter. A measurement tries ``most_steps`` at most;
    where they do not reach the run's time, or the flow is not finite, that value and every later
    one is not a number.

    Columns: ‖w_run − w_flow‖, ``relative`` (over ‖w_flow − w₀‖), ``loss`` of the flow, its
    ``accuracy`` (of labels), its ``sharpness``, its ``time``, and the ``steps`` that were tried
    since the last measurement.
    """
    tracker = top_pairs(k, extensions, None, microbatch)

    def init(state: State) -> Memory:
        track, pairs, _ = tracker.follow(state, tracker.start(state))
        here = _Flow(state.params, jnp.zeros_like(state.time), track, pairs.values[0])
        return state.params, here, 1 / _radius(state, here.sharpness), jnp.zeros((), bool)

    def measure(state: State, memory: Memory) -> tuple[Memory, Values]:
        start, flow, wanted, lost = memory
        goal = state.time * speed
        size = microbatch or state.microbatch

        def slope(params: Params) -> Params:
            _, g = loss_and_gradient(state.problem, params, state.data.train, size)
            return trees.multiply(state.scales.learning_rate, jax.tree.map(jnp.negative, g))

        def behind(loop: tuple[_Flow, Course, jax.Array]) -> jax.Array:
            flow, _, steps = loop
            return (flow.time < goal) & (steps < most_steps) & jnp.isfinite(flow.sharpness)

        def advance(loop: tuple[_Flow, Course, jax.Array]) -> tuple[_Flow, Course, jax.Array]:
            flow, course, steps = loop
            remaining, radius = goal - flow.time, _radius(state, flow.sharpness)
            course, passed = attempt(slope, course, start, remaining, radius, tolerance)
            # The last step ends on the goal itself, not within rounding of it.
            time = jnp.where(passed == remaining, goal, flow.time + passed)
            # A step that was not taken may have trusted a λ₁ that is too low: it is tightened.
            there = state._replace(params=course.w, evaluation=None, gradient=None)
            track, pairs, _ = tracker.follow(there, flow.track)
            return _Flow(course.w, time, track, pairs.values[0]), course, steps + 1

        course = Course(flow.params, slope(flow.params), wanted)
        flow, course, steps = lax.while_loop(behind, advance, (flow, course, jnp.int32(0)))
        lost |= ~(flow.time >= goal) | ~jnp.isfinite(flow.sharpness)
        values = _beside(state, flow, start, size)
        known = {name: jnp.where(lost, jnp.nan, value) for name, value in values.items()}
        return (start, flow, course.wanted, lost), {**known, "time": flow.time, "steps": steps}

    return Observable(init, measure, needs="path")


def _beside(state: State, flow: _Flow, start: Params, microbatch: int | None) -> Values:
    """The flow's own numbers, and its distance from the run."""
    distance = trees.norm(trees.subtract(state.params, flow.params))
    moved = trees.norm(trees.subtract(flow.params, start))
    own = evaluate(state.problem, flow.params, state.data.train, microbatch)
    values = {"": distance, "relative": distance / moved, "loss": own.loss}
    if own.accuracy is not None:
        values["accuracy"] = own.accuracy
    return values | {"sharpness": flow.sharpness}


def _radius(state: State, sharpness: jax.Array) -> jax.Array:
    """A bound of the eigenvalues of CH: λ₁ is a lower bound, and grows along the step."""
    fastest = jnp.stack(jax.tree.leaves(state.scales.learning_rate)).max()
    return jnp.maximum(MARGIN * fastest * sharpness, jnp.finfo(sharpness.dtype).tiny)
