"""Comparisons: what is measured of two runs' weights.

What an observable is to one run, a comparison is to a pair: a pure function of two states, traced
once a program. What has to be done on the host before, as finding the units of one network in the
other, is its ``align``.
"""

from collections.abc import Callable
from typing import NamedTuple

from lmech.observables import State, Values
from lmech.problem import Params


class Comparison(NamedTuple):
    """``compare(a, b, aligned) → values``, named numbers and vectors; a pure function.

    ``a`` and ``b`` are the states (``lmech.observables.State``) of two runs of one program, each
    with its own data, targets and seeds; neither has an optimizer's state. ``aligned`` is what
    ``align(a, b)`` makes of b's weights, in NumPy on the host, where arrays of both states have
    values; b's weights as they are, where there is no ``align``.
    """

    compare: Callable[[State, State, Params], Values]
    align: Callable[[State, State], Params] | None = None
