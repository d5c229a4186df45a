"""Gaussian inputs with labels of a random teacher, or none: data of any size, from one seed."""

from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size


def gaussian(
    train_size: Size = 2048,
    test_size: Annotated[int, Ge(0)] = 1024,
    dimension: Size = 32,
    classes: Annotated[int, Ge(2)] = 10,
    decay: FiniteFloat = 0.0,
    labels: Literal["teacher", "linear", "random"] = "teacher",
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """Inputs x ~ N(0, diag(λ)), λ_k ∝ k^-decay with mean 1, and one of ``classes`` labels each.

    ``teacher``: the largest output of a random two-layer tanh net of 64 units; ``linear``: of a
    random linear map, so that a linear model separates the classes; ``random``: drawn evenly. The
    inputs are the same whatever the labels, and both for every ``seed`` of a run.
    """
    generator = np.random.Generator(np.random.Philox(data_seed))
    spectrum = np.arange(1, dimension + 1) ** -float(decay)
    spread = np.sqrt(spectrum * dimension / spectrum.sum())
    first = generator.standard_normal((dimension, 64)) / np.sqrt(dimension)
    second = generator.standard_normal((64, classes))
    outputs = {
        "teacher": lambda x: np.tanh(x @ first) @ second,
        "linear": lambda x: x @ first @ second,
    }

    def examples(count: int) -> Examples:
        x = generator.standard_normal((count, dimension)) * spread
        drawn = generator.integers(classes, size=count)
        y = drawn if labels == "random" else np.argmax(outputs[labels](x), axis=1)
        return Examples(x, y.astype(np.int32))

    return Data(examples(train_size), examples(test_size))
