"""Which examples each step sees, as data: an array of indices a chunk, drawn on the host."""

from functools import lru_cache

import numpy as np

from lmech import seeds


@lru_cache(maxsize=256)
def _epoch(seed: int, epoch: int, n: int) -> np.ndarray:
    return seeds.generator(seed, "batches", epoch).permutation(n).astype(np.int32)


def minibatches(seed: int, steps: np.ndarray, n: int, batch_size: int) -> np.ndarray:
    """Indices [S, B] of the minibatches at the given steps.

    Without replacement: each epoch is a fresh permutation cut into ⌊n/B⌋ batches (the n mod B
    examples left over sit that epoch out). A function of (seed, step) alone, so a run that starts
    at any step sees what an uninterrupted one would.
    """
    per_epoch = n // batch_size
    rows = np.empty((len(steps), batch_size), np.int32)
    for row, step in enumerate(steps):
        epoch, position = divmod(int(step), per_epoch)
        order = _epoch(seed, epoch, n)
        rows[row] = order[position * batch_size : (position + 1) * batch_size]
    return rows
