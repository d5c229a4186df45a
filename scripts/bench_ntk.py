"""What a tangent kernel of CIFAR-10's size costs: seconds and peak memory, a process for each.

    make bench

Random images of 3072 numbers, float32: fc-tanh 3072-200-200-10 and a convolutional net on
32 × 32 × 3 (three layers of 32 channels). Peak memory is the process's, with JAX itself in it;
``before`` is what it was with the images and the net in place.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmech.models.cnn import cnn
from lmech.models.mlp import mlp
from lmech.numerics import kernels
from lmech.numerics.kernels import Reduction
from lmech.numerics.precision import numerics

MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "fc": (mlp(10, width=200, depth=2), (3072,)),
    "cnn": (cnn(10, width=32, depth=3), (32, 32, 3)),
}
CASES: list[tuple[str, Reduction, int]] = [
    ("fc", "sum_logits", 2000),
    ("cnn", "full", 500),
    ("fc", "full", 500),
]


def peak() -> float:
    """Largest resident set of this process so far, in GiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, reduction: Reduction, n: int) -> dict[str, Any]:
    """One kernel, in this process."""
    model, shape = MODELS[name]

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x)

    def kernel(params: Any, x: jax.Array) -> jax.Array:
        return kernels.empirical_ntk(apply, params, x, reduction)

    with numerics():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(n, *shape)), jnp.float32)
        params = jax.jit(model.init)(jax.random.key(0), x[:1])["params"]
        compiled = jax.jit(kernel).lower(params, x).compile()
        before, wall, cpu = peak(), time.perf_counter(), time.process_time()
        rows = len(jax.block_until_ready(compiled(params, x)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {
        "rows": rows,
        "parameters": parameters,
        "wall": wall,
        "cpu": cpu,
        "before": before,
        "peak": peak(),
    }


def main() -> None:
    """Print the table; with a case as arguments, measure it and print it as JSON."""
    if len(sys.argv) == 4:
        name, reduction, n = sys.argv[1:]
        print(json.dumps(measure(name, reduction, int(n))))  # type: ignore[arg-type]
        return
    print("net  reduction      N   rows      P   wall s   CPU s   before → peak GiB")
    for name, reduction, n in CASES:
        command = [sys.executable, __file__, name, reduction, str(n)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # noqa: S603
        print(
            f"{name:4} {reduction:10} {n:5} {row['rows']:6} {row['parameters']:6} "
            f"{row['wall']:8.1f} {row['cpu']:7.1f}   {row['before']:.2f} → {row['peak']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
