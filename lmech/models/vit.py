"""Vision transformers."""

from typing import Annotated

import flax.linen as nn
import jax
from annotated_types import Ge

from lmech.models import attention
from lmech.models.attention import AttentionScale, Block, Style
from lmech.models.declared import Declared
from lmech.models.layers import (
    ActivationName,
    Dense,
    Init,
    Mean,
    Norm,
    NormName,
    Positions,
    check_images,
)


def patches(x: jax.Array, size: int) -> jax.Array:
    """Images [N, H, W, C] cut into squares, row by row: [N, HW/size², size²C].

    Raises ValueError if they do not fill the image.
    """
    n, height, width, channels = x.shape
    if height % size or width % size:
        raise ValueError(
            f"images of {height} × {width} are not cut into patches of model.patch={size}: "
            "choose a divisor of both"
        )
    rows, columns = height // size, width // size
    cut = x.reshape(n, rows, size, columns, size, channels).swapaxes(2, 3)
    return cut.reshape(n, rows * columns, size * size * channels)


class ViT(nn.Module):
    """Images [N, H, W, C] → outputs: patches, pre-norm blocks, mean over the patches, readout."""

    depth: int
    outputs: int
    patch: int
    style: Style

    @property
    def declared(self) -> Declared:
        """That of the blocks."""
        return attention.declared(self.style)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (logits) [N, outputs]. Raises ValueError for what is no set of such images."""
        check_images(x, "vit")
        style = self.style
        h = Dense(style.width, style.bias, style.weights, name="embedding")(patches(x, self.patch))
        h = Positions(style.weights, name="position")(h)
        for block in range(1, self.depth + 1):
            h = Block(style, name=f"block_{block}")(h)
        h = Mean(name="features")(Norm(style.norm, style.bias, name="norm")(h))
        return Dense(self.outputs, style.bias, style.weights, name="readout")(h)


def vit(
    outputs: int,
    width: Annotated[int, Ge(1)],
    depth: Annotated[int, Ge(0)],
    head_width: Annotated[int, Ge(1)],
    patch: Annotated[int, Ge(1)],
    mlp_ratio: Annotated[int, Ge(1)] = 4,
    qk_norm: bool = False,
    norm: NormName = "layer",
    attention_scale: AttentionScale = "inverse_sqrt",
    activation: ActivationName = "gelu",
    bias: bool = True,
    init: Init = "uniform_fan_in",
) -> nn.Module:
    """Vision transformer (Dosovitskiy et al. 2021) with mean pooling and learned positions.

    ``depth`` counts blocks of two branches each; ``width`` is a multiple of ``head_width``.
    """
    style = Style(
        width=width,
        head_width=head_width,
        mlp_ratio=mlp_ratio,
        causal=False,
        qk_norm=qk_norm,
        norm=norm,
        norm_position="pre",
        attention_scale=attention_scale,
        activation=activation,
        bias=bias,
        weights=init,
    )
    return ViT(depth, outputs, patch, style)
