"""The problem of several tables: fc-tanh 3072-200-200-10 on 5,000 images of CIFAR-10's size.

Arithmetic does not look at the pixels, so that random images do. On lmech's side a run's parts as
the engine compiles them; beside it the loops that one would write without a library, in JAX and in
PyTorch: parameters in memory, ½ squared error, full-batch gradient descent.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lmech import building, config, losses, member, planning, programs
from lmech.datasets import Data, Examples
from lmech.models.mlp import MLP
from lmech.numerics import curvature
from lmech.problem import Problem, loss_and_gradient, total_loss
from scripts.bench import fc_loop
from scripts.bench.fc_loop import OUTPUTS, RATE, WIDTH
from scripts.bench.timing import Call

EXAMPLES, INPUTS = 5000, 3072
OVERRIDES = ("dataset=cifar10", f"dataset.train_size={EXAMPLES}", f"model.width={WIDTH}")


def images(n: int = EXAMPLES, inputs: int = INPUTS, outputs: int = OUTPUTS) -> Data:
    """Random images and labels of the paper's sizes."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Examples:
        x = rng.normal(size=(n, inputs))
        return Examples(x, rng.integers(0, outputs, n).astype(np.int32))

    return Data(split(n), split(100))


LOAD = planning._load


def instead(data: Data | None) -> None:
    """Let lmech load these images, whatever the dataset; None: what it is asked for again."""
    planning._load = LOAD if data is None else lambda _: data


def flops(n: int = EXAMPLES, sizes: tuple[int, ...] = (INPUTS, WIDTH, WIDTH, OUTPUTS)) -> int:
    """Of a training step's matmuls: each layer's three, without the gradient of the images."""
    layers = [m * k for m, k in pairwise(sizes)]
    return 2 * n * (3 * sum(layers) - layers[0])


# Loops without a library


def jax_loop(data: Data, steps: int, product: Callable[..., jax.Array] = jnp.matmul) -> Call:
    """What a step costs without the engine, its layers' ``product`` as given."""
    run, arguments = fc_loop.scan(data.train.x, data.train.y, steps, product)
    return partial(run, *arguments)


class InTorch(NamedTuple):
    """The same in PyTorch, as one would write it."""

    loop: Call
    gradient: Call
    products: Callable[[int], Call]
    """Hessian products with so many vectors, and the gradient's graph for them."""
    kept: Call
    """One product, where that graph was built before and kept."""


def torch_side(torch: Any, data: Data, steps: int) -> InTorch:
    """A loop of so many steps, a gradient and a product with a vector, all in memory."""
    nn = torch.nn
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(data.train.x.shape[1], WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh()),
        nn.Linear(WIDTH, OUTPUTS),
    )
    x = torch.from_numpy(np.asarray(data.train.x, np.float32))
    labels = torch.from_numpy(np.asarray(data.train.y, np.int64))
    y = nn.functional.one_hot(labels, OUTPUTS).float()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=RATE)

    def loss() -> Any:
        return (model(x) - y).square().sum(-1).mean() / 2

    def loop() -> Any:
        values = []
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            values.append(value.detach())
        return torch.stack(values).tolist()

    graphs: list[Any] = []
    vectors = [torch.randn_like(p) for p in parameters]

    def graph() -> Any:
        return torch.autograd.grad(loss(), parameters, create_graph=True)

    def product(graph: Any) -> Any:
        return torch.autograd.grad(graph, parameters, grad_outputs=vectors, retain_graph=True)

    def products(count: int) -> Any:
        own = graph()
        return [product(own) for _ in range(count)]

    def kept() -> Any:
        if not graphs:
            graphs.append(graph())
        return product(graphs[0])

    def gradient() -> Any:
        return torch.autograd.grad(loss(), parameters)

    return InTorch(loop, gradient, lambda count: partial(products, count), kept)


# lmech


class Engine(NamedTuple):
    """Parts of a run: a chunk of steps, and a measurement of an observable by its name."""

    chunk: Call
    measurement: Callable[[str], Call]


def engine(data: Data | None, steps: int, *overrides: str) -> Engine:
    """The compiled parts of the same run, on CIFAR-10 itself without ``data``.

    Its chunk records the training loss alone.
    """
    instead(data)
    words = [*OVERRIDES, f"steps={steps}", *overrides]
    batch = building.build([config.resolve(config.compose(words))])
    run = programs.compiled(batch.program)
    inputs, placed = jax.device_put((batch.inputs, batch.data))
    carry = run.start((), (inputs, None))
    feeds = member.Feed(jnp.asarray(batch.rates(np.arange(batch.program.capacity))), None)
    now = member.Feed(feeds.rate[:, 0], None)
    memory = {name: run.memory[name]((), (inputs, carry, now), placed) for name in run.memory}

    def chunk() -> object:
        carried = jax.tree.map(jnp.copy, (carry, {"train_loss": memory["train_loss"]}))
        return run.chunk(carried, (inputs, feeds), steps, placed)

    def measurement(name: str) -> Call:
        def measure() -> object:
            carried = (jax.tree.map(jnp.copy, memory[name]),)
            return run.measure[name](carried, (inputs, carry, now), True, False, placed)

        return measure

    return Engine(chunk, measurement)


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
