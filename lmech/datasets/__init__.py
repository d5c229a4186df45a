"""Datasets: factories that return NumPy arrays. No JAX here, so planning stays light."""

from typing import Any, NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Inputs ``x`` [N, …] and targets ``y``: labels [N] (integers) or vectors [N, C] (reals).

    ``weight`` [N] is 1 for an example that counts and 0 for one that does not; None: all count.
    Means over the examples are ``problem.masked`` sums over ``problem.count``.
    """

    x: Any
    y: Any
    weight: Any = None


class Data(NamedTuple):
    """The two splits, on the host (NumPy) or on the device."""

    train: Examples
    test: Examples


def take(examples: Examples, rows: Any) -> Examples:
    """The examples at these indices, which all count: without weights."""
    return Examples(examples.x[rows], examples.y[rows])


def outputs(data: Data) -> int:
    """Number of outputs C that the targets ask for: classes, or components of a real target."""
    labels = [split.y for split in data if split.y.ndim == 1 and len(split.y)]
    return int(max(y.max() for y in labels)) + 1 if labels else data.train.y.shape[-1]


def check(data: Data) -> None:
    """Raise ValueError unless targets are labels [N] (integers) or reals [N, C], one an input."""
    for name, (x, y, weight) in zip(Data._fields, data, strict=True):
        if weight is not None:
            raise ValueError(f"the {name} split has weights: leave them to data_fraction")
        if len(x) != len(y):
            raise ValueError(f"the {name} split has {len(x)} inputs and {len(y)} targets")
        integers = np.issubdtype(y.dtype, np.integer)
        if y.ndim != (1 if integers else 2):
            raise ValueError(
                f"{name} targets are {y.dtype} of shape {y.shape}: labels are integers [N], "
                "real targets floats [N, C]"
            )
        if integers and len(y) and y.min() < 0:
            raise ValueError(f"{name} labels start at {y.min()}: they count from 0")
