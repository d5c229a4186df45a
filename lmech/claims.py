"""Claims: a measured number, the interval it was predicted to lie in, and a verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from lmech.hints import nearest
from lmech.values import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["holds", "fails", "undetermined"]


@dataclass(frozen=True)
class Claim:
    """A claim as its experiment's YAML states it, before the run."""

    claim: str
    """The claim in words."""
    quantity: str
    """Column of the experiment's measurements."""
    interval: tuple[float | None, float | None]
    """Where the quantity must lie, ends included; null: unbounded, ``[2, null]`` is 2 or more."""
    source: str
    """Where the interval comes from: theory, the paper, or seeds (which)."""
    expected: Literal["holds", "fails", "open"]
    """*fails* for a negative control; *open* decides nothing."""
    unit: str = ""
    predicted: float | None = None
    """The theory's or the paper's own number, if it has one."""
    where: dict[str, Any] = field(default_factory=dict)
    """Only the measurements with these values (or lists of them) in these columns."""
    aggregate: Literal["every", "mean", "median"] = "every"
    """What must lie there: every measurement, their mean or their median."""


AGGREGATES: dict[str, Callable[[np.ndarray], Any]] = {
    "every": np.asarray,
    "mean": np.mean,
    "median": np.median,
}


def parse(claims: Any) -> list[Claim]:
    """The claims of an experiment's config. Raises ConfigError that names the claim."""
    adapter = TypeAdapter(Claim)
    parsed = []
    known = [field.name for field in fields(Claim)]
    for number, claim in enumerate(claims):
        for key in [key for key in claim if key not in known]:
            raise ConfigError(f"experiment.claims.{number}: no key '{key}'{nearest(key, known)}")
        try:
            parsed.append(adapter.validate_python(claim))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, (number, *problem["loc"])))
            raise ConfigError(f"experiment.claims.{place}: {problem['msg'].lower()}") from None
    return parsed


def _selected(measurements: "pd.DataFrame", where: Mapping[str, Any]) -> "pd.DataFrame":
    for key, wanted in where.items():
        if key not in measurements:
            raise ConfigError(f"where: no column {key} in {', '.join(map(str, measurements))}")
        values = wanted if isinstance(wanted, list) else [wanted]
        known = measurements[key]
        measurements = measurements[known.isin(values) | known.isna()]  # NaN: might be any
    return measurements


def _inside(values: np.ndarray, interval: tuple[float | None, float | None]) -> np.ndarray:
    low, high = interval
    above = values >= (-np.inf if low is None else low)
    return above & (values <= (np.inf if high is None else high))


def verdict(
    values: Sequence[float] | np.ndarray, interval: tuple[float | None, float | None], expected: str
) -> Verdict:
    """*holds* if all values lie inside, *fails* if all lie outside, *undetermined* if one is NaN.

    Some in and some out counts against what was expected: every seed must satisfy a claim, and
    every seed must fail a negative control.
    """
    numbers = np.asarray(values, float)
    if not len(numbers) or np.isnan(numbers).any():
        return "undetermined"
    inside = _inside(numbers, interval)
    if inside.all():
        return "holds"
    if inside.any() and expected == "fails":
        return "holds"
    return "fails"


def judge(claim: Claim, measurements: "pd.DataFrame") -> dict[str, Any]:
    """The claim's line of claims.json, from one row a measured unit (a job, a seed, a pair).

    ``measurements`` has the claim's quantity as a column, ``job`` and ``seed`` (or lists of them,
    ``jobs`` and ``seeds``), and whatever ``where`` selects by. Raises ConfigError if the quantity
    is none of its columns.
    """
    if claim.quantity not in measurements:
        known = ", ".join(map(str, measurements))
        raise ConfigError(f"claim '{claim.claim}': no quantity {claim.quantity} in {known}")
    rows = _selected(measurements, claim.where)
    values = rows[claim.quantity].astype(float).to_numpy()
    judged = np.atleast_1d(AGGREGATES[claim.aggregate](values)) if len(values) else values
    seeds = sorted(set(_listed(rows, "seed")))
    return {
        "claim": claim.claim,
        "quantity": claim.quantity,
        "measured": float(np.mean(judged)) if len(values) else None,
        "predicted": claim.predicted,
        "interval": claim.interval,
        "verdict": verdict(judged, claim.interval, claim.expected),
        "expected": claim.expected,
        "unit": claim.unit,
        "seeds": seeds,
        "source": claim.source,
        "jobs": _listed(rows, "job"),
        "where": claim.where,
        "aggregate": claim.aggregate,
        "values": values.tolist(),
    }


def _listed(rows: "pd.DataFrame", name: str) -> list[Any]:
    """The rows' jobs or seeds: one each in a column of that name, or lists in its plural."""
    single = rows[name].dropna().tolist() if name in rows else []  # a job without a run has one
    several = rows[f"{name}s"].dropna() if f"{name}s" in rows else ()
    return [*single, *(one for own in several for one in own)]


def exit_code(results: Sequence[Mapping[str, Any]]) -> int:
    """0 if every verdict is the expected one, 1 if one contradicts it, else 2: one is undetermined.

    Open claims decide nothing.
    """
    decided = [result for result in results if result["expected"] != "open"]
    against = {"holds": "fails", "fails": "holds"}
    if any(result["verdict"] == against[result["expected"]] for result in decided):
        return 1
    return 2 if any(result["verdict"] == "undetermined" for result in decided) else 0
