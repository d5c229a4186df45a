"""What a collected sweep comes to: optima, what transfer costs, widths, first crossings.

Functions of the frame of ``lmech.collect``; what stands left of its column ``step`` is about the
job. ``y`` is a run's last recorded value of a column. A run that diverged or has no finite y
counts as the worst there is; none is dropped. f(x) is the average of y over ``seed``, group by
group of ``by``: the mean, or the median, which a minority of diverged runs leaves finite.

u is log2 x where all values of the swept key are positive, else x. Intervals are percentiles of
``grids.RESAMPLES`` bootstrap resamples of the seeds, the same draws every time. Of three seeds a
bootstrap is a rough guide, and too narrow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from lmech.grids import (
    AVERAGES,
    SIGNS,
    VALUE,
    Grid,
    Grids,
    choice,
    gridded,
    hashable,
    percentiles,
    resampled,
    vertex,
)
from lmech.values import ConfigError

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
    choice("direction", direction, DIRECTIONS)
    _numbers(frame, column)
    sign = DIRECTIONS[direction]
    there = frame[sign * frame[column] <= sign * threshold]
    crossing = _one_each(frame, there, column, keep="first").drop(columns=column)
    last = final(frame, column)["step"]
    return crossing.assign(censored_at=last.where(crossing["step"].isna()))


def delay(
    frame: pd.DataFrame,
    train: str = "train_accuracy",
    test: str = "test_accuracy",
    threshold: float = 0.99,
    direction: Literal["below", "above"] = "above",
) -> pd.DataFrame:
    """How much later the test set gets to a threshold than the training set, one row a job.

    ``memorised_at``, ``generalised_at``: the first recorded steps at which train and test are
    there (``first_crossing``; NaN: never). ``ratio`` = generalised / memorised: infinite where the
    run was never seen to generalise, NaN where it was not seen to memorise, or did from step 0.
    ``censored_at``: the last recorded step of a test that never got there.

    Each step may be late by up to the cadence of its column, and test is often recorded less often:
    a ratio is worth reading where ``memorised_at`` is many of test's cadences.
    """
    memorised, generalised = (
        first_crossing(frame, column, threshold, direction) for column in (train, test)
    )
    at, then = memorised["step"], generalised["step"]
    return memorised[_labels(frame)].assign(
        memorised_at=at,
        generalised_at=then,
        ratio=then.fillna(np.inf) / at.where(at > 0),
        censored_at=generalised["censored_at"],
    )


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


def drift(
    frame: pd.DataFrame,
    x: str,
    y: str,
    along: str,
    by: By = (),
    seed: str = "seed",
    goal: Goal = "min",
    average: Average = "mean",
    level: float = 0.95,
) -> pd.DataFrame:
    """How far the best x moves as another key grows: octaves of x a doubling of ``along``.

    The least-squares slope of log2 of the optimum (``optimum``'s vertex) against log2 ``along``,
    one row a group. The bootstrap draws each value's seeds on their own.

    Columns: ``by``; ``drift`` with ``low`` and ``high``; ``octaves`` = log2 of the last optimum
    over the first, likewise with ``octaves_low`` and ``octaves_high``; ``position``: ``inside`` if
    every optimum is, else the first that is not; ``points``, how many values. All numbers are NaN
    unless all optima are inside, the bounds NaN with one seed (infinite where that many resamples
    are at an edge).
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    grids = _positive(_grids(frame, x, y, (*by, along), seed, goal, average), x)
    groups: dict[tuple[Any, ...], list[Grid]] = {}
    for key, grid in grids.groups.items():
        groups.setdefault(key[:-1], []).append(grid)
    rows = [
        {**dict(zip(by, key, strict=True)), **_drifted(sorted(own, key=_last), level)}
        for key, own in groups.items()
    ]
    return pd.DataFrame(rows)


def _last(grid: Grid) -> float:
    return float(grid.key[-1])


def _drifted(grids: Sequence[Grid], level: float) -> Row:
    """``drift``'s numbers over grids in the order of their last key."""
    names = ("drift", "low", "high", "octaves", "octaves_low", "octaves_high")
    row = {**dict.fromkeys(names, np.nan), "position": "inside", "points": len(grids)}
    outside = [grid.position for grid in grids if grid.position != "inside"]
    if outside or len(grids) < 2:
        return {**row, "position": outside[0] if outside else "inside"}
    t = np.log2([_last(grid) for grid in grids])
    weights = (t - t.mean()) / np.square(t - t.mean()).sum()
    best = np.array([vertex(np.log2(grid.x), grid.f) for grid in grids])
    row |= {"drift": weights @ best, "octaves": best[-1] - best[0]}
    if min(grid.runs.shape[1] for grid in grids) > 1:
        drawn = np.stack([vertex(np.log2(g.x), resampled(g, i)) for i, g in enumerate(grids)])
        with np.errstate(invalid="ignore"):  # ∞ − ∞: edges on both sides
            slopes, ends = weights @ drawn, drawn[-1] - drawn[0]
        row["low"], row["high"] = percentiles(slopes, level)
        row["octaves_low"], row["octaves_high"] = percentiles(ends, level)
    return row


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
        choice("reference", name, known)
    wanted = {name: hashable(value) for name, value in reference.items()}

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

    Nearly: f ≤ min f + tolerance, or + tolerance · ``|min f|`` if ``relative`` (``max`` likewise),
    with f linear in log2 x between grid points. Before a diverged point the region ends at the last
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
    plain = _positive(gridded(runs, x, by, seed, "min", "mean"), x)
    runs[VALUE] = np.minimum(runs[VALUE], initial)
    clipped = gridded(runs, x, by, seed, "min", "mean")

    def row(grid: Grid) -> Row:
        f = clipped.groups[grid.key].f
        lost = grid.position == "diverged"
        return {"sensitivity": np.nan if lost else f.mean() - f.min(), **_report(grid, y)}

    return _by_group(plain, row)


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
    best = vertex(u, grid.f)
    around = [grid.best - 1, grid.best + 1]
    if grid.runs.shape[1] == 1 or not np.isfinite(grid.f[around]).all():
        kind, (low, high) = "grid", u[around]
    else:
        kind, (low, high) = "bootstrap", percentiles(vertex(u, resampled(grid)), level)
    return {"optimum": back(best), "low": back(low), "high": back(high), "interval": kind}


def _lost(grid: Grid, at: float, level: float) -> Row:
    """``regret``, ``low``, ``high`` at the reference's x."""
    (there,) = np.nonzero(np.isclose(grid.x, at, rtol=1e-9, atol=0))
    if not len(there) or grid.position == "diverged":
        return {"regret": np.nan, "low": np.nan, "high": np.nan}
    low, high = np.nan, np.nan
    if grid.runs.shape[1] > 1:
        sampled = resampled(grid)
        with np.errstate(invalid="ignore"):  # inf − inf: all of the resample diverged
            lost = sampled[:, there[0]] - sampled.min(1)
        low, high = percentiles(np.where(np.isnan(lost), np.inf, lost), level)
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


def _grids(
    frame: pd.DataFrame, x: str, y: str, by: By, seed: str, goal: str, average: str
) -> Grids:
    choice("goal", goal, SIGNS)
    choice("average", average, AVERAGES)
    return gridded(_runs(frame, y, goal), x, by, seed, goal, average)


def _runs(frame: pd.DataFrame, y: str, goal: str) -> pd.DataFrame:
    """One row a job: its labels, and what is to be minimised: inf if it diverged."""
    _numbers(frame, y)
    last = final(frame, y)
    value = SIGNS[goal] * last[y].to_numpy(float)
    diverged = ~np.isfinite(value)
    if "status" in last:
        diverged |= (last["status"] == "diverged").to_numpy()
    return last[_labels(frame)].assign(**{VALUE: np.where(diverged, np.inf, value)})


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
    choice("column", column, frame.columns)


def _numbers(frame: pd.DataFrame, column: str) -> None:
    _column(frame, column)
    if not is_numeric_dtype(frame[column]):
        raise ConfigError(f"{column} is no number: make a column of one (its first entry, a norm)")
