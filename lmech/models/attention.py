"""The residual blocks of transformers: attention, then a perceptron, position by position."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmech.models.declared import Declared
from lmech.models.layers import (
    Activation,
    ActivationName,
    Dense,
    Init,
    Norm,
    NormName,
    constant_one,
)

AttentionScale = Literal["inverse_sqrt", "inverse"]
NormPosition = Literal["pre", "post"]

POWERS: dict[AttentionScale, float] = {"inverse_sqrt": -0.5, "inverse": -1.0}


@dataclass(frozen=True)
class Style:
    """What all blocks of a net have in common."""

    width: int
    head_width: int
    mlp_ratio: int
    causal: bool
    qk_norm: bool
    norm: NormName
    norm_position: NormPosition
    attention_scale: AttentionScale
    activation: ActivationName
    bias: bool
    weights: Init

    @property
    def heads(self) -> int:
        """Number of attention heads. Raises ValueError if they do not share the width."""
        if self.width % self.head_width:
            raise ValueError(
                f"model.width={self.width} is no multiple of model.head_width={self.head_width}: "
                "the heads share the width"
            )
        return self.width // self.head_width


def mask(logits: jax.Array, causal: bool, other: float) -> jax.Array:
    """Logits [N, heads, T, S], with ``other`` where S is later than T if ``causal``."""
    if not causal:
        return logits
    seen = jnp.tril(jnp.ones((1, 1, *logits.shape[2:]), bool))
    return jnp.where(seen, logits, jnp.asarray(other, logits.dtype))


class AttentionLogits(nn.Module):
    """c · q·k, with c = 1/√d or 1/d for heads of width d; 0 where a later position is masked.

    With ``constant`` also times a ``scale`` that is 1 and never trains: normalised queries absorb
    any multiplier of their kernel, so one that is to scale the logits acts on this.
    """

    style: Style

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """Logits [N, heads, T, S] of queries and keys [N, T, heads, d]."""
        style = self.style
        q = q * style.head_width ** POWERS[style.attention_scale]
        if style.qk_norm:
            q = q * constant_one(self, q.dtype)
        return mask(jnp.einsum("nthd,nshd->nhts", q, k), style.causal, 0)


class AttentionWeights(nn.Module):
    """Softmax over the positions that are not masked."""

    causal: bool

    @nn.compact
    def __call__(self, logits: jax.Array) -> jax.Array:
        """Weights [N, heads, T, S], that sum to 1 over S."""
        return jax.nn.softmax(
            mask(logits, self.causal, float(jnp.finfo(logits.dtype).min)), axis=-1
        )


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017).

    The key has no bias: it would add the same number to all logits of a query.
    Kernels: query, key and value [width, heads, d], out [heads, d, width]. With qk-norm
    each head's queries and keys are normalised, with gains [d] that all heads share (Dehghani et
    al. 2023).
    """

    style: Style

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """What the heads read, [N, T, width], from h [N, T, width]."""
        style = self.style
        shape = style.heads, style.head_width
        q, k, v = (
            Dense(shape, style.bias and name != "key", style.weights, name=name)(h)
            for name in ("query", "key", "value")
        )
        if style.qk_norm:
            q = Norm(style.norm, bias=False, name="query_norm")(q)
            k = Norm(style.norm, bias=False, name="key_norm")(k)
        logits = AttentionLogits(style, name="logits")(q, k)
        weights = AttentionWeights(style.causal, name="weights")(logits)
        read = jnp.einsum("nhts,nshd->nthd", weights, v)
        return Dense(style.width, style.bias, style.weights, contracted=2, name="out")(read)


class Perceptron(nn.Module):
    """One hidden layer of mlp_ratio · width units, at each position."""

    style: Style

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """[N, T, width] from h [N, T, width]."""
        style = self.style
        hidden = style.mlp_ratio * style.width
        h = Dense(hidden, style.bias, style.weights, name="hidden")(h)
        h = Activation(style.activation, name="activation")(h)
        return Dense(style.width, style.bias, style.weights, name="out")(h)


class Block(nn.Module):
    """h ↦ h + f(norm h) (``pre``) or norm(h + f(h)) (``post``), f attention, then perceptron."""

    style: Style

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """[N, T, width] from h [N, T, width]."""
        style = self.style
        branches = Attention(style, name="attention"), Perceptron(style, name="mlp")
        for branch in branches:
            norm = Norm(style.norm, style.bias, name=f"{branch.name}_norm")
            h = h + branch(norm(h)) if style.norm_position == "pre" else norm(h + branch(h))
        return h


def declared(style: Style) -> Declared:
    """What shapes cannot tell of ``block_*``; the α of depth scaling counts blocks."""
    fan_in: dict[str, tuple[int, ...]] = {"block_*/attention/out/kernel": (0, 1)}
    for name in ("query", "key", "value"):
        fan_in[f"block_*/attention/{name}/kernel"] = (0,)
        if style.bias and name != "key":
            fan_in[f"block_*/attention/{name}/bias"] = ()
    scales = ("block_*/attention/logits/scale",)
    branch = ("attention/*", "mlp/*", *(("*_norm/*",) if style.norm_position == "pre" else ()))
    return Declared(
        fan_in=MappingProxyType(fan_in),
        branches=tuple(f"block_*/{pattern}" for pattern in branch),
        branch_ends=("block_*/attention/out/*", "block_*/mlp/out/*"),
        attention=scales if style.qk_norm else ("block_*/attention/query/*",),
        constants=scales if style.qk_norm else (),
    )
