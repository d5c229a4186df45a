"""Models that are quadratic in their parameters."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge
from jax import lax
from pydantic import FiniteFloat

from lmech.models.declared import Declared


class Quadratic(nn.Module):
    """f_c(x; θ) = Σ_k x_k (G_kc·θ + ½ θᵀQ_kcθ), where only θ [P] trains.

    θ starts at 0. G ~ N(0, 1/P). Q is ``curvature`` times a symmetric Gaussian matrix of variance
    1/P off the diagonal and 2/P on it, whose eigenvalues fill [−2, 2] as P grows; or times
    diag(``eigenvalues``), the same for every k and c.
    """

    width: int
    outputs: int
    curvature: float
    eigenvalues: tuple[float, ...] | None

    @property
    def declared(self) -> Declared:
        """G and Q are the model's, not its parameters'."""
        return Declared(constants=("linear", "quadratic"))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, C] of x [N, …]. Raises ValueError unless each of θ has an eigenvalue."""
        if self.eigenvalues is not None and len(self.eigenvalues) != self.width:
            raise ValueError(
                f"model.width={self.width} parameters, and model.eigenvalues has "
                f"{len(self.eigenvalues)}: give one for each parameter"
            )
        x = x.reshape(x.shape[0], -1)
        shape = x.shape[1], self.outputs, self.width
        theta = self.param("parameters", nn.initializers.zeros, (self.width,), x.dtype)
        G = lax.stop_gradient(self.param("linear", self._linear, shape, x.dtype))  # noqa: N806
        Q = lax.stop_gradient(  # noqa: N806
            self.param("quadratic", self._quadratic, (*shape, self.width), x.dtype)
        )
        return x @ (G @ theta + (Q @ theta) @ theta / 2)

    def _linear(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        std = jnp.asarray(self.width**-0.5, dtype)
        return std * jax.random.normal(key, shape, dtype)

    def _quadratic(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        if self.eigenvalues is not None:
            diagonal = jnp.diag(jnp.asarray(self.eigenvalues, dtype) * self.curvature)
            return jnp.broadcast_to(diagonal, shape)
        draws = jax.random.normal(key, shape, dtype)
        std = jnp.asarray(self.curvature * (2 * self.width) ** -0.5, dtype)
        return std * (draws + draws.swapaxes(-1, -2))


def quadratic(
    outputs: int,
    width: Annotated[int, Ge(1)],
    curvature: FiniteFloat = 1.0,
    eigenvalues: list[FiniteFloat] | None = None,
) -> nn.Module:
    """Second-order regression (Agarwala, Pedregosa & Pennington 2022); ``width`` parameters.

    The simplest model that sharpens to the edge of stability; at ``curvature`` 0 it is linear, and
    its tangent kernel does not move. With one-hot inputs each example has a G and a Q of its own;
    with one constant input, ``eigenvalues=[1,-0.1]`` gives two parameters and one output. The
    outputs start at 0, so residuals start at −y.
    """
    spectrum = None if eigenvalues is None else tuple(eigenvalues)
    return Quadratic(width, outputs, curvature, spectrum)
