"""Tangent kernels and what is read off them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree


def empirical_ntk(apply: Callable[[Any, jax.Array], jax.Array], params: Any, x: jax.Array) -> Any:
    """Θ = J Jᵀ of shape [N·C, N·C], J the Jacobian of the N × C outputs in the parameters."""
    w, unravel = ravel_pytree(params)
    jacobian = jax.jacrev(lambda w: apply(unravel(w), x).reshape(-1))(w)
    return jacobian @ jacobian.T


def alignment(kernel: jax.Array, y: jax.Array) -> jax.Array:
    """⟨K, yyᵀ⟩ / (‖K‖_F ‖yyᵀ‖_F) ∈ [−1, 1], for K [N, N] and targets y [N].

    Cristianini et al. 2001, "On kernel-target alignment".
    """
    return y @ kernel @ y / (jnp.linalg.norm(kernel) * (y @ y))


def centered(kernel: jax.Array) -> jax.Array:
    """(I − 11ᵀ/N) K (I − 11ᵀ/N): the kernel of features whose mean over the set is removed."""
    kernel = kernel - kernel.mean(axis=0, keepdims=True)
    return kernel - kernel.mean(axis=1, keepdims=True)


def centered_alignment(kernel: jax.Array, y: jax.Array) -> jax.Array:
    """Alignment of the centred kernel with the centred targets (Cortes et al. 2012)."""
    return alignment(centered(kernel), y - y.mean())
