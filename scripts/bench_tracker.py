"""The sharpness tracker's frontier: what a measurement costs, and how far it is from λ₁.

    python scripts/bench_tracker.py            # about an hour on 2 cores; needs CIFAR-10

fc-tanh 3072-200-200-10 on the first 5,000 images of CIFAR-10, squared loss, full-batch gradient
descent at η = 0.01, float32: trained to the edge of stability (4,400 steps), then measured every 10
steps over 2,000 steps. Each policy follows the run from measurement to measurement, as the
observable does. Reference: Lanczos from a random vector, 100 steps, at each point. Cost: wall time
of a measurement over that of a gradient, medians of the same run. ``--frames`` and ``--reference``
keep the weights and the reference between calls (.npy).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from lmech import building, config, seeds
from lmech.numerics import curvature, krylov, tracking
from lmech.numerics.precision import numerics
from lmech.numerics.tracking import Policy
from lmech.parametrization import parametrize
from lmech.problem import loss_and_gradient, total_loss

OVERRIDES = (
    *("dataset=cifar10", "dataset.train_size=5000", "model.width=200", "model.activation=tanh"),
    *("model.depth=2", "optimizer.learning_rate=0.01"),
)
RATE, WARM_UP, APART, POINTS = 0.01, 4400, 10, 201
POLICIES = {
    "k=1, 1 extension": Policy(1, 1),
    "k=2, 2 extensions": Policy(2, 2),
    "k=4, 0 extensions": Policy(4, 0),
    "k=4, 2 extensions": Policy(4, 2),
    "k=4, 4 extensions (default)": Policy(4, 4),
    "k=4, 8 extensions": Policy(4, 8),
    "k=4, 4, tolerance 1e-4": Policy(4, 4, tolerance=1e-4),
    "k=4, 4, tolerance 1e-6": Policy(4, 4, tolerance=1e-6),
}


class Bench:
    """The problem, and functions of flat weights to jit."""

    def __init__(self) -> None:
        """The paper's setting."""
        batch = building.build([config.resolve(config.compose(list(OVERRIDES)))])
        inputs = jax.tree.map(lambda a: jnp.asarray(a[0]), batch.inputs)
        self.problem = parametrize(batch.program.problem, inputs.scales)
        self.data = jax.device_put(batch.data.train)
        params = self.problem.init(seeds.key(inputs.seeds, "init"))
        self.start, self.unravel = ravel_pytree(params)

    def operator(self, w: jax.Array, data: Any) -> krylov.Operator:
        """The Hessian at w."""
        return curvature.hessian(total_loss(self.problem), self.unravel(w), data)

    def gradient(self, w: jax.Array, data: Any) -> jax.Array:
        """∇L at w."""
        return ravel_pytree(loss_and_gradient(self.problem, self.unravel(w), data, None)[1])[0]

    def descend(self, w: jax.Array, data: Any, steps: int) -> jax.Array:
        """So many steps of gradient descent."""
        return lax.fori_loop(0, steps, lambda _, w: w - RATE * self.gradient(w, data), w)

    def reference(self, w: jax.Array, data: Any) -> jax.Array:
        """λ₁ from nothing."""
        draw = jax.random.normal(jax.random.key(7), w.shape, w.dtype)
        found = krylov.lanczos(self.operator(w, data), draw, 100)
        return jnp.linalg.eigvalsh(found.matrix)[-1]

    def follow(self, policy: Policy, w: jax.Array, track: Any, i: int, data: Any) -> Any:
        """One measurement."""
        return tracking.follow(self.operator(w, data), jax.random.key(i), track, policy)


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and its result."""
    started = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - started, result


def frames(bench: Bench, path: Path | None) -> np.ndarray:
    """Weights [points, P] along the run."""
    if path and path.exists():
        return np.load(path, mmap_mode="r")
    descend = jax.jit(bench.descend)
    w = descend(bench.start, bench.data, WARM_UP)
    kept = []
    for _ in range(POINTS):
        kept.append(np.asarray(w))
        w = descend(w, bench.data, APART)
    stacked = np.stack(kept)
    if path:
        np.save(path, stacked)
    return stacked


def references(bench: Bench, weights: np.ndarray, path: Path | None) -> np.ndarray:
    """λ₁ [points]."""
    if path and path.exists():
        return np.load(path)
    reference = jax.jit(bench.reference)
    values = np.asarray([float(reference(w, bench.data)) for w in weights])
    if path:
        np.save(path, values)
    return values


def measure(bench: Bench, policy: Policy, weights: np.ndarray) -> dict[str, np.ndarray]:
    """θ₁, products and cost in gradients at each point, the first one left out."""
    start = jax.jit(
        lambda w, data: tracking.start(
            bench.operator(w, data), jax.random.key(3), w.size, w.dtype, policy
        )
    )
    follow = jax.jit(partial(bench.follow, policy))
    gradient = jax.jit(bench.gradient)
    track = start(weights[0], bench.data)
    rows = []
    for i, w in enumerate(map(jnp.asarray, weights)):
        unit, _ = seconds(lambda w=w: gradient(w, bench.data))
        cost, (track, pairs, products) = seconds(
            lambda w=w, track=track, i=i: follow(w, track, i, bench.data)
        )
        rows.append((float(pairs.values[0]), int(products), cost, unit))
    theta, products, cost, unit = np.asarray(rows[1:]).T
    return {"theta": theta, "products": products, "gradients": cost / statistics.median(unit)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--points", type=int, default=POINTS)
    arguments = parser.parse_args()
    with numerics():
        bench = Bench()
        weights = frames(bench, arguments.frames)[: arguments.points]
        exact = references(bench, weights, arguments.reference)[1 : arguments.points]
        print(f"{len(exact)} points, λ₁ {exact.min():.4g} to {exact.max():.4g}, 2/η {2 / RATE:g}")
        print(f"{'policy':30} products  gradients  median    p99       worst     (error, of λ₁)")
        for name, policy in POLICIES.items():
            found = measure(bench, policy, weights)
            error = np.abs(1 - found["theta"] / exact)
            print(
                f"{name:30} {found['products'].mean():8.1f}  {np.median(found['gradients']):9.2f}  "
                f"{np.median(error):.1e}   {np.quantile(error, 0.99):.1e}   {error.max():.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
