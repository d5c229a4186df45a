"""Observables: what is measured along a run.

An observable is two pure functions. ``init(state)`` makes its memory (a warm block, the kernel at
step 0), ``measure(state, memory)`` returns the new memory and named arrays. The name "" is the
observable's own column; any other name is a column of its own, ``<observable>_<name>``.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from annotated_types import Ge

from lmech import sampling
from lmech.datasets import Data, Examples, take
from lmech.optimizers import CLIP, Hyperparameters, Optimizer
from lmech.parametrization import Scales, descend
from lmech.problem import Evaluation, Params, Problem, loss_and_gradient

Memory = Any
Values = dict[str, jax.Array]
Count = Annotated[int, Ge(1)]
Needs = Literal["weights", "optimizer", "path"]


class State(NamedTuple):
    """All that an observable may look at: one member, at one step, before its update.

    - ``problem``: model and loss, with the member's parametrization in place: its ``apply(params,
      x)`` multiplies the weights by their forward multipliers itself.
    - ``data``: both splits, with the member's own targets, and weights where only some training
      examples count.
    - ``subset``: how many training examples count at least, of any member of the batch (None: all).
    - ``params``: a tree of layers and tensors, as they are trained: without forward multipliers,
      which are ``scales.multiplier``. Layers come in the alphabet's order: hidden_10 before
      hidden_2.
    - ``past``: w_{t−1}, w_{t−2}: as many as the observables ask for.
    - ``step``: how many updates there have been.
    - ``time``: Σ of the learning rates of the steps taken: the time of gradient flow.
    - ``seeds``: draw from the stream "probes" alone (``seeds.key(state.seeds, "probes")``).
    - ``microbatch``: most examples at once (None: all of them).
    - ``batch_size``: examples of an update (None: full batch).
    - ``batch``: those of this step's update, the whole training set unless ``batch_size`` is set.
    - ``evaluation``, ``gradient``: the training step's own, on ``batch``, where it has them (else
      None): free to read. ``lmech.observables.gradient(state)`` always has the training set's.
    - ``optimizer``: how to make the update; ``next_update(state)`` does.
    - ``hyperparameters``: its floats, with this step's learning rate.
    - ``optimizer_state``: optax's, before this step's gradient.
    - ``scales``: the parametrization's factors, trees like ``params``.
    """

    problem: Problem
    data: Data
    subset: int | None
    params: Params
    past: tuple[Params, ...]
    step: jax.Array
    time: jax.Array
    seeds: Mapping[str, jax.Array]
    microbatch: int | None
    batch_size: int | None
    batch: Examples
    evaluation: Evaluation | None
    gradient: Params | None
    optimizer: Optimizer
    hyperparameters: Hyperparameters
    optimizer_state: Any
    scales: Scales


class Observable(NamedTuple):
    """``init(state) → memory`` and ``measure(state, memory) → (memory, values)``, pure functions.

    ``past`` is the number of past iterates that it looks at. What it measures before the run has
    that many is not a number.

    ``needs`` says what of the run a value is made of, and so whether weights that were kept can
    still answer: ``weights``, those of that step, and of step 0 where the memory is made (beside
    data, seeds and the step's own rate and examples); ``optimizer``, its state too, which kept
    weights answer only where it has none; ``path``, what happened between two measurements, which
    they never answer.

    ``warm``: the memory only gives the next measurement a good start (a tracker's block). Made
    anew from the weights at hand, it serves as well or better.

    ``suits``: raises ValueError for data, on the host, of which it would give no number.
    """

    init: Callable[[State], Memory]
    measure: Callable[[State, Memory], tuple[Memory, Values]]
    past: int = 0
    needs: Needs = "weights"
    warm: bool = False
    suits: Callable[[Data], None] = lambda _: None


def memoryless(measure: Callable[[State], Values], needs: Needs = "weights") -> Observable:
    """An observable that needs no memory."""
    return Observable(lambda _: (), lambda state, memory: (memory, measure(state)), needs=needs)


def training_examples(state: State, count: int | None) -> Examples:
    """A fixed subset of the training set, the same for every job; all of it if ``count`` is None.

    Drawn without replacement, by a generator of its own. Where only some examples count, a member
    has them in that generator's order, so the first ``count`` do. Raises ValueError if there are
    fewer.
    """
    train = state.data.train
    if count is None:
        return train
    if count > available(state):
        there = available(state)
        raise ValueError(f"examples={count}, but there are {there} training examples: lower it")
    if train.weight is not None:
        return take(train, np.arange(count))
    return take(train, np.sort(sampling.probed(len(train.x))[:count]))


def available(state: State) -> int:
    """How many training examples there are to choose from."""
    return len(state.data.train.x) if state.subset is None else state.subset


def all_counting(name: str, state: State, chosen: Examples) -> Examples:
    """The examples, for an observable that cannot leave some of them out. Raises ValueError."""
    if chosen.weight is not None:
        raise ValueError(
            f"{name} takes the examples that it is given, and with data_fraction only some of the "
            f"training set count: set observables.{name}.examples to {available(state)} or less"
        )
    return chosen


def gradient(state: State) -> Params:
    """∇L of the whole training set's mean loss: the step's own where it is that."""
    if state.gradient is not None and state.batch_size is None:
        return state.gradient
    return loss_and_gradient(state.problem, state.params, state.data.train, state.microbatch)[1]


def only_descent(name: str, state: State) -> None:
    """Raise ValueError where an update is not −ηC∇L of the whole training set."""
    plain = state.optimizer.preconditioning is not None and CLIP not in state.hyperparameters
    if not plain or jax.tree.leaves(state.optimizer_state) or state.batch_size is not None:
        raise ValueError(
            f"{name} is of full-batch gradient descent: optimizer=gd, batch_size=null, "
            "clip_norm=null"
        )


def next_update(state: State) -> tuple[Params, Any]:
    """w_{t+1} − w_t, and the optimizer's state after it (its P is what this update divides by)."""
    gradient = state.gradient
    if gradient is None:
        gradient = loss_and_gradient(state.problem, state.params, state.batch, state.microbatch)[1]
    return descend(
        state.optimizer,
        state.hyperparameters,
        state.scales,
        gradient,
        state.optimizer_state,
        state.params,
    )
