"""Fully connected networks."""

from collections.abc import Callable
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "erf": jax.lax.erf,
    "linear": lambda x: x,
}
Activation = Literal["tanh", "relu", "gelu", "silu", "erf", "linear"]
Init = Literal["uniform_fan_in", "normal_fan_in"]


class Dense(nn.Module):
    """x ↦ xW + b, W [fan_in, size], with the init stated by name.

    ``uniform_fan_in``: W and b ~ U(±1/√fan_in), PyTorch's default. ``normal_fan_in``:
    W ~ N(0, 1/fan_in), b = 0.
    """

    size: int
    bias: bool
    weights: Init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Preactivations [N, size]."""
        uniform = self.weights == "uniform_fan_in"
        std = x.shape[-1] ** -0.5

        def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            if uniform:
                return jax.random.uniform(key, shape, x.dtype, -std, std)
            if len(shape) == 1:
                return jnp.zeros(shape, x.dtype)
            return std * jax.random.normal(key, shape, x.dtype)

        y = x @ self.param("kernel", draw, (x.shape[-1], self.size))
        return y + self.param("bias", draw, (self.size,))[None] if self.bias else y


class MLP(nn.Module):
    """x [N, …] → outputs [N, C]: a hidden layer for each of ``widths``, then a readout."""

    widths: tuple[int, ...]
    outputs: int
    activation: Activation
    bias: bool
    weights: Init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (logits) [N, C]."""
        h = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.widths, start=1):
            h = Dense(width, self.bias, self.weights, name=f"hidden_{layer}")(h)
            h = ACTIVATIONS[self.activation](h)
        return Dense(self.outputs, self.bias, self.weights, name="readout")(h)


def mlp(
    outputs: int,
    width: Annotated[int, Ge(1)],
    depth: Annotated[int, Ge(0)],
    activation: Activation = "tanh",
    bias: bool = True,
    init: Init = "uniform_fan_in",
) -> nn.Module:
    """Fully connected net; ``depth`` counts hidden layers, so ``depth=0`` is a linear model."""
    return MLP((width,) * depth, outputs, activation, bias, init)
