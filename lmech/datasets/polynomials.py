"""Regression on Gaussian inputs: targets that depend on a few directions."""

import math
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.polynomial.hermite_e import hermeval
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size

Degree = Annotated[int, Ge(1)]


def multi_index(
    train_size: Size = 300,
    test_size: Size = 1000,
    dimension: Size = 40,
    degrees: list[Degree] | None = None,
    noise: Annotated[FiniteFloat, Ge(0)] = 0.0,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """Y = r^-½ Σ_j h_{k_j}(u_j·x) + noise, x ~ N(0, I), u_j orthonormal, r their number.

    h_k is the k-th Hermite polynomial of mean 0 and variance 1, so y has variance 1 beside the
    training targets' ``noise`` (its standard deviation). ``degrees`` are the k_j (None: one, of
    degree 2: a single-index quadratic). Raises ValueError for more directions than dimensions.
    """
    chosen = degrees or [2]
    if len(chosen) > dimension:
        raise ValueError(f"{len(chosen)} directions do not fit into dimension={dimension}")
    generator = np.random.Generator(np.random.Philox(data_seed))
    directions, _ = np.linalg.qr(generator.standard_normal((dimension, len(chosen))))

    def examples(count: int, spread: float) -> Examples:
        x = generator.standard_normal((count, dimension))
        terms = [_hermite(k, z) for k, z in zip(chosen, (x @ directions).T, strict=True)]
        y = np.sum(terms, axis=0) / math.sqrt(len(chosen))
        return Examples(x, (y + spread * generator.standard_normal(count))[:, None])

    return Data(examples(train_size, noise), examples(test_size, 0.0))


def _hermite(k: int, z: np.ndarray) -> np.ndarray:
    return hermeval(z, [0.0] * k + [1.0]) / math.sqrt(math.factorial(k))
