"""Beyond ηλ₀ = 2 the loss first rises, then falls in a flatter place (Lewkowycz et al. 2020)."""

from collections.abc import Sequence

import pandas as pd

from lmech.collecting import Run


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.DataFrame([{"job": run.job} for run in runs])
