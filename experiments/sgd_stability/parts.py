"""The models and data of the runs, and what their stability is made of.

They are apart from the measurements, since a job's identity has this file's text in it.
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Lt
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size
from lmech.numerics import curvature, kernels, lapack
from lmech.observables import (
    Observable,
    State,
    Values,
    available,
    matrices,
    memoryless,
    training_examples,
)

from .geometry import gram

Positive = Annotated[FiniteFloat, Gt(0)]


def sparse_regression(
    train_size: Size = 2000,
    dimension: Size = 100,
    nonzeros: Size = 5,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """Y = Σ_{k ≤ s} x_k [N, 1], x ~ N(0, I) [N, D], without noise.

    Which coordinates, and their signs, are of no consequence to a model that knows no order of
    them. The test inputs are √D e_k, k = 1 … D, so that the mean squared error there of a function
    β·x is Σ (β_k − β*_k)²: that over the inputs' distribution, exactly.
    """
    x = np.random.Generator(np.random.Philox(data_seed)).standard_normal((train_size, dimension))
    teacher = (np.arange(dimension) < nonzeros).astype(float)[:, None]
    axes = np.sqrt(dimension) * np.eye(dimension)
    return Data(Examples(x, x @ teacher), Examples(axes, axes @ teacher))


class Diagonal(nn.Module):
    """f(x) = Σ_k u_k v_k x_k, x [N, D] → [N, 1]; u = ``start``, v ~ N(0, ``spread``²)."""

    start: float
    spread: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, 1]."""

        def small(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jnp.asarray(self.spread, x.dtype) * jax.random.normal(key, shape, x.dtype)

        shape = (x.shape[1],)
        u = self.param("u", lambda _: jnp.full(shape, self.start, x.dtype))
        return x @ (u * self.param("v", small, shape))[:, None]


def diagonal(start: Positive = 0.5, spread: Positive = 1e-3) -> nn.Module:
    """The diagonal linear net."""
    return Diagonal(start, spread)


def stability() -> Observable:
    """What decides how stable a minimum is, at all n examples that count.

    ``gram`` [n²]: K_ij = g_i·g_j, row by row, g_i the gradient of the one output at example i.
    ``eigenvalues`` [P] of the Hessian of the mean loss, all of them. Where all examples are fitted,
    for half the squared errors, K/n has those that are not 0.
    """

    def measure(state: State) -> Values:
        w, apply = matrices.flat(state.params), state.problem.apply
        x = training_examples(state, available(state)).x
        hessian = curvature.dense(matrices.operator(state), w.size, w.dtype)
        gram = kernels.empirical_ntk(apply, state.params, x, "full")
        return {"gram": gram.reshape(-1), "eigenvalues": lapack.eigvalsh(hessian)}

    return memoryless(measure)


def alike(
    examples: Size = 8,
    cosine: Annotated[FiniteFloat, Ge(0), Lt(1)] = 0.5,
    spread: Annotated[FiniteFloat, Ge(0), Lt(1)] = 0.0,
    copies: Size = 1024,
) -> Data:
    """Inputs [N, n] of that Gram matrix (``gram``) in n dimensions, targets 0 [N, 1].

    Each is there ``copies`` times, one after the other, which changes no mean over them.
    """
    values, vectors = np.linalg.eigh(gram(examples, cosine, spread))
    root = vectors * np.sqrt(values) @ vectors.T
    split = Examples(np.tile(root, (copies, 1)), np.zeros((copies * examples, 1)))
    return Data(split, split)


class Replicas(nn.Module):
    """Linear models w_r [R, D], each with its own part of a batch: x [R·B, D] → √R w_r·x [R·B, 1].

    Example i goes to replica ⌊i / B⌋. A batch's loss is a mean over all R·B, and √R gives each
    replica the gradient of the mean over its own B: R independent runs of SGD with batches of B on
    targets 0. w ~ N(0, I/D), so E wwᵀ = I/D.
    """

    replicas: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [R·B, 1]. Raises ValueError unless R divides the examples."""
        rows, dimension = x.shape
        shape = (self.replicas, dimension)

        def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.normal(key, shape, x.dtype) * jnp.asarray(dimension**-0.5, x.dtype)

        w = self.param("w", normal, shape)
        if rows == 1:  # flax looks at the shape of one example
            return x @ w[:1].T
        if rows % self.replicas:
            raise ValueError(f"{rows} examples cannot be shared out to {self.replicas} replicas")
        own = x.reshape(self.replicas, -1, dimension)
        f = jnp.einsum("rbd,rd->rb", own, w) * jnp.asarray(self.replicas**0.5, x.dtype)
        return f.reshape(-1, 1)


def replicas(replicas: Size = 8192) -> nn.Module:
    """R linear models at once; ``batch_size`` is R times that of each."""
    return Replicas(replicas)


def moment() -> Observable:
    """The mean over the replicas of |w|² = |w − w*|², the targets being 0."""
    return memoryless(lambda state: {"moment": jnp.square(state.params["w"]).sum(1).mean()})
