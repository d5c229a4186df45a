"""What the bench costs, as ratios measured side by side in one run (machines are noisy).

    make bench

fc-tanh 3072-200-200-10 on 5,000 random images of CIFAR-10's size, full-batch gradient descent,
float32: the engine's step against a hand-written ``jit(scan(value_and_grad + update))`` of the same
net, a sharpness measurement against the 50 steps that lie between two, and Hessian products against
a gradient; then Hessian products of square nets against what their matmuls count.
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from lmech import building, config, losses, member, planning, programs
from lmech.datasets import Data, Examples
from lmech.models.mlp import MLP
from lmech.numerics import curvature
from lmech.numerics.precision import numerics
from lmech.problem import Problem, loss_and_gradient, total_loss

STEPS = 10
REPETITIONS = 7
OVERRIDES = ("dataset=cifar10", "dataset.train_size=5000", "model.width=200", "steps=10")
Call = Callable[[], object]


def images(n: int = 5000, inputs: int = 3072, outputs: int = 10) -> Data:
    """Random images and labels of the paper's sizes: arithmetic does not look at the pixels."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Examples:
        x = rng.normal(size=(n, inputs))
        return Examples(x, rng.integers(0, outputs, n).astype(np.int32))

    return Data(split(n), split(100))


def hand_written(data: Data) -> Call:
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


def ours(data: Data) -> tuple[Call, Call]:
    """The engine's chunk of the same run, and one sharpness measurement."""
    planning._load = lambda _: data
    batch = building.build([config.resolve(config.compose(list(OVERRIDES)))])
    run = programs.compiled(batch.program)
    inputs, data = jax.device_put((batch.inputs, batch.data))
    carry = run.start((), (inputs, None))
    feeds = member.Feed(jnp.asarray(batch.rates(np.arange(batch.program.capacity))), None)
    now = member.Feed(feeds.rate[:, 0], None)
    memory = {name: run.memory[name]((), (inputs, carry, now), data) for name in run.memory}

    def chunk() -> object:
        carried = jax.tree.map(jnp.copy, (carry, {"train_loss": memory["train_loss"]}))
        return run.chunk(carried, (inputs, feeds), STEPS, data)

    def sharpness() -> object:
        carried = (jax.tree.map(jnp.copy, memory["sharpness"]),)
        return run.measure["sharpness"](carried, (inputs, carry, now), True, False, data)

    return chunk, sharpness


def products(
    widths: tuple[int, ...], activation: str, data: Data, vectors: int, microbatch: int | None
) -> tuple[Call, Call]:
    """A full-batch gradient, and a Hessian product of a block of so many vectors."""
    x, y = jnp.asarray(data.train.x, jnp.float32), jnp.asarray(data.train.y)
    outputs = int(data.train.y.max()) + 1
    model = MLP(widths, outputs, activation, bias=True, weights="uniform_fan_in")
    problem = Problem(
        lambda key: model.init(key, x[:1])["params"],
        lambda params, x: model.apply({"params": params}, x),
        losses.mse(),
    )
    params = problem.init(jax.random.key(0))
    flat, _ = ravel_pytree(params)
    block = jax.random.normal(jax.random.key(1), (vectors, flat.size), flat.dtype)
    examples = Examples(x, y)

    @jax.jit
    def gradient(params: Any, examples: Examples) -> object:
        return loss_and_gradient(problem, params, examples, None)[1]

    @jax.jit
    def product(params: Any, examples: Examples, block: jax.Array) -> object:
        return curvature.hessian(total_loss(problem), params, examples, microbatch)(block)

    return lambda: gradient(params, examples), lambda: product(params, examples, block)


def seconds(function: Call) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def together(*functions: Call) -> list[tuple[float, ...]]:
    """Wall times of the functions, called in turn, after one call each to compile."""
    for function in functions:
        seconds(function)
    return [tuple(seconds(function) for function in functions) for _ in range(REPETITIONS)]


def ratio(unit: Call, function: Call) -> float:
    """Wall time over the unit's: the median of paired repetitions."""
    return statistics.median(b / a for a, b in together(unit, function))


def steps(data: Data) -> None:
    """The engine's step and a sharpness measurement."""
    chunk, sharpness = ours(data)
    rounds = together(hand_written(data), chunk, sharpness)
    step = statistics.median(b / a for a, b, _ in rounds)
    overhead = statistics.median(c / (50 * b / STEPS) for _, b, c in rounds)
    print(f"hand-written step, seconds              {rounds[0][0] / STEPS:.4f}")
    print(f"engine's step / hand-written            {step:.3f}")
    print(f"sharpness every 50 steps / those steps  {overhead:.3f}   (target ≤ 0.20)")


def hessian_products(data: Data) -> None:
    """Gradients a Hessian product, fc-tanh."""
    print("\nHessian products of fc-tanh, in gradients each (theory 1.09 beside the linearisation)")
    for vectors, microbatch, target in (
        *((4, None, "≤ 1.3"), (1, None, "")),
        *((4, 500, "≤ 1.3"), (1, 500, "≤ 1.6")),
    ):
        found = ratio(*products((200, 200), "tanh", data, vectors, microbatch)) / vectors
        print(f"block of {vectors}, microbatch {microbatch!s:5}  {found:.2f}   {target}")


def square_nets() -> None:
    """Gradients a product where all layers cost the same: matmuls count 14/8 for three of them."""
    print(
        "\nHessian products of n-n-n-n nets, block of 4, over the matmuls' count of 1.75 gradients"
    )
    for width in (512, 1024):
        data = images(2000, width, width)
        for activation in ("relu", "tanh", "gelu", "silu", "erf"):
            target = "≤ 1.25" if activation in ("relu", "tanh") else ""
            found = ratio(*products((width, width), activation, data, 4, None)) / 4 / 1.75
            print(f"n = {width:5}, {activation:5} {found:.2f}   {target}")


def main() -> None:
    """Print the tables."""
    print(f"medians of {REPETITIONS} paired repetitions, {jax.devices()[0].device_kind}")
    data = images()
    with numerics():
        steps(data)
        hessian_products(data)
        square_nets()


if __name__ == "__main__":
    main()
