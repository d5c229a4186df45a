"""Gradient descent of a function on ½|f − y|² with a fixed kernel: what every step of it is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmech.numerics import lapack


class Spectrum(NamedTuple):
    """Θ/N = Σ_i λ_i u_i u_iᵀ: ``eigenvalues`` [M] in descending order, ``vectors`` [M, M] in rows.

    Along u_i the residual f − y is (1 − ηλ_i)^t of what it was, t steps ago.
    """

    eigenvalues: jax.Array
    vectors: jax.Array


def spectrum(kernel: jax.Array, examples: int) -> Spectrum:
    """That of a kernel [M, M] on N ``examples``: M = N, or N·C where the C outputs have one."""
    values, vectors = lapack.eigh(kernel / examples)
    return Spectrum(values[::-1], vectors.T[::-1])


def remaining(eigenvalues: jax.Array, rate: jax.Array, steps: jax.Array) -> jax.Array:
    """(1 − ηλ)^t [M], t an integer: also where ηλ is above 1, and the sign alternates."""
    return jnp.power(1 - rate * eigenvalues, steps)


def gain(eigenvalues: jax.Array, rate: jax.Array, steps: jax.Array) -> jax.Array:
    """Η Σ_{s<t} (1 − ηλ)^s = (1 − (1 − ηλ)^t)/λ [M], and ηt where λ is 0.

    Where ηλ is small, by expm1 and log1p: the plain formula would lose its digits.
    """
    x = rate * eigenvalues
    small = jnp.abs(x) < 0.5
    near = jnp.where(small & (x != 0), x, 0.25)
    few = -jnp.expm1(steps * jnp.log1p(-near)) / near
    many = (1 - remaining(eigenvalues, rate, steps)) / jnp.where(small, 1, x)
    return rate * jnp.where(x == 0, steps.astype(x.dtype), jnp.where(small, few, many))


def residuals(modes: Spectrum, first: jax.Array, rate: jax.Array, steps: jax.Array) -> jax.Array:
    """F_t − y [M, S] on the training examples, (1 − ηΘ/N)^t of the ``first`` one."""
    left = remaining(modes.eigenvalues, rate, steps)[:, None]
    return modes.vectors.T @ (left * (modes.vectors @ first))


def coefficients(
    modes: Spectrum, first: jax.Array, rate: jax.Array, steps: jax.Array, examples: int
) -> jax.Array:
    """The c [M, S] of f_t(x) = f_0(x) − Θ(x, X) c, at any x: (η/N) Σ_{s<t} (f_s − y)."""
    summed = gain(modes.eigenvalues, rate, steps)[:, None]
    return modes.vectors.T @ (summed * (modes.vectors @ first)) / examples
