"""Convolutional networks."""

from typing import Annotated

import flax.linen as nn
import jax
from annotated_types import Ge

from lmech.models.layers import (
    Activation,
    ActivationName,
    BatchNorm,
    Convolution,
    Dense,
    Init,
    Mean,
    check_images,
)


class CNN(nn.Module):
    """Images [N, H, W, C] → outputs: convolutions with 2×2 mean pooling, mean, readout."""

    widths: tuple[int, ...]
    outputs: int
    activation: ActivationName
    bias: bool
    weights: Init
    norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (logits) [N, outputs]. Raises ValueError unless x is a set of images."""
        check_images(x, "cnn")
        h = x
        for layer, width in enumerate(self.widths, start=1):
            h = Convolution(width, self.bias, self.weights, name=f"hidden_{layer}")(h)
            if self.norm_group is not None:
                h = BatchNorm(self.norm_group, name=f"norm_{layer}")(h)
            h = Activation(self.activation, name=f"activation_{layer}")(h)
            if min(h.shape[1:3]) >= 2:
                h = nn.avg_pool(h, (2, 2), strides=(2, 2))
        h = Mean(name="features")(h)
        return Dense(self.outputs, self.bias, self.weights, name="readout")(h)


def cnn(
    outputs: int,
    width: Annotated[int, Ge(1)],
    depth: Annotated[int, Ge(1)],
    activation: ActivationName = "relu",
    bias: bool = True,
    init: Init = "uniform_fan_in",
    norm_group: Annotated[int, Ge(2)] | None = None,
) -> nn.Module:
    """Convolutional net; ``depth`` counts convolutions, each ``width`` channels wide.

    ``norm_group``: batch norm before each activation, over groups of so many examples.
    """
    return CNN((width,) * depth, outputs, activation, bias, init, norm_group)
