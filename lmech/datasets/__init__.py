"""Datasets: factories that return NumPy arrays. No JAX here, so planning stays light."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Inputs ``x`` [N, …] and targets ``y``.

    Targets are labels (integers): one an example [N], or one a position of a sequence [N, T]; or
    real vectors [N, C], of sequences [N, T, C].

    ``weight`` [N] is 1 for an example that counts and 0 for one that does not; None: all count.
    Means over the examples are ``problem.masked`` sums over ``problem.count``.
    """

    x: Any
    y: Any
    weight: Any = None


Stream = Callable[[np.random.Generator, int], Examples]


class Tasks(NamedTuple):
    """What differs between a dataset's K tasks, which a run goes through one after the other.

    Of each split, x [K, N, …] and y [K, N, …]; None: as in ``Data``, the same in all of them.
    ``Data``'s own splits are task 0's. ``order`` [L]: the tasks that a run goes through.
    """

    train: Examples
    test: Examples
    order: Any = None

    @property
    def number(self) -> int:
        """K."""
        arrays = (self.train.x, self.train.y, self.test.x, self.test.y)
        return next(len(array) for array in arrays if array is not None)


class Data(NamedTuple):
    """The two splits, on the host (NumPy) or on the device.

    Without ``test``, it is what ``data_fraction`` leaves of the training examples: each member's
    own. ``outputs`` is the number of classes where the labels need not show it: a vocabulary, of
    which some words may occur in no example (None: as many as the labels ask for). ``tasks``: what
    the data change to along a run (None: they stay).

    ``stream(generator, n)`` draws n new examples. Where there is one, each step's minibatch is
    drawn with it, and none is seen twice (one pass); ``train`` is then a sample to measure on.
    """

    train: Examples
    test: Examples | None
    outputs: int | None = None
    tasks: Tasks | None = None
    stream: Stream | None = None

    @property
    def splits(self) -> dict[str, Examples]:
        """The splits that are there, by name."""
        both = {"train": self.train, "test": self.test}
        return {name: split for name, split in both.items() if split is not None}


def take(examples: Examples, rows: Any) -> Examples:
    """The examples at these indices, which all count: without weights."""
    return Examples(examples.x[rows], examples.y[rows])


def of_task(data: Data, task: Any) -> Data:
    """The dataset with the splits of one of its tasks, by number. Raises ValueError for none."""

    def own(split: Examples, several: Examples) -> Examples:
        x, y = (
            same if other is None else other[task]
            for same, other in zip(split[:2], several[:2], strict=True)
        )
        return Examples(x, y)

    tasks = _several(data)
    test = None if data.test is None else own(data.test, tasks.test)
    return data._replace(train=own(data.train, tasks.train), test=test)


def _several(data: Data) -> Tasks:
    if data.tasks is None:
        raise ValueError("this dataset is one task")
    return data.tasks


def take_of_tasks(data: Data, places: Any) -> Examples:
    """Training examples of several tasks: the i-th of N of task k is at place k N + i."""
    n = len(data.train.x)
    task, row = places // n, places % n
    x, y = (
        same[row] if several is None else several[task, row]
        for same, several in zip(data.train[:2], _several(data).train[:2], strict=True)
    )
    return Examples(x, y)


def integers(y: Any) -> bool:
    """Whether targets are labels, and not real."""
    return np.issubdtype(y.dtype, np.integer)


def outputs(data: Data) -> int:
    """Number of outputs C that the targets ask for: classes, or components of a real target."""
    if data.outputs is not None:
        return data.outputs
    several = [] if data.tasks is None else [data.tasks.train.y, data.tasks.test.y]
    found = [*(split.y for split in data.splits.values()), *(y for y in several if y is not None)]
    labels = [y for y in found if integers(y) and y.size]
    return int(max(y.max() for y in labels)) + 1 if labels else data.train.y.shape[-1]


def check(data: Data) -> None:
    """Raise ValueError unless targets are labels or reals of the shapes above, one an input.

    Inputs and targets are arrays of numbers, finite, and of one kind and shape in both splits.
    """
    if not isinstance(data, Data):
        made = "None" if data is None else f"a {type(data).__name__}"
        raise ValueError(
            f"its factory returned {made}, and not lmech.datasets.Data(train, test), each split "
            "Examples(x, y)"
        )
    for name, (x, y, weight) in data.splits.items():
        _check_arrays(name, {"x": x, "y": y})
        if weight is not None:
            raise ValueError(f"the {name} split has weights: leave them to data_fraction")
        if len(x) != len(y):
            raise ValueError(f"the {name} split has {len(x)} inputs and {len(y)} targets")
        if integers(y) and y.shape[1:] == (1,) != x.shape[1:]:
            raise ValueError(
                f"{name} labels have shape {y.shape}: one an example is [N], y[:, 0] of these"
            )
        if y.ndim not in ((1, 2) if integers(y) else (2, 3)):
            raise ValueError(
                f"{name} targets are {y.dtype} of shape {y.shape}: labels are integers [N], or "
                "[N, T] for sequences, real targets floats [N, C] or [N, T, C]"
            )
        if integers(y) and y.size and y.min() < 0:
            raise ValueError(f"{name} labels start at {y.min()}: they count from 0")
        if integers(y) and y.size and y.max() >= outputs(data):
            raise ValueError(
                f"{name} labels go up to {y.max()}, and there are {data.outputs} classes: they "
                "count from 0"
            )
    _check_others(data)


def _check_others(data: Data) -> None:
    """Raise ValueError unless test split, tasks and stream are like the training set."""
    if data.test is not None:
        _check_alike(data.train, data.test, "test split")
    _check_tasks(data, data.tasks)
    if data.tasks is not None and data.stream is not None:
        raise ValueError("a dataset has tasks or a stream of new examples, not both")
    if data.stream is not None:
        _check_stream(data.train, data.stream)


def _check_tasks(data: Data, tasks: Tasks | None) -> None:
    """Raise ValueError unless every task is like the dataset's own splits, which are the first."""
    if tasks is None:
        return
    if data.test is None:
        raise ValueError("a dataset with tasks needs a test split of its own")
    several = {"train": tasks.train, "test": tasks.test}
    arrays = [
        (f"{name} of the {split}", getattr(data.splits[split], name), getattr(own, name))
        for split, own in several.items()
        for name in ("x", "y")
    ]
    varied = [(name, first, own) for name, first, own in arrays if own is not None]
    if not varied:
        raise ValueError("its tasks differ in nothing: give one of their arrays")
    for name, first, own in varied:
        if own.shape != (tasks.number, *first.shape) or own.dtype != first.dtype:
            raise ValueError(
                f"{name} split is {own.dtype} {own.shape} over the tasks, and {first.dtype} "
                f"{first.shape} in the first: it has to be of {tasks.number} such"
            )
        if not np.array_equal(own[0], first) or not np.isfinite(own).all():
            raise ValueError(f"{name} split: task 0 is not the dataset's own, or one is not finite")


def _check_stream(train: Examples, stream: Stream) -> None:
    """Raise ValueError unless it draws as many examples as are asked for, like the training set."""
    drawn = stream(np.random.default_rng(0), 2)
    if not isinstance(drawn, Examples):
        raise ValueError(f"its stream draws a {type(drawn).__name__}, and not Examples(x, y)")
    _check_arrays("drawn", {"x": drawn.x, "y": drawn.y})
    if (len(drawn.x), len(drawn.y)) != (2, 2):
        told = f"{len(drawn.x)} inputs and {len(drawn.y)} targets"
        raise ValueError(f"its stream draws {told} where 2 of each are asked for")
    _check_alike(train, drawn, "stream")


def _check_arrays(split: str, arrays: dict[str, Any]) -> None:
    """Raise ValueError unless they are arrays of finite numbers, and not empty."""
    for name, array in arrays.items():
        if not (hasattr(array, "dtype") and hasattr(array, "shape")):
            raise ValueError(
                f"{name} of the {split} split is a {type(array).__name__}: make it a NumPy array"
            )
        if not len(array):
            raise ValueError(f"the {split} split is empty: it needs an example")
        real = np.issubdtype(array.dtype, np.floating)
        if not (real or array.dtype == bool or integers(array)):
            raise ValueError(f"{name} of the {split} split is of {array.dtype}: make it real")
        with np.errstate(invalid="ignore", over="ignore"):
            doubtful = real and not np.isfinite(array.sum())  # no second array as large
        if doubtful and not (finite := np.isfinite(array)).all():
            place = np.argwhere(~finite)[0]
            raise ValueError(
                f"{(~finite).sum()} entries of {name} of the {split} split are not finite, the "
                f"first {array[tuple(place)]} at {place.tolist()}: mend or leave out those examples"
            )


def _check_alike(train: Examples, test: Examples, name: str) -> None:
    """Raise ValueError unless inputs have one shape, and targets one kind and shape."""
    if train.x.shape[1:] != test.x.shape[1:]:
        shapes = f"{train.x.shape[1:]} in the train split and {test.x.shape[1:]} in the {name}"
        raise ValueError(f"an input has shape {shapes}: they go through the same model")
    if integers(train.y) != integers(test.y) or train.y.shape[1:] != test.y.shape[1:]:
        told = " and ".join(
            f"{y.dtype} {y.shape} ({n})"
            for n, y in (("train", train.y), (name.removesuffix(" split"), test.y))
        )
        raise ValueError(f"targets are {told}: a loss takes one kind")
