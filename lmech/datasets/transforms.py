"""What the image datasets share: subsets and standardisation."""

from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from lmech.datasets import Data, Examples

Size = Annotated[int, Ge(1)]
Standardize = Literal["pixel", "global", "none", "symmetric"]


def first(examples: Examples, size: int | None, split: str) -> Examples:
    """The first ``size`` examples. Raises ValueError if there are not so many."""
    n = len(examples.x)
    if size is not None and size > n:
        raise ValueError(f"dataset.{split}_size={size}, but the {split} split has {n} examples")
    return Examples(examples.x[:size], examples.y[:size])


def moments(
    x: np.ndarray, standardize: Standardize, brightest: int = 255
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (divisor N) of x [N, …]: per pixel, or over all.

    Else what takes [0, brightest] to [0, 1] (``none``) or to [−1, 1] (``symmetric``).

    Sums of pixels of 8 bits are exact in float64, in any order, so no such copy of the whole set is
    made; a pixel that never varies gets 1 for its standard deviation.
    """
    if standardize == "none":
        return np.zeros(1), np.full(1, float(brightest))
    if standardize == "symmetric":
        return np.full(1, brightest / 2), np.full(1, brightest / 2)
    axes = 0 if standardize == "pixel" else tuple(range(x.ndim))
    count = len(x) if standardize == "pixel" else x.size
    mean, squares = np.sum([_sums(part, axes) for part in _parts(x)], axis=0) / count
    variance = np.maximum(squares - mean**2, 0)
    std = np.sqrt(np.where(variance > 1e-12 * squares, variance, 1))
    return np.asarray(mean), np.asarray(std)


def _sums(x: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    """Σx and Σx² [2, …]."""
    values = x.astype(np.float64)
    return np.stack([values.sum(axis=axes), np.square(values, out=values).sum(axis=axes)])


def _parts(x: np.ndarray) -> list[np.ndarray]:
    return np.array_split(x, max(1, len(x) // 4096))


def prepare(
    train: Examples,
    test: Examples,
    train_size: int | None,
    test_size: int | None,
    standardize: Standardize,
    flatten: bool,
    brightest: int = 255,
) -> Data:
    """Subsets of uint8 images [N, H, W, C] with the *whole* training set's moments.

    Flattened images are channel-major (C, H, W), the order of the published experiments; an MLP
    does not care, bit-for-bit comparisons do. Unstandardised pixels are in [0, 1].
    """
    mean, std = moments(train.x, standardize, brightest)

    def ready(examples: Examples) -> Examples:
        x = examples.x - mean
        x /= std  # in place: in float64, CIFAR-10 is over a gigabyte
        if flatten:
            x = np.moveaxis(x, -1, 1).reshape(len(x), -1)
        return Examples(x, examples.y.astype(np.int32))

    return Data(ready(first(train, train_size, "train")), ready(first(test, test_size, "test")))
