"""The peer of ``ntk``: neural-tangents' empirical kernel of fc-tanh 3072-200-200-10.

    peers/neural-tangents/bin/python scripts/bench/ntk_peer.py JACOBIAN_CONTRACTION 100

Runs in an environment of its own (Python 3.11, jax 0.4.24) and imports nothing of lmech. The same
weights and images as ``ntk.drawn``. Prints JSON.
"""

import json
import resource
import sys
import time
from itertools import pairwise

import jax
import neural_tangents as nt
import numpy as np

SIZES = (3072, 200, 200, 10)


def net(params: list, x: jax.Array) -> jax.Array:
    """Images [n, 3072] to outputs [n, 10]."""
    *hidden, (w, b) = params
    for kernel, bias in hidden:
        x = jax.numpy.tanh(x @ kernel + bias)
    return x @ w + b


def drawn() -> list:
    """Layer by layer, N(0, 1/fan_in), biases 0.1 N(0, 1)."""
    rng = np.random.default_rng(1)
    return [
        (
            rng.normal(size=(m, n)).astype(np.float32) / np.float32(m**0.5),
            0.1 * rng.normal(size=n).astype(np.float32),
        )
        for m, n in pairwise(SIZES)
    ]


def peak() -> float:
    """Largest resident set so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(way: str, n: int) -> None:
    """Measure, print."""
    implementation = nt.NtkImplementation[way]
    kernel = nt.empirical_ntk_fn(net, trace_axes=(), vmap_axes=0, implementation=implementation)
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(n, SIZES[0])), "float32")
    params = jax.tree_util.tree_map(jax.numpy.asarray, drawn())
    compiled = jax.jit(lambda params, x: kernel(x, None, params)).lower(params, x).compile()
    before = peak()
    jax.block_until_ready(compiled(params, x))
    wall, cpu = time.perf_counter(), time.process_time()
    found = jax.block_until_ready(compiled(params, x))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    most = peak()
    found = np.asarray(found, np.float64)  # [n, n, 10, 10]
    told = {"norm": float(np.linalg.norm(found)), "trace": float(np.einsum("iiaa", found))}
    told |= {"wall": wall, "cpu": cpu, "before": before, "peak": most}
    told["versions"] = f"neural-tangents {nt.__version__}, jax {jax.__version__}"
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
