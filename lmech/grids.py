"""A swept key's grid: runs by value and seed, their average, its best point, resampled seeds."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from lmech.hints import nearest
from lmech.values import ConfigError

RESAMPLES = 2000
GENERATOR = 0  # the seed of every bootstrap: the same draws every time
AVERAGES: dict[str, Callable[..., Any]] = {"mean": np.nanmean, "median": np.nanmedian}
SIGNS = {"min": 1.0, "max": -1.0}
VALUE, SEED = " y", " seed"  # columns of our own, which no key is called


class Grid(NamedTuple):
    """One group's runs over X values of the swept key and S seeds, as what is to be minimised."""

    key: tuple[Any, ...]
    x: np.ndarray
    """[X], ascending"""
    runs: np.ndarray
    """[X, S]: y, or −y to maximise; inf: diverged; NaN: there is no such run."""
    goal: str
    average: str

    @property
    def f(self) -> np.ndarray:
        """[X]: the average over seeds."""
        return averaged(self.runs, self.average)

    @property
    def best(self) -> int:
        """Index of the best grid point."""
        return int(np.argmin(self.f))

    @property
    def position(self) -> str:
        """Where the best grid point lies."""
        if not np.isfinite(self.f[self.best]):
            return "diverged"
        ends = {len(self.x) - 1: "high edge", 0: "low edge"}
        return ends.get(self.best, "inside")


class Grids(NamedTuple):
    """The groups of a frame."""

    by: tuple[str, ...]
    groups: dict[tuple[Any, ...], Grid]


def gridded(
    runs: pd.DataFrame, x: str, by: str | Sequence[str], seed: str, goal: str, average: str
) -> Grids:
    """The runs by group. Raises ConfigError unless the keys tell all jobs apart."""
    names = (by,) if isinstance(by, str) else tuple(by)
    for name in (x, *names):
        choice("key", name, runs.columns.drop(VALUE))
    if not is_numeric_dtype(runs[x]) or runs[x].isna().any():
        raise ConfigError(f"x={x}: each job needs a number there; leave out those that have none")
    seeds = pd.factorize(runs[seed], use_na_sentinel=False)[0] if seed in runs else 0
    runs = runs.assign(**{SEED: seeds, **{name: runs[name].map(hashable) for name in names}})
    place = [x, SEED, *names]
    runs = runs.drop_duplicates([*place, "job"])  # a job of two sweeps counts once
    _check_unique(runs, place)
    parts = runs.groupby(list(names), dropna=False, sort=False) if names else [((), runs)]
    groups = [_grid(key, part, x, goal, average) for key, part in parts]
    return Grids(names, {grid.key: grid for grid in groups})


def _grid(key: tuple[Any, ...], runs: pd.DataFrame, x: str, goal: str, average: str) -> Grid:
    table = runs.pivot(index=x, columns=SEED, values=VALUE).sort_index()
    key = tuple(None if pd.isna(part) is True else part for part in key)  # NaN ≠ NaN
    return Grid(key, table.index.to_numpy(float), table.to_numpy(float), goal, average)


def _check_unique(runs: pd.DataFrame, place: list[str]) -> None:
    twice = runs[runs.duplicated(place)]
    if len(twice):
        first = ", ".join(f"{name.strip()}={twice[name].iloc[0]}" for name in place)
        raise ConfigError(f"two jobs have {first}: add to `by` what sets them apart, or leave one")


def hashable(value: Any) -> Any:
    """A swept value as part of a group's name: a list becomes a tuple."""
    return tuple(value) if isinstance(value, list) else value


def vertex(u: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Grid u [X], values f [..., X] → vertices [...] (``summaries.optimum``); ∓inf at its edges."""
    best = f.argmin(-1)
    if len(u) < 3:
        return np.where(best == 0, -np.inf, np.inf)
    middle = np.clip(best, 1, len(u) - 2)
    three = middle[..., None] + np.array([-1, 0, 1])
    (u0, u1, u2), (f0, f1, f2) = (
        np.moveaxis(a, -1, 0) for a in (u[three], np.take_along_axis(f, three, -1))
    )
    with np.errstate(invalid="ignore", divide="ignore"):  # equal, or not finite: u1
        s0, s1 = (f1 - f0) / (u1 - u0), (f2 - f1) / (u2 - u1)
        inner = (u0 + u1) / 2 - s0 * ((u2 - u0) / 2) / (s1 - s0)
    inner = np.where(np.isfinite(s1 - s0) & (s1 > s0), inner, u1)
    return np.select([best == 0, best == len(u) - 1], [-np.inf, np.inf], inner)


def averaged(runs: np.ndarray, average: str) -> np.ndarray:
    """[..., S] → [...]: over the runs that there are; inf if there is none."""
    absent = np.isnan(runs).all(-1, keepdims=True)
    return AVERAGES[average](np.where(absent, np.inf, runs), axis=-1)


def resampled(grid: Grid, draw: int = 0) -> np.ndarray:
    """[RESAMPLES, X]: the average over seeds drawn with replacement, the same at every x.

    Another ``draw`` is independent of the first.
    """
    count = grid.runs.shape[1]
    drawn = np.random.default_rng([GENERATOR, draw] if draw else GENERATOR).integers(
        count, size=(RESAMPLES, count)
    )
    return averaged(grid.runs[:, drawn], grid.average).T


def percentiles(values: np.ndarray, level: float) -> np.ndarray:
    """The middle ``level`` of the values; no interpolation, which infinities would spoil."""
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")


def choice(what: str, word: str, choices: Iterable[str]) -> None:
    """Raises ConfigError unless ``word`` is one of the choices."""
    known = list(choices)
    if word not in known:
        hint = nearest(word, known)
        raise ConfigError(f"no {what} '{word}'{hint} (there are {', '.join(known)})")
