"""What is read off a layer's outputs; and running a model in microbatches without summing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lmech.numerics import lapack, trees

Tree = Any


def in_microbatches(f: Callable[[Tree], Tree], examples: Tree, size: int | None) -> Tree:
    """What ``f`` returns for each microbatch of at most ``size`` examples, along the first axis.

    ``f`` maps a tree of examples to a tree of arrays [rows, …], which need not be one an example.
    With one row an example the result is that of ``f(examples)``.
    """
    n = jax.tree.leaves(examples)[0].shape[0]
    if size is None or size >= n:
        return f(examples)
    head, rest = trees.split(examples, size)
    found = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), lax.map(f, head))
    if rest is None:
        return found
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, f(rest))


def triangular(features: jax.Array) -> jax.Array:
    """R [min(N, D), D] of features [N, …, D]: their singular values in few rows.

    Every axis but the last counts rows. The factor of stacked factors has the singular values of
    the stacked features, without the Gram matrix, whose small ones drown in float32.
    """
    return lapack.triangular(features.reshape(-1, features.shape[-1]))


def effective_rank(spectrum: jax.Array) -> jax.Array:
    """exp(−Σ_k p_k ln p_k) with p_k = σ_k / Σσ: between 1 and their number (Roy & Vetterli 2007).

    Of singular values, or of the eigenvalues of a positive semidefinite matrix, of which negative
    ones are rounding and count as 0. Not a number if all are 0.
    """
    positive = jnp.maximum(spectrum, 0)
    return jnp.exp(jax.scipy.special.entr(positive / positive.sum()).sum())


def distinct(products: jax.Array, cosine: float, centred: bool) -> jax.Array:
    """How many of the features f_1 … f_D are no copies, from AᵀA of A = (f_1, …, f_D, 1).

    In their order, one counts if it is not 0 and has a cosine below ``cosine`` with all that
    counted before; ``centred``: without their means (√variance ≤ 10⁻³ √power is then 0).
    """
    gram, sums, entries = products[:-1, :-1], products[:-1, -1], products[-1, -1]
    power = jnp.diagonal(gram)
    if centred:
        gram = gram - jnp.outer(sums, sums) / entries
    own = jnp.diagonal(gram)
    there = (own > 1e-6 * power) if centred else (own > 0)
    norms = jnp.sqrt(jnp.where(there, own, 1))
    alike = gram / jnp.outer(norms, norms) >= cosine

    def counts(kept: jax.Array, unit: jax.Array) -> tuple[jax.Array, None]:
        return kept.at[unit].set(there[unit] & ~(kept & alike[unit]).any()), None

    kept, _ = lax.scan(counts, jnp.zeros_like(there), jnp.arange(len(own), dtype=jnp.int32))
    return kept.sum(dtype=gram.dtype)


def neural_collapse(
    features: jax.Array,
    labels: jax.Array,
    outputs: jax.Array,
    classifier: jax.Array,
    weight: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """NC1 to NC4 of features [N, D], labels [N], outputs [N, C] and a classifier [D, C].

    ``weight`` [N], 0 or 1, says which examples count (None: all).

    See ``observables.collapse.neural_collapse``, which states the formulas.
    """
    classes = outputs.shape[-1]
    # Only differences of features count; what they share would cost float32 its digits.
    features = features - features.mean(axis=0, keepdims=True)
    means = _shares(labels, classes, features.dtype, weight) @ features
    center = means.mean(axis=0, keepdims=True)
    means, features = means - center, features - center
    # Σ_B = MᵀM / C for M [C, D] with the centred means as rows, so Σ_B⁺ = C M⁺M⁺ᵀ.
    within = (features - means[labels]) @ lapack.pinv(means)
    norms = jnp.linalg.norm(means, axis=1)
    cosines = means @ means.T / (norms[:, None] * norms[None])
    pairs = 1 - jnp.eye(classes, dtype=features.dtype)
    angles = jnp.abs(cosines + 1 / (classes - 1)) * pairs
    nearest = jnp.argmax(features @ means.T - jnp.square(norms)[None] / 2, axis=1)
    disagree = nearest != jnp.argmax(outputs, axis=1)
    return {
        "nc1": _mean(jnp.square(within).sum(axis=1), weight),
        "nc2_equinorm": norms.std() / norms.mean(),
        "nc2_equiangularity": angles.sum() / (classes * (classes - 1)),
        "nc3": jnp.square(_unit(classifier.T) - _unit(means)).sum(),
        "nc4": _mean(disagree, weight, features.dtype),
    }


def class_geometry(
    features: jax.Array,
    labels: jax.Array,
    classifier: jax.Array,
    weight: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Gram matrices of class means and classifier, from features [N, D], labels [N] and [D, C].

    ``weight`` [N], 0 or 1, says which examples count (None: all).

    See ``observables.collapse.class_geometry``, which states the formulas.
    """
    share = _shares(labels, classifier.shape[-1], features.dtype, weight)
    center = features.mean(axis=0, keepdims=True)  # as above, for float32's digits
    means = share @ (features - center) + center
    within = jnp.square(features - means[labels]).sum(axis=1)
    return {
        "means": means @ means.T,
        "readout": classifier.T @ classifier,
        "cross": classifier.T @ means.T,
        "within": share @ within,
    }


def _shares(labels: jax.Array, classes: int, dtype: Any, weight: jax.Array | None) -> jax.Array:
    """Weights [C, N] with which a class's examples make its mean: 1/n_c, or 0."""
    member = jax.nn.one_hot(labels, classes, dtype=dtype, axis=0)
    member = member if weight is None else member * weight[None]
    return member / member.sum(axis=1, keepdims=True)


def _mean(values: jax.Array, weight: jax.Array | None, dtype: Any = None) -> jax.Array:
    """Mean of values [N] over those that count."""
    return values.mean(dtype=dtype) if weight is None else weight @ values / weight.sum()


def _unit(matrix: jax.Array) -> jax.Array:
    return matrix / jnp.linalg.norm(matrix)
