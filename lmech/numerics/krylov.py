"""Extreme eigenpairs and spectral measures of a symmetric operator."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Operator = Callable[[jax.Array], jax.Array]  # [P, K] -> [P, K], linear and symmetric


class Ritz(NamedTuple):
    """Approximate top eigenpairs of H: ``vectors`` V [P, K], ``images`` HV, ``values`` θ [K] ↓.

    A residual ‖Hv − θv‖ certifies that *some* eigenvalue lies within it of θ, not that θ is the
    largest: θ₁ is a lower bound of λ₁.
    """

    vectors: jax.Array
    images: jax.Array
    values: jax.Array

    @property
    def residuals(self) -> jax.Array:
        """‖Hv − θv‖ of each pair [K]."""
        return jnp.linalg.norm(residual_block(self), axis=0)

    @property
    def gap(self) -> jax.Array:
        """θ₁ − θ₂ (infinite for a single pair)."""
        if len(self.values) == 1:
            return jnp.full((), jnp.inf, self.values.dtype)
        return self.values[0] - self.values[1]

    @property
    def error(self) -> jax.Array:
        """‖r₁‖²/gap: how far θ₁ can be below the eigenvalue it approximates (Kato–Temple)."""
        squared = jnp.square(self.residuals[0])
        return squared / jnp.maximum(self.gap, jnp.finfo(squared.dtype).tiny)


def residual_block(pairs: Ritz) -> jax.Array:
    """Hv − θv of each pair [P, K]: what a Krylov step adds to their span."""
    return pairs.images - pairs.vectors * pairs.values[None]


def orthonormalize(block: jax.Array, against: jax.Array | None = None) -> jax.Array:
    """Orthonormal basis [P, K] of the block, orthogonal to the orthonormal columns ``against``.

    Directions that the block does not have, or has in ``against`` alone, are columns of zeros: a QR
    factorisation would fill them with unit vectors that are orthogonal to nothing. By the block's
    Gram matrix (SVQB, Stathopoulos & Wu 2002), twice: after one pass a nearly converged block is
    orthogonal only to the rounding error over its (small) norm, and twice is enough (Parlett 1980,
    §6.9). In the second pass a column keeps its length, unless it was rounding error to begin with.
    """
    rounding = 10 * block.shape[1] * float(jnp.finfo(block.dtype).eps)
    block = _outside(block, against)
    lengths = jnp.linalg.norm(block, axis=0)
    block = _whitened(block / jnp.where(lengths > 0, lengths, 1)[None], rounding)
    return _whitened(_outside(block, against), 0.25)


def _outside(block: jax.Array, basis: jax.Array | None) -> jax.Array:
    return block if basis is None else block - basis @ (basis.T @ block)


def _whitened(block: jax.Array, floor: float) -> jax.Array:
    """B (BᵀB)^-½ up to a rotation; zero where an eigenvalue of BᵀB is below ``floor``."""
    squares, rotation = jnp.linalg.eigh(block.T @ block)
    scale = jnp.where(squares > floor, lax.rsqrt(jnp.maximum(squares, floor)), 0)
    return block @ (rotation * scale[None])


def rayleigh_ritz(basis: jax.Array, image: jax.Array, k: int) -> Ritz:
    """The best k pairs in span(basis), given ``image`` = H · basis, both [P, M], M ≥ k.

    A column of zeros is no direction: its pair comes last, below any eigenvalue.
    """
    there = jnp.square(basis).sum(axis=0) > 0.5
    projected = jnp.where(there[:, None] & there[None], basis.T @ image, 0)
    below = -1 - 2 * jnp.linalg.norm(projected)
    projected = (projected + projected.T) / 2 + jnp.diag(jnp.where(there, 0, below))
    values, rotation = jnp.linalg.eigh(projected)
    values, rotation = values[::-1][:k], rotation[:, ::-1][:, :k]
    return Ritz(basis @ rotation, image @ rotation, values)


def top_eigenpairs(operator: Operator, block: jax.Array, extensions: int) -> Ritz:
    """Rayleigh–Ritz on the block Krylov space span(V, HV, …, H^e V) of the block V [P, K].

    Costs K(e + 1) products. With V the last answer (warm) one extension follows a Hessian that
    drifts slowly; from a random V (cold) it takes more (Golub & Van Loan, §10.3.6).
    """
    basis = orthonormalize(block)
    image = last = operator(basis)
    for _ in range(extensions):
        new = orthonormalize(last, against=basis)
        last = operator(new)
        basis = jnp.concatenate([basis, new], axis=1)
        image = jnp.concatenate([image, last], axis=1)
    return rayleigh_ritz(basis, image, block.shape[1])


def extend(operator: Operator, pairs: Ritz, block: jax.Array) -> Ritz:
    """As many pairs as there were, the best in span(V, block): a product a column of the block."""
    new = orthonormalize(block, against=pairs.vectors)
    basis = jnp.concatenate([pairs.vectors, new], axis=1)
    image = jnp.concatenate([pairs.images, operator(new)], axis=1)
    return rayleigh_ritz(basis, image, len(pairs.values))


class Tridiagonal(NamedTuple):
    """QᵀHQ = T with ``diagonal`` [D], ``off_diagonal`` [D − 1] and ``basis`` Q [P, D]."""

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
        basis = basis.at[:, i].set(q)
        image = operator(q[:, None])[:, 0]
        alpha = q @ image
        for _ in range(2):
            image = image - basis @ (basis.T @ image)
        norm = jnp.linalg.norm(image)
        scale = jnp.maximum(scale, jnp.abs(alpha) + norm)
        alive = norm > 10 * eps * scale
        beta = jnp.where(alive, norm, 0)
        q = jnp.where(alive, image / jnp.where(alive, norm, 1), 0)
        return basis, diagonal.at[i].set(alpha), off_diagonal.at[i].set(beta), q, scale

    zeros = jnp.zeros(depth, vector.dtype)
    first = vector / jnp.linalg.norm(vector)
    loop = (jnp.zeros((vector.size, depth), vector.dtype), zeros, zeros, first, zeros[0])
    basis, diagonal, off_diagonal, *_ = lax.fori_loop(0, depth, step, loop)
    return Tridiagonal(diagonal, off_diagonal[:-1], basis)


def quadrature(operator: Operator, vector: jax.Array, depth: int) -> tuple[jax.Array, jax.Array]:
    """Points and weights [D] of the spectral measure of H seen from ``vector`` (Gauss quadrature).

    Σ w f(θ) = vᵀf(H)v / vᵀv, exactly for polynomials f of degree < 2D (Golub & Meurant 2009).
    """
    values, rotation = jnp.linalg.eigh(lanczos(operator, vector, depth).matrix)
    return values, jnp.square(rotation[0])


def density(nodes: jax.Array, weights: jax.Array, grid: jax.Array, width: float) -> jax.Array:
    """Σ w δ(λ − θ) on a grid, smoothed by Gaussians of standard deviation ``width``."""
    z = (grid[:, None] - nodes[None]) / width
    return (weights[None] * jnp.exp(-jnp.square(z) / 2)).sum(axis=1) / (width * (2 * jnp.pi) ** 0.5)
