"""Extreme eigenpairs of a symmetric operator from a warm block."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Operator = Callable[[jax.Array], jax.Array]  # [P, K] -> [P, K], linear and symmetric


class Ritz(NamedTuple):
    """Approximate top eigenpairs: ``vectors`` [P, K], ``values`` [K] descending, ``residuals`` [K].

    A residual ‖Hv − θv‖ certifies that *some* eigenvalue lies within it of θ, not that θ is the
    largest: θ₁ is a lower bound of λ₁.
    """

    vectors: jax.Array
    values: jax.Array
    residuals: jax.Array


def orthonormalize(block: jax.Array, against: jax.Array | None = None) -> jax.Array:
    """Orthonormal basis [P, K] of the block, orthogonal to the orthonormal columns ``against``.

    Done twice: after one pass of Gram–Schmidt a nearly converged block is orthogonal only to the
    rounding error over its (small) norm; twice is enough (Kahan; Parlett 1980, §6.9).
    """
    for _ in range(1 if against is None else 2):
        if against is not None:
            block = block - against @ (against.T @ block)
        block, _ = jnp.linalg.qr(block)
    return block


def rayleigh_ritz(basis: jax.Array, image: jax.Array, k: int) -> Ritz:
    """The best k pairs in span(basis), given ``image`` = H · basis, both [P, M], M ≥ k."""
    projected = basis.T @ image
    values, rotation = jnp.linalg.eigh((projected + projected.T) / 2)
    values, rotation = values[::-1][:k], rotation[:, ::-1][:, :k]
    vectors = basis @ rotation
    residuals = jnp.linalg.norm(image @ rotation - vectors * values[None], axis=0)
    return Ritz(vectors, values, residuals)


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
