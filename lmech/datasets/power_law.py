"""Linear regression on Gaussian inputs whose variances and target fall as powers."""

from typing import Annotated

import numpy as np
from annotated_types import Ge
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size


def power_law_regression(
    dimension: Size = 256,
    alpha: Annotated[FiniteFloat, Ge(0)] = 1.0,
    beta: FiniteFloat = 0.5,
    train_size: Size = 1024,
    test_size: Size | None = None,
    one_pass: bool = False,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """Inputs x_j ~ N(0, j^-2α), j = 1 … v (``dimension``), and the target y = Σ_j j^-β x_j.

    The data of power-law random features (Maloney et al. 2022, Paquette et al. 2024).

    ``one_pass``: each step's minibatch is drawn anew, and the training set is a sample to measure
    on. ``test_size`` None: the v points √v j^-α e_j. Their second moments are the population's, so
    the squared test loss of a model linear in x is the population's, without an error of sampling.
    """
    indices = np.arange(1, dimension + 1, dtype=float)
    spread, target = indices ** -float(alpha), indices ** -float(beta)

    def draw(generator: np.random.Generator, count: int) -> Examples:
        return _labelled(generator.standard_normal((count, dimension)) * spread, target)

    generator = np.random.Generator(np.random.Philox(data_seed))
    train = draw(generator, train_size)
    points = np.diag(np.sqrt(dimension) * spread)
    test = _labelled(points, target) if test_size is None else draw(generator, test_size)
    return Data(train, test, stream=draw if one_pass else None)


def _labelled(x: np.ndarray, target: np.ndarray) -> Examples:
    return Examples(x, (x @ target)[:, None])
