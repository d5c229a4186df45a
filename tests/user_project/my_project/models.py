"""Models: factories of flax modules."""

from typing import Annotated

import flax.linen as nn
import jax
from annotated_types import Ge


class Gated(nn.Module):
    """x [N, …] → outputs [N, C]: a readout of (Wx) · σ(Vx)."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, C]."""
        x = x.reshape(x.shape[0], -1)
        gate = nn.sigmoid(nn.Dense(self.width, name="gate")(x))
        return nn.Dense(self.outputs, name="readout")(gate * nn.Dense(self.width, name="value")(x))


def gated(outputs: int, width: Annotated[int, Ge(1)] = 32) -> nn.Module:
    """One layer of gated linear units; lmech gives ``outputs``, what the data ask for."""
    return Gated(width, outputs)
