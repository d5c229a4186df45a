"""One-pass SGD on linear regression with Gaussian features: its mean risk, exactly.

Features φ ~ N(0, K), target y = φ·θ* + ξ, jointly Gaussian, so ξ is independent of φ. A step takes
B new examples, θ ← θ − γ mean(φ(φ·θ − y)). With δ = θ − θ* and S = E δδᵀ,

    S ← S − γ(KS + SK) + γ²(1 + 1/B) KSK + (γ²/B) K (tr KS + Eξ²),

and in the eigenbasis of K its diagonal is closed: p_i = λ_i S_ii obeys

    p_i ← (1 − 2γλ_i + γ²λ_i²(1 + 1/B)) p_i + (γ²λ_i²/B) P,    P = E(y − φ·θ)² = Eξ² + Σ_i p_i.

A diagonal and a rank of one, symmetric once p_i is divided by λ_i: so all of the curve is in one
eigendecomposition, P_t = Σ_k a_k (1 + ν_k)^t + limit. Float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmech.numerics import lapack


class Moments(NamedTuple):
    """Of features and target, in K's eigenbasis: λ [d], p [d] at the start, and Eξ²."""

    eigenvalues: jax.Array
    risks: jax.Array
    floor: jax.Array


class Curve(NamedTuple):
    """P_t = ``limit`` + Σ_k ``amplitudes``_k exp(t ``rates``_k)."""

    rates: jax.Array
    amplitudes: jax.Array
    limit: jax.Array


def moments(second: jax.Array, cross: jax.Array, square: jax.Array) -> Moments:
    """From K = E φφᵀ [d, d], E φr [d] and E r², r = y − φ·θ₀ the residual at the start.

    Eigenvalues below d times the rounding error of the largest are of features that do not vary.
    """
    values, vectors = lapack.eigh(second)
    least = len(values) * jnp.finfo(second.dtype).eps * values[-1]
    known = values > least
    risks = jnp.where(known, (vectors.T @ cross) ** 2 / jnp.where(known, values, 1), 0)
    return Moments(jnp.where(known, values, 0), risks, square - risks.sum())


def sgd(of: Moments, rate: jax.Array, batch_size: int = 1) -> Curve:
    """The mean risk of one-pass SGD at a constant rate γ.

    Where SGD diverges, a rate is above 0.
    """
    x = rate * of.eigenvalues
    fed = x / jnp.sqrt(jnp.asarray(batch_size, x.dtype))
    matrix = jnp.diag(-2 * x + x**2 + fed**2) + jnp.outer(fed, fed)
    growth, vectors = lapack.eigh(matrix)
    weights = fed @ vectors
    moving = jnp.where(fed > 0, of.risks / jnp.where(fed > 0, fed, 1), 0)
    still = growth == 0  # a feature that does not vary
    fixed = jnp.where(still, 0, -weights * of.floor / jnp.where(still, 1, growth))
    amplitudes = weights * (moving @ vectors - fixed)
    return Curve(jnp.log1p(growth), amplitudes, of.floor + weights @ fixed)


def gradient_descent(of: Moments, rate: jax.Array) -> Curve:
    """The same without the noise of the minibatches, B → ∞: p_i (1 − γλ_i)^{2t}."""
    return Curve(2 * jnp.log(jnp.abs(1 - rate * of.eigenvalues)), of.risks, of.floor)


def at(curve: Curve, steps: jax.Array) -> jax.Array:
    """P_t at the steps [T]."""
    steps = jnp.asarray(steps, curve.rates.dtype)
    return curve.limit + jnp.exp(jnp.outer(steps, curve.rates)) @ curve.amplitudes
