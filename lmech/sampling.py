"""What is drawn on the host, as data: minibatches, the examples that count, label noise."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lmech import seeds
from lmech.datasets import Examples, Stream

Draw = Callable[[np.ndarray, int, int], np.ndarray]


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


@lru_cache(maxsize=256)
def _block(seed: int, block: int, n: int, batch_size: int) -> np.ndarray:
    draws = seeds.generator(seed, "batches", block).integers
    return draws(n, size=(_span(batch_size), batch_size), dtype=np.int32)


def _span(batch_size: int) -> int:
    """Minibatches that are drawn at once: a generator for each step would cost more than it."""
    return max(1, 2**14 // batch_size)


def independent(seed: int, steps: np.ndarray, n: int, batch_size: int) -> np.ndarray:
    """Indices [S, B] of the minibatches at the given steps, each index drawn evenly from all n.

    With replacement: steps are independent, and a minibatch may have an example twice, or more
    examples than there are. A function of (seed, step) alone for each (n, B).
    """
    blocks, places = np.divmod(steps, _span(batch_size))
    rows = np.empty((len(steps), batch_size), np.int32)
    for block in np.unique(blocks):
        own = blocks == block
        rows[own] = _block(seed, int(block), n, batch_size)[places[own]]
    return rows


class Mix(NamedTuple):
    """Of what a minibatch is made where a run goes through tasks."""

    seed: int
    order: np.ndarray
    """[L]: the tasks' numbers."""
    examples: int
    """N of each."""
    size: int
    """B."""
    old: int
    """Of these, how many are of earlier tasks, where there are any."""


def of_tasks(draw: Draw, mix: Mix, steps: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Minibatches [S, B] of the tasks at ``places`` [S] in the order: the i-th of task k is kN + i.

    ``draw(steps, n, size)`` draws among the task's own; the last ``old`` of a minibatch, once there
    is an earlier task, are drawn evenly, on their own, from the examples of all earlier ones.
    """
    n, first = mix.examples, (mix.order[places] * mix.examples)[:, None]
    alone = draw(steps, n, mix.size) + first
    if mix.old == 0:
        return alone.astype(np.int32)
    task, row = np.divmod(
        (_uniform(mix.seed, steps, mix.old) * (places * n)[:, None]).astype(int), n
    )
    fresh = draw(steps, n, mix.size - mix.old) + first
    mixed = np.concatenate([fresh, mix.order[task] * n + row], axis=1)
    return np.where(places[:, None] > 0, mixed, alone).astype(np.int32)


REPLAYED = 2**32
"""The first of the counters that replayed examples are drawn by: no epoch's, no block's."""


def _uniform(seed: int, steps: np.ndarray, size: int) -> np.ndarray:
    """Numbers [S, size] in [0, 1), a function of (seed, step) alone for each size."""
    blocks, places = np.divmod(steps, _span(size))
    return np.stack([_numbers(seed, int(b), size)[p] for b, p in zip(blocks, places, strict=True)])


@lru_cache(maxsize=256)
def _numbers(seed: int, block: int, size: int) -> np.ndarray:
    return seeds.generator(seed, "batches", REPLAYED + block).random((_span(size), size))


FRESH = 64
"""Steps whose examples are drawn at once."""


def fresh(stream: Stream, seed: int, steps: np.ndarray, batch_size: int) -> Examples:
    """Minibatches [S, B, …] of new examples at the given steps, no example of two of them.

    A function of (seed, step) alone for each batch size.
    """
    blocks, places = np.unique(steps // FRESH, return_inverse=True)
    drawn = [
        stream(seeds.generator(seed, "batches", int(block)), FRESH * batch_size) for block in blocks
    ]
    rows = places * FRESH + steps % FRESH

    def at(arrays: list[np.ndarray]) -> np.ndarray:
        whole = np.concatenate(arrays)
        return whole.reshape(-1, batch_size, *whole.shape[1:])[rows]

    return Examples(at([own.x for own in drawn]), at([own.y for own in drawn]))


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


def noisy(seed: int, y: np.ndarray, level: float, classes: int, draw: int = 0) -> np.ndarray:
    """Targets with label noise, of which each ``draw`` has its own.

    Labels [N] or [N, T]: each is replaced, with probability ``level``, by another of the
    ``classes``, all equally likely; those that a lower level replaces are among a higher one's, by
    the same class. What a sequence's model is shown stays as it is: its inputs have no noise.
    Real targets: Gaussian noise of standard deviation ``level`` is added.

    Raises ValueError for labels if ``level`` is above 1 or there is no other class.
    """
    generator = seeds.generator(seed, "noise", draw)
    if not np.issubdtype(y.dtype, np.integer):
        return (y + level * generator.standard_normal(y.shape)).astype(y.dtype)
    if level > 1:
        raise ValueError(f"label_noise={level}: the fraction of labels replaced is at most 1")
    if classes < 2:
        raise ValueError("label_noise replaces a label by another class, and there is only one")
    wrong = generator.random(y.shape) < level
    other = (y + generator.integers(1, classes, y.shape)) % classes
    return np.where(wrong, other, y).astype(y.dtype)
