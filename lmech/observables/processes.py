"""Processes beside the run: gradient flow from the same start, and the midpoints of its steps."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Gt
from jax import lax

from lmech.numerics import trees
from lmech.observables import Count, Memory, Observable, State, Values
from lmech.observables.curvature import EXTENSIONS, NonNegative, top_pairs
from lmech.problem import Params, evaluate, loss_and_gradient

Positive = Annotated[float, Gt(0)]


def at_midpoints(of: Observable) -> Observable:
    """Another observable at ¼(w_{t−2} + 2w_{t−1} + w_t), the midpoint around step t − 1.

    At the edge of stability the iterates bounce along the sharpest direction, w = w̄ + (−1)ᵗδ, and
    this average takes the bounce out: w̄'s curvature is smooth in t where the iterates' is not
    (Cohen et al. 2025, "Understanding optimization in deep learning with central flows"). Not a
    number at the first two steps. The row at step t is about t − 1.
    """

    def midpoint(state: State) -> State:
        first, second = state.past
        params = jax.tree.map(lambda a, b, c: (a + 2 * b + c) / 4, second, first, state.params)
        return state._replace(params=params, evaluation=None, gradient=None)

    # Memory is made at step 0, when there is no past yet: from w₀.
    return Observable(
        of.init,
        lambda state, memory: of.measure(midpoint(state), memory),
        past=2 + of.past,
        needs=of.needs,
        warm=of.warm,
    )


def gradient_flow(
    alpha: Positive = 0.5,
    most_steps: Count = 2000,
    speed: Positive = 1.0,
    k: Count = 2,
    extensions: NonNegative = EXTENSIONS,
    microbatch: Count | None = None,
) -> Observable:
    """Gradient flow ẇ = −C∇L(w) from the run's initialisation, and how far the run is from it.

    Integrated by the classical Runge–Kutta method to the run's time Ση · ``speed`` (1/(1 − β) for
    heavy-ball momentum), in steps of at most ``alpha`` over the largest C times the sharpness λ₁ at
    the flow's own point, followed by a block tracker (RK4 is stable to 2.78/λ₁). A measurement
    takes ``most_steps`` at most; where they do not reach the run's time, or the flow is not finite,
    that value and every later one is not a number.

    Columns: ‖w_run − w_flow‖, ``relative`` (over ‖w_flow − w₀‖), ``loss`` of the flow, its
    ``sharpness``, its ``time``, and the ``steps`` that it took since the last measurement.
    """
    tracker = top_pairs(k, extensions, None, microbatch)

    def init(state: State) -> Memory:
        zero = jnp.zeros_like(state.time)
        track, pairs, _ = tracker.follow(state, tracker.start(state))
        return state.params, state.params, zero, track, pairs.values[0], jnp.zeros((), bool)

    def measure(state: State, memory: Memory) -> tuple[Memory, Values]:
        start, params, time, track, sharpness, lost = memory
        goal = state.time * speed
        fastest = jnp.stack(jax.tree.leaves(state.scales.learning_rate)).max()

        def flow(params: Params) -> Params:
            _, g = loss_and_gradient(state.problem, params, state.data.train, state.microbatch)
            return trees.multiply(state.scales.learning_rate, jax.tree.map(jnp.negative, g))

        def behind(loop: tuple) -> jax.Array:
            _, time, *_, steps = loop
            return (time < goal) & (steps < most_steps)

        def advance(loop: tuple) -> tuple:
            params, time, track, sharpness, steps = loop
            longest = alpha / jnp.maximum(fastest * sharpness, jnp.finfo(time.dtype).tiny)
            remaining = goal - time
            step = jnp.minimum(longest, remaining)
            # The last step ends on the goal itself, not within rounding of it.
            time = jnp.where(longest >= remaining, goal, time + step)
            params = runge_kutta(flow, params, step)
            there = state._replace(params=params, evaluation=None, gradient=None)
            track, pairs, _ = tracker.follow(there, track)
            return params, time, track, pairs.values[0], steps + 1

        loop = (params, time, track, sharpness, jnp.int32(0))
        params, time, track, sharpness, steps = lax.while_loop(behind, advance, loop)
        lost |= ~(time >= goal) | ~jnp.isfinite(sharpness)
        distance = jnp.sqrt(trees.squared_norm(jax.tree.map(jnp.subtract, state.params, params)))
        moved = jnp.sqrt(trees.squared_norm(jax.tree.map(jnp.subtract, params, start)))
        loss = evaluate(state.problem, params, state.data.train, state.microbatch).loss
        values = {"": distance, "relative": distance / moved, "loss": loss, "sharpness": sharpness}
        known = {name: jnp.where(lost, jnp.nan, value) for name, value in values.items()}
        return (start, params, time, track, sharpness, lost), {
            **known,
            "time": time,
            "steps": steps,
        }

    return Observable(init, measure, needs="path")


def runge_kutta(flow: Callable[[Params], Params], params: Params, step: jax.Array) -> Params:
    """One step of the classical fourth-order method for ẇ = flow(w)."""

    def ahead(slope: Params, share: float) -> Params:
        return jax.tree.map(lambda w, d: w + share * step * d, params, slope)

    first = flow(params)
    second = flow(ahead(first, 0.5))
    third = flow(ahead(second, 0.5))
    fourth = flow(ahead(third, 1.0))
    return jax.tree.map(
        lambda w, a, b, c, d: w + step * (a + 2 * b + 2 * c + d) / 6,
        *(params, first, second, third, fourth),
    )
