"""Kernels of infinitely wide fully connected nets, in closed form."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Dual = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class WideKernels(NamedTuple):
    """``nngp`` E[f(x)f(x')] and ``ntk`` Θ(x, x') of one output, both [N, M]."""

    nngp: jax.Array
    ntk: jax.Array


def _relu(k: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Arc-cosine kernels of order 1 and 0 (Cho & Saul 2009)."""
    norms = jnp.sqrt(a * b)
    cosine = jnp.clip(k / jnp.where(norms > 0, norms, 1), -1, 1)
    sine = jnp.sqrt((1 - cosine) * (1 + cosine))
    angle = jnp.pi - jnp.arctan2(sine, cosine)
    return norms * (sine + angle * cosine) / (2 * jnp.pi), angle / (2 * jnp.pi)


def _erf(k: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Williams 1997, "Computing with infinite networks", and its derivative in k."""
    squared = (1 + 2 * a) * (1 + 2 * b)
    value = 2 / jnp.pi * jnp.arcsin(2 * k / jnp.sqrt(squared))
    return value, 4 / jnp.pi / jnp.sqrt(squared - 4 * k**2)


def _linear(k: jax.Array, _a: jax.Array, _b: jax.Array) -> tuple[jax.Array, jax.Array]:
    return k, jnp.ones_like(k)


# E[φ(u)φ(v)] and E[φ'(u)φ'(v)] for centred Gaussian u, v with covariance k, variances a and b.
DUALS: dict[str, Dual] = {"relu": _relu, "erf": _erf, "linear": _linear}


def mlp_kernels(
    x: jax.Array,
    z: jax.Array,
    activation: str,
    weight_variances: Sequence[float],
    bias_variances: Sequence[float] | None = None,
) -> WideKernels:
    """NNGP and NTK between inputs x [N, D] and z [M, D], all hidden widths to infinity.

    The net is h¹ = σ_w W x/√D + σ_b b, h^{l+1} = σ_w W φ(hˡ)/√n + σ_b b, with W, b ~ N(0, 1) all
    trained: the NTK parametrization. ``weight_variances`` are the σ_w² of the layers of weights,
    first to readout, so their number is the depth; ``bias_variances`` the σ_b² (None: no biases).
    The recursion is Kˡ⁺¹ = σ_w² T(Kˡ) + σ_b², Θˡ⁺¹ = Kˡ⁺¹ + σ_w² Ṫ(Kˡ) Θˡ, Θ¹ = K¹, with T the
    covariance of φ(h) and Ṫ that of φ'(h) (Jacot et al. 2018; Lee et al. 2018).

    Raises ValueError for an activation without a closed form here, and for layers that differ in
    number.
    """
    if activation not in DUALS:
        raise ValueError(f"no closed form for {activation!r}: activation is one of {list(DUALS)}")
    biases = [0.0] * len(weight_variances) if bias_variances is None else bias_variances
    if not 0 < len(weight_variances) == len(biases):
        raise ValueError(
            f"{len(weight_variances)} weight variances and {len(biases)} bias variances: "
            "one of each a layer, first to readout"
        )
    dual = DUALS[activation]
    inputs = x @ z.T, jnp.square(x).sum(1, keepdims=True), jnp.square(z).sum(1)[None]
    k, a, b = (w / x.shape[1] for w in inputs)
    k, a, b = (weight_variances[0] * c + biases[0] for c in (k, a, b))
    ntk = k
    for weight, bias in zip(weight_variances[1:], biases[1:], strict=True):
        covariance, derivative = dual(k, a, b)
        a, b = (weight * dual(c, c, c)[0] + bias for c in (a, b))
        k = weight * covariance + bias
        ntk = k + weight * derivative * ntk
    return WideKernels(k, ntk)
