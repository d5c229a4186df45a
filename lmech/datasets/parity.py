"""Sparse parity: the sign of the product of a few of many bits."""

from typing import Annotated

import numpy as np
from annotated_types import Ge

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size


def sparse_parity(
    train_size: Size = 1000,
    test_size: Size = 1000,
    dimension: Size = 40,
    degree: Annotated[int, Ge(1)] = 3,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """X uniform on {−1, 1}^d, the label whether x₁⋯x_k is positive; k is the ``degree``.

    Raises ValueError for a degree above the dimension.
    """
    if degree > dimension:
        raise ValueError(f"degree={degree} is more than dimension={dimension}")
    generator = np.random.Generator(np.random.Philox(data_seed))

    def examples(count: int) -> Examples:
        x = generator.choice([-1.0, 1.0], size=(count, dimension))
        return Examples(x, (x[:, :degree].prod(axis=1) > 0).astype(np.int32))

    return Data(examples(train_size), examples(test_size))
