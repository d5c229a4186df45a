"""Losses: per-example values of shape [N] from outputs [N, C] and targets.

Targets are class labels (integers [N]) or real vectors [N, C]. Of sequences, outputs are
[N, T, C], labels [N, T] and real targets [N, T, C]; the loss of an example is the mean over its
positions, so that the mean over the examples is the loss of a token.
"""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from annotated_types import Ge

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def targets(y: Any, outputs: jax.Array) -> jax.Array:
    """Real targets as they are; class labels as one-hot 0/1 vectors: of the outputs' shape.

    Raises ValueError for targets that are not the outputs'.
    """
    labels = jnp.issubdtype(y.dtype, jnp.integer)
    if y.shape != (outputs.shape[:-1] if labels else outputs.shape):
        raise ValueError(
            f"the model's outputs are {list(outputs.shape)} and the targets {list(y.shape)}: "
            "labels [N] take outputs [N, C], those of sequences [N, T] outputs [N, T, C], and "
            "real targets outputs of their own shape"
        )
    return jax.nn.one_hot(y, outputs.shape[-1], dtype=outputs.dtype) if labels else y


def by_example(values: jax.Array) -> jax.Array:
    """Means over the positions of each example: [N, T] to [N]; [N] as it is."""
    return values if values.ndim == 1 else values.mean(axis=tuple(range(1, values.ndim)))


def mse() -> Loss:
    """½ Σ_c (f_c − y_c)²: the ½ makes the Gauss–Newton matrix JᵀJ/n (Cohen et al. 2021)."""

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        return by_example(jnp.sum(jnp.square(outputs - targets(y, outputs)), axis=-1) / 2)

    return loss


def cross_entropy(z_loss: Annotated[float, Ge(0)] = 0.0) -> Loss:
    """−Σ_c y_c log softmax(f)_c + z (log Z)², Z = Σ_c exp(f_c), in nats.

    ``z_loss`` is z: the second term holds log Z near 0, where softmax leaves it free (Chowdhery et
    al. 2022, "PaLM"; Wortsman et al. 2023 use 1e-4). With it, the Gauss–Newton matrix is no longer
    the Fisher information.
    """

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        values = optax.softmax_cross_entropy(outputs, targets(y, outputs))
        if z_loss:
            values += z_loss * jnp.square(jax.nn.logsumexp(outputs, axis=-1))
        return by_example(values)

    return loss
