"""Which eigenvectors of the curvature the classes explain: the whole spectrum, for small nets."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lmech.numerics import curvature, lapack
from lmech.observables import Count, Observable, State, Values, matrices, memoryless
from lmech.observables import training_examples as chosen_examples
from lmech.observables.matrices import Matrix
from lmech.problem import has_labels

LARGEST = 4000  # parameters: their eigenvectors are 128 MB in float64, and 40 s


def outlier_overlap(
    matrix: Matrix = "hessian",
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """The exact spectrum, and how much of each eigenvector lies in the span of the class means.

    The outliers of a classifier's Hessian are made by class means of logit gradients (Papyan 2019,
    2020). g_kj = mean over the examples of class k of ∇_w f_j(x), f_j the logit of class j; S = the
    span of these C² vectors, of dimension r = their numerical rank. Of eigenvectors v₁ … v_P:

    - own column: mean of ‖Π_S vᵢ‖² over the C largest eigenvalues; of random directions it is r/P;
    - ``eigenvalues`` [P], descending, and ``overlaps`` ‖Π_S vᵢ‖² [P] in that order, their sum r;
    - ``outliers``, how many eigenvectors lie more in S than outside, ‖Π_S vᵢ‖² > ½; of equal
      eigenvalues, as of λ = 0, the eigenvectors and so their overlaps are what rounding makes them;
    - ``directions`` r.

    P products, a dense eigendecomposition and C² gradients, in memory P² beside C²P; the gradients
    take all examples at once. A class without examples gives no direction.

    Raises ValueError for more than 4000 parameters, real targets and a label a position.
    """

    def measure(state: State) -> Values:
        w, _ = ravel_pytree(state.params)
        if w.size > LARGEST:
            raise ValueError(
                f"outlier_overlap takes nets of at most {LARGEST} parameters, and this one has "
                f"{w.size}: set model.width lower, or take spectral_density"
            )
        operator = matrices.operator(state, matrix, examples, microbatch)
        values, vectors = lapack.eigh(curvature.dense(operator, w.size, w.dtype))
        basis = _span(class_means(state, examples))
        overlaps = jnp.square(basis @ vectors[:, ::-1]).sum(axis=0)
        directions = jnp.square(basis).sum()
        classes = round(len(basis) ** 0.5)
        return {
            "": overlaps[:classes].mean(),
            "eigenvalues": values[::-1],
            "overlaps": overlaps,
            "outliers": (overlaps > 0.5).sum().astype(w.dtype),
            "directions": directions,
        }

    return memoryless(measure)


def class_means(state: State, examples: int | None) -> jax.Array:
    """g_kj as rows [C², P], those of class 0 first: ∇_w of the mean logits of each class.

    Raises ValueError for real targets and for a label a position.
    """
    chosen = chosen_examples(state, examples)
    if not has_labels(chosen) or chosen.y.ndim > 1:
        raise ValueError(
            "outlier_overlap needs one class label an example: leave outlier_overlap out of the "
            "observables"
        )
    w, unravel = ravel_pytree(state.params)

    def means(w: jax.Array) -> jax.Array:
        f = state.problem.apply(unravel(w), chosen.x)
        members = jax.nn.one_hot(chosen.y, f.shape[-1], dtype=f.dtype)
        if chosen.weight is not None:
            counts = chosen.weight > 0
            members = jnp.where(counts[:, None], members, 0)
            f = jnp.where(counts[:, None], f, 0)
        return (members.T @ f / jnp.maximum(members.sum(axis=0), 1)[:, None]).reshape(-1)

    return jax.jacrev(means)(w)


def _span(rows: jax.Array) -> jax.Array:
    """Orthonormal basis of the rows' span, as many rows; zeros where they depend on others."""
    _, sizes, basis = lapack.svd(rows)
    rounding = max(rows.shape) * float(jnp.finfo(rows.dtype).eps)
    there = jnp.where(sizes > rounding * sizes[0], 1, 0)
    basis = basis * there[:, None].astype(rows.dtype)
    return jnp.pad(basis, ((0, len(rows) - len(basis)), (0, 0)))
