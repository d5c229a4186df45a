"""Handwritten digits, 8 × 8: 1,797 real images that scikit-learn carries (no download)."""

import numpy as np
from sklearn.datasets import load_digits

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size, Standardize, prepare


def digits(
    train_size: Size = 1500, standardize: Standardize = "pixel", flatten: bool = True
) -> Data:
    """The first ``train_size`` images to train on, the rest to test (in the order of the file)."""
    bunch = load_digits()
    x = bunch.images.astype(np.uint8)[..., None]
    y = bunch.target
    if train_size >= len(x):
        raise ValueError(f"dataset.train_size={train_size} leaves no test image of {len(x)}")
    train, test = Examples(x[:train_size], y[:train_size]), Examples(x[train_size:], y[train_size:])
    return prepare(train, test, None, None, standardize, flatten)
