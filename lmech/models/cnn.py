"""Convolutional networks."""

from typing import Annotated

import flax.linen as nn
import jax
from annotated_types import Ge

from lmech.models.layers import Activation, ActivationName, BatchNorm, Convolution, Dense, Init


class SpatialMean(nn.Module):
    """Each channel's mean over the positions, as a layer: the features that the readout sees."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [N, C] of [N, H, W, C]."""
        return x.mean(axis=(1, 2))


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
        if x.ndim != 4:
            raise ValueError(
                f"a cnn takes images [N, H, W, C], and the inputs have shape {x.shape}: "
                "set dataset.flatten=false"
            )
        h = x
        for layer, width in enumerate(self.widths, start=1):
            h = Convolution(width, self.bias, self.weights, name=f"hidden_{layer}")(h)
            if self.norm_group is not None:
                h = BatchNorm(self.norm_group, name=f"norm_{layer}")(h)
            h = Activation(self.activation, name=f"activation_{layer}")(h)
            if min(h.shape[1:3]) >= 2:
                h = nn.avg_pool(h, (2, 2), strides=(2, 2))
        h = SpatialMean(name="features")(h)
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
