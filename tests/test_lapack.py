"""Dense linear algebra of one matrix: NumPy's, alone and in a batch, and no call that waits."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmech.numerics import lapack

rng = np.random.default_rng(0)
TALL = rng.normal(size=(3, 6, 4))
SQUARE = rng.normal(size=(3, 5, 5))
SYMMETRIC = SQUARE + SQUARE.swapaxes(1, 2)
CASES = {
    "eigh": (lapack.eigh, SYMMETRIC),
    "eigvalsh": (lapack.eigvalsh, SYMMETRIC),
    "svd": (lapack.svd, TALL),
    "singular_values": (lapack.singular_values, TALL),
    "triangular": (lapack.triangular, TALL),
    "pinv": (lapack.pinv, TALL),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_each_matrix_of_a_batch_is_as_it_is_alone_bit_for_bit(name):
    ours, matrices = CASES[name]
    for whole in (jax.vmap(ours)(matrices), ours(jnp.asarray(matrices))):
        for number, matrix in enumerate(matrices):
            alone = jax.tree.leaves(ours(jnp.asarray(matrix)))
            for leaf, one in zip(jax.tree.leaves(whole), alone, strict=True):
                np.testing.assert_array_equal(leaf[number], one)


@pytest.mark.usefixtures("x64")
def test_values_are_numpys():
    tall, symmetric = jnp.asarray(TALL[0]), jnp.asarray(SYMMETRIC[0])
    close = partial(np.testing.assert_allclose, atol=1e-12)
    close(lapack.eigvalsh(symmetric), np.linalg.eigvalsh(SYMMETRIC[0]))
    close(lapack.singular_values(tall), np.linalg.svd(TALL[0])[1])
    close(lapack.pinv(tall), np.linalg.pinv(TALL[0]))


@pytest.mark.usefixtures("x64")
def test_factors_make_the_matrix_again():
    values, vectors = map(np.asarray, lapack.eigh(jnp.asarray(SYMMETRIC[0])))
    np.testing.assert_allclose(vectors * values @ vectors.T, SYMMETRIC[0], atol=1e-12)
    u, sizes, v = map(np.asarray, lapack.svd(jnp.asarray(TALL[0])))
    np.testing.assert_allclose(u * sizes @ v, TALL[0], atol=1e-12)
    r = np.asarray(lapack.triangular(jnp.asarray(TALL[0])))
    np.testing.assert_allclose(r.T @ r, TALL[0].T @ TALL[0], atol=1e-12)
    x = jax.vmap(lapack.solve)(jnp.asarray(SQUARE), jnp.asarray(TALL[:, :5, 0]))
    np.testing.assert_allclose(np.einsum("bij,bj->bi", SQUARE, x), TALL[:, :5, 0], atol=1e-12)


SEVERAL = """
import jax, jax.numpy as jnp, numpy as np
from lmech.numerics import lapack
def of_one(x):
    matrices = [jnp.tanh(x * (1 + i / 7) @ x.T) for i in range(12)]
    return sum(lapack.eigh(a)[0].sum() for a in matrices)
x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 100, 100)), jnp.float32)
for _ in range(60):
    jax.jit(jax.vmap(of_one))(x).block_until_ready()
"""


@pytest.mark.slow
def test_several_calls_at_once_end():
    """With ``jnp.linalg.eigh`` the same never does, on two cores with jaxlib 0.10.2."""
    subprocess.run([sys.executable, "-c", SEVERAL], check=True, timeout=300)
