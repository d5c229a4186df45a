"""Explicit integrators of ẇ = f(w): the classical one, and one for stiff gradient flows."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lmech.numerics import trees

Point = Any
Slope = Callable[[Point], Point]

STAGES = 60
"""Most stages of a Chebyshev step: it may then be 2,350 over the largest eigenvalue."""
DAMPING = 2 / 13
"""ε of Sommeijer et al.: inside, modes are damped to 1 − ε/3; it costs 2 % of the stability."""
SAFETY = 0.8
"""Share of the step size of which the estimate says that it would just be allowed."""
SHRINK, GROWTH = 0.1, 5.0
"""Least and largest change of the step size at once."""


def runge_kutta(f: Slope, w: Point, step: Any) -> Point:
    """One step of the classical fourth-order method for ẇ = f(w)."""

    def ahead(slope: Point, share: float) -> Point:
        return jax.tree.map(lambda w, d: w + share * step * d, w, slope)

    first = f(w)
    second = f(ahead(first, 0.5))
    third = f(ahead(second, 0.5))
    fourth = f(ahead(third, 1.0))
    return jax.tree.map(
        lambda w, a, b, c, d: w + step * (a + 2 * b + 2 * c + d) / 6,
        *(w, first, second, third, fourth),
    )


class Scheme(NamedTuple):
    """Runge–Kutta–Chebyshev schemes of second order, of 2 to ``STAGES`` stages, in float64.

    ``coefficients`` [STAGES + 1, STAGES + 1, 4] by number of stages and stage: μ, ν, μ̃, γ̃.
    ``stability`` [STAGES − 1]: β(s) for s = 2, 3, …: stable where −β ≤ step · eigenvalue ≤ 0.
    """

    coefficients: np.ndarray
    stability: np.ndarray


@cache
def scheme() -> Scheme:
    """Verwer's coefficients (Sommeijer, Shampine & Verwer 1998, J. Comput. Appl. Math. 88, 315).

    Stage j has the stability polynomial a_j + b_j T_j(w₀ + w₁z), T_j Chebyshev's polynomials,
    w₀ = 1 + ε/s², w₁ = T_s'(w₀)/T_s''(w₀), b_j = T_j''(w₀)/T_j'(w₀)², b₀ = b₁ = b₂,
    a_j = 1 − b_j T_j(w₀). In float64 on the host: w₀ − 1 would be lost in float32.
    """
    coefficients = np.zeros((STAGES + 1, STAGES + 1, 4))
    stability = np.zeros(STAGES - 1)
    for s in range(2, STAGES + 1):
        w0 = 1 + DAMPING / s**2
        value, first, second = _chebyshev(s, w0)
        w1 = first[s] / second[s]
        b = second[2:] / first[2:] ** 2
        b = np.concatenate([b[:1], b[:1], b])
        a = 1 - b * value
        own = np.concatenate([b[1:2] * w1, 2 * w1 * b[2:] / b[1:-1]])  # μ̃ of the stages 1 … s
        rows = coefficients[s, 1 : s + 1]
        rows[1:, 0] = own[1:] * w0 / w1
        rows[1:, 1] = -b[2:] / b[:-2]
        rows[:, 2] = own
        rows[1:, 3] = -a[1:-1] * own[1:]
        stability[s - 2] = (w0 + 1) / w1
    return Scheme(coefficients, stability)


def _chebyshev(degree: int, x: float) -> np.ndarray:
    """T_j(x), T_j'(x) and T_j''(x), j = 0 … degree: [3, degree + 1], by their recurrence."""
    table = np.zeros((3, degree + 1))
    table[:, 0], table[:, 1] = (1, 0, 0), (x, 1, 0)
    for j in range(2, degree + 1):
        last = table[:, j - 1]
        table[:, j] = 2 * x * last - table[:, j - 2]
        table[1:, j] += 2 * np.array([1, 2]) * last[:-1]
    return table


def chebyshev(
    f: Slope, w: Point, slope: Point, step: jax.Array, radius: jax.Array
) -> tuple[Point, Point, jax.Array]:
    """One step of the second-order Runge–Kutta–Chebyshev method: its move, and an estimate.

    ``slope`` is f(w). As few stages as are stable for eigenvalues in [−``radius``, 0], s − 1 calls
    of f, and one more for the slope at the end. It works on w's move, not on w, so that rounding is
    of the move's size.

    Returns the move, the slope at its end, and ‖0.8(w − w') + 0.4h(f(w) + f(w'))‖, which is the
    error of the step (to leading order).
    """
    table = scheme()
    reach = jnp.asarray(table.stability, step.dtype)
    stages = jnp.minimum(2 + jnp.searchsorted(reach, step * radius), STAGES)
    own = jnp.asarray(table.coefficients, step.dtype)[stages]

    def stage(j: jax.Array, moves: tuple[Point, Point]) -> tuple[Point, Point]:
        before, last = moves
        mu, nu, here, start = own[j]
        move = jax.tree.map(
            lambda a, b, d, d0: nu * a + mu * b + step * (here * d + start * d0),
            *(before, last, f(trees.add(w, last)), slope),
        )
        return last, move

    still = jax.tree.map(jnp.zeros_like, slope)
    first = jax.tree.map(lambda d: step * own[1, 2] * d, slope)
    _, move = lax.fori_loop(2, stages + 1, stage, (still, first))
    end = f(trees.add(w, move))
    error = jax.tree.map(lambda m, d, e: 0.4 * step * (d + e) - 0.8 * m, move, slope, end)
    return move, end, trees.norm(error)


def resized(step: jax.Array, wanted: jax.Array, error: jax.Array, allowed: jax.Array) -> jax.Array:
    """The next step size, after a step with this error, which was taken if that was ``allowed``.

    The error goes as the third power of the size. ``wanted`` is what this size would have been, had
    there been as far to go: growth is measured from it. An error that is not a number shrinks it.
    """
    none = error == 0
    best = SAFETY * step * jnp.cbrt(allowed / jnp.where(none, 1, error))
    best = jnp.where(none, jnp.inf, jnp.where(jnp.isnan(best), 0, best))
    most = jnp.where(error <= allowed, GROWTH * wanted, SAFETY * step)
    return jnp.clip(best, SHRINK * step, most)


class Course(NamedTuple):
    """An integration under way: the point, f there, and the step size that the error asks for."""

    w: Point
    slope: Point
    wanted: jax.Array


def attempt(
    f: Slope,
    at: Course,
    start: Point,
    remaining: jax.Array,
    radius: jax.Array,
    tolerance: float,
) -> tuple[Course, jax.Array]:
    """A Chebyshev step on the way through ``remaining`` time, and the time that it took.

    It is taken if its estimated error is at most ``tolerance`` · ‖w − ``start``‖, or what rounding
    leaves of w; else the time is 0 and the next one will be shorter. What remains is gone in equal
    steps, so that the last is no sliver; its time is ``remaining`` itself.
    """
    longest = jnp.asarray(scheme().stability[-1], radius.dtype) / radius
    wanted = jnp.minimum(at.wanted, longest)
    pieces = jnp.maximum(jnp.ceil(remaining / wanted), 1)  # 0 where that underflows
    step = remaining / pieces
    move, slope, error = chebyshev(f, at.w, at.slope, step, radius)
    w = trees.add(at.w, move)
    rounding = jnp.finfo(step.dtype).eps * trees.norm(w)
    allowed = tolerance * trees.norm(trees.subtract(w, start)) + rounding
    taken = error <= allowed
    w, slope = trees.select(taken, (w, slope), (at.w, at.slope))
    next_size = resized(step, wanted, error, allowed)
    return Course(w, slope, next_size), jnp.where(taken, step, 0)
