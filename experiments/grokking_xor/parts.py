"""The net of Xu et al. 2024 and what is watched of its neurons.

They are apart from the measurements, since a job's identity has this file's text in it.
"""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jax import lax
from pydantic import FiniteFloat

from lmech.models.declared import Declared
from lmech.models.layers import Activation, ActivationName
from lmech.observables import Observable, State, Values, memoryless


class Net(nn.Module):
    """x [N, p] → (−f/2, f/2), f(x) = Σ_j a_j φ(w_j·x), a_j = ±1/√m drawn and frozen.

    The cross-entropy of these two outputs is the logistic loss log(1 + exp(∓f)). Without a
    nonlinearity f is (Σ_j a_j w_j)·x and, as Σ a_j² = 1, trains as logistic regression at the same
    learning rate, whatever the width.
    """

    width: int
    spread: float
    activation: ActivationName

    @property
    def declared(self) -> Declared:
        """The readout is a vector."""
        return Declared(outputs=("readout",), constants=("readout",))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, 2]."""

        def small(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jnp.asarray(self.spread, x.dtype) * jax.random.normal(key, shape, x.dtype)

        def signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.rademacher(key, shape, x.dtype) * jnp.asarray(
                self.width**-0.5, x.dtype
            )

        h = x @ self.param("hidden", small, (x.shape[1], self.width))
        h = Activation(self.activation, name="activation")(h)
        f = h @ lax.stop_gradient(self.param("readout", signs, (self.width,)))
        return jnp.stack([-f / 2, f / 2], axis=1)


def net(
    outputs: int,
    width: Annotated[int, Ge(1)] = 500,
    spread: Annotated[FiniteFloat, Gt(0)] = 1e-5,
    activation: ActivationName = "relu",
) -> nn.Module:
    """The two-layer net; ``spread`` is the standard deviation of w_j's entries at the start.

    Raises ValueError for other than two classes.
    """
    if outputs != 2:
        raise ValueError(f"this net tells two classes apart, and the dataset has {outputs}")
    return Net(width, spread, activation)


def neurons() -> Observable:
    """Where the neurons point: ``along`` [m, 2], the cosines of w_j with μ₁ and μ₂.

    ``votes`` [m] are the labels that they vote for, 1 for a_j > 0 and 0 for a_j < 0. The column
    itself is the share of neurons with the larger absolute cosine along the cluster axis of that
    class, μ₂ for label 1 and μ₁ for label 0.
    """

    def measure(state: State) -> Values:
        params: Any = state.params
        w, a = params["hidden"], params["readout"]
        along = (w[:2] / jnp.linalg.norm(w, axis=0, keepdims=True)).T
        votes, axis = (a > 0).astype(w.dtype), jnp.argmax(jnp.abs(along), axis=1)
        own = (axis == votes).astype(w.dtype)
        return {"": own.mean(), "along": along, "votes": votes}

    return memoryless(measure)
