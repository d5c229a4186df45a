"""What a page's interactive curves are made of: every scalar column of every job, thinned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmech.disk import read_table, reading

MOST = 1000
"""Points of a curve, at most: as many as a screen has columns to show them in."""
FEWEST = 40
"""Points of a curve, where a file has many."""
BUDGET = 400_000
"""Points of a file, at most; about 5 MB."""
DIGITS = 6
"""Significant digits of a value."""

Curve = tuple[np.ndarray, np.ndarray]  # steps [S], values [S], NaN where measured and not finite


def columns(file: Path) -> int:
    """How many columns of a job's ``metrics.parquet`` have a curve."""
    with reading(file):
        return sum(_is_number(field.type) for field in pq.read_schema(file)) - 1


def read(file: Path) -> dict[str, Curve]:
    """The numeric scalar columns of a job's ``metrics.parquet``, each where it was measured.

    Null is what was not measured and leaves no point. A measured value that is not finite is NaN,
    which a chart shows as a gap.
    """
    table = read_table(file)
    steps = table["step"].to_numpy()
    return {
        name: _measured(steps, table[name])
        for name in table.column_names
        if name != "step" and _is_number(table.schema.field(name).type)
    }


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _measured(steps: np.ndarray, column: pa.ChunkedArray) -> Curve:
    there = column.is_valid().to_numpy()
    values = column.drop_null().to_numpy().astype(float)
    return steps[there], np.where(np.isfinite(values), values, np.nan)


def thin(values: np.ndarray, most: int) -> np.ndarray:
    """Indices [≤ max(most, 3)] of the points that are kept of a curve, in order.

    Of each stretch the lowest and the highest, so that no spike is lost, and one NaN if it has
    any, so that no gap is closed; and the two ends.
    """
    if len(values) <= most:
        return np.arange(len(values))
    missing = np.isnan(values)
    stretches = max((most - 2) // (3 if missing.any() else 2), 1)
    kept = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), stretches):
        known, gaps = part[~missing[part]], part[missing[part]]
        if len(known):
            kept |= {int(known[f(values[known])]) for f in (np.argmin, np.argmax)}
        if len(gaps):
            kept.add(gaps[0])
    return np.array(sorted(kept))


class Share(NamedTuple):
    """What a file has room for."""

    points: int
    """Of each curve, at most."""
    jobs: int
    """Of all sweeps together, at most."""


def share(jobs: int, columns: int) -> Share:
    """Points of each curve and jobs that a file of so many jobs with so many columns shows."""
    curves = max(jobs * columns, 1)
    points = int(np.clip(BUDGET // curves, FEWEST, MOST))
    return Share(points, max(min(jobs, BUDGET // (points * max(columns, 1))), 1))


def evenly(jobs: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the jobs, spread over their order."""
    if len(jobs) <= most:
        return list(jobs)
    return [jobs[place] for place in np.linspace(0, len(jobs) - 1, most).round().astype(int)]


def payload(
    jobs: Mapping[str, Path], keys: Mapping[str, Mapping[str, Any]], room: Share
) -> dict[str, Any]:
    """What the page's script draws: ``jobs`` (id, keys), ``steps`` (each list once), ``columns``.

    ``jobs``: id → its ``metrics.parquet``; ``keys``: id → its swept keys. A column has for each
    job in turn null, or the place of its list of steps, and its values. ``thinned``: how many
    curves lost points.
    """
    shown = evenly(list(jobs), room.jobs)
    steps: dict[tuple[int, ...], int] = {}
    columns: dict[str, list[Any]] = {}
    thinned = 0
    for place, job in enumerate(shown):
        for name, (at, values) in read(jobs[job]).items():
            if not len(at):
                continue
            kept = thin(values, room.points)
            thinned += len(kept) < len(at)
            own = steps.setdefault(tuple(at[kept].tolist()), len(steps))
            column = columns.setdefault(name, [None] * len(shown))
            column[place] = [own, [_rounded(value) for value in values[kept].tolist()]]
    return {
        "jobs": [{"id": job, "keys": keys[job]} for job in shown],
        "left_out": len(jobs) - len(shown),
        "thinned": thinned,
        "points": room.points,
        "steps": [list(one) for one in steps],
        "columns": dict(sorted(columns.items())),
    }


def _rounded(value: float) -> float | int | None:
    """With the digits that the page keeps; a whole number without its point."""
    if value != value:  # noqa: PLR0124 NaN
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
