"""The transformer of the grokking literature: one layer, read at the last position."""

from types import MappingProxyType
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge

from lmech.models.declared import Declared
from lmech.models.layers import Activation, ActivationName, check_tokens


class OneLayer(nn.Module):
    """Tokens [N, T] → logits [N, C] after the last; no norms, learned positions, untied."""

    width: int
    heads: int
    hidden: int
    outputs: int
    activation: ActivationName

    @property
    def declared(self) -> Declared:
        """The attention's kernels have three axes, [width, heads, head] or [heads, head, width]."""
        reads = ("query", "key", "value")
        return Declared(
            fan_in=MappingProxyType({"out": (0, 1), **dict.fromkeys(reads, (0,))}),
            attention=("query",),
        )

    def _drawn(self, name: str, *shape: int, std: float | None = None) -> jax.Array:
        """A tensor ~ N(0, 1/width), or of that standard deviation."""
        std = self.width**-0.5 if std is None else std

        def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jnp.asarray(std, jnp.float32) * jax.random.normal(key, shape, jnp.float32)

        drawn: jax.Array = self.param(name, draw, shape)
        return drawn

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [N, C]. Raises ValueError unless x is a set of sequences of tokens."""
        choice = "dataset=modular with encoding=tokens"
        check_tokens(x, "one-layer transformer", choice)
        width, head = self.width, self.width // self.heads
        embedding = self._drawn("embedding", self.outputs + 1, width)
        position = self._drawn("position", x.shape[1], width)
        kernels = {
            name: self._drawn(name, width, self.heads, head) for name in ("query", "key", "value")
        }
        # What a token brings depends on it and its position alone: computed once for each of
        # them [T, V, …], not for each example.
        h = embedding[None] + position[:, None]
        places = jnp.arange(x.shape[1])
        k, v = (
            jnp.tensordot(h, kernels[name], 1)[places[None], x] for name in ("key", "value")
        )  # [N, T, heads, head]
        last = h[-1][x[:, -1]]
        q = jnp.tensordot(h[-1], kernels["query"], 1)[x[:, -1]] * head**-0.5
        weights = jax.nn.softmax(jnp.einsum("nhd,nthd->nht", q, k), axis=-1)
        read = jnp.einsum("nht,nthd->nhd", weights, v)
        last = last + jnp.tensordot(read, self._drawn("out", self.heads, head, width), 2)
        last = last + self._perceptron(last)
        return last @ self._drawn("readout", width, self.outputs, std=self.outputs**-0.5)

    def _perceptron(self, h: jax.Array) -> jax.Array:
        inside = h @ self._drawn("mlp_in", self.width, self.hidden)
        inside = inside + self._zeros("mlp_in_bias", self.hidden)[None]
        inside = Activation(self.activation, name="activation")(inside)
        out = inside @ self._drawn("mlp_out", self.hidden, self.width)
        return out + self._zeros("mlp_out_bias", self.width)[None]

    def _zeros(self, name: str, size: int) -> jax.Array:
        def zeros(_: jax.Array, size: int) -> Any:
            return jnp.zeros(size, jnp.float32)

        drawn: jax.Array = self.param(name, zeros, size)
        return drawn


def one_layer_transformer(
    outputs: int,
    width: Annotated[int, Ge(1)] = 128,
    heads: Annotated[int, Ge(1)] = 4,
    mlp_ratio: Annotated[int, Ge(1)] = 4,
    activation: ActivationName = "relu",
) -> nn.Module:
    """The model of Nanda et al. 2023 ("Progress measures for grokking"), after Power et al. 2022.

    All tensors start at N(0, 1/width), the readout at N(0, 1/C), biases at 0; attention and readout
    have none. Only what the logits at the last position need is computed. Raises ValueError for
    heads that do not share the width.
    """
    if width % heads:
        raise ValueError(f"model.width={width} is no multiple of model.heads={heads}")
    return OneLayer(width, heads, mlp_ratio * width, outputs, activation)
