"""Losses: per-example values of shape [N] from outputs [N, C] and targets.

Targets are class labels (integers [N]) or real vectors [N, C].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def targets(y: Any, outputs: jax.Array) -> jax.Array:
    """Real targets as they are; class labels as one-hot 0/1 vectors."""
    if jnp.issubdtype(y.dtype, jnp.integer):
        return jax.nn.one_hot(y, outputs.shape[-1], dtype=outputs.dtype)
    return y


def mse() -> Loss:
    """½ Σ_c (f_c − y_c)²: the ½ makes the Gauss–Newton matrix JᵀJ/n (Cohen et al. 2021)."""
    return lambda outputs, y: jnp.sum(jnp.square(outputs - targets(y, outputs)), axis=-1) / 2


def cross_entropy() -> Loss:
    """−Σ_c y_c log softmax(f)_c, in nats."""
    return lambda outputs, y: optax.softmax_cross_entropy(outputs, targets(y, outputs))
