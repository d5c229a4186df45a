"""Datasets of several tasks, which a run goes through one after the other, made of another one."""

import math
from typing import Annotated

import numpy as np
from annotated_types import Ge
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples, Tasks

SAME = Examples(None, None)


def repeated(dataset: Data, count: Annotated[int, Ge(1)]) -> Data:
    """The same examples in each of ``count`` tasks.

    With ``label_noise`` each task has noise of its own: of K classes and noise (K − 1)/K, labels
    that are random, and new in every task.
    """
    y = np.stack([dataset.train.y] * count)
    return dataset._replace(tasks=Tasks(Examples(None, y), SAME))


def rotated(dataset: Data, angles: list[FiniteFloat]) -> Data:
    """A task for each of ``angles``: the images turned by it, in degrees, counter-clockwise.

    Interpolated linearly; what comes in at the corners is 0. Raises ValueError for inputs that are
    neither images [N, H, W, C] nor the pixels [N, H²] of square ones.
    """
    if not angles:
        raise ValueError("dataset.angles is empty: a task is an angle")
    if dataset.test is None:
        raise ValueError("dataset.dataset needs a test split of its own")
    train, test = (
        np.stack([turned(split.x, angle) for angle in angles])
        for split in (dataset.train, dataset.test)
    )
    return dataset._replace(
        train=dataset.train._replace(x=train[0]),
        test=dataset.test._replace(x=test[0]),
        tasks=Tasks(Examples(train, None), Examples(test, None)),
    )


def turned(x: np.ndarray, angle: float) -> np.ndarray:
    """The images, turned about their middle. Raises ValueError for what are none."""
    side = math.isqrt(x.shape[-1])
    if x.ndim != 4 and (x.ndim != 2 or side**2 != x.shape[-1]):
        raise ValueError(f"inputs of shape {x.shape} are no images, nor the pixels of square ones")
    if angle % 360 == 0:
        return x
    # Planning reads datasets, and most need no scipy.
    from scipy.ndimage import rotate  # type: ignore[import-untyped] # noqa: PLC0415

    images = x if x.ndim == 4 else x.reshape(-1, side, side, 1)
    return rotate(images, angle, axes=(2, 1), reshape=False, order=1).reshape(x.shape)
