"""What is drawn on the host, as data: minibatches, the examples that count, label noise."""

import math
from functools import lru_cache

import numpy as np

from lmech import seeds


@lru_cache(maxsize=256)
def _epoch(seed: int, epoch: int, n: int) -> np.ndarray:
    return seeds.generator(seed, "batches", epoch).permutation(n).astype(np.int32)


def minibatches(
    seed: int, steps: np.ndarray, n: int, batch_size: int, repeats: int = 1
) -> np.ndarray:
    """Indices [S, B] of the minibatches at the given steps.

    Without replacement: each epoch is a fresh permutation cut into ⌊n/B⌋ batches (the n mod B
    examples left over sit that epoch out). Each is used for ``repeats`` steps in a row. A function
    of (seed, step) alone, so a run that starts at any step sees what an uninterrupted one would.
    """
    per_epoch = n // batch_size
    rows = np.empty((len(steps), batch_size), np.int32)
    for row, step in enumerate(steps):
        epoch, position = divmod(int(step) // repeats, per_epoch)
        order = _epoch(seed, epoch, n)
        rows[row] = order[position * batch_size : (position + 1) * batch_size]
    return rows


def count(n: int, fraction: float) -> int:
    """How many of n examples count: ⌈fraction · n⌉, at least one."""
    # Less a rounding error: 0.7 · 10 is 7.000000000000001.
    return max(1, math.ceil(fraction * n - 1e-9))


def subset(seed: int, n: int, fraction: float) -> np.ndarray:
    """Indices of the ⌈fraction · n⌉ examples that count (at least one), ascending.

    The first of a permutation, so a smaller fraction's are among a larger one's.
    """
    size = count(n, fraction)
    return np.sort(seeds.generator(seed, "subset", 0).permutation(n)[:size]).astype(np.int32)


def probed(n: int) -> np.ndarray:
    """The order of n examples in which observables take some of them: the same for every job."""
    return np.random.Generator(np.random.Philox(0)).permutation(n)


def noisy(seed: int, y: np.ndarray, level: float, classes: int) -> np.ndarray:
    """Targets with label noise.

    Labels [N] or [N, T]: each is replaced, with probability ``level``, by another of the
    ``classes``, all equally likely; those that a lower level replaces are among a higher one's, by
    the same class. What a sequence's model is shown stays as it is: its inputs have no noise.
    Real targets: Gaussian noise of standard deviation ``level`` is added.

    Raises ValueError for labels if ``level`` is above 1 or there is no other class.
    """
    generator = seeds.generator(seed, "noise", 0)
    if not np.issubdtype(y.dtype, np.integer):
        return (y + level * generator.standard_normal(y.shape)).astype(y.dtype)
    if level > 1:
        raise ValueError(f"label_noise={level}: the fraction of labels replaced is at most 1")
    if classes < 2:
        raise ValueError("label_noise replaces a label by another class, and there is only one")
    wrong = generator.random(y.shape) < level
    other = (y + generator.integers(1, classes, y.shape)) % classes
    return np.where(wrong, other, y).astype(y.dtype)
