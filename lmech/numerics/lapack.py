"""Dense linear algebra of one matrix, which members may do side by side.

On a CPU jaxlib hands the matrices of a batch to the threads that run the program, and waits for
them in one of those threads: two such calls at once, of one program or of two devices, may wait for
each other for ever (jaxlib 0.10.2, ``ParallelBatchMap`` of its LAPACK calls). So the matrices of a
batch are taken one after another there, each as it is alone, bit for bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap


def _in_turn(f: Callable[..., Any], *arrays: jax.Array) -> Any:
    if arrays[0].ndim > 2:
        return jax.vmap(partial(_in_turn, f))(*arrays)
    if jax.default_backend() != "cpu":
        return f(*arrays)
    # Not f itself, whose options it would take for arrays.
    return sequential_vmap(lambda *arrays: f(*arrays))(*arrays)  # noqa: PLW0108


def eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues [n] in ascending order and eigenvectors, columns [n, n], of a symmetric a."""
    return _in_turn(lambda a: tuple(jnp.linalg.eigh(a)), a)


def eigvalsh(a: jax.Array) -> jax.Array:
    """Eigenvalues [n] of a symmetric a, in ascending order."""
    return _in_turn(jnp.linalg.eigvalsh, a)


def svd(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U [n, k], singular values [k] in descending order, Vᵀ [k, m] of a [n, m], k = min(n, m)."""
    return _in_turn(lambda a: tuple(jnp.linalg.svd(a, full_matrices=False)), a)


def singular_values(a: jax.Array) -> jax.Array:
    """The singular values [min(n, m)] of a [n, m], in descending order."""
    return _in_turn(lambda a: jnp.linalg.svd(a, compute_uv=False), a)


def triangular(a: jax.Array) -> jax.Array:
    """R [min(n, m), m] of a = QR."""
    return _in_turn(lambda a: jnp.linalg.qr(a, mode="r"), a)


def pinv(a: jax.Array) -> jax.Array:
    """Moore–Penrose inverse [m, n]."""
    return _in_turn(jnp.linalg.pinv, a)


def solve(a: jax.Array, b: jax.Array) -> jax.Array:
    """X [n] of ax = b."""
    return _in_turn(jnp.linalg.solve, a, b)
