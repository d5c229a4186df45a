"""Curvature of the training loss."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from lmech import seeds
from lmech.numerics import curvature, krylov
from lmech.observables import Count, Memory, Observable, State, Values
from lmech.problem import total_loss


def sharpness(
    k: Count = 4,
    extensions: Count = 1,
    cold_rounds: Count = 12,
    microbatch: Count | None = None,
) -> Observable:
    """λ₁, …, λ_k: the largest eigenvalues of the Hessian of the full training loss.

    A warm block tracker. The memory is the last k Ritz vectors [P, k]; a measurement is
    Rayleigh–Ritz on span(V, HV, …) with ``extensions`` block Krylov steps, so k(extensions + 1)
    Hessian-vector products. The first block is ``cold_rounds`` such measurements from a random one.
    At the edge of stability the top eigenvalues lie within a few per cent and swap places, so one
    warm vector follows the wrong one; a block of 4 does not care.

    Columns: λ₁ (the sharpness), ``eigenvalues`` [k] in descending order, ``residual``
    ‖Hv − θv‖ of the first pair, ``gap`` λ₁ − λ₂ (0 at k = 1), ``products`` spent. λ₁ is a lower
    bound, quadratic in the residual over the gap. ``microbatch`` bounds the memory (examples).

    Raises ValueError if k(extensions + 1) exceeds the number of parameters.
    """

    def operator(state: State) -> krylov.Operator:
        problem, examples = state.problem, state.data.train
        size = microbatch or state.microbatch
        return curvature.hessian(total_loss(problem), state.params, examples, size)

    def init(state: State) -> Memory:
        w, _ = ravel_pytree(state.params)
        if k * (extensions + 1) > w.size:
            raise ValueError(
                f"sharpness works in {k * (extensions + 1)} dimensions, k (extensions + 1), and "
                f"the model has {w.size} parameters: lower observables.sharpness.k"
            )
        block = jax.random.normal(seeds.key(state.seeds, "probes"), (w.size, k), w.dtype)

        def again(_: int, block: Memory) -> Memory:
            return krylov.top_eigenpairs(operator(state), block, extensions).vectors

        return lax.fori_loop(0, cold_rounds, again, block)

    def measure(state: State, block: Memory) -> tuple[Memory, Values]:
        ritz = krylov.top_eigenpairs(operator(state), block, extensions)
        values = ritz.values
        return ritz.vectors, {
            "": values[0],
            "eigenvalues": values,
            "residual": ritz.residuals[0],
            "gap": values[0] - values[min(1, k - 1)],
            "products": jnp.asarray(k * (extensions + 1), jnp.int32),
        }

    return Observable(init, measure)
