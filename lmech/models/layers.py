"""Layers that the models share, with the init stated by name."""

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from lmech.numerics.matmul import matmul

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "erf": jax.lax.erf,
    "linear": lambda x: x,
}
ActivationName = Literal["tanh", "relu", "gelu", "silu", "erf", "linear"]
Init = Literal["uniform_fan_in", "normal_fan_in", "gpt2"]
NormName = Literal["layer", "rms"]


class Activation(nn.Module):
    """The nonlinearity as a layer, so that what comes out of it is an activation by name."""

    kind: ActivationName

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """φ(x), entry by entry."""
        return ACTIVATIONS[self.kind](x)


def drawer(
    weights: Init, fan_in: int, dtype: Any, bias: bool = False
) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
    """``(key, shape) → array``: a kernel's or a bias's first value.

    ``uniform_fan_in``: both ~ U(±1/√fan_in), PyTorch's default. ``normal_fan_in``: kernels
    ~ N(0, 1/fan_in), biases 0. ``gpt2``: kernels ~ N(0, 0.02²), biases 0 (Radford et al. 2019).
    Raises ValueError for a dtype that weights cannot have: that of tokens.
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"this model takes real inputs, and the dataset's are tokens ({dtype}): choose a model "
            "of sequences"
        )
    # Typed: a Python float enters jax's generators as a float64.
    std = jnp.asarray(0.02 if weights == "gpt2" else fan_in**-0.5, dtype)

    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if weights == "uniform_fan_in":
            return jax.random.uniform(key, shape, dtype, -std, std)
        if bias:
            return jnp.zeros(shape, dtype)
        return std * jax.random.normal(key, shape, dtype)

    return draw


def along(vector: jax.Array, x: jax.Array) -> jax.Array:
    """The vector with axes of size 1 in front, as many as ``x`` has more: it broadcasts to x."""
    return vector[(None,) * (x.ndim - vector.ndim)]


def check_images(x: jax.Array, model: str) -> None:
    """Raise ValueError unless x is a set of images [N, H, W, C]."""
    if x.ndim != 4:
        tokens = jnp.issubdtype(x.dtype, jnp.integer)
        cure = "choose a model of sequences" if tokens else "set dataset.flatten=false"
        raise ValueError(
            f"a {model} takes images [N, H, W, C], and the inputs have shape {x.shape}: {cure}"
        )


def check_tokens(x: jax.Array, model: str, choice: str) -> None:
    """Raise ValueError, which names a ``choice``, unless x is a set of sequences of tokens."""
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"a {model} takes integer tokens [N, T], and the inputs are "
            f"{x.dtype} of shape {x.shape}: choose {choice}"
        )


class Dense(nn.Module):
    """x ↦ xW + b over the last axes of x, with the init stated by name (``drawer``).

    W has the shape of the ``contracted`` last axes of x (their product is the fan-in), then
    ``size``: one number of units, or the axes that they form. ``frozen``: W and b are parameters
    that never train, since they enter through a ``stop_gradient``.
    """

    size: int | tuple[int, ...]
    bias: bool
    weights: Init
    contracted: int = 1
    frozen: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Preactivations [N, …, *size]."""
        units = self.size if isinstance(self.size, tuple) else (self.size,)
        summed = x.shape[-self.contracted :]
        fan_in = math.prod(summed)
        used = lax.stop_gradient if self.frozen else lambda tensor: tensor
        draw = drawer(self.weights, fan_in, x.dtype)
        y = matmul(x, used(self.param("kernel", draw, (*summed, *units))), self.contracted)
        if not self.bias:
            return y
        draw = drawer(self.weights, fan_in, x.dtype, bias=True)
        return y + along(used(self.param("bias", draw, units)), y)


class Embedding(nn.Module):
    """Tokens (integers below ``size``) ↦ rows of ``table`` [size, width].

    A one-hot input's fan-in is 1, so ``normal_fan_in`` draws N(0, 1), ``uniform_fan_in`` U(±1) and
    ``gpt2`` N(0, 0.02²). Drawn in float32, whatever the precision.
    """

    size: int
    width: int
    weights: Init

    def setup(self) -> None:
        """The table is an attribute, for a readout that shares it."""
        draw = drawer(self.weights, 1, jnp.float32)
        self.table = self.param("table", draw, (self.size, self.width))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Vectors [N, …, width]; not a number for a token that is not below ``size``."""
        return jnp.take(self.table, tokens, axis=0)


class Positions(nn.Module):
    """h [N, T, width] ↦ h + a learned vector a position, drawn as ``Embedding`` draws its own."""

    weights: Init

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Vectors [N, T, width], with T as it was when the parameters were drawn."""
        return h + along(self.param("table", drawer(self.weights, 1, h.dtype), h.shape[1:]), h)


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
        if not self.bias:
            return y
        draw = drawer(self.weights, 9 * channels, x.dtype, bias=True)
        return y + along(self.param("bias", draw, (self.size,)), y)


class Norm(nn.Module):
    """Each example on its own: (x − mean) / √(variance + 10⁻⁵), then scale and shift.

    The statistics are over the last axis, or ``axes``; scale and shift have one entry an index of
    the last. ``rms``: x / √(mean of x² + 10⁻⁵), then scale (Zhang & Sennrich 2019).
    """

    kind: NormName
    bias: bool
    axes: tuple[int, ...] = (-1,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalised x, of its shape."""
        centred = x - x.mean(axis=self.axes, keepdims=True) if self.kind == "layer" else x
        square = jnp.square(centred).mean(axis=self.axes, keepdims=True)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], x.dtype)
        y = centred * lax.rsqrt(square + 1e-5) * along(scale, x)
        if self.kind == "rms" or not self.bias:
            return y
        return y + along(self.param("bias", nn.initializers.zeros, x.shape[-1:], x.dtype), x)


class Mean(nn.Module):
    """Each channel's mean over the positions, as a layer: the features that the readout sees."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [N, C] of [N, …, C]."""
        return x.mean(axis=tuple(range(1, x.ndim - 1)))


def constant_one(module: nn.Module, dtype: Any) -> jax.Array:
    """A parameter ``scale`` that is 1 and never trains, for a forward multiplier to act on."""
    return lax.stop_gradient(module.param("scale", nn.initializers.ones, (), dtype))


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
        scale = self.param("scale", nn.initializers.ones, (channels,), x.dtype)
        shift = self.param("bias", nn.initializers.zeros, (channels,), x.dtype)
        return normal * along(scale, x) + along(shift, x)
