"""Four Gaussian clusters labelled by the exclusive or, some of the labels flipped."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size


def xor_clusters(
    train_size: Size = 200,
    test_size: Size = 1000,
    dimension: Annotated[int, Ge(2)] = 10000,
    separation: Annotated[FiniteFloat, Ge(0)] = 17.5,
    flips: Annotated[float, Interval(ge=0, lt=0.5)] = 0.1,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """X = ±μ₁ + z with label 0 or ±μ₂ + z with label 1, z ~ N(0, I), μ₁ ⟂ μ₂ (Xu et al. 2024).

    ‖μ‖ is the ``separation``. Of the training labels a fraction ``flips``, to the nearest integer,
    is wrong; test labels are clean. No linear classifier is better than chance.
    """
    generator = np.random.Generator(np.random.Philox(data_seed))

    def clean(count: int) -> Examples:
        y, sign = generator.integers(2, size=count), generator.choice([-1.0, 1.0], size=count)
        x = generator.standard_normal((count, dimension))
        x[np.arange(count), y] += sign * separation  # μ₁, μ₂ along the first two axes
        return Examples(x, y.astype(np.int32))

    train, test = clean(train_size), clean(test_size)
    wrong = generator.permutation(train_size)[: round(flips * train_size)]
    train.y[wrong] = 1 - train.y[wrong]
    return Data(train, test)
