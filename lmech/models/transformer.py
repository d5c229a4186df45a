"""Decoder-only transformers: language models."""

from typing import Annotated

import flax.linen as nn
import jax
from annotated_types import Ge

from lmech.models import attention
from lmech.models.attention import AttentionScale, Block, NormPosition, Style
from lmech.models.declared import Declared
from lmech.models.layers import (
    ActivationName,
    Dense,
    Embedding,
    Init,
    Norm,
    NormName,
    Positions,
    check_tokens,
    constant_one,
)


class TiedReadout(nn.Module):
    """h ↦ h Eᵀ · ``scale``, which is 1 and never trains.

    A multiplier of the shared E would scale the embedding too; one of ``scale`` the logits alone.
    """

    @nn.compact
    def __call__(self, h: jax.Array, table: jax.Array) -> jax.Array:
        """Logits [N, T, C] of h [N, T, width] and E [C, width]."""
        return constant_one(self, h.dtype) * (h @ table.T)


class Transformer(nn.Module):
    """Tokens [N, T] → logits [N, T, C] of the next one: embeddings, blocks, readout."""

    depth: int
    outputs: int
    tied: bool
    style: Style

    @property
    def declared(self) -> Declared:
        """Beside the blocks': a tied readout is a constant times a tensor of another role."""
        blocks, constant = attention.declared(self.style), ("readout/scale",) * self.tied
        return blocks._replace(outputs=constant, constants=(*blocks.constants, *constant))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [N, T, C]. Raises ValueError unless x is a set of sequences of tokens."""
        check_tokens(x, "transformer", "a dataset of text")
        style = self.style
        embedding = Embedding(self.outputs, style.width, style.weights, name="embedding")
        h = Positions(style.weights, name="position")(embedding(x))
        for block in range(1, self.depth + 1):
            h = Block(style, name=f"block_{block}")(h)
        if style.norm_position == "pre":
            h = Norm(style.norm, style.bias, name="norm")(h)
        if self.tied:
            return TiedReadout(name="readout")(h, embedding.table)
        return Dense(self.outputs, style.bias, style.weights, name="readout")(h)


def transformer(
    outputs: int,
    width: Annotated[int, Ge(1)],
    depth: Annotated[int, Ge(0)],
    head_width: Annotated[int, Ge(1)],
    mlp_ratio: Annotated[int, Ge(1)] = 4,
    qk_norm: bool = False,
    norm: NormName = "layer",
    norm_position: NormPosition = "pre",
    tied: bool = False,
    attention_scale: AttentionScale = "inverse_sqrt",
    activation: ActivationName = "gelu",
    bias: bool = True,
    init: Init = "gpt2",
) -> nn.Module:
    """Causal language model with learned positions; ``depth`` counts blocks of two branches each.

    The context length is the data's. ``width`` is a multiple of ``head_width``. With ``tied`` the
    readout is the embedding, without bias.
    """
    style = Style(
        width=width,
        head_width=head_width,
        mlp_ratio=mlp_ratio,
        causal=True,
        qk_norm=qk_norm,
        norm=norm,
        norm_position=norm_position,
        attention_scale=attention_scale,
        activation=activation,
        bias=bias,
        weights=init,
    )
    return Transformer(depth, outputs, tied, style)
