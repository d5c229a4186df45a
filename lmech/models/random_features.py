"""Random features: a layer that stays as it was drawn, and a readout that trains."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jax import lax
from pydantic import FiniteFloat

from lmech.models.declared import Declared
from lmech.models.layers import Activation, ActivationName


def draw(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """W [v, d] of N(0, 1) entries; the first features of a wider draw are a narrower one's."""

    def column(feature: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, feature), shape[:1], dtype)

    return jax.vmap(column, out_axes=1)(jnp.arange(shape[1]))


class RandomFeatures(nn.Module):
    """x [N, …] → outputs [N, C]: φ(σ xW) θ / √d, W [v, d] of N(0, 1) entries; θ [d, C] trains.

    θ starts at 0. Each of W's columns has a key of its own, so two widths share features.
    """

    width: int
    outputs: int
    activation: ActivationName
    spread: float | None

    @property
    def declared(self) -> Declared:
        """W is the model's, not its parameters'; the readout's shape may be a vector's."""
        return Declared(constants=("features",), outputs=("readout",))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, C]."""
        h = x.reshape(x.shape[0], -1)
        shape = h.shape[1], self.width
        W = lax.stop_gradient(self.param("features", draw, shape, x.dtype))  # noqa: N806
        spread = shape[0] ** -0.5 if self.spread is None else self.spread
        h = Activation(self.activation, name="activation")(h @ W * jnp.asarray(spread, x.dtype))
        readout = self.param("readout", nn.initializers.zeros, (self.width, self.outputs), x.dtype)
        return h @ readout * jnp.asarray(self.width**-0.5, x.dtype)


def random_features(
    outputs: int,
    width: Annotated[int, Ge(1)],
    activation: ActivationName = "relu",
    spread: Annotated[FiniteFloat, Gt(0)] | None = None,
) -> nn.Module:
    """Random features (Rahimi & Recht 2007): linear in what trains, the readout, which starts at 0.

    ``spread``: standard deviation of the first layer's weights (None: 1/√fan_in).
    """
    return RandomFeatures(width, outputs, activation, spread)
