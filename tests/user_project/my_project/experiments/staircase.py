"""A few of the gradient's entries carry it."""

from collections.abc import Sequence

import pandas as pd

from lmech.collecting import Run


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: the largest share along it."""
    shares = [run.column("participation").max() for run in runs]
    rows = zip(runs, shares, strict=True)
    return pd.DataFrame([{"job": run.job, **run.overrides, "share": share} for run, share in rows])
