"""Residual convolutional networks."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
from annotated_types import Ge

from lmech.models.declared import Declared
from lmech.models.layers import (
    Activation,
    ActivationName,
    BatchNorm,
    Convolution,
    Dense,
    Init,
    Mean,
    Norm,
    check_images,
)

ImageNorm = Literal["none", "batch", "layer"]


def normalised(h: jax.Array, norm: ImageNorm, group: int | None, name: str) -> jax.Array:
    """The channels of [N, H, W, C] normalised over ``group`` examples, or each one's entries."""
    if norm == "layer":
        return Norm("layer", bias=True, axes=(1, 2, 3), name=name)(h)
    return h if group is None else BatchNorm(group, name=name)(h)


class ResidualBlock(nn.Module):
    """h ↦ h + (norm, activation, convolution, twice) h: pre-activation (He et al. 2016)."""

    activation: ActivationName
    norm: ImageNorm
    norm_group: int | None
    bias: bool
    weights: Init

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """[N, H, W, C] from h [N, H, W, C]."""
        branch = h
        for part in (1, 2):
            branch = normalised(branch, self.norm, self.norm_group, f"norm_{part}")
            branch = Activation(self.activation, name=f"activation_{part}")(branch)
            convolution = f"convolution_{part}"
            branch = Convolution(h.shape[-1], self.bias, self.weights, name=convolution)(branch)
        return h + branch


class ResNet(nn.Module):
    """Images [N, H, W, C] → outputs: stages of residual blocks, mean over positions, readout.

    A stage starts with a convolution that is on no branch, after 2×2 mean pooling from the second
    on, with twice the channels. The blocks are shared out evenly, the first stages having one more.
    """

    width: int
    depth: int
    stages: int
    outputs: int
    activation: ActivationName
    norm: ImageNorm
    norm_group: int | None
    bias: bool
    weights: Init

    @property
    def declared(self) -> Declared:
        """The branches."""
        return Declared(branches=("block_*/*",), branch_ends=("block_*/convolution_2/*",))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (logits) [N, outputs]. Raises ValueError unless x is a set of images."""
        check_images(x, "resnet")
        if (self.norm == "batch") != (self.norm_group is not None):
            raise ValueError(
                "model.norm=batch and model.norm_group=<examples a group> belong together: set "
                "both or neither"
            )
        h, block = x, 0
        for stage in range(self.stages):
            if stage and min(h.shape[1:3]) >= 2:
                h = nn.avg_pool(h, (2, 2), strides=(2, 2))
            channels = self.width * 2**stage
            h = Convolution(channels, self.bias, self.weights, name=f"stage_{stage + 1}")(h)
            for _ in range(self.depth // self.stages + (stage < self.depth % self.stages)):
                block += 1
                h = ResidualBlock(
                    self.activation,
                    self.norm,
                    self.norm_group,
                    self.bias,
                    self.weights,
                    name=f"block_{block}",
                )(h)
        h = normalised(h, self.norm, self.norm_group, "norm")
        h = Mean(name="features")(Activation(self.activation, name="activation")(h))
        return Dense(self.outputs, self.bias, self.weights, name="readout")(h)


def resnet(
    outputs: int,
    width: Annotated[int, Ge(1)],
    depth: Annotated[int, Ge(0)],
    stages: Annotated[int, Ge(1)] = 3,
    activation: ActivationName = "relu",
    norm: ImageNorm = "none",
    norm_group: Annotated[int, Ge(2)] | None = None,
    bias: bool = True,
    init: Init = "uniform_fan_in",
) -> nn.Module:
    """Pre-activation ResNet; ``depth`` counts residual blocks of two convolutions.

    ``width`` is the first stage's channels. ``norm``: ``batch`` over groups of ``norm_group``
    examples, ``layer`` over all positions and channels of an example.
    """
    return ResNet(width, depth, stages, outputs, activation, norm, norm_group, bias, init)
