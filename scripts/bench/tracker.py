"""The sharpness tracker's frontier: what a measurement costs, and how far it is from λ₁.

fc-tanh 3072-200-200-10 on the first 5,000 images of CIFAR-10, squared loss, full-batch gradient
descent at η = 0.01, float32: trained to the edge of stability (4,400 steps), then measured every 10
steps over 1,000 steps. Each policy follows the run from measurement to measurement, as the
observable does. Reference: Lanczos from a random vector, 100 steps, at each point. Cost: wall time
of a measurement over that of a gradient, medians of the same run. Half an hour to an hour on 2
cores; --keep keeps the weights and the reference between calls.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from lmech import building, config, seeds
from lmech.datasets import cifar10, files
from lmech.numerics import curvature, krylov, tracking
from lmech.numerics.precision import numerics
from lmech.numerics.tracking import Policy
from lmech.parametrization import parametrize
from lmech.problem import loss_and_gradient, total_loss
from scripts.bench.asked import Asked, Missing
from scripts.bench.tables import Cell, Table
from scripts.bench.timing import same_threads

OVERRIDES = (
    *("dataset=cifar10", "dataset.train_size=5000", "model.width=200", "model.activation=tanh"),
    *("model.depth=2", "optimizer.learning_rate=0.01"),
)
RATE, WARM_UP, APART, POINTS = 0.01, 4400, 10, 101
POLICIES = {
    "k=1, 1 extension": Policy(1, 1),
    "k=2, 2 extensions": Policy(2, 2),
    "k=4, 0 extensions": Policy(4, 0),
    "k=4, 2 extensions": Policy(4, 2),
    "k=4, 3 extensions (default)": Policy(4, 3),
    "k=4, 4 extensions": Policy(4, 4),
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


def kept(path: Path | None, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array from its file, or made and saved there."""
    if path and path.exists():
        return np.load(path, mmap_mode="r")
    made = make()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, made)
    return made


def frames(bench: Bench, points: int, warm_up: int) -> np.ndarray:
    """Weights [points, P] along the run."""
    descend = jax.jit(bench.descend)
    w = descend(bench.start, bench.data, warm_up)
    along = []
    for _ in range(points):
        along.append(np.asarray(w))
        w = descend(w, bench.data, APART)
    return np.stack(along)


def references(bench: Bench, weights: np.ndarray) -> np.ndarray:
    """λ₁ [points]."""
    reference = jax.jit(bench.reference)
    return np.asarray([float(reference(w, bench.data)) for w in weights])


def followed(bench: Bench, policy: Policy, weights: np.ndarray) -> dict[str, np.ndarray]:
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


def measure(asked: Asked) -> Iterator[Table]:
    """Every policy."""
    same_threads(asked.threads)
    points = asked.size(POINTS, 3)
    try:
        files.locate(cifar10.SOURCE)
    except files.DataNotFound as error:
        raise Missing(f"CIFAR-10: {error}") from error
    with numerics():
        bench = Bench()
        paths = [asked.keep and asked.keep / f"{name}{points}.npy" for name in ("frames", "exact")]
        weights = kept(paths[0], lambda: frames(bench, points, asked.size(WARM_UP, 2)))
        exact = kept(paths[1], lambda: references(bench, weights))[1:]
        rows: list[list[Cell]] = []
        for name, policy in asked.size(list(POLICIES.items()), [*POLICIES.items()][:1]):
            found = followed(bench, policy, weights)
            error = np.abs(1 - found["theta"] / exact)
            quantiles = (np.median(error), np.quantile(error, 0.99), error.max())
            costs = found["products"].mean(), np.median(found["gradients"])
            rows.append([name, *map(float, costs), *map(float, quantiles)])
    yield Table(
        f"{len(exact)} points, λ₁ {exact.min():.4g} to {exact.max():.4g}, 2/η = {2 / RATE:g}",
        ("policy", "products", "gradients", "error of λ₁: median", "p99", "worst"),
        rows,
        "Errors are relative; a cost is wall time over that of a gradient, median over the points.",
    )
