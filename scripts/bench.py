"""What the bench costs, as ratios measured side by side in one run (machines are noisy).

    make bench

fc-tanh 3072-200-200-10 on 5,000 random images of CIFAR-10's size, full-batch gradient descent:
the engine's step against a hand-written ``jit(scan(value_and_grad + update))`` of the same net,
and a sharpness measurement against a gradient.
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lmech import building, config, engine, planning
from lmech.datasets import Data, Examples
from lmech.numerics.precision import numerics

STEPS = 10
REPETITIONS = 7
OVERRIDES = ("dataset=cifar10", "dataset.train_size=5000", "model.width=200", "steps=10")


def images() -> Data:
    """Random images and labels of the paper's sizes: arithmetic does not look at the pixels."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Examples:
        return Examples(rng.normal(size=(n, 3072)), rng.integers(0, 10, n).astype(np.int32))

    return Data(split(5000), split(100))


def hand_written(data: Data) -> Callable[[], object]:
    """The loop one would write without a library: params as a list, ½ squared error, GD."""
    rng = np.random.default_rng(0)
    sizes = (3072, 200, 200, 10)
    params = [
        (jnp.asarray(rng.uniform(-(m**-0.5), m**-0.5, (m, n)), jnp.float32), jnp.zeros((1, n)))
        for m, n in pairwise(sizes)
    ]
    x = jnp.asarray(data.train.x, jnp.float32)
    y = jax.nn.one_hot(data.train.y, 10, dtype=jnp.float32)

    def loss(params: list, x: jax.Array, y: jax.Array) -> jax.Array:
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        w, b = params[-1]
        return jnp.mean(jnp.sum((x @ w + b - y) ** 2, axis=-1)) / 2

    @jax.jit
    def run(params: list, x: jax.Array, y: jax.Array) -> object:
        def step(params: list, _: None) -> tuple[list, jax.Array]:
            value, gradient = jax.value_and_grad(loss)(params, x, y)
            return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), value

        return lax.scan(step, params, None, length=STEPS)

    return lambda: run(params, x, y)


def ours(data: Data) -> tuple[Callable[[], object], Callable[[], object]]:
    """The engine's chunk of the same run, and one sharpness measurement."""
    planning._load = lambda _: data
    batch = building.build([config.resolve(config.compose(list(OVERRIDES)))])
    run = engine.compiled(batch.program)
    inputs, data = jax.device_put((batch.inputs, batch.data))
    carry = run.start((), (inputs, None))
    feeds = engine.Feed(jnp.asarray(batch.rates(np.arange(batch.program.capacity))), None)
    now = engine.Feed(feeds.rate[:, 0], None)
    memory = {name: run.memory[name]((), (inputs, carry, now), data) for name in run.memory}

    def chunk() -> object:
        carried = jax.tree.map(jnp.copy, (carry, {"train_loss": memory["train_loss"]}))
        return run.chunk(carried, (inputs, feeds), STEPS, data)

    def sharpness() -> object:
        carried = (jnp.copy(memory["sharpness"]),)
        return run.measure["sharpness"](carried, (inputs, carry, now), False, data)

    return chunk, sharpness


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    data = images()
    with numerics():
        reference = hand_written(data)
        chunk, sharpness = ours(data)
        for function in (reference, chunk, sharpness):
            seconds(function)
        rounds = [
            (seconds(reference) / STEPS, seconds(chunk) / STEPS, seconds(sharpness))
            for _ in range(REPETITIONS)
        ]
    step = statistics.median(b / a for a, b, _ in rounds)
    product = statistics.median(c / 8 / a for a, _, c in rounds)
    print(f"median of {REPETITIONS} paired repetitions, {jax.devices()[0].device_kind}")
    print(f"hand-written step            {statistics.median(a for a, *_ in rounds):.4f} s")
    print(f"engine's step / hand-written {step:.3f}")
    print(f"Hessian product / step       {product:.3f}   (sharpness: 8 products)")


if __name__ == "__main__":
    main()
