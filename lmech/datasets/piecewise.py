"""Regression on a continuous, piecewise linear function of one variable."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size

Kink = Annotated[FiniteFloat, Gt(-1), Lt(1)]


def piecewise_linear(
    kinks: list[Kink],
    slopes: list[FiniteFloat],
    train_size: Annotated[int, Ge(2)] = 20,
    test_size: Size = 401,
) -> Data:
    """Y = ∫₀ˣ s(u) du with s the slope between kinks, on equispaced points of [−1, 1].

    ``kinks`` ascend; ``slopes`` has one more: left of the first, between each two, right of the
    last. A two-layer ReLU net represents it with a unit a kink and one that is linear on [−1, 1].
    Test points are equispaced too. Raises ValueError for numbers that do not fit.
    """
    if len(slopes) != len(kinks) + 1 or sorted(set(kinks)) != list(kinks):
        raise ValueError(
            f"dataset.kinks={list(kinks)} and dataset.slopes={list(slopes)}: kinks ascend, and "
            "there is one slope more"
        )

    def examples(count: int) -> Examples:
        x = np.linspace(-1, 1, count)
        return Examples(x[:, None], _integral(x, np.asarray(kinks), np.asarray(slopes))[:, None])

    return Data(examples(train_size), examples(test_size))


def _integral(x: np.ndarray, kinks: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """∫₀ˣ s: s₀x + Σ_k (s_{k+1} − s_k) (relu(x − t_k) − relu(−t_k))."""
    grown = np.maximum(x[:, None] - kinks, 0) - np.maximum(-kinks, 0)
    return slopes[0] * x + grown @ np.diff(slopes)
