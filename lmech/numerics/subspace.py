"""A random subspace of weight space, with orthonormal coordinates and no matrix in memory."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import fft


def signs(key: jax.Array, size: int, dtype: jnp.dtype) -> jax.Array:
    """Random signs s [D], which make the subspace."""
    return jax.random.rademacher(key, (size,), dtype)


def embedded(coordinates: jax.Array, s: jax.Array) -> jax.Array:
    """P z [D] of the coordinates z [d], with PᵀP = I.

    P = diag(s) Cᵀ E: d of the D cosine waves C of the orthonormal discrete cosine transform, always
    the same ones (chosen evenly at random), each of its entries with a random sign. Over the signs
    E[P Pᵀ] is diagonal and near (d/D) I: of mean d/D, its entries differ by the waves' squares. It
    costs O(D log D), where a dense P costs d·D and is held in memory.

    Raises ValueError for more coordinates than weights.
    """
    d, size = len(coordinates), len(s)
    if d > size:
        raise ValueError(f"{d} directions, and there are {size} weights: take fewer")
    chosen = np.random.Generator(np.random.Philox(0)).permutation(size)[:d]
    spectrum = jnp.zeros_like(s).at[chosen].set(coordinates)
    return s * fft.idct(spectrum, norm="ortho")
