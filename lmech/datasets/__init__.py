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
    """Raise ValueError unless targets are labels or reals of the shapes above, one an input."""
    for name, (x, y, weight) in data.splits.items():
        if weight is not None:
            raise ValueError(f"the {name} split has weights: leave them to data_fraction")
        if len(x) != len(y):
            raise ValueError(f"the {name} split has {len(x)} inputs and {len(y)} targets")
        if y.ndim not in ((1, 2) if integers(y) else (2, 3)):
            raise ValueError(
                f"{name} targets are {y.dtype} of shape {y.shape}: labels are integers [N], or "
                "[N, T] for sequences, real targets floats [N, C] or [N, T, C]"
            )
        if integers(y) and y.size and y.min() < 0:
            raise ValueError(f"{name} labels start at {y.min()}: they count from 0")
        if integers(y) and y.size and y.max() >= outputs(data):
            raise ValueError(
                f"{name} labels go up to {y.max()}, and there are {data.outputs} classes"
            )
