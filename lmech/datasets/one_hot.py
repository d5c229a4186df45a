"""Inputs without any structure: one of its own for each example."""

import numpy as np

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size


def one_hot(sizes: list[Size]) -> Data:
    """Example i is the unit vector e_i of all N examples, the first ``sizes[0]`` of class 0, ….

    A linear layer on it without biases is a free vector an example, the rows of its kernel: with a
    linear net of one hidden layer, the unconstrained features model (Mixon et al. 2022; Fang et al.
    2021). There is nothing to generalise to, and the test split is the training split.

    Raises ValueError for fewer than two classes.
    """
    if len(sizes) < 2:
        raise ValueError(f"dataset.sizes={sizes}: give the sizes of two classes or more")
    y = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    examples = Examples(np.eye(len(y)), y)
    return Data(examples, examples)
