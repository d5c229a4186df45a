"""Numbers as text, the same on the terminal and in the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def number(value: Any) -> str:
    """Four significant digits; – for what is missing."""
    if value is None or value != value:  # noqa: PLR0124 NaN
        return "–"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def interval(bounds: Sequence[float | None]) -> str:
    """``[0.97, 1.05]``, ``≤ 0.8``, ``≥ 2``."""
    low, high = bounds
    if low is None:
        return "any" if high is None else f"≤ {number(high)}"
    return f"≥ {number(low)}" if high is None else f"[{number(low)}, {number(high)}]"


def spread(values: Sequence[float]) -> str:
    """Range of the measured values, if there are several."""
    known = [value for value in values if value is not None and value == value]  # noqa: PLR0124
    if len(values) < 2 or not known:
        return ""
    missing = f", {len(values) - len(known)} missing" if len(known) < len(values) else ""
    return f"{number(min(known))} to {number(max(known))}{missing}"


def listed(steps: Sequence[int]) -> str:
    """``0, 100, 200``; of many the first two and the last."""
    if len(steps) > 8:
        return f"{steps[0]}, {steps[1]}, … {steps[-1]} ({len(steps)} of them)"
    return ", ".join(map(str, steps)) or "none"


def mark(claim: dict[str, Any]) -> str:
    """Whether the verdict is the expected one, in a word."""
    if claim["expected"] == "open":
        return "open question"
    return "as expected" if claim["verdict"] == claim["expected"] else "NOT as expected"


def duration(seconds: float) -> str:
    """``0.3 s``, ``42 s``, ``5 min``, ``3.2 h``."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
