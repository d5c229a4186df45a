"""Datasets: factories that return NumPy arrays. No JAX here, so planning stays light."""

from typing import Any, NamedTuple


class Examples(NamedTuple):
    """Inputs ``x`` [N, …] and targets ``y``: labels [N] (integers) or vectors [N, C] (reals)."""

    x: Any
    y: Any


class Data(NamedTuple):
    """The two splits, on the host (NumPy) or on the device."""

    train: Examples
    test: Examples


def outputs(data: Data) -> int:
    """Number of outputs C that the targets ask for: classes, or components of a real target."""
    y = data.train.y
    return int(y.max()) + 1 if y.ndim == 1 else y.shape[-1]
