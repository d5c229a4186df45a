"""Permuted to match, independent wide nets are linearly connected (Ainsworth et al. 2023)."""

from collections.abc import Sequence

import pandas as pd

from lmech.collecting import Run


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Pilot."""
    rows = []
    for run in runs:
        for name, own in run.pairs.items():
            for pair in own.to_dict("records"):
                rows.append({"width": run.config["model"]["width"], "comparison": name, **pair})
    return pd.DataFrame(rows)
