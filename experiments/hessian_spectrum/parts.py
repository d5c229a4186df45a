"""The two nets, and the curvature that is made of nothing but class means.

Apart from the measurements, since a job's identity has this file's text in it.
"""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge

from lmech.models.layers import drawer
from lmech.models.mlp import mlp
from lmech.numerics import lapack
from lmech.observables import Observable, State, Values, memoryless
from lmech.observables.outliers import class_means

KERNEL = 3


class LinearCNN(nn.Module):
    """x [N, d] → [N, C]: two valid convolutions, 1 → m → m channels, and a readout; no biases.

    Kernels of three entries, so d − 2 and then d − 4 positions; every channel at every position
    has a readout weight of its own. P = 3m² + (3 + (d − 4)C)m weights.
    """

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, C]."""
        h = x[..., None]
        for layer in (1, 2):
            into = h.shape[-1]
            draw = drawer("normal_fan_in", KERNEL * into, x.dtype)
            kernel = self.param(f"convolution_{layer}", draw, (KERNEL, into, self.width))
            after = h.shape[1] - KERNEL + 1
            shifted = (h[:, j : j + after] @ kernel[j] for j in range(1, KERNEL))
            h = sum(shifted, start=h[:, :after] @ kernel[0])
        positions = h.shape[1]
        draw = drawer("normal_fan_in", positions * self.width, x.dtype)
        return jnp.tensordot(h, self.param("readout", draw, (positions, self.width, self.outputs)))


def net(
    outputs: int, width: Annotated[int, Ge(1)], kind: Literal["mlp", "linear_cnn"] = "mlp"
) -> nn.Module:
    """A tanh net of one hidden layer with biases, or a linear convolutional net."""
    if kind == "mlp":
        return mlp(outputs, width, depth=1, activation="tanh")
    return LinearCNN(width, outputs)


def class_curvature() -> Observable:
    """Eigenvalues ↓ of the Gauss–Newton matrix of the class means alone, ``eigenvalues`` [C²].

    G = (1/n) Σᵢ JᵢᵀAᵢJᵢ with Aᵢ = ∂²ℓᵢ/∂f² becomes Σ_k (n_k/n) J̄_kᵀ Ā_k J̄_k when Jᵢ and Aᵢ are
    replaced by their means over the class k of i: what Papyan (2020) finds the outliers to be
    made of. The own column is the largest.
    """

    def measure(state: State) -> Values:
        train = state.data.train
        jacobians = class_means(state, None)
        classes = round(len(jacobians) ** 0.5)
        jacobians = jacobians.reshape(classes, classes, -1)

        def curvature(f: jax.Array, y: jax.Array) -> jax.Array:
            return jax.hessian(lambda f: state.problem.loss(f[None], y[None])[0])(f)

        each = jax.vmap(curvature)(state.problem.apply(state.params, train.x), train.y)
        members = jax.nn.one_hot(train.y, classes, dtype=each.dtype)
        sums = jnp.tensordot(members.T, each, 1) / len(train.y)  # (n_k/n) Ā_k
        sizes, rotations = lapack.eigh(sums)
        roots = jnp.sqrt(jnp.maximum(sizes, 0))[:, :, None] * jnp.swapaxes(rotations, 1, 2)
        rows = (roots @ jacobians).reshape(classes**2, -1)
        values = lapack.eigvalsh(rows @ rows.T)[::-1]
        return {"": values[0], "eigenvalues": values}

    return memoryless(measure)
