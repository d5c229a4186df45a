"""The entries of the tangent kernel, which are compared across seeds.

Apart from the measurements, since a job's identity has this file's text in it.
"""

import jax

from lmech.numerics import kernels
from lmech.observables import Memory, Observable, State, Values


def tangent_kernel() -> Observable:
    """Θ = J C Jᵀ [N, N] on the training set, of several outputs their mean, and its change.

    Columns: ‖Θ − Θ₀‖_F/‖Θ₀‖_F, and ``entries`` [N, N] (a table stores them row by row).
    """

    def kernel(state: State) -> jax.Array:
        x, rates = state.data.train.x, state.scales.learning_rate
        return kernels.empirical_ntk(state.problem.apply, state.params, x, "trace", rates)

    def measure(state: State, first: jax.Array) -> tuple[Memory, Values]:
        now = kernel(state)
        return first, {"": kernels.relative_change(now, first), "entries": now}

    return Observable(kernel, measure)
