"""What a collected sweep comes to: optima, what transfer costs, widths, first crossings.

Functions of the frame of ``lmech.collect``; what stands left of its column ``step`` is about the
job. ``y`` is a run's last recorded value of a column. A run that diverged or has no finite y
counts as the worst there is; none is dropped. f(x) is the average of y over ``seed``, group by
group of ``by``: the mean, or the median, which a minority of diverged runs leaves finite.

u is log2 x where all values of the swept key are positive, else x. Intervals are percentiles of
``RESAMPLES`` bootstrap resamples of the seeds by a generator that begins at ``GENERATOR``: the same
numbers every time. Of three seeds a bootstrap is a rough guide, and too narrow.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from lmech.config import ConfigError, nearest

RESAMPLES = 2000
GENERATOR = 0
AVERAGES: dict[str, Callable[..., Any]] = {"mean": np.nanmean, "median": np.nanmedian}
SIGNS = {"min": 1.0, "max": -1.0}
DIRECTIONS = {"below": 1.0, "above": -1.0}

Average = Literal["mean", "median"]
Goal = Literal["min", "max"]
By = str | Sequence[str]
Row = dict[str, Any]


def final(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Each job's last recorded value of a column and its ``step``; NaN if it has none.

    One row a job, with its labels. A NaN that was measured cannot be told from a gap: a diverged
    run has its last number before that, and its ``status`` says so.
    """
    _column(frame, column)
    return _one_each(frame, frame.dropna(subset=column), column, keep="last")


def first_crossing(
    frame: pd.DataFrame,
    column: str,
    threshold: float,
    direction: Literal["below", "above"] = "below",
) -> pd.DataFrame:
    """First recorded ``step`` at which column ≤ threshold (``above``: ≥), one row a job.

    A job that never gets there is censored, not dropped: ``step`` is NaN and ``censored_at`` the
    last step at which the column was recorded (NaN if it never was). The crossing itself may lie
    up to one cadence before the step that is reported.
    """
    _choice("direction", direction, DIRECTIONS)
    _numbers(frame, column)
    sign = DIRECTIONS[direction]
    there = frame[sign * frame[column] <= sign * threshold]
    crossing = _one_each(frame, there, column, keep="first").drop(columns=column)
    last = final(frame, column)["step"]
    return crossing.assign(censored_at=last.where(crossing["step"].isna()))


def optimum(
    frame: pd.DataFrame,
    x: str,
    y: str,
    by: By = (),
    seed: str = "seed",
    goal: Goal = "min",
    average: Average = "mean",
    level: float = 0.95,
) -> pd.DataFrame:
    """The value of a swept key at which y is best, one row a group.

    Of the best grid point u₁ and its neighbours u₀ < u₁ < u₂, the vertex of the parabola:

        u* = m₀ − s₀ (m₁ − m₀)/(s₁ − s₀),  s₀ = (f₁ − f₀)/(u₁ − u₀),  m₀ = (u₀ + u₁)/2,

    s₁ and m₁ alike for u₁ and u₂; u₁ itself if a neighbour diverged or the three are equal.

    Columns: ``by``; ``optimum`` with ``low`` and ``high``, and ``interval``, what these are:
    ``bootstrap`` over the seeds at ``level`` (0 or inf where that many resamples have their best
    at the edge of the grid), ``grid``, the neighbours u₀ and u₂, with one seed or a diverged
    neighbour, or ``none`` with the best point at the edge of the grid, where the optimum is
    undetermined: all three NaN. ``position``: ``inside``, ``low edge``, ``high edge``, or
    ``diverged`` if every point has. ``best``, the grid point; y's own column, f there; ``seeds``;
    ``diverged``, how many runs; ``missing``, how many points × seeds have no run.
    """
    return _by_group(
        _grids(frame, x, y, by, seed, goal, average),
        lambda grid: {**_interval(grid, level), **_report(grid, y)},
    )


def regret(
    frame: pd.DataFrame,
    x: str,
    y: str,
    by: By,
    reference: Mapping[str, Any],
    seed: str = "seed",
    goal: Goal = "min",
    average: Average = "mean",
    level: float = 0.95,
) -> pd.DataFrame:
    """What a group loses with the x that is best in a reference group, one row a group.

        regret = f(x_ref) − min f  (``max``: max f − f(x_ref)),

    both on the grid: ≥ 0, and 0 where the best points agree. ``reference`` names a group by some of
    ``by``: with ``{"model.width": 64}`` each group's reference is the one of width 64 that is
    otherwise like it.

    Columns: ``by``; ``regret`` with ``low`` and ``high``, the bootstrap over the group's seeds
    (x_ref stays; NaN with one seed); ``x_reference``; ``reference_position``, where anything but
    ``inside`` says that the reference has not found its optimum; then those of ``optimum`` from
    ``position`` on. The regret is inf where x_ref diverges, NaN where the group has
    no run there or none converges.
    """
    grids = _grids(frame, x, y, by, seed, goal, average)
    known = grids.by
    for name in reference:
        _choice("reference", name, known)
    wanted = {name: _hashable(value) for name, value in reference.items()}

    def row(grid: Grid) -> Row:
        named = {**dict(zip(known, grid.key, strict=True)), **wanted}
        other = grids.groups.get(tuple(named.values()))
        if other is None:
            raise ConfigError(f"reference: there is no group {named}")
        at = other.x[other.best] if other.position != "diverged" else np.nan
        about = {"x_reference": at, "reference_position": other.position}
        return {**_lost(grid, at, level), **about, **_report(grid, y)}

    return _by_group(grids, row)


def sensitivity(
    frame: pd.DataFrame,
    x: str,
    y: str,
    tolerance: float,
    by: By = (),
    relative: bool = False,
    seed: str = "seed",
    goal: Goal = "min",
    average: Average = "mean",
) -> pd.DataFrame:
    """How wide, in octaves of x, the region around the best point is where y is nearly as good.

    Nearly: f ≤ min f + tolerance, or + tolerance · |min f| if ``relative`` (``max`` likewise), with
    f linear in log2 x between grid points. Before a diverged point the region ends at the last
    finite one.

    Columns: ``by``; ``octaves`` = log2(high/low); ``low``; ``high``; ``censored``, the edges of
    the grid that the region reaches (``low``, ``high``, ``both`` or empty), which make ``octaves``
    a lower bound; then those of ``optimum`` from ``position`` on.
    """
    return _by_group(
        _positive(_grids(frame, x, y, by, seed, goal, average), x),
        lambda grid: {**_region(grid, tolerance, relative), **_report(grid, y)},
    )


def learning_rate_sensitivity(
    frame: pd.DataFrame, x: str, y: str, by: By = (), seed: str = "seed"
) -> pd.DataFrame:
    """The mean deviation from the best loss (Wortsman et al. 2023, arXiv:2309.14322, section 2.2).

        E[min(ℓ(x), ℓ₀)] − ℓ*,  ℓ* = min ℓ,

    the expectation over the grid of learning rates; ℓ₀ is the loss at initialization, here each
    run's own y at step 0, which also stands for a run that diverged; ℓ is averaged over the seeds
    after the clipping. It depends on the ends of the grid, so compare groups on one grid.
    Column ``sensitivity``, then those of ``optimum`` from ``position`` on. Raises ConfigError if a
    job has no y at step 0.
    """
    _numbers(frame, y)
    start = frame[frame["step"] == 0].dropna(subset=y)
    initial = _one_each(frame, start, y, keep="first")[y]
    if initial.isna().any():
        raise ConfigError(f"{y} at step 0 is needed, and {initial.isna().sum()} jobs have none")
    runs = _runs(frame, y, "min")
    plain = _positive(_gridded(runs, x, by, seed, "min", "mean"), x)
    runs[VALUE] = np.minimum(runs[VALUE], initial)
    clipped = _gridded(runs, x, by, seed, "min", "mean")

    def row(grid: Grid) -> Row:
        f = clipped.groups[grid.key].f
        lost = grid.position == "diverged"
        return {"sensitivity": np.nan if lost else f.mean() - f.min(), **_report(grid, y)}

    return _by_group(plain, row)


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
        return _averaged(self.runs, self.average)

    @property
    def best(self) -> int:
        """Index of the best grid point."""
        return int(self.f.argmin())

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


def _by_group(grids: Grids, row: Callable[[Grid], Row]) -> pd.DataFrame:
    rows = [
        {**dict(zip(grids.by, grid.key, strict=True)), **row(grid)}
        for grid in grids.groups.values()
    ]
    return pd.DataFrame(rows)


def _report(grid: Grid, y: str) -> Row:
    """The columns that all summaries of a grid have."""
    lost = grid.position == "diverged"
    return {
        "position": grid.position,
        "best": np.nan if lost else grid.x[grid.best],
        y: np.nan if lost else SIGNS[grid.goal] * grid.f[grid.best],
        "seeds": grid.runs.shape[1],
        "diverged": int(np.isinf(grid.runs).sum()),
        "missing": int(np.isnan(grid.runs).sum()),
    }


def _scale(x: np.ndarray) -> tuple[np.ndarray, Callable[[Any], Any]]:
    """The grid on its scale u, and the way back."""
    return (np.log2(x), np.exp2) if (x > 0).all() else (x, np.asarray)


def _interval(grid: Grid, level: float) -> Row:
    """``optimum``, ``low``, ``high``, ``interval``."""
    if grid.position != "inside":
        return {"optimum": np.nan, "low": np.nan, "high": np.nan, "interval": "none"}
    u, back = _scale(grid.x)
    vertex = _vertex(u, grid.f)
    around = [grid.best - 1, grid.best + 1]
    if grid.runs.shape[1] == 1 or not np.isfinite(grid.f[around]).all():
        kind, (low, high) = "grid", u[around]
    else:
        kind, (low, high) = "bootstrap", _percentiles(_vertex(u, _resampled(grid)), level)
    return {"optimum": back(vertex), "low": back(low), "high": back(high), "interval": kind}


def _vertex(u: np.ndarray, f: np.ndarray) -> np.ndarray:
    """U [X], f [..., X] → [...]: vertex at the best point; ∓inf if that is the low or high edge."""
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


def _averaged(runs: np.ndarray, average: str) -> np.ndarray:
    """[..., S] → [...]: over the runs that there are; inf if there is none."""
    absent = np.isnan(runs).all(-1, keepdims=True)
    return AVERAGES[average](np.where(absent, np.inf, runs), axis=-1)


def _resampled(grid: Grid) -> np.ndarray:
    """[RESAMPLES, X]: the average over seeds drawn with replacement, the same at every x."""
    count = grid.runs.shape[1]
    drawn = np.random.default_rng(GENERATOR).integers(count, size=(RESAMPLES, count))
    return _averaged(grid.runs[:, drawn], grid.average).T


def _percentiles(values: np.ndarray, level: float) -> np.ndarray:
    """The middle ``level`` of the values; no interpolation, which infinities would spoil."""
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")


def _lost(grid: Grid, at: float, level: float) -> Row:
    """``regret``, ``low``, ``high`` at the reference's x."""
    (there,) = np.nonzero(np.isclose(grid.x, at, rtol=1e-9, atol=0))
    if not len(there) or grid.position == "diverged":
        return {"regret": np.nan, "low": np.nan, "high": np.nan}
    low, high = np.nan, np.nan
    if grid.runs.shape[1] > 1:
        sampled = _resampled(grid)
        with np.errstate(invalid="ignore"):  # inf − inf: all of the resample diverged
            lost = sampled[:, there[0]] - sampled.min(1)
        low, high = _percentiles(np.where(np.isnan(lost), np.inf, lost), level)
    return {"regret": grid.f[there[0]] - grid.f.min(), "low": low, "high": high}


def _region(grid: Grid, tolerance: float, relative: bool) -> Row:
    """``octaves``, ``low``, ``high``, ``censored``."""
    if grid.position == "diverged":
        return {"octaves": np.nan, "low": np.nan, "high": np.nan, "censored": ""}
    u, f, best = np.log2(grid.x), grid.f, grid.best
    limit = f[best] + tolerance * (abs(f[best]) if relative else 1.0)
    low, at_low = _reach(u[best::-1], f[best::-1], limit)
    high, at_high = _reach(u[best:], f[best:], limit)
    censored = {(1, 0): "low", (0, 1): "high", (1, 1): "both"}.get((at_low, at_high), "")
    return {
        "octaves": high - low,
        "low": np.exp2(low),
        "high": np.exp2(high),
        "censored": censored,
    }


def _reach(u: np.ndarray, f: np.ndarray, limit: float) -> tuple[float, bool]:
    """How far from u[0] f stays within the limit, and whether that is to the very end."""
    beyond = np.flatnonzero(f > limit)
    if not len(beyond):
        return u[-1], True
    after = beyond[0]
    share = (limit - f[after - 1]) / (f[after] - f[after - 1])  # 0 before a diverged point
    return u[after - 1] + share * (u[after] - u[after - 1]), False


VALUE, SEED = " y", " seed"  # columns of our own, which no key is called


def _grids(
    frame: pd.DataFrame, x: str, y: str, by: By, seed: str, goal: str, average: str
) -> Grids:
    _choice("goal", goal, SIGNS)
    _choice("average", average, AVERAGES)
    return _gridded(_runs(frame, y, goal), x, by, seed, goal, average)


def _runs(frame: pd.DataFrame, y: str, goal: str) -> pd.DataFrame:
    """One row a job: its labels, and what is to be minimised: inf if it diverged."""
    _numbers(frame, y)
    last = final(frame, y)
    value = SIGNS[goal] * last[y].to_numpy(float)
    diverged = ~np.isfinite(value)
    if "status" in last:
        diverged |= (last["status"] == "diverged").to_numpy()
    return last[_labels(frame)].assign(**{VALUE: np.where(diverged, np.inf, value)})


def _gridded(runs: pd.DataFrame, x: str, by: By, seed: str, goal: str, average: str) -> Grids:
    """The runs by group. Raises ConfigError unless the keys tell all jobs apart."""
    names = (by,) if isinstance(by, str) else tuple(by)
    for name in (x, *names):
        _choice("key", name, runs.columns.drop(VALUE))
    if not is_numeric_dtype(runs[x]) or runs[x].isna().any():
        raise ConfigError(f"x={x}: each job needs a number there; leave out those that have none")
    seeds = pd.factorize(runs[seed], use_na_sentinel=False)[0] if seed in runs else 0
    runs = runs.assign(**{SEED: seeds, **{name: runs[name].map(_hashable) for name in names}})
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


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _positive(grids: Grids, x: str) -> Grids:
    if any((grid.x <= 0).any() for grid in grids.groups.values()):
        raise ConfigError(f"x={x}: octaves need positive values")
    return grids


def _labels(frame: pd.DataFrame) -> list[str]:
    """Columns about the job: those left of ``step``."""
    return list(frame.loc[:, :"step"].columns[:-1])


def _one_each(
    frame: pd.DataFrame, rows: pd.DataFrame, column: str, keep: Literal["first", "last"]
) -> pd.DataFrame:
    """All jobs of the frame, with the step and value of the first or last of their ``rows``."""
    keys = [key for key in ("sweep", "job") if key in frame]
    jobs = frame[_labels(frame)].drop_duplicates(keys)
    one = rows.sort_values("step", kind="stable").drop_duplicates(keys, keep=keep)
    return jobs.merge(one[[*keys, "step", column]], on=keys, how="left")


def _column(frame: pd.DataFrame, column: str) -> None:
    for needed in ("job", "step"):
        if needed not in frame:
            raise ConfigError(f"no column '{needed}': a frame of lmech.collect is needed")
    _choice("column", column, frame.columns)


def _numbers(frame: pd.DataFrame, column: str) -> None:
    _column(frame, column)
    if not is_numeric_dtype(frame[column]):
        raise ConfigError(f"{column} is no number: make a column of one (its first entry, a norm)")


def _choice(what: str, word: str, choices: Iterable[str]) -> None:
    known = list(choices)
    if word not in known:
        hint = nearest(word, known)
        raise ConfigError(f"no {what} '{word}'{hint} (there are {', '.join(known)})")
