"""Regression on a Chebyshev polynomial: a problem small enough for dense curvature."""

from typing import Annotated

import numpy as np
from annotated_types import Ge

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size


def chebyshev(degree: Annotated[int, Ge(1)] = 6, train_size: Size = 20) -> Data:
    """Y = T_degree(x) on linspace(−1, 1, train_size); the test points are the midpoints."""

    def examples(x: np.ndarray) -> Examples:
        y = np.polynomial.chebyshev.Chebyshev.basis(degree)(x)
        return Examples(x[:, None], y[:, None])

    if train_size < 2:
        raise ValueError("dataset.train_size must be at least 2: the test points lie between")
    x = np.linspace(-1, 1, train_size)
    return Data(examples(x), examples((x[1:] + x[:-1]) / 2))
