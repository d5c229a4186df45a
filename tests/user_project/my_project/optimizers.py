"""Optimizers: factories of optax transformations. Their floats are inputs of the program."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmech.optimizers import AS_GRADIENT, Stability


def decayed_momentum(
    learning_rate: Any, momentum: Any, weight_decay: Any
) -> optax.GradientTransformation:
    """Momentum on the gradient of L + ½λ‖w‖²: m ← βm + g + λw, w ← w − ηm."""
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(decay, optax.sgd(learning_rate, momentum))


def _stability(arguments: Mapping[str, Any], _: Any, params: Any) -> Stability:
    """The decay adds λ to every eigenvalue, and momentum is stable up to (2 + 2β)/η."""
    most = (2 + 2 * arguments["momentum"]) / arguments["learning_rate"]
    return Stability(jax.tree.map(jnp.ones_like, params), most - arguments["weight_decay"])


decayed_momentum.stability = _stability
decayed_momentum.growth = AS_GRADIENT
