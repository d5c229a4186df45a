"""Bringing the units of one network into another's order. NumPy and SciPy, on the host."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lmech.numerics.symmetry import Units

Leaves = Mapping[str, np.ndarray]


def permuted(
    leaves: Leaves, units: Sequence[Units], orders: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors with unit i of each group where unit ``order[i]`` was."""
    found = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    for own, order in zip(units, orders, strict=True):
        for path, axis in own.axes:
            found[path] = np.take(found[path], order, axis)
    return found


class Matched(NamedTuple):
    """What ``weight_matching`` found."""

    leaves: dict[str, np.ndarray]
    """The second network's tensors, in the first one's order."""
    orders: list[np.ndarray]
    """Of each group of units, as ``permuted`` takes them."""
    objective: list[float]
    """Σ ⟨a, πb⟩ before the first and after each assignment that raised it."""


def weight_matching(a: Leaves, b: Leaves, units: Sequence[Units]) -> Matched:
    """Permutations π of b's units that make ‖a − πb‖² small (Ainsworth et al. 2022, Algorithm 1).

    Coordinate ascent on Σ ⟨a, πb⟩ over all tensors: with the other groups' orders as they are, the
    best order of one group is a linear assignment. Groups are taken in turn, not at random, until
    none of them gains. Where a tensor has a group on two axes (a residual stream) its assignment is
    of the sum linearised at the present order, and is kept only if it gains. The result is a local
    maximum: which one depends on where it starts, at b's own order.
    """
    # Half a second to import, and the first command on a machine imports every preset's module.
    from scipy.optimize import linear_sum_assignment  # type: ignore # noqa: PLC0415

    here, orders = permuted(b, [], []), [np.arange(own.size) for own in units]
    scale = np.sqrt(_product(a, a) * _product(b, b))
    objective = [_product(a, here)]
    gained = True
    while gained:
        gained = False
        for place, own in enumerate(units):
            order = linear_sum_assignment(_overlaps(a, here, own), maximize=True)[1]
            there = permuted(here, [own], [order])
            value = _product(a, there)
            if value > objective[-1] + 1e-12 * scale:  # rounding gains nothing
                here, gained = there, True
                orders[place] = orders[place][order]
                objective.append(value)
    return Matched(here, orders, objective)


def _overlaps(a: Leaves, b: Leaves, own: Units) -> np.ndarray:
    """⟨unit i of a, unit j of b⟩ [n, n], summed over the group's tensors."""
    total = np.zeros((own.size, own.size))
    for path, axis in own.axes:
        ours, theirs = (
            np.moveaxis(np.asarray(side[path], float), axis, 0).reshape(own.size, -1)
            for side in (a, b)
        )
        total += ours @ theirs.T
    return total


def _product(a: Leaves, b: Leaves) -> float:
    """Σ ⟨a, b⟩ over all tensors, in double precision."""
    return float(sum(np.vdot(np.asarray(a[path], float), np.asarray(b[path], float)) for path in a))
