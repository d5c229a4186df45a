"""Helpers for pytrees of arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any


def add(a: Tree, b: Tree) -> Tree:
    """Leafwise a + b."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """Leafwise a − b."""
    return jax.tree.map(jnp.subtract, a, b)


def multiply(a: Tree, b: Tree) -> Tree:
    """Leafwise a · b; leaves of ``a`` may be scalars (a parametrization's multipliers)."""
    return jax.tree.map(jnp.multiply, a, b)


def divide(a: Tree, scalar: Any) -> Tree:
    """Leafwise a / scalar, in the leaf's own dtype."""
    return jax.tree.map(lambda leaf: leaf / jnp.asarray(scalar, leaf.dtype), a)


def select(keep: jax.Array, new: Tree, old: Tree) -> Tree:
    """``new`` where the scalar boolean ``keep`` holds, else ``old``."""
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def take(tree: Tree, index: Any) -> Tree:
    """Leafwise ``leaf[index]``."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def squared_norm(tree: Tree) -> jax.Array:
    """Sum of squares over all leaves."""
    return jnp.stack([jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)]).sum()


def norm(tree: Tree) -> jax.Array:
    """‖a‖ over all leaves."""
    return jnp.sqrt(squared_norm(tree))


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by their path, ``{"Dense_0/kernel": …}``, in tree order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def split(examples: Tree, size: int) -> tuple[Tree, Tree | None]:
    """Microbatches of ``size`` examples, stacked [B, size, …], and what is left over (or None)."""
    n = jax.tree.leaves(examples)[0].shape[0]
    full = n // size
    head = jax.tree.map(lambda a: a[: full * size].reshape(full, size, *a.shape[1:]), examples)
    rest = jax.tree.map(lambda a: a[full * size :], examples)
    return head, None if full * size == n else rest


def accumulate(f: Callable[[Tree], Tree], examples: Tree, size: int | None) -> Tree:
    """Sum of ``f`` over microbatches of at most ``size`` examples.

    ``f`` maps a tree of examples (leading axis: examples) to a tree of *sums* over them. The
    memory of one microbatch is alive at a time (a ``scan``); what does not fill the last one is
    added in a call of its own, so the result is that of ``f(examples)`` up to rounding.
    """
    n = jax.tree.leaves(examples)[0].shape[0]
    if size is None or size >= n:
        return f(examples)
    head, rest = split(examples, size)
    shapes = jax.eval_shape(f, jax.tree.map(lambda a: a[0], head))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = lax.scan(lambda total, batch: (add(total, f(batch)), None), zeros, head)
    return total if rest is None else add(total, f(rest))
