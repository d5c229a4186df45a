"""The peer of ``steps`` and ``start``: the loop that one would write in JAX without a library.

Imports nothing of lmech. fc-tanh, ½ squared error, full-batch gradient descent, all of it float32.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WIDTH, OUTPUTS, RATE = 200, 10, 0.01


def scan(
    images: np.ndarray,
    labels: np.ndarray,
    steps: int,
    product: Callable[..., jax.Array] = jnp.matmul,
) -> tuple[Any, tuple[Any, ...]]:
    """A jitted scan of so many steps, and its arguments; its layers' ``product`` as given."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(images, jnp.float32)
    y = jax.nn.one_hot(labels, OUTPUTS, dtype=jnp.float32)
    params = [
        (jnp.asarray(rng.uniform(-(m**-0.5), m**-0.5, (m, n)), x.dtype), jnp.zeros((1, n), x.dtype))
        for m, n in pairwise((x.shape[1], WIDTH, WIDTH, OUTPUTS))
    ]

    def loss(params: list, x: jax.Array, y: jax.Array) -> jax.Array:
        for w, b in params[:-1]:
            x = jnp.tanh(product(x, w) + b)
        w, b = params[-1]
        return jnp.mean(jnp.sum((product(x, w) + b - y) ** 2, axis=-1)) / 2

    @jax.jit
    def run(params: list, x: jax.Array, y: jax.Array) -> object:
        def step(params: list, _: None) -> tuple[list, jax.Array]:
            value, gradient = jax.value_and_grad(loss)(params, x, y)
            return jax.tree.map(lambda p, g: p - RATE * g, params, gradient), value

        return lax.scan(step, params, None, length=steps)

    return run, (params, x, y)
