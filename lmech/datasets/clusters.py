"""Gaussian clusters: several a class, and four of them labelled by the exclusive or."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval
from pydantic import FiniteFloat

from lmech.datasets import Data, Examples
from lmech.datasets.transforms import Size


def gaussian_clusters(
    train_size: Size = 500,
    test_size: Size = 1000,
    classes: Annotated[int, Ge(2)] = 5,
    clusters: Annotated[int, Ge(1)] = 3,
    dimension: Annotated[int, Ge(1)] = 30,
    separation: Annotated[FiniteFloat, Ge(0)] = 5.0,
    imbalance: Annotated[FiniteFloat, Ge(1)] = 1.0,
    spread: Annotated[FiniteFloat, Ge(0)] = 1.0,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """X = μ_ks + ``spread`` z of class k, z ~ N(0, I), ``clusters`` centres μ_ks to each class.

    Centres are drawn evenly from the sphere of radius ``separation``, and a class's clusters are
    equally large. Training classes are as large as each other (up to one example) unless
    ``imbalance`` is above 1: then n_k falls geometrically, n_0 / n_{K−1} = ``imbalance``. Test
    classes are always as large as each other.
    """
    generator = np.random.Generator(np.random.Philox(data_seed))
    centres = generator.standard_normal((classes, clusters, dimension))
    centres *= separation / np.linalg.norm(centres, axis=-1, keepdims=True)

    def drawn(count: int, imbalance: float) -> Examples:
        shares = imbalance ** -(np.arange(classes) / (classes - 1))
        bounds = np.round(np.cumsum(shares) / shares.sum() * count).astype(int)
        y = np.searchsorted(bounds, np.arange(count), side="right")
        place = np.arange(count) % clusters
        x = centres[y, place] + spread * generator.standard_normal((count, dimension))
        order = generator.permutation(count)
        return Examples(x[order], y[order].astype(np.int32))

    return Data(drawn(train_size, imbalance), drawn(test_size, 1.0))


def xor_clusters(
    train_size: Size = 200,
    test_size: Size = 1000,
    dimension: Annotated[int, Ge(2)] = 10000,
    separation: Annotated[FiniteFloat, Ge(0)] = 17.5,
    flips: Annotated[float, Interval(ge=0, lt=0.5)] = 0.1,
    data_seed: Annotated[int, Ge(0)] = 0,
) -> Data:
    """X = ±μ₁ + z with label 0 or ±μ₂ + z with label 1, z ~ N(0, I), μ₁ ⟂ μ₂ (Xu et al. 2024).

    ‖μ‖ is the ``separation``. Of the training labels a fraction ``flips``, to the nearest integer,
    is wrong; test labels are clean. No linear classifier is better than chance.
    """
    generator = np.random.Generator(np.random.Philox(data_seed))

    def clean(count: int) -> Examples:
        y, sign = generator.integers(2, size=count), generator.choice([-1.0, 1.0], size=count)
        x = generator.standard_normal((count, dimension))
        x[np.arange(count), y] += sign * separation  # μ₁, μ₂ along the first two axes
        return Examples(x, y.astype(np.int32))

    train, test = clean(train_size), clean(test_size)
    wrong = generator.permutation(train_size)[: round(flips * train_size)]
    train.y[wrong] = 1 - train.y[wrong]
    return Data(train, test)
