"""Datasets: factories that return NumPy arrays. No JAX here, so planning stays light."""

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


class Data(NamedTuple):
    """The two splits, on the host (NumPy) or on the device.

    Without ``test``, it is what ``data_fraction`` leaves of the training examples: each member's
    own. ``outputs`` is the number of classes where the labels need not show it: a vocabulary, of
    which some words may occur in no example (None: as many as the labels ask for).
    """

    train: Examples
    test: Examples | None
    outputs: int | None = None

    @property
    def splits(self) -> dict[str, Examples]:
        """The splits that are there, by name."""
        both = {"train": self.train, "test": self.test}
        return {name: split for name, split in both.items() if split is not None}


def take(examples: Examples, rows: Any) -> Examples:
    """The examples at these indices, which all count: without weights."""
    return Examples(examples.x[rows], examples.y[rows])


def integers(y: Any) -> bool:
    """Whether targets are labels, and not real."""
    return np.issubdtype(y.dtype, np.integer)


def outputs(data: Data) -> int:
    """Number of outputs C that the targets ask for: classes, or components of a real target."""
    if data.outputs is not None:
        return data.outputs
    labels = [split.y for split in data.splits.values() if integers(split.y) and split.y.size]
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
    if data.test is not None:
        _check_alike(data.train, data.test)


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


def _check_alike(train: Examples, test: Examples) -> None:
    """Raise ValueError unless inputs have one shape, and targets one kind and shape."""
    if train.x.shape[1:] != test.x.shape[1:]:
        shapes = f"{train.x.shape[1:]} in the train split and {test.x.shape[1:]} in the test split"
        raise ValueError(f"an input has shape {shapes}: they go through the same model")
    if integers(train.y) != integers(test.y) or train.y.shape[1:] != test.y.shape[1:]:
        told = " and ".join(
            f"{y.dtype} {y.shape} ({n})" for n, y in (("train", train.y), ("test", test.y))
        )
        raise ValueError(f"targets are {told}: a loss takes one kind")
