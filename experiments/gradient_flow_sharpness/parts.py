"""Nets whose gradient-flow solutions are known, their data, and the sharpness of those solutions.

They are apart from the measurements, since a job's identity has this file's text in it.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt
from jax import lax
from jax.flatten_util import ravel_pytree
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.numerics import lapack
from lmech.numerics.curvature import dense, hessian
from lmech.numerics.integration import runge_kutta
from lmech.observables import Observable, State, Values, memoryless
from lmech.problem import Params, count, loss_and_gradient, total_loss

Size = Annotated[int, Ge(1)]
Positive = Annotated[FiniteFloat, Gt(0)]

HALVINGS = 200
"""Of an interval of floats: more than there are bits."""

NEWTON_STEPS = 200
"""Most of them; a dozen are taken."""


def points(count: Size = 1, dimension: Size = 1, data_seed: int = 0) -> Data:
    """Inputs x on the sphere of radius √d, targets y = Σ_k x_k/√d: in one dimension y = x = ±1."""
    generator = np.random.Generator(np.random.Philox(data_seed))
    x = generator.standard_normal((count, dimension))
    x *= np.sqrt(dimension) / np.linalg.norm(x, axis=1, keepdims=True)
    examples = Examples(x, x.sum(axis=1, keepdims=True) / np.sqrt(dimension))
    return Data(examples, examples)


class Scalar(nn.Module):
    """x [N, 1] → x·Π_i w_i, w [D] > 0. On y = x = ±1 the loss is ½(Π_i w_i − 1)².

    The start is drawn on the gradient flow into a minimum w* of given sharpness Σ_i 1/w*_i² =
    ``ratio``·D (D at the flattest, all w* = 1), at a product drawn from [0.8, 1.2]. The flow
    conserves w_i² − w_j², so its points are w_i² = w*_i² + t.
    """

    depth: int
    ratio: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, 1]."""
        return x * self.param("weights", self._start, (self.depth,), x.dtype).prod()

    def _start(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        direction, place = jax.random.split(key)
        u = jax.random.normal(direction, shape, dtype)
        u -= u.mean()  # Π exp(a·u_i) = 1 for every a
        u /= jnp.abs(u).max()  # however near to each other they were drawn
        wanted = jnp.asarray(np.log(self.ratio * self.depth), dtype)
        a = bisected(lambda a: jax.nn.logsumexp(-2 * a * u) - wanted, 0.0, 100.0, dtype)
        squares = jnp.exp(2 * a * u)
        product = jax.random.uniform(place, (), dtype, 0.8, 1.2)
        t = bisected(
            lambda t: jnp.log(squares + t).sum() - 2 * jnp.log(product), -squares.min(), 2.0, dtype
        )
        return jnp.sqrt(squares + t)


def bisected(f: Callable[[jax.Array], jax.Array], low: Any, high: Any, dtype: Any) -> jax.Array:
    """The zero of an increasing function between ``low`` and ``high``."""

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        below = f(middle) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.asarray(low, dtype), jnp.asarray(high, dtype)
    return lax.fori_loop(0, HALVINGS, halve, ends)[1]


class Diagonal(nn.Module):
    """Squared regression, x [N, d] → x·(p² − m²): a diagonal linear net of depth two.

    The entries of p and m are ``scale`` times 1 + 0.3·N(0, 1), without their signs.
    """

    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, 1]."""

        def start(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            drawn = 1 + 0.3 * jax.random.normal(key, shape, dtype)
            return jnp.asarray(self.scale, dtype) * jnp.abs(drawn)

        p = self.param("plus", start, x.shape[1:], x.dtype)
        m = self.param("minus", start, x.shape[1:], x.dtype)
        return (x @ (p**2 - m**2))[:, None]


class Tanh(nn.Module):
    """x [N, d] → a·tanh(Wx): one hidden layer, entries of W and a with variance 1/fan_in."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs [N, 1]."""
        init = nn.initializers.lecun_normal()
        W = self.param("hidden", init, (x.shape[1], self.width), x.dtype)  # noqa: N806
        return jnp.tanh(x @ W) @ self.param("readout", init, (self.width, 1), x.dtype)


Kind = Literal["scalar", "diagonal", "tanh"]


def net(
    kind: Kind = "scalar", depth: Size = 2, ratio: Positive = 4.0, scale: Positive = 0.3,
    width: Size = 16,
) -> nn.Module:  # fmt: skip
    """One of the three nets: ``depth`` and ``ratio`` are the scalar one's.

    ``scale`` is the diagonal one's and ``width`` the tanh net's.
    """
    nets: dict[str, nn.Module] = {
        "scalar": Scalar(depth, ratio),
        "diagonal": Diagonal(scale),
        "tanh": Tanh(width),
    }
    return nets[kind]


class Solution(NamedTuple):
    """Sharpness of the gradient-flow solution, its relative error and the loss that is left."""

    sharpness: jax.Array
    error: jax.Array
    loss: jax.Array


def solution_sharpness(
    alpha: Positive = 0.5, loss: Positive = 1e-10, most_steps: Size = 20000
) -> Observable:
    """φ(w): the sharpness λ₁ of the minimum that gradient flow ẇ = −∇L from w comes to.

    Exact to rounding for the scalar and the diagonal net (``of_scalar``, ``of_diagonal``). Any
    other net is integrated (``integrated``) to ``loss``, in at most ``most_steps`` steps of
    ``alpha``/λ₁; it must be small enough for its dense Hessian.

    Columns: φ, ``plain``, the sharpness of w itself, ``error`` (0 where exact) and ``loss``, what
    of it is left where the integration ended.
    """

    def measure(state: State) -> Values:
        exact = EXACT.get(frozenset(state.params))
        found = (
            exact(state.params, state.data.train)
            if exact
            else integrated(state, state.params, alpha, loss, most_steps)
        )
        plain = top_eigenvalue(state, state.params)
        return {"": found.sharpness, "plain": plain, "error": found.error, "loss": found.loss}

    return memoryless(measure)


def top_eigenvalue(state: State, params: Params) -> jax.Array:
    """λ₁ of the dense Hessian of the mean training loss."""
    w, _ = ravel_pytree(params)
    train = state.data.train
    operator = hessian(total_loss(state.problem), params, train, count=count(train))
    return lapack.eigvalsh(dense(operator, w.size, w.dtype))[-1]


def of_scalar(params: Params, _: Examples) -> Solution:
    """Σ_i 1/w*_i², w*_i² = c_i + t, c_i = w_i² − min_j w_j², Σ_i log(c_i + t) = 0.

    The flow keeps the c_i. The sum is convex and increasing in log t with a slope of 1 or more, so
    Newton's method finds its zero from everywhere. At the minimum the Hessian is ∇f∇fᵀ.
    """
    squares = params["weights"] ** 2
    c = squares - squares.min()

    def step(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = jnp.exp(at)
        move = -jnp.log(c + t).sum() / (t / (c + t)).sum()
        return at + move, jnp.abs(move)

    t = jnp.exp(newton(step, jnp.zeros((), c.dtype)))
    return exactly((1 / (c + t)).sum())


def of_diagonal(params: Params, examples: Examples) -> Solution:
    """λ₁ of 4X diag(p*² + m*²)Xᵀ/N, p* = p·exp(2Xᵀs), m* = m·exp(−2Xᵀs), X(p*² − m*²) = y.

    The flow moves along s = −½∫r dt/N ∈ ℝᴺ, r the residuals, and keeps p_k m_k. The s at its end is
    the minimum of the convex F(s) = ¼Σ_k (p*_k² + m*_k²) − y·s; Newton's method with the damping
    log(1 + δ)/δ, δ = ‖4Xᵀ·(its step)‖_∞, never raises F, whose third derivative along a step is at
    most δ times its second. The loss is what rounding has left of it.
    """
    X, y = examples.x, examples.y[:, 0]  # noqa: N806
    p, m = params["plus"] ** 2, params["minus"] ** 2

    def ends(s: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = 4 * s @ X
        return p * jnp.exp(z), m * jnp.exp(-z)

    def step(s: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = ends(s)
        move = -lapack.solve(4 * (X * (a + b)[None]) @ X.T, X @ (a - b) - y)
        delta = jnp.abs(4 * move @ X).max()
        damping = jnp.where(delta > 0, jnp.log1p(delta) / jnp.maximum(delta, 1e-300), 1.0)
        return s + damping * move, delta

    a, b = ends(newton(step, jnp.zeros_like(y)))
    kernel = 4 * (X * (a + b)[None]) @ X.T / len(y)
    left = jnp.square(X @ (a - b) - y).mean() / 2
    return exactly(lapack.eigvalsh(kernel)[-1])._replace(loss=left)


EXACT: dict[frozenset[str], Callable[[Params, Examples], Solution]] = {
    frozenset({"weights"}): of_scalar,
    frozenset({"plus", "minus"}): of_diagonal,
}


def exactly(sharpness: jax.Array) -> Solution:
    """Of a solution in closed form."""
    return Solution(sharpness, jnp.zeros_like(sharpness), jnp.zeros_like(sharpness))


def newton(step: Callable[[jax.Array], tuple[jax.Array, jax.Array]], start: jax.Array) -> jax.Array:
    """The limit of ``step(at) → (next, size of the move)``, which converges quadratically."""
    small = float(jnp.finfo(start.dtype).eps) ** 0.5 / 10  # its square is below rounding

    def going(loop: tuple) -> jax.Array:
        _, moved, steps = loop
        return (moved > small) & (steps < NEWTON_STEPS)

    def advance(loop: tuple) -> tuple:
        at, _, steps = loop
        return *step(at), steps + 1

    infinite = jnp.asarray(jnp.inf, start.dtype)
    return lax.while_loop(going, advance, (start, infinite, jnp.int32(0)))[0]


def integrated(
    state: State, params: Params, alpha: float, loss: float, most_steps: int
) -> Solution:
    """The flow's end by the classical Runge–Kutta method, in steps of α/λ₁ and of half of it.

    λ₁ is measured every 20 steps. The error is the relative difference of the two sharpnesses, of
    which the second is told. Not a number where the flow does not reach ``loss``.
    """

    def flow(params: Params) -> Params:
        _, g = loss_and_gradient(state.problem, params, state.data.train, None)
        return jax.tree.map(jnp.negative, g)

    def remaining(params: Params) -> jax.Array:
        return loss_and_gradient(state.problem, params, state.data.train, None)[0].loss

    def going(loop: tuple) -> jax.Array:
        params, steps = loop
        return (remaining(params) > loss) & (steps < most_steps)

    def end(share: float) -> tuple[jax.Array, jax.Array]:
        def advance(loop: tuple) -> tuple:
            params, steps = loop
            step = share * alpha / top_eigenvalue(state, params)
            move = lambda _, w: runge_kutta(flow, w, step)  # noqa: E731
            return lax.fori_loop(0, 20, move, params), steps + 20

        params, _ = lax.while_loop(going, advance, (start, jnp.int32(0)))
        return top_eigenvalue(state, params), remaining(params)

    start = params
    (rough, _), (fine, left) = end(1.0), end(0.5)
    reached = left <= loss
    return Solution(
        jnp.where(reached, fine, jnp.nan), jnp.where(reached, jnp.abs(rough / fine - 1), jnp.nan),
        left,
    )  # fmt: skip
