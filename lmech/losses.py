"""Losses: per-example values of shape [N] from outputs [N, C] and targets.

Targets are class labels (integers [N]) or real vectors [N, C]. Of sequences, outputs are
[N, T, C], labels [N, T] and real targets [N, T, C]; the loss of an example is the mean over its
positions, so that the mean over the examples is the loss of a token.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
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


def log_stablemax(f: jax.Array) -> jax.Array:
    """Log (s(f_c) / Σ s(f)), s(x) = x + 1 for x ≥ 0 and 1/(1 − x) below (Prieto et al. 2025).

    It grows as log f, not as f: no logit is so large that another's part is rounded away.
    """
    grown = jnp.log1p(jnp.abs(f))
    logs = jnp.where(f >= 0, grown, -grown)
    return logs - jax.nn.logsumexp(logs, axis=-1, keepdims=True)


LOG_PROBABILITIES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "softmax": jax.nn.log_softmax,
    "stablemax": log_stablemax,
}


def cross_entropy(
    z_loss: Annotated[float, Ge(0)] = 0.0,
    probabilities: Literal["softmax", "stablemax"] = "softmax",
    precision: Literal["float32", "float64"] | None = None,
) -> Loss:
    """−Σ_c y_c log p(f)_c + z (log Z)², p the softmax and Z = Σ_c exp(f_c), in nats.

    ``z_loss`` is z: the second term holds log Z near 0, where softmax leaves it free (Chowdhery et
    al. 2022, "PaLM"; Wortsman et al. 2023 use 1e-4). With it, the Gauss–Newton matrix is no longer
    the Fisher information. ``stablemax``: see ``log_stablemax``.

    ``precision`` is that of the logarithm alone (None: the outputs'). In float32 the probability
    of a class that is off by less than 1e-7 rounds to 1, and so its gradient to 0; float64 keeps
    both in a float32 model (Nanda et al. 2023).

    Raises ValueError for a z-loss without the softmax: other probabilities have another Z.
    """
    if z_loss and probabilities != "softmax":
        raise ValueError(
            f"loss.z_loss={z_loss} is about the softmax's Z, and loss.probabilities="
            f"{probabilities} has another: set one of the two back"
        )

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        f = outputs if precision is None else outputs.astype(precision)
        values = -jnp.sum(targets(y, f) * LOG_PROBABILITIES[probabilities](f), axis=-1)
        if z_loss:
            values += z_loss * jnp.square(jax.nn.logsumexp(f, axis=-1))
        return by_example(values).astype(outputs.dtype)

    return loss
