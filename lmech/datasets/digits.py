"""Handwritten digits, 8 × 8: 1,797 real images that scikit-learn carries (no download)."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size, Standardize, prepare


def _file() -> Path:
    """scikit-learn's file, found without the second that importing scikit-learn takes."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("digits come with scikit-learn: pip install scikit-learn")
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


def digits(
    train_size: Size = 1500, standardize: Standardize = "pixel", flatten: bool = True
) -> Data:
    """The first ``train_size`` images to train on, the rest to test (in the order of the file)."""
    with gzip.open(_file()) as lines:  # 64 pixels of 0 to 16, then the label
        table = np.loadtxt(lines, np.uint8, delimiter=",")
    x, y = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1]
    if train_size >= len(x):
        raise ValueError(f"dataset.train_size={train_size} leaves no test image of {len(x)}")
    train, test = Examples(x[:train_size], y[:train_size]), Examples(x[train_size:], y[train_size:])
    return prepare(train, test, None, None, standardize, flatten, brightest=16)
