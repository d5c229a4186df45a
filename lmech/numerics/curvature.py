"""The Hessian as an operator on blocks of vectors."""

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from lmech.numerics import trees

Block = jax.Array  # [P, K]: K vectors in parameter space, one a column


def hessian(
    total_loss: Callable[[Any, Any], jax.Array],
    params: Any,
    examples: Any,
    microbatch: int | None = None,
) -> Callable[[Block], Block]:
    """V ↦ HV with H = ∇²[(1/n) Σᵢ ℓᵢ(w)], for a block V of shape [P, K].

    ``total_loss(params, examples)`` returns the sum (not the mean) of the examples' losses; P
    counts the entries of ``params`` in the order of ``ravel_pytree``.

    Each microbatch is linearised once, ``linearize(∇L, w)``, and the whole block is pushed
    through: reverse mode once, then forward mode K times, about one gradient a product
    (Pearlmutter 1994; a double backward costs 2–4). Peak memory is set by the microbatch.
    """
    w, unravel = ravel_pytree(params)
    n = jax.tree.leaves(examples)[0].shape[0]

    def product(V: Block) -> Block:
        def one(batch: Any) -> Block:
            _, jvp = jax.linearize(jax.grad(lambda w: total_loss(unravel(w), batch)), w)
            return jax.vmap(jvp, in_axes=1, out_axes=1)(V)

        return trees.divide(trees.accumulate(one, examples, microbatch), n)

    return product
