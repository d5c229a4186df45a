"""Losses: values by example, [N], from outputs and targets."""

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Gt

from lmech.losses import Loss, by_example, targets


def log_cosh(scale: Annotated[float, Gt(0)] = 1.0) -> Loss:
    """Σ_c s² log cosh((f_c − y_c)/s): ½(f − y)² near 0, linear far from it."""

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        error = (outputs - targets(y, outputs)) / scale
        values = jnp.logaddexp(error, -error) - jnp.log(2).astype(error.dtype)
        return by_example(scale**2 * values.sum(axis=-1))

    return loss
