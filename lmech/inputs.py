"""What may differ between the members of one program, as arrays that it is given.

And the dataset as a member has it by them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmech.datasets import Data, Examples, Tasks, of_task, take
from lmech.optimizers import Hyperparameters
from lmech.parametrization import Scales


class Stop(NamedTuple):
    """Thresholds that end a member: losses at most, accuracies at least (∓∞: never)."""

    train_loss: Any
    train_accuracy: Any
    test_loss: Any
    test_accuracy: Any


NEVER = Stop(-np.inf, np.inf, -np.inf, np.inf)


class Rows(NamedTuple):
    """Which of the N training examples count, and which do not; the rest of the room is filled."""

    own: Any
    """[M, most]: indices of those that count, in the observables' order, then zeros."""
    left: Any
    """[M, N − fewest]: the others', ascending, then zeros."""
    count: Any
    """[M]: how many count."""


class Course(NamedTuple):
    """The tasks that a member goes through, one after the other."""

    order: Any
    """[M, L]: their numbers in the dataset."""
    steps: Any
    """[M]: how many each is trained on; the last one goes on to the end."""


class Inputs(NamedTuple):
    """What may differ between the members of one program; arrays with a leading member axis."""

    seeds: Mapping[str, Any]
    hyperparameters: Hyperparameters
    scales: Scales
    horizon: Any
    stop: Stop
    targets: Any = None
    """The training targets [M, N, …], where they are a member's own (None: the dataset's).

    Of a dataset of several tasks [M, K, N, …].
    """
    rows: Rows | None = None
    """The training examples that count (None: all do)."""
    course: Course | None = None
    """The tasks (None: the data stay as they are)."""


def switches(inputs: Inputs) -> set[int]:
    """The steps from which on some member's data are another task's."""
    if inputs.course is None:
        return set()
    length = np.shape(inputs.course.order)[1]
    return {int(steps) * task for steps in inputs.course.steps for task in range(1, length)}


class Room(NamedTuple):
    """How many training examples count: of the member with the fewest, and with the most."""

    fewest: int
    most: int


def own_data(data: Data, inputs: Inputs, step: jax.Array) -> Data:
    """The dataset as the member sees it: its targets, the examples that count, what is left.

    Where there are tasks, it is that of the step's; after the last step, that of the last one.
    """
    if data.tasks is not None and inputs.course is not None:
        return _in_course(data, data.tasks, inputs, inputs.course, step)
    y = data.train.y if inputs.targets is None else inputs.targets
    train = Examples(data.train.x, y)
    if inputs.rows is None:
        return data._replace(train=train)
    own, left, count = inputs.rows
    others = len(y) - count
    test = _first(data.train, left, others) if data.test is None else data.test
    return data._replace(train=_first(train, own, count), test=test)


def _in_course(data: Data, tasks: Tasks, inputs: Inputs, course: Course, step: jax.Array) -> Data:
    """The dataset with the splits of the task at ``step``, and the order of the member's tasks."""
    if inputs.targets is not None:
        tasks = tasks._replace(train=tasks.train._replace(y=inputs.targets))
    tasks = tasks._replace(order=course.order)
    place = jnp.minimum(step, inputs.horizon - 1) // course.steps
    task = course.order[jnp.minimum(place, len(course.order) - 1)]
    return of_task(data._replace(tasks=tasks), task)


def _first(examples: Examples, rows: jax.Array, count: jax.Array) -> Examples:
    """The examples at the rows, of which the first ``count`` count."""
    counts = jnp.arange(len(rows)) < count
    return take(examples, rows)._replace(weight=counts.astype(jnp.int32))
