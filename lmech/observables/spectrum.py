"""The whole spectrum of the curvature: trace, Frobenius norm, diagonal, density.

Stochastic estimates (matfree's) carry their standard error; ``samples: null`` is exact, at P
products, for small nets.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from matfree import stochtrace

from lmech import seeds
from lmech.numerics import curvature, krylov, lapack
from lmech.numerics.curvature import Operator
from lmech.observables import Count, Observable, State, Values, matrices, memoryless
from lmech.observables.matrices import Matrix, flat

Integrand = Callable[..., jax.Array]


def _key(state: State) -> jax.Array:
    return jax.random.fold_in(seeds.key(state.seeds, "probes"), state.step)


def _dense(operator: Operator, state: State) -> jax.Array:
    w = flat(state.params)
    return curvature.dense(operator, w.size, w.dtype)


def _estimate(
    operator: Operator, state: State, integrand: Integrand, samples: int
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard error of an integrand over random signs (Hutchinson 1990)."""
    w = flat(state.params)

    def signs(key: jax.Array) -> jax.Array:
        # From bits: jax's rademacher, and so matfree's sampler, compares float64 uniforms.
        ones = jax.random.bits(key, (samples, w.size), jnp.uint8) & 1
        return (2 * ones.astype(jnp.int8) - 1).astype(w.dtype)

    estimator = stochtrace.estimator_monte_carlo_mean_and_sem(integrand, signs)
    return estimator(lambda v: operator(v[None])[0], _key(state))


def trace(
    matrix: Matrix = "hessian",
    samples: Count | None = 16,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """Tr M = E[vᵀMv] over random signs v (Hutchinson 1990); column ``error``: its standard error.

    ``samples: null`` sums the exact diagonal. Divided by the parameters it is the mean eigenvalue.
    """
    integrand = stochtrace.monte_carlo_trace()
    return _number(jnp.trace, integrand, samples, matrix, examples, microbatch)


def frobenius(
    matrix: Matrix = "hessian",
    samples: Count | None = 16,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """‖M‖_F² = Σλ² = E‖Mv‖² over random signs v; column ``error``: its standard error."""
    integrand = stochtrace.monte_carlo_frobeniusnorm_squared()
    exact = lambda M: jnp.square(M).sum()  # noqa: E731
    return _number(exact, integrand, samples, matrix, examples, microbatch)


def _number(
    exact: Callable[[jax.Array], jax.Array],
    integrand: Integrand,
    samples: int | None,
    matrix: Matrix,
    examples: int | None,
    microbatch: int | None,
) -> Observable:
    """A number of the matrix: of all of it, or a mean over samples and its standard error."""

    def measure(state: State) -> Values:
        operator = matrices.operator(state, matrix, examples, microbatch)
        if samples is None:
            return {"": exact(_dense(operator, state))}
        mean, error = _estimate(operator, state, integrand, samples)
        return {"": mean, "error": error}

    return memoryless(measure)


def diagonal(
    matrix: Matrix = "hessian",
    samples: Count | None = 16,
    entries: bool = False,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """Diag M = E[v ∘ Mv] over random signs v (Bekas et al. 2007).

    The observable's own column is its mean; then the mean over each tensor, by name, and with
    ``entries`` all of it, ``entries`` [P].
    """

    def measure(state: State) -> Values:
        operator = matrices.operator(state, matrix, examples, microbatch)
        if samples is None:
            values = jnp.diagonal(_dense(operator, state))
        else:
            values, _ = _estimate(operator, state, stochtrace.monte_carlo_diagonal(), samples)
        columns = {"": values.mean(), **_by_tensor(state, values)}
        return columns | ({"entries": values} if entries else {})

    return memoryless(measure)


def _by_tensor(state: State, values: jax.Array) -> Values:
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return {
        name: values[starts[i] : starts[i] + sizes[i]].mean()
        for name, (i,) in matrices.parts(state.params, "tensor").items()
    }


def spectral_density(
    matrix: Matrix = "hessian",
    samples: Count | None = 8,
    depth: Count = 64,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """The density of eigenvalues (1/P) Σ δ(λ − λⱼ) as points and weights that sum to 1.

    Stochastic Lanczos quadrature (Golub & Meurant 2009; Ghorbani, Krishnan & Xiao 2019): from each
    of ``samples`` random directions, ``depth`` Lanczos steps; the points are T's eigenvalues, the
    weights the squared first components of its eigenvectors over the samples. Columns ``nodes`` and
    ``weights`` [samples · depth], ascending within a sample; ``samples: null`` gives the P
    eigenvalues themselves, each with weight 1/P. ``numerics.krylov.density`` draws it.
    """

    def measure(state: State) -> Values:
        operator = matrices.operator(state, matrix, examples, microbatch)
        w = flat(state.params)
        if samples is None:
            nodes = lapack.eigvalsh(_dense(operator, state))
            return {"nodes": nodes, "weights": jnp.full_like(nodes, 1 / w.size)}
        draws = jax.random.normal(_key(state), (samples, w.size), w.dtype)
        steps = min(depth, w.size)
        nodes, weights = jax.lax.map(lambda v: krylov.quadrature(operator, v, steps), draws)
        return {"nodes": nodes.reshape(-1), "weights": weights.reshape(-1) / samples}

    return memoryless(measure)
