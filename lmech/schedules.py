"""Learning-rate schedules as data: the factor of the peak rate at each step.

A schedule is ``(steps [S], horizon) → factors [S]``, evaluated on the host in NumPy and fed to the
program as an array, so warm-up, decay and horizon never recompile.
"""

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval

Schedule = Callable[[np.ndarray, int], np.ndarray]
Warmup = Annotated[int, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]


def _warm(steps: np.ndarray, warmup: int) -> np.ndarray:
    """min(1, (t + 1)/warmup): the first step is small but not lost."""
    return np.minimum(1.0, (steps + 1) / warmup) if warmup else np.ones(len(steps))


def _progress(steps: np.ndarray, start: float, horizon: int) -> np.ndarray:
    """0 until ``start``, then linear to 1 at ``horizon``."""
    return np.clip((steps - start) / max(horizon - start, 1), 0, 1)


def constant(warmup: Warmup = 0) -> Schedule:
    """1, after a linear warm-up of ``warmup`` steps."""
    return lambda steps, _: _warm(steps, warmup)


def linear(warmup: Warmup = 0, final: Fraction = 0.0) -> Schedule:
    """From 1 (after the warm-up) linearly to ``final`` at the horizon."""
    return lambda steps, horizon: (
        _warm(steps, warmup) * (1 - (1 - final) * _progress(steps, warmup, horizon))
    )


def cosine(warmup: Warmup = 0, final: Fraction = 0.0) -> Schedule:
    """From 1 (after the warm-up) along half a cosine to ``final`` (Loshchilov & Hutter 2017)."""

    def factors(steps: np.ndarray, horizon: int) -> np.ndarray:
        phase = np.pi * _progress(steps, warmup, horizon)
        return _warm(steps, warmup) * (final + (1 - final) * (1 + np.cos(phase)) / 2)

    return factors


def multistep(milestones: list[Fraction], warmup: Warmup = 0, factor: Fraction = 0.1) -> Schedule:
    """1 (after the warm-up), then times ``factor`` at each milestone (He et al. 2016, §4.2).

    A milestone is a fraction of the steps: 0.7 acts from step 70 of 100 on.
    """

    def factors(steps: np.ndarray, horizon: int) -> np.ndarray:
        starts = [math.ceil(milestone * horizon - 1e-9) for milestone in milestones]
        passed = (steps[:, None] >= np.asarray(starts)).sum(axis=1)
        return _warm(steps, warmup) * float(factor) ** passed

    return factors


def wsd(warmup: Warmup = 0, decay: Fraction = 0.2, final: Fraction = 0.0) -> Schedule:
    """Warm-up, stable, then linear to ``final`` over the last ``decay`` of the steps."""
    return lambda steps, horizon: (
        _warm(steps, warmup)
        * (1 - (1 - final) * _progress(steps, horizon - decay * horizon, horizon))
    )
