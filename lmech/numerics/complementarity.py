"""Semidefinite complementarity: the smallest push that keeps a matrix from growing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lmech.numerics import lapack, trees

ROUNDS = 60
"""Most iterations; about twenty are usual."""
PRECISION = 100
"""⟨X, Z⟩/k and the residual of Z end below so many times the rounding of A."""
START = 10.0
"""Where X and Z start, in units in which A and B are 1: well inside both cones."""
CENTRING = (0.3, 0.9)
"""Least and most of the gap's share that an iteration aims at, before squaring."""
INWARDS = 0.9
"""Share of the way to the boundary of the cones that an iteration goes at most."""


class _Point(NamedTuple):
    """An iterate: X ≻ 0 and Z ≻ 0, on their way to Z = B[X] − A and XZ = 0."""

    x: jax.Array
    z: jax.Array
    error: jax.Array
    round: jax.Array


def solve(quadratic: jax.Array, linear: jax.Array) -> jax.Array:
    """X ⪰ 0 with Z = B[X] − A ⪰ 0 and ⟨X, Z⟩ = 0, for symmetric X [k, k].

    ``quadratic`` B [k, k, k, k] maps X to B_ijkl X_kl, self-adjoint and positive semidefinite;
    ``linear`` A [k, k] is symmetric. These are the conditions at the minimum of the convex
    ½⟨X, B[X]⟩ − ⟨A, X⟩ over X ⪰ 0; at k = 1, X = max(0, A/B). By a primal-dual interior-point
    method with the direction of Nesterov and Todd, in units in which A and B are 1.
    If B cannot push against A there is no solution, and X is what the last iteration had.
    """
    k, dtype = linear.shape[0], linear.dtype
    tiny, eye = jnp.finfo(dtype).tiny, jnp.eye(k, dtype=dtype)
    size = jnp.maximum(jnp.abs(linear).max(), tiny)
    strength = jnp.maximum(jnp.abs(quadratic).max(), tiny)
    a, b = linear / size, (quadratic / strength).reshape(k * k, k * k)

    def applied(x: jax.Array) -> jax.Array:
        return (b @ x.reshape(k * k)).reshape(k, k)

    def again(at: _Point) -> jax.Array:
        return (at.round < ROUNDS) & (at.error > PRECISION * jnp.finfo(dtype).eps)

    def better(at: _Point) -> _Point:
        values, vectors = _eigh(at.x)
        root = (vectors * jnp.sqrt(values)[None]) @ vectors.T
        back = (vectors / jnp.sqrt(values)[None]) @ vectors.T
        middle, turn = _eigh(root @ at.z @ root)
        metric = back @ (turn * jnp.sqrt(middle)[None]) @ turn.T @ back  # takes X to Z
        matrix = jnp.kron(metric, metric) + b
        off = applied(at.x) - a - at.z
        gap = jnp.vdot(at.x, at.z) / k

        def step(wanted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            """Of M dX M + B[dX] = μX⁻¹ − B[X] + A, dZ = B[dX] + R; and how much of it to go."""
            right = wanted * back @ back - at.z - off
            dx = _symmetric(lapack.solve(matrix, right.reshape(k * k)).reshape(k, k))
            dz = _symmetric(applied(dx) + off)
            return dx, dz, jnp.minimum(_room(at.x, dx), _room(at.z, dz))

        dx, dz, far = step(jnp.zeros_like(gap))
        ahead = jnp.vdot(at.x + far * dx, at.z + far * dz) / k
        dx, dz, far = step(gap * jnp.clip(ahead / gap, *CENTRING) ** 2)
        x, z = at.x + far * dx, at.z + far * dz
        error = jnp.maximum(jnp.vdot(x, z) / k, jnp.abs(applied(x) - a - z).max())
        there = _Point(x, z, error, at.round + 1)
        # At the end X or Z may be singular to rounding: then the last iterate was it.
        return trees.select(jnp.isfinite(error), there, at._replace(error=jnp.zeros_like(error)))

    needless = lapack.eigvalsh(a)[-1] <= 0
    start = _Point(START * eye, START * eye, jnp.where(needless, 0, jnp.inf), jnp.int32(0))
    x = lax.while_loop(again, better, start).x * (size / strength)
    return jnp.where(needless, 0, x)


def _eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues, larger than 0, and eigenvectors of a matrix that is positive definite."""
    values, vectors = lapack.eigh(_symmetric(matrix))
    return jnp.maximum(values, jnp.finfo(matrix.dtype).tiny), vectors


def _symmetric(matrix: jax.Array) -> jax.Array:
    return (matrix + matrix.T) / 2


def _room(matrix: jax.Array, step: jax.Array) -> jax.Array:
    """How much of the step, 1 at most, leaves the matrix well inside the cone."""
    values, vectors = _eigh(matrix)
    root = vectors / jnp.sqrt(values)[None]
    least = lapack.eigvalsh(root.T @ step @ root)[0]
    return jnp.minimum(1.0, INWARDS / jnp.maximum(-least, jnp.finfo(matrix.dtype).tiny))
