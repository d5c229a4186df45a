"""Discretisation drift: how far one step is from flows that run for its time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lmech.numerics import curvature, lapack
from lmech.numerics.integration import runge_kutta
from lmech.observables import (
    Count,
    Observable,
    State,
    Values,
    gradient,
    matrices,
    memoryless,
    next_update,
    only_descent,
)
from lmech.observables.matrices import flat, unravel


def discretization_drift(substeps: Count = 8) -> Observable:
    """‖w_{t+1} − w̃(η)‖, w̃ from w_t on three flows that stand for gradient descent, and |Δw|.

    ``gradient_flow`` ẇ = −∇L, wrong by O(η²). ``modified_loss`` ẇ = −∇(L + ¼η‖∇L‖²), of backward
    error analysis, by O(η³) (Barrett & Dherin 2021). ``principal_flow`` ẇ = H⁻¹ log(1 − ηH)∇L/η,
    which is exact where H is constant and ηλ₁ < 1, by O(η³) (Rosca et al. 2023, "On a continuous
    time model of gradient descent dynamics and instability in deep learning"); beyond that its
    logarithm is complex, and log|1 − ηλ| is taken. All three are those of the weights over the
    roots of their learning-rate multipliers C, in which a step w ← w − ηC∇L is one of gradient
    descent; ‖·‖ is of the weights themselves. Runge–Kutta of fourth order, ``substeps`` a step.
    Forms the Hessian, P × P: for small nets, in float64, as the errors are small. Its own column is
    that of gradient flow.

    Raises ValueError for what is no full-batch gradient descent: an optimizer with a state
    (momentum, Adam), minibatches, clipping.
    """

    def measure(state: State) -> Values:
        only_descent("discretization_drift", state)
        w, eta = flat(state.params), state.hyperparameters["learning_rate"]
        rates = jax.tree.map(jnp.full_like, state.params, state.scales.learning_rate)
        root = jnp.sqrt(flat(rates))
        step = flat(next_update(state)[0])

        def at(w: jax.Array) -> State:
            params = unravel(state.params)(w)
            return state._replace(params=params, evaluation=None, gradient=None)

        def after(flow: Callable[[jax.Array], jax.Array]) -> jax.Array:
            once = lambda _, w: runge_kutta(flow, w, eta / substeps)  # noqa: E731
            return lax.fori_loop(0, substeps, once, w)

        flows = {
            "gradient_flow": lambda w: -(root**2) * flat(gradient(at(w))),
            "modified_loss": lambda w: _modified(at(w), eta, root),
            "principal_flow": lambda w: _principal(at(w), eta, root),
        }
        apart = {n: jnp.linalg.norm(w + step - after(flow)) for n, flow in flows.items()}
        return {"": apart["gradient_flow"], "update": jnp.linalg.norm(step), **apart}

    return memoryless(measure)


def _modified(state: State, eta: jax.Array, root: jax.Array) -> jax.Array:
    """−∇(L + ¼η‖∇L‖²) = −(1 + ½ηH)∇L; with C, whose root is S = ``root``, −(C + ½ηCHC)∇L."""
    g = root**2 * flat(gradient(state))
    return -g - eta / 2 * root**2 * matrices.operator(state)(g[None])[0]


def _principal(state: State, eta: jax.Array, root: jax.Array) -> jax.Array:
    """H⁻¹ log|1 − ηH| ∇L/η; with C = S², that of SHS and S∇L, times S."""
    g = root * flat(gradient(state))
    dense = curvature.dense(matrices.operator(state), g.size, g.dtype)
    values, vectors = lapack.eigh(root[:, None] * dense * root[None])
    x = eta * values
    flat_enough = jnp.abs(x) < jnp.finfo(g.dtype).eps ** 0.5
    safe = jnp.where(flat_enough, 1, x)
    factor = jnp.where(flat_enough, -1 - x / 2, jnp.log(jnp.abs(1 - safe)) / safe)
    return root * (vectors @ (factor * (vectors.T @ g)))
