"""The numerical context that everything runs in."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def numerics(matmul: str = "highest") -> Iterator[None]:
    """64-bit types available and matmuls in full precision, inside this block only.

    The user's global JAX flags stay as they are. Types are named where arrays are made, so a
    float32 model stays float32; a float64 model, or one float64 operation, is then possible.
    ``matmul`` is JAX's default matmul precision: at "highest" a GPU uses no TF32, which silently
    ruins a sharpness.
    """
    with jax.enable_x64(True), jax.default_matmul_precision(matmul):
        yield
