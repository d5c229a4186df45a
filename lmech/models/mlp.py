"""Fully connected networks."""

from typing import Annotated

import flax.linen as nn
import jax
from annotated_types import Ge

from lmech.models.declared import Declared
from lmech.models.layers import (
    Activation,
    ActivationName,
    BatchNorm,
    Dense,
    Init,
    Norm,
    NormName,
)


class MLP(nn.Module):
    """x [N, …] → outputs [N, C]: a hidden layer for each of ``widths``, then a readout."""

    widths: tuple[int, ...]
    outputs: int
    activation: ActivationName
    bias: bool
    weights: Init
    norm_group: int | None = None
    frozen_readout: bool = False
    norm: NormName | None = None

    @property
    def declared(self) -> Declared:
        """A frozen readout is one all the same."""
        if not self.frozen_readout:
            return Declared()
        return Declared(outputs=("readout/kernel",), constants=("readout/*",))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (logits) [N, C]."""
        h = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.widths, start=1):
            h = Dense(width, self.bias, self.weights, name=f"hidden_{layer}")(h)
            if self.norm_group is not None:
                h = BatchNorm(self.norm_group, name=f"norm_{layer}")(h)
            if self.norm is not None:
                h = Norm(self.norm, self.bias, name=f"norm_{layer}")(h)
            h = Activation(self.activation, name=f"activation_{layer}")(h)
        readout = Dense(
            self.outputs, self.bias, self.weights, frozen=self.frozen_readout, name="readout"
        )
        return readout(h)


def mlp(
    outputs: int,
    width: Annotated[int, Ge(1)],
    depth: Annotated[int, Ge(0)],
    activation: ActivationName = "tanh",
    bias: bool = True,
    init: Init = "uniform_fan_in",
    norm_group: Annotated[int, Ge(2)] | None = None,
    frozen_readout: bool = False,
) -> nn.Module:
    """Fully connected net; ``depth`` counts hidden layers, so ``depth=0`` is a linear model.

    ``norm_group``: batch norm before each activation, over groups of so many examples.
    ``frozen_readout``: the readout stays as it was drawn.
    """
    return MLP((width,) * depth, outputs, activation, bias, init, norm_group, frozen_readout)


def normalized_mlp(
    outputs: int,
    width: Annotated[int, Ge(1)],
    depth: Annotated[int, Ge(0)],
    activation: ActivationName = "tanh",
    bias: bool = True,
    init: Init = "uniform_fan_in",
    norm: NormName = "layer",
) -> nn.Module:
    """``mlp`` with layer norm (Ba, Kiros & Hinton 2016) before each activation, or RMS norm."""
    return MLP((width,) * depth, outputs, activation, bias, init, norm=norm)
