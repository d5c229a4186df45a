"""Regression on the outputs of a random net."""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda h: np.maximum(h, 0),
    "tanh": np.tanh,
    "linear": lambda h: h,
}


def teacher_student(
    train_size: Size = 1000,
    test_size: Size = 1000,
    dimension: Size = 20,
    units: Size = 4,
    activation: Literal["relu", "tanh", "linear"] = "relu",
    noise: Annotated[FiniteFloat, Ge(0)] = 0.0,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """Y = M^-½ Σ_m ±φ(v_m·x) + noise, x ~ N(0, I), |v_m| = 1, the signs alternating, M ``units``.

    The training targets' ``noise`` is Gaussian of that standard deviation; test targets have none.
    """
    generator = np.random.Generator(np.random.Philox(data_seed))
    teachers = generator.standard_normal((units, dimension))
    teachers /= np.linalg.norm(teachers, axis=1, keepdims=True)
    readout = (-1.0) ** np.arange(units) / np.sqrt(units)

    def examples(count: int, spread: float) -> Examples:
        x = generator.standard_normal((count, dimension))
        y = ACTIVATIONS[activation](x @ teachers.T) @ readout
        return Examples(x, (y + spread * generator.standard_normal(count))[:, None])

    return Data(examples(train_size, noise), examples(test_size, 0.0))
