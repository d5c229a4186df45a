"""Extreme eigenpairs and spectral measures of a symmetric operator.

Blocks of vectors are rows, [K, P]: a row is contiguous, which makes the long dot products and sums
of a method that keeps few of them several times faster than columns are.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lmech.numerics import lapack

Operator = Callable[[jax.Array], jax.Array]  # [K, P] -> [K, P], linear and symmetric


class Ritz(NamedTuple):
    """Approximate top eigenpairs of H: ``vectors`` V [K, P], ``images`` HV, ``values`` θ [K] ↓.

    A residual ‖Hv − θv‖ certifies that *some* eigenvalue lies within it of θ, not that θ is the
    largest: θ₁ is a lower bound of λ₁.
    """

    vectors: jax.Array
    images: jax.Array
    values: jax.Array

    @property
    def residuals(self) -> jax.Array:
        """‖Hv − θv‖ of each pair [K]."""
        return jnp.linalg.norm(self.images - self.values[:, None] * self.vectors, axis=1)

    @property
    def gap(self) -> jax.Array:
        """θ₁ − θ₂ (infinite for a single pair)."""
        if len(self.values) == 1:
            return jnp.full((), jnp.inf, self.values.dtype)
        return self.values[0] - self.values[1]


def orthonormalize(block: jax.Array, against: jax.Array | None = None) -> jax.Array:
    """Orthonormal basis [K, P] of the block, orthogonal to the orthonormal rows ``against``.

    Directions that the block does not have, or has in ``against`` alone, are rows of zeros: a QR
    factorisation would fill them with unit vectors that are orthogonal to nothing. By the block's
    Gram matrix (SVQB, Stathopoulos & Wu 2002), twice: after one pass a nearly converged block is
    orthogonal only to the rounding error over its (small) norm, and twice is enough (Parlett 1980,
    §6.9). In the second pass a row keeps its length, unless it was rounding error to begin with.
    """
    rounding = 10 * len(block) * float(jnp.finfo(block.dtype).eps)
    block = _outside(block, against)
    lengths = jnp.linalg.norm(block, axis=1)
    block = _whitened(block / jnp.where(lengths > 0, lengths, 1)[:, None], rounding)
    return _whitened(_outside(block, against), 0.25)


def _outside(block: jax.Array, basis: jax.Array | None) -> jax.Array:
    return block if basis is None else block - _dots(block, basis) @ basis


def _dots(block: jax.Array, basis: jax.Array) -> jax.Array:
    """⟨bᵢ, qⱼ⟩ [K, M]. One row goes as a vector: as a matrix it is slower, on a CPU severalfold."""
    return (basis @ block[0])[None] if len(block) == 1 else block @ basis.T


def _whitened(block: jax.Array, floor: float) -> jax.Array:
    """(BBᵀ)^-½ B up to a rotation; zero where an eigenvalue of BBᵀ is below ``floor``."""
    squares, rotation = lapack.eigh(block @ block.T)
    scale = jnp.where(squares > floor, lax.rsqrt(jnp.maximum(squares, floor)), 0)
    return (scale[:, None] * rotation.T) @ block


class Space(NamedTuple):
    """A subspace with room for M directions: rows Q [M, P], HQ, and QHQᵀ [M, M].

    ``there`` [M] says which rows are directions; the others are zeros. Room that is there from the
    start lets one compiled loop fill it.
    """

    basis: jax.Array
    images: jax.Array
    projected: jax.Array
    there: jax.Array


def span(operator: Operator, block: jax.Array, room: int) -> Space:
    """The span of a block [K, P]: K products."""
    basis = orthonormalize(block)
    images = operator(basis)
    there = jnp.square(basis).sum(axis=1) > 0.5
    return _with_room(basis, images, images @ basis.T, there, room)


def _with_room(
    basis: jax.Array, images: jax.Array, projected: jax.Array, there: jax.Array, room: int
) -> Space:
    free = (0, room - len(basis))
    return Space(
        jnp.pad(basis, (free, (0, 0))),
        jnp.pad(images, (free, (0, 0))),
        jnp.pad(projected, (free, free)),
        jnp.pad(there, free),
    )


def grow(operator: Operator, space: Space, block: jax.Array, at: jax.Array | int) -> Space:
    """The space with a block [K, P] in the rows from ``at`` on: K products."""
    new = orthonormalize(block, against=space.basis)
    image = operator(new)

    def put(array: jax.Array, rows: jax.Array, axis: int = 0) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(array, rows, at, axis)

    products = put(_dots(image, space.basis), _dots(image, new), axis=1)
    return Space(
        basis=put(space.basis, new),
        images=put(space.images, image),
        projected=put(put(space.projected, products), products.T, axis=1),
        there=put(space.there, jnp.square(new).sum(axis=1) > 0.5),
    )


def _spectrum(space: Space) -> tuple[jax.Array, jax.Array]:
    """Ritz values [M] ↓ and the rotation [M, M] whose rows they belong to.

    A row of zeros is no direction: its value comes last, below any eigenvalue.
    """
    there = space.there
    projected = jnp.where(there[:, None] & there[None], space.projected, 0)
    below = -1 - 2 * jnp.linalg.norm(projected)
    projected = (projected + projected.T) / 2 + jnp.diag(jnp.where(there, 0, below))
    values, rotation = lapack.eigh(projected)
    return values[::-1], rotation.T[::-1]


def best(space: Space, k: int) -> Ritz:
    """Rayleigh–Ritz: the best k pairs in the space."""
    values, rotation = _spectrum(space)
    return Ritz(rotation[:k] @ space.basis, rotation[:k] @ space.images, values[:k])


def first_residual(space: Space) -> tuple[jax.Array, jax.Array]:
    """Hv₁ − θ₁v₁ [1, P] of the space's best pair, and the Ritz values [M] ↓."""
    values, rotation = _spectrum(space)
    first = rotation[:1]
    return first @ space.images - values[0] * (first @ space.basis), values


def restarted(space: Space, keep: int) -> Space:
    """The space of its best ``keep`` pairs, the rest of the room free again."""
    pairs = best(space, keep)
    there = jnp.arange(keep) < space.there.sum()
    room = len(space.there)
    return _with_room(pairs.vectors, pairs.images, jnp.diag(pairs.values), there, room)


class Tridiagonal(NamedTuple):
    """QHQᵀ = T with ``diagonal`` [D], ``off_diagonal`` [D − 1] and ``basis`` Q [D, P]."""

    diagonal: jax.Array
    off_diagonal: jax.Array
    basis: jax.Array

    @property
    def matrix(self) -> jax.Array:
        """T [D, D]."""
        off = self.off_diagonal
        return jnp.diag(self.diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)


def lanczos(operator: Operator, vector: jax.Array, depth: int) -> Tridiagonal:
    """Lanczos' tridiagonalisation from one vector [P], with full reorthogonalisation (twice).

    Where the Krylov space ends early (a matrix of low rank), the rest of Q and T is zero: no
    eigenvalue is made up, and the extra zeros of T have no weight on the first basis vector.
    matfree's version divides by the vanishing residual there, hence one of our own.
    """
    eps = jnp.finfo(vector.dtype).eps

    def step(i: jax.Array, loop: tuple) -> tuple:
        basis, diagonal, off_diagonal, q, scale = loop
        basis = basis.at[i].set(q)
        image = operator(q[None])[0]
        alpha = q @ image
        for _ in range(2):
            image = image - (basis @ image) @ basis
        norm = jnp.linalg.norm(image)
        scale = jnp.maximum(scale, jnp.abs(alpha) + norm)
        alive = norm > 10 * eps * scale
        beta = jnp.where(alive, norm, 0)
        q = jnp.where(alive, image / jnp.where(alive, norm, 1), 0)
        return basis, diagonal.at[i].set(alpha), off_diagonal.at[i].set(beta), q, scale

    zeros = jnp.zeros(depth, vector.dtype)
    first = vector / jnp.linalg.norm(vector)
    loop = (jnp.zeros((depth, vector.size), vector.dtype), zeros, zeros, first, zeros[0])
    basis, diagonal, off_diagonal, *_ = lax.fori_loop(0, depth, step, loop)
    return Tridiagonal(diagonal, off_diagonal[:-1], basis)


def quadrature(operator: Operator, vector: jax.Array, depth: int) -> tuple[jax.Array, jax.Array]:
    """Points and weights [D] of the spectral measure of H seen from ``vector`` (Gauss quadrature).

    Σ w f(θ) = vᵀf(H)v / vᵀv, exactly for polynomials f of degree < 2D (Golub & Meurant 2009).
    """
    values, rotation = lapack.eigh(lanczos(operator, vector, depth).matrix)
    return values, jnp.square(rotation[0])


def density(nodes: jax.Array, weights: jax.Array, grid: jax.Array, width: float) -> jax.Array:
    """Σ w δ(λ − θ) on a grid, smoothed by Gaussians of standard deviation ``width``."""
    z = (grid[:, None] - nodes[None]) / width
    return (weights[None] * jnp.exp(-jnp.square(z) / 2)).sum(axis=1) / (width * (2 * jnp.pi) ** 0.5)
