"""Layers that the models share, with the init stated by name."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "erf": jax.lax.erf,
    "linear": lambda x: x,
}
ActivationName = Literal["tanh", "relu", "gelu", "silu", "erf", "linear"]
Init = Literal["uniform_fan_in", "normal_fan_in"]


class Activation(nn.Module):
    """The nonlinearity as a layer, so that what comes out of it is an activation by name."""

    kind: ActivationName

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """φ(x), entry by entry."""
        return ACTIVATIONS[self.kind](x)


def drawer(weights: Init, fan_in: int, dtype: Any) -> Callable[..., jax.Array]:
    """``(key, shape) → array``: a kernel's or a bias's first value.

    Raises ValueError for a dtype that weights cannot have: that of tokens.
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"this model takes real inputs, and the dataset's are tokens ({dtype}): choose a model "
            "of sequences"
        )
    # Typed: a Python float enters jax's generators as a float64.
    std = jnp.asarray(fan_in**-0.5, dtype)

    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if weights == "uniform_fan_in":
            return jax.random.uniform(key, shape, dtype, -std, std)
        if len(shape) == 1:
            return jnp.zeros(shape, dtype)
        return std * jax.random.normal(key, shape, dtype)

    return draw


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
        draw = drawer(self.weights, x.shape[-1], x.dtype)
        y = x @ self.param("kernel", draw, (x.shape[-1], self.size))
        return y + self.param("bias", draw, (self.size,))[None] if self.bias else y


class Convolution(nn.Module):
    """x [N, H, W, C] ↦ x ∗ W + b [N, H, W, size], 3×3, zero padding; fan_in = 9C."""

    size: int
    bias: bool
    weights: Init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Preactivations [N, H, W, size]."""
        channels = x.shape[-1]
        draw = drawer(self.weights, 9 * channels, x.dtype)
        kernel = self.param("kernel", draw, (3, 3, channels, self.size))
        y = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + self.param("bias", draw, (self.size,))[None, None, None] if self.bias else y


class BatchNorm(nn.Module):
    """(x − mean) / √(variance + 10⁻⁵) over groups of ``group`` examples, then scale and shift.

    The statistics are those of consecutive groups of the examples given ("ghost" batches), at test
    time too: there is no running average, so the loss is a function of the parameters. Examples of
    a group interact; the group is part of the problem, and microbatches must be multiples of it.

    Raises ValueError if the number of examples is no multiple of ``group``.
    """

    group: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised x [N, …, channels]."""
        channels, n = x.shape[-1], x.shape[0]
        group = n if self.is_initializing() else self.group
        if n % group:
            raise ValueError(
                f"batch norm works on groups of {group} examples and was given {n}: make the "
                f"number of examples, batch_size and microbatch multiples of {group}"
            )
        groups = x.reshape(n // group, -1, channels)
        mean = groups.mean(axis=1, keepdims=True)
        variance = jnp.square(groups - mean).mean(axis=1, keepdims=True)
        normal = ((groups - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        shape = (1,) * (x.ndim - 1) + (channels,)
        scale = self.param("scale", nn.initializers.ones, (channels,), x.dtype)
        shift = self.param("bias", nn.initializers.zeros, (channels,), x.dtype)
        return normal * scale.reshape(shape) + shift.reshape(shape)
