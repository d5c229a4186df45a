"""Datasets: factories of NumPy arrays."""

from typing import Annotated

import numpy as np
from annotated_types import Ge

from lmech.datasets import Data, Examples

Size = Annotated[int, Ge(1)]


def staircase(
    order: Size = 3,
    dimension: Size = 10,
    train_size: Size = 256,
    test_size: Size = 256,
    data_seed: int = 0,
) -> Data:
    """y = x₁ + x₁x₂ + … + x₁⋯x_order, x uniform in {±1}^dimension (Abbe et al. 2022)."""
    size = (train_size + test_size, dimension)
    x = np.random.default_rng(data_seed).choice([-1.0, 1.0], size=size)
    y = np.cumprod(x[:, :order], axis=1).sum(axis=1, keepdims=True)
    return Data(Examples(x[:train_size], y[:train_size]), Examples(x[train_size:], y[train_size:]))
