"""Schedules: factors of the learning rate, in NumPy on the host."""

from typing import Annotated

import numpy as np
from annotated_types import Ge

from lmech.schedules import Schedule


def restarts(cycles: Annotated[int, Ge(1)] = 4) -> Schedule:
    """Half a cosine from 1 to 0, ``cycles`` times along a run (Loshchilov & Hutter 2017)."""

    def factors(steps: np.ndarray, horizon: int) -> np.ndarray:
        return (1 + np.cos(np.pi * (steps * cycles / horizon % 1))) / 2

    return factors
