"""What the parts of a run must be to go together: data, loss, model, rates. Nothing is trained.

Each raises ConfigError, in a line that says what to do.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from lmech import datasets, mistakes, modelling, programs
from lmech.datasets import Data
from lmech.numerics import kernels
from lmech.numerics.precision import numerics
from lmech.parametrization import Scales, uneven
from lmech.problem import Params, Problem
from lmech.values import Config, ConfigError


def targets(config: Config, data: Data) -> None:
    """Raise ConfigError for real targets that the loss takes for probabilities, and are none."""
    if config["loss"]["_target_"] != "lmech.losses.cross_entropy":
        return
    for name, split in data.splits.items():
        y = split.y
        if not (datasets.integers(y) or ((y >= 0).all() and np.allclose(y.sum(-1), 1, atol=1e-3))):
            raise ConfigError(
                f"loss=cross_entropy takes class labels, or probabilities that sum to 1, and the "
                f"{name} targets are other real numbers: choose loss=mse"
            )


def tasks(config: Config, data: Data) -> None:
    """Raise ConfigError unless the tasks that the config goes through are the dataset's."""
    steps, order = config.get("task_steps"), config.get("task_order")
    if steps is None and data.tasks is not None:
        raise ConfigError(f"this dataset has {data.tasks.number} tasks: set task_steps")
    if steps is not None and data.tasks is None:
        raise ConfigError(
            f"task_steps={steps}, but this dataset is one task: dataset=rotated_digits has several"
        )
    if data.tasks is not None and max(order or [0]) >= data.tasks.number:
        raise ConfigError(
            f"task_order={order}, but there are {data.tasks.number} tasks, which count from 0"
        )


def stream(config: Config, data: Data) -> None:
    """Raise ConfigError for what cannot be of examples that are drawn anew at each step."""
    if data.stream is None:
        return
    told = "this dataset draws new examples at each step: "
    if config["batch_size"] is None:
        raise ConfigError(f"{told}set batch_size, which says how many")
    for key in ("label_noise", "data_fraction"):
        if config[key] is not None:
            raise ConfigError(f"{told}{key} is of a training set, set it to null")


def no_interaction(problem: Problem, data: Data) -> None:
    """Raise ConfigError for a model that does not take each example on its own."""
    params = modelling.shapes_of(problem)
    if kernels.interacting(problem.apply, params, data.train.x) > 1:
        raise ConfigError(
            "data_fraction leaves examples out, and in this model they interact: set "
            "data_fraction=null or model.norm_group=null"
        )


def shapes(problem: Problem, data: Data) -> None:
    """Raise ConfigError unless the model puts out what the targets ask for, and the loss [N]."""
    x, y = data.train.x, data.train.y
    outputs = jax.eval_shape(problem.apply, modelling.shapes_of(problem), x)
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) < 2 or shape[0] != len(x):
        told = mistakes.described(outputs) if shape is None else f"an array {list(shape)}"
        raise ConfigError(
            f"of {len(x)} inputs the model makes {told}: it has to be outputs [N, C], a row an "
            "input, of sequences [N, T, C]"
        )
    classes = datasets.outputs(data)
    if datasets.integers(y) and shape[-1] < classes:
        raise ConfigError(
            f"the model has {shape[-1]} outputs, and the labels are of {classes} classes: let its "
            "factory take `outputs`"
        )
    loss = jax.eval_shape(problem.loss, outputs, y)
    if getattr(loss, "shape", None) != (len(x),) or not np.issubdtype(loss.dtype, np.floating):
        told = f"{loss.dtype} {list(loss.shape)}" if hasattr(loss, "shape") else f"a {type(loss)}"
        raise ConfigError(
            f"the loss of {len(x)} examples is {told}: it has to be one real number an example, "
            "[N], whose mean is taken elsewhere"
        )


def apart(problem: Problem, data: Data) -> None:
    """Raise ConfigError if the model's outputs for an example depend on the other beside it.

    With weights drawn here, since a readout may start at 0. A model that takes groups of examples
    only says so itself, by a ValueError for other numbers.
    """
    x = data.train.x
    different = np.flatnonzero((x[:64] != x[:1]).reshape(len(x[:64]), -1).any(axis=1))
    if not len(different):
        return
    pair = x[[0, different[0]]]
    draw = np.random.default_rng(0).standard_normal

    def weights(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        fan_in = max(1, math.prod(leaf.shape[:-1]))
        return (draw(leaf.shape) / math.sqrt(fan_in)).astype(leaf.dtype)

    def last(params: Params, pair: Any) -> Any:
        return problem.apply(params, pair)[-1], problem.apply(params, pair[1:])[-1]

    params = jax.tree.map(weights, modelling.shapes_of(problem))
    try:
        jax.eval_shape(last, params, pair)
    except ValueError:
        return
    options = programs.known(programs.ONCE)
    beside, alone = map(np.asarray, jax.jit(last, compiler_options=options)(params, pair))
    if np.abs(beside - alone).max() > APART * np.abs(beside).max():
        raise ConfigError(
            "this model mixes examples: of two together it makes other outputs than of each alone; "
            "let it take groups of examples (lmech.models.layers.BatchNorm), or each on its own"
        )


APART = 0.01
"""Of the largest output: more than rounding does in any precision."""


def learning_rates(rates: Callable[[np.ndarray], np.ndarray], horizon: int) -> None:
    """Raise ConfigError for rates below 0 or not finite: at some of the steps, with both ends."""
    steps = np.unique(np.linspace(0, horizon - 1, 100).astype(int))
    found = rates(steps)
    wrong = np.argwhere(~(np.isfinite(found) & (found >= 0)))
    if len(wrong):
        row, column = wrong[0]
        raise ConfigError(
            f"the learning rate is {found[row, column]:g} at step {steps[column]}: it has to be "
            f"finite in {found.dtype} and at least 0 (schedule, optimizer.learning_rate)"
        )


@contextmanager
def tracing(config: Config) -> Iterator[None]:
    """The config's numerics. What its parts raise inside the block is one line, a ConfigError."""
    with numerics(config["precision"]["matmul"]):
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(mistakes.one_line(error)) from error


def subspaces(configs: Sequence[Config], scales: Sequence[Scales], problem: Problem) -> None:
    """Raise ConfigError where what is trained in a subspace cannot be: its coordinates are alike.

    So no tensor may have a learning rate of its own, and there are no more than weights.
    """
    count = configs[0].get("subspace")
    if count is None:
        return
    there = sum(leaf.size for leaf in jax.tree.leaves(modelling.shapes_of(problem)))
    if count > there:
        raise ConfigError(f"subspace={count}, and the model has {there} weights: take fewer")
    for own in scales:
        which = uneven(own)
        if which is not None:
            raise ConfigError(
                f"subspace={count} trains coordinates that mix all tensors, whose factors of the "
                f"{which.replace('_', ' ')} differ here: take parametrization=sp or ntk, and a "
                "model without frozen tensors"
            )
