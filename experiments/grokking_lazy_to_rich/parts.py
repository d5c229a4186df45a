"""The model, data and observables of Kumar et al. 2024.

They are apart from the measurements, since a job's identity has this file's text in it.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge
from jax import lax
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size
from lmech.models.declared import Declared
from lmech.numerics import kernels, lapack, trees
from lmech.observables import (
    Count,
    Memory,
    Observable,
    State,
    Values,
    memoryless,
    training_examples,
)
from lmech.parametrization import Parametrization, Scales, unscaled
from lmech.roles import Model


def quadratic_target(
    train_size: Size = 300,
    test_size: Size = 1000,
    dimension: Size = 40,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """Y = (β·x)²/2 [N, 1], x ~ N(0, I/D) [N, D].

    β = √D e₁: any direction would do, since inputs and weights have none of their own. E y² is then
    3/4.
    """
    generator = np.random.Generator(np.random.Philox(data_seed))

    def examples(count: int) -> Examples:
        x = generator.standard_normal((count, dimension)) / np.sqrt(dimension)
        return Examples(x, dimension * x[:, :1] ** 2 / 2)

    return Data(examples(train_size), examples(test_size))


class Net(nn.Module):
    """f(x) = (1/N) Σ_i φ(w_i·x), φ(h) = h + ε h²/2, w_i ~ N(0, I), x [P, D] → [P, 1].

    ``epsilon`` is a parameter that is 1 and never trains, so ε can be an input of a program: see
    ``curved``.
    """

    width: int

    @property
    def declared(self) -> Declared:
        """ε is no weight."""
        return Declared(constants=("epsilon",))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [P, 1]."""

        def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.normal(key, shape, x.dtype)

        h = x @ self.param("hidden", normal, (x.shape[1], self.width))
        epsilon = lax.stop_gradient(self.param("epsilon", nn.initializers.ones, (), x.dtype))
        return jnp.mean(h + epsilon * jnp.square(h) / 2, axis=1, keepdims=True)


def net(outputs: int, width: Annotated[int, Ge(1)] = 300) -> nn.Module:
    """The model; its ``output_scale`` is α. Raises ValueError for other than one output."""
    if outputs != 1:
        raise ValueError(f"this net has one output, and the dataset asks for {outputs}")
    return Net(width)


def curved(epsilon: Annotated[FiniteFloat, Ge(0)]) -> Parametrization:
    """The model as it is, with this ε."""

    def scales(model: Model) -> Scales:
        plain = unscaled(model.shapes)
        return plain._replace(init={**plain.init, "epsilon": epsilon})

    return scales


class Polynomial(NamedTuple):
    """a·x + x'Bx/2, which f is, and the target: a [D], B [D, D] symmetric."""

    linear: jax.Array
    quadratic: jax.Array


def polynomial(f: Callable[[jax.Array], jax.Array], dimension: int, dtype: Any) -> Polynomial:
    """The coefficients of a quadratic f: [P, D] → [P, 1] without a constant.

    Exactly: its gradient is a + Bx, which is read off at 0 and at the unit vectors.
    """
    points = jnp.eye(dimension + 1, dimension, -1, dtype)
    slopes = jax.grad(lambda x: f(x).sum())(points)
    return Polynomial(slopes[0], slopes[1:] - slopes[:1])


def errors(own: Polynomial) -> dict[str, jax.Array]:
    """The three terms of E (f − y)² over x ~ N(0, I/D), y = (β·x)²/2, β = √D e₁.

    With f = a·x + x'Bx/2, the Gaussian moments give

        ¼ ((|β|² − Tr B)/D)² + |B − ββ'|²_F / (2D²) + |a|²/D:

    ``variance`` (of the mean), ``misalignment``, ``linear``.
    """
    dimension = len(own.linear)
    off = own.quadratic.at[0, 0].add(-dimension)
    return {
        "variance": jnp.square(jnp.trace(off) / dimension) / 4,
        "misalignment": jnp.square(off).sum() / (2 * dimension**2),
        "linear": jnp.square(own.linear).sum() / dimension,
    }


def total(terms: dict[str, jax.Array]) -> jax.Array:
    """The error that has these terms."""
    return terms["variance"] + terms["misalignment"] + terms["linear"]


def population() -> Observable:
    """E (f − y)² over the distribution of the inputs, exactly, and its three ``errors``.

    ``alignment`` |β'W|²/(|β|²|W|²), the share of the weights' power along the target's direction,
    1/D at the start; ``norm`` |W|².
    """

    def measure(state: State) -> Values:
        w = state.params["hidden"]

        def f(x: jax.Array) -> jax.Array:
            return state.problem.apply(state.params, x)

        terms, norm = errors(polynomial(f, len(w), w.dtype)), jnp.square(w).sum()
        alignment = jnp.square(w[0]).sum() / norm
        return {"": total(terms), **terms, "alignment": alignment, "norm": norm}

    return memoryless(measure)


class _Start(NamedTuple):
    """The model at step 0, and the spectrum of its kernel over P: Θ₀/P = U diag(λ) U'."""

    params: Any
    eigenvalues: jax.Array
    vectors: jax.Array


def kernel_regression() -> Observable:
    """Kernel gradient descent with the kernel at step 0, in closed form, at the time of this step.

    It has fitted y to U (1 − (1 − ηλ)^t) U'y by step t, at a constant rate η, from outputs of 0
    (``centred``): f(x) = Θ₀(x, X) c. Columns: its E (f − y)² over the inputs' distribution,
    ``train``, its mean squared error on the training set, and ``edge``, ηλ₁ (stable below 2).
    """

    def init(state: State) -> Memory:
        x, rates = state.data.train.x, state.scales.learning_rate
        kernel = kernels.empirical_ntk(state.problem.apply, state.params, x, "full", rates)
        return _Start(state.params, *lapack.eigh(kernel / len(x)))

    def measure(state: State, start: _Start) -> tuple[Memory, Values]:
        (x, y, _), rate = state.data.train, state.hyperparameters["learning_rate"]
        shrunk = (1 - rate * start.eigenvalues) ** state.step.astype(x.dtype)
        along = start.vectors.T @ y[:, 0]
        c = start.vectors @ ((1 - shrunk) / (start.eigenvalues * len(x)) * along)
        _, back = jax.vjp(lambda w: state.problem.apply(w, x), start.params)
        direction = trees.multiply(state.scales.learning_rate, back(c[:, None])[0])

        def f(x: jax.Array) -> jax.Array:
            return jax.jvp(lambda w: state.problem.apply(w, x), (start.params,), (direction,))[1]

        own = polynomial(f, x.shape[1], x.dtype)
        return start, {
            "": total(errors(own)),
            "train": jnp.square(shrunk * along).mean(),
            "edge": rate * start.eigenvalues[-1],
        }

    return Observable(init, measure)


def kernel_alignment(examples: Count = 100) -> Observable:
    """⟨Θ, yy'⟩ / (‖Θ‖ |y|²) on training examples: the net's tangent kernel and the targets.

    Of this net Θ ∝ (x·x') (1/N) Σ_i φ'(w_i·x) φ'(w_i·x'), φ'(h) = 1 + εh, which is cheap enough
    for every step. It is that of the net at these weights, also where its training is linearized.
    """

    def measure(state: State) -> Values:
        (x, y, _), params = training_examples(state, examples), state.params
        slopes = 1 + params["epsilon"] * (x @ params["hidden"])
        return {"": kernels.alignment((x @ x.T) * (slopes @ slopes.T), y)}

    return memoryless(measure)
