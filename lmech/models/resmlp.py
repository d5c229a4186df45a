"""Residual multilayer perceptrons."""

from typing import Annotated, Literal

import flax.linen as nn
import jax
from annotated_types import Ge

from lmech.models.declared import Declared
from lmech.models.layers import Activation, ActivationName, Dense, Init, Norm

ResidualNorm = Literal["none", "layer"]


class ResidualLayer(nn.Module):
    """h ↦ h + W φ(norm h); with two ``matrices`` h + W φ(W' norm h)."""

    matrices: int
    norm: ResidualNorm
    activation: ActivationName
    bias: bool
    weights: Init

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """[N, width] from h [N, width]."""
        branch = h
        if self.norm != "none":
            branch = Norm(self.norm, self.bias, name="norm")(branch)
        if self.matrices == 2:
            branch = Dense(h.shape[-1], self.bias, self.weights, name="hidden")(branch)
        branch = Activation(self.activation, name="activation")(branch)
        return h + Dense(h.shape[-1], self.bias, self.weights, name="out")(branch)


class ResMLP(nn.Module):
    """x [N, …] → outputs [N, C]: an embedding, residual blocks that are all alike, a readout."""

    width: int
    depth: int
    outputs: int
    matrices: int
    norm: ResidualNorm
    activation: ActivationName
    bias: bool
    weights: Init

    @property
    def declared(self) -> Declared:
        """The branches."""
        return Declared(branches=("block_*/*",), branch_ends=("block_*/out/*",))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs (logits) [N, C]."""
        shared = self.bias, self.weights
        h = Dense(self.width, *shared, name="embedding")(x.reshape(x.shape[0], -1))
        for block in range(1, self.depth + 1):
            h = ResidualLayer(
                self.matrices, self.norm, self.activation, *shared, name=f"block_{block}"
            )(h)
        if self.norm != "none":
            h = Norm(self.norm, self.bias, name="norm")(h)
        return Dense(self.outputs, *shared, name="readout")(h)


def resmlp(
    outputs: int,
    width: Annotated[int, Ge(1)],
    depth: Annotated[int, Ge(0)],
    matrices: Literal[1, 2] = 1,
    norm: ResidualNorm = "none",
    activation: ActivationName = "relu",
    bias: bool = True,
    init: Init = "uniform_fan_in",
) -> nn.Module:
    """Residual MLP, the net of depth transfer (Yang et al. 2023, Tensor Programs VI).

    ``depth`` counts residual blocks, each of one or two ``matrices`` [width, width]. ``norm`` is at
    the start of each branch and before the readout.
    """
    return ResMLP(width, depth, outputs, matrices, norm, activation, bias, init)
