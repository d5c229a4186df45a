"""The compute-optimal envelope of loss curves, and its exponents."""

from typing import NamedTuple

import numpy as np

POINTS = 400  # of compute, evenly apart in its logarithm
SHARE = 0.75  # of the envelope's logarithmic range that is fitted, the upper part


class Envelope(NamedTuple):
    """By compute f = d·r [F]: the best size and its loss."""

    compute: np.ndarray
    size: np.ndarray
    loss: np.ndarray


def losses_at(
    compute: np.ndarray, sizes: np.ndarray, steps: np.ndarray, losses: np.ndarray
) -> np.ndarray:
    """Losses [S, F] of each size at a compute, linear between the steps [T] in logarithms.

    Infinite before the first step, NaN beyond the last.
    """
    rows = [
        np.interp(np.log(compute / size), np.log(steps), np.log(own), left=np.inf, right=np.nan)
        for size, own in zip(sizes, losses, strict=True)
    ]
    return np.exp(rows)


def envelope(sizes: np.ndarray, steps: np.ndarray, losses: np.ndarray) -> Envelope:
    """The vertex in log d of the parabola through log P of the best size and its two neighbours.

    ``losses`` [S, T] of ascending ``sizes``. Only where the best size has two neighbours, and all
    sizes have run so far. A parabola in log d of log P at fixed compute.
    """
    compute = np.geomspace(sizes[0], sizes[0] * steps[-1], POINTS)
    logs = np.log(losses_at(compute, sizes, steps, losses))
    best = np.argmin(logs, axis=0)
    inside = (best > 0) & (best < len(sizes) - 1)
    middle, at = np.clip(best, 1, len(sizes) - 2), np.arange(POINTS)
    left, there, right = (logs[middle + k, at] for k in (-1, 0, 1))
    inside &= np.isfinite(left + right)
    u = np.log(sizes)[middle[inside] + np.arange(-1, 2)[:, None]]
    vertex, value = _vertex(u, np.stack([left, there, right])[:, inside])
    return Envelope(compute[inside], np.exp(vertex), np.exp(value))


def _vertex(u: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place and value of the minimum of parabolas through three points [3, F], y₁ the lowest."""
    before, after = (y[1] - y[0]) / (u[1] - u[0]), (y[2] - y[1]) / (u[2] - u[1])
    bend = (after - before) / (u[2] - u[0])
    flat = bend <= 0  # three equal losses
    slope = before + bend * (u[1] - u[0])  # at u₁
    shift = np.where(flat, 0, -slope / np.where(flat, 1, 2 * bend))
    return u[1] + shift, y[1] + slope * shift + bend * shift**2


def exponents(of: Envelope) -> tuple[float, float, float]:
    """Slopes of log d* and log P* against log f on the upper part, and the whole range in decades.

    NaN where fewer than ten points have an optimum.
    """
    if len(of.compute) < 10:
        return np.nan, np.nan, 0.0
    f = np.log(of.compute)
    kept = f >= f[0] + (1 - SHARE) * (f[-1] - f[0])
    size, loss = (np.polyfit(f[kept], np.log(y[kept]), 1)[0] for y in (of.size, of.loss))
    return float(size), float(loss), float((f[-1] - f[0]) / np.log(10))


def decline(sizes: np.ndarray, steps: np.ndarray, losses: np.ndarray, decades: float) -> float:
    """Slope of log min_d P against log f over the last decades of compute, optimum inside or not.

    The last compute is that at which the smallest size has taken all its steps.
    """
    end = sizes[0] * steps[-1]
    compute = np.geomspace(end / 10**decades, end, POINTS)
    best = np.nanmin(losses_at(compute, sizes, steps, losses), axis=0)
    return float(np.polyfit(np.log(compute), np.log(best), 1)[0])
