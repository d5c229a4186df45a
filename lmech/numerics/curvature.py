"""Curvature matrices of a mean loss, as operators on blocks of vectors.

Each is V ↦ MV for V [K, P], K vectors as rows; P counts the entries of ``params`` in the order of
``ravel_pytree``. Without microbatches the model is linearised once and every product reuses it;
with them, each microbatch is linearised as the whole block is pushed through it, so that peak
memory is set by the microbatch and not by the data. ``count`` is the n that sums are divided by
where not all examples count (None: their number).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from lmech.numerics import trees

Block = jax.Array  # [K, P]: K vectors in parameter space, one a row
Operator = Callable[[Block], Block]
Vector = jax.Array  # [P]


def hessian(
    total_loss: Callable[[Any, Any], jax.Array],
    params: Any,
    examples: Any,
    microbatch: int | None = None,
    count: Any = None,
) -> Operator:
    """H = ∇²[(1/n) Σᵢ ℓᵢ(w)]; ``total_loss(params, examples)`` is the sum over the examples.

    ``linearize(∇L, w)``: reverse mode once, then forward mode K times, about one gradient a product
    (Pearlmutter 1994; a double backward costs 2–4).
    """

    def linearized(w: Vector, unravel: Any, batch: Any) -> Callable[[Vector], Vector]:
        return jax.linearize(jax.grad(lambda w: total_loss(unravel(w), batch)), w)[1]

    return _mean(linearized, params, examples, microbatch, count)


def gauss_newton(
    outputs: Callable[[Any, Any], Any],
    output_loss: Callable[[Any, Any], jax.Array],
    params: Any,
    examples: Any,
    microbatch: int | None = None,
    count: Any = None,
) -> Operator:
    """G = (1/n) Σᵢ Jᵢᵀ (∂²ℓᵢ/∂f²) Jᵢ, J the Jacobian of ``outputs(params, examples)``.

    ``output_loss(outputs, examples)`` is the sum over the examples. For the squared loss and for
    cross-entropy G is the Fisher information of the model's own distribution (Martens 2020, §9).
    H − G = (1/n) Σᵢ Σ_c (∂ℓᵢ/∂f_c) ∇²f_c is the rest of the Hessian.
    """

    def linearized(w: Vector, unravel: Any, batch: Any) -> Callable[[Vector], Vector]:
        f, jvp = jax.linearize(lambda w: outputs(unravel(w), batch), w)
        _, curve = jax.linearize(jax.grad(lambda f: output_loss(f, batch)), f)
        transpose = jax.linear_transpose(jvp, w)
        return lambda v: transpose(curve(jvp(v)))[0]

    return _mean(linearized, params, examples, microbatch, count)


def empirical_fisher(
    losses: Callable[[Any, Any], jax.Array],
    params: Any,
    examples: Any,
    microbatch: int | None = None,
    count: Any = None,
) -> Operator:
    """F̂ = (1/n) Σᵢ gᵢgᵢᵀ, gᵢ the gradient of ``losses(params, examples)[i]``.

    The second moment of the gradients, and not the Fisher information (Kunstner et al. 2019).
    """

    def linearized(w: Vector, unravel: Any, batch: Any) -> Callable[[Vector], Vector]:
        _, jvp = jax.linearize(lambda w: losses(unravel(w), batch), w)
        transpose = jax.linear_transpose(jvp, w)
        return lambda v: transpose(jvp(v))[0]

    return _mean(linearized, params, examples, microbatch, count)


def _mean(
    linearized: Callable[[Vector, Any, Any], Callable[[Vector], Vector]],
    params: Any,
    examples: Any,
    microbatch: int | None,
    count: Any,
) -> Operator:
    """V ↦ (1/n) Σ over microbatches of ``linearized(w, unravel, microbatch)`` on each row."""
    w, unravel = ravel_pytree(params)
    n = jax.tree.leaves(examples)[0].shape[0]
    divisor = n if count is None else count

    def rows(product: Callable[[Vector], Vector], V: Block) -> Block:
        # One after another on a CPU: what K of them share, reading the data once, is less than what
        # they lose, elementwise work that no longer fits the cache (make bench TABLE=products).
        side_by_side = len(V) > 1 and jax.default_backend() != "cpu"
        return jax.vmap(product)(V) if side_by_side else jax.lax.map(product, V)

    if microbatch is None or microbatch >= n:
        whole = linearized(w, unravel, examples)
        return lambda V: trees.divide(rows(whole, V), divisor)

    def accumulated(V: Block) -> Block:
        total = trees.accumulate(
            lambda batch: rows(linearized(w, unravel, batch), V), examples, microbatch
        )
        return trees.divide(total, divisor)

    return accumulated


def gradient_of_curvature(
    total_loss: Callable[[Any, Any], jax.Array],
    params: Any,
    examples: Any,
    u: Vector,
    v: Vector,
    microbatch: int | None = None,
    count: Any = None,
) -> Vector:
    """∇_w(uᵀH(w)v) = D³L[u, v, ·] [P], u and v held fixed: two forward modes, then reverse mode."""
    w, unravel = ravel_pytree(params)

    def one(batch: Any) -> Vector:
        def slope(w: Vector) -> jax.Array:
            return jax.jvp(lambda w: total_loss(unravel(w), batch), (w,), (u,))[1]

        return jax.grad(lambda w: jax.jvp(slope, (w,), (v,))[1])(w)

    n = jax.tree.leaves(examples)[0].shape[0]
    divisor = n if count is None else count
    return trees.divide(trees.accumulate(one, examples, microbatch), divisor)


def difference(a: Operator, b: Operator) -> Operator:
    """V ↦ AV − BV."""
    return lambda V: a(V) - b(V)


def negative(operator: Operator) -> Operator:
    """V ↦ −MV: its largest eigenvalues are minus the smallest of M."""
    return lambda V: -operator(V)


def congruent(operator: Operator, scale: Vector) -> Operator:
    """V ↦ SMSV with S = diag(``scale``): symmetric, and similar to S²M."""
    return lambda V: scale[None] * operator(scale[None] * V)


def dense(operator: Operator, size: int, dtype: Any) -> jax.Array:
    """The matrix [P, P] of an operator: P products. For small P."""
    matrix = operator(jnp.eye(size, dtype=dtype))
    return (matrix + matrix.T) / 2
