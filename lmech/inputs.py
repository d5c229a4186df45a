"""What may differ between the members of one program, as arrays that it is given."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

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
