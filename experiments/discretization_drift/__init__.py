"""A step of gradient descent leaves gradient flow by O(η²), better flows by O(η³)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import WIDTH, colors

FLOWS = ("gradient_flow", "modified_loss", "principal_flow")
PREDICTED = {"gradient_flow": 2, "modified_loss": 3, "principal_flow": 3}


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run with its errors after one step, one a seed and model with the slopes.

    ``slope_F``: d log ‖error‖ / d log η by least squares over the seed's learning rates.
    ``kind``: run or slope; ``model``: net or linear. ``share``: the error over the step's length,
    of the principal flow.
    """
    rows = [_row(run) for run in runs]
    frame = pd.DataFrame(rows)
    slopes = [
        {
            "kind": "slope",
            "model": model,
            "seeds": [seed],
            "jobs": own["job"].tolist(),
            **{f"slope_{flow}": _slope(own["learning_rate"], own[flow]) for flow in FLOWS},
        }
        for (model, seed), own in frame.groupby(["model", "seed"])
    ]
    return pd.DataFrame([*rows, *slopes])


def _row(run: Run) -> dict[str, object]:
    errors = {flow: run.column(f"discretization_drift_{flow}").iloc[0] for flow in FLOWS}
    step = run.column("discretization_drift_update").iloc[0]
    return {
        "job": run.job,
        "kind": "run",
        "model": "net" if run.config["model"]["depth"] else "linear",
        "seed": run.config["seed"],
        "learning_rate": run.config["optimizer"]["learning_rate"],
        **errors,
        "share": errors["principal_flow"] / step,
    }


def _slope(rates: pd.Series, errors: pd.Series) -> float:
    return float(np.polyfit(np.log(rates), np.log(errors), 1)[0]) if len(rates) > 1 else np.nan


def figure(_: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Error against learning rate for each flow; dotted, the predicted slopes."""
    table = measurements[(measurements["kind"] == "run") & (measurements["model"] == "net")]
    fig = Figure(figsize=(WIDTH, 4), layout="constrained", dpi=150)
    axis = fig.subplots()
    for flow, color, marker in zip(FLOWS, colors(3), "os^", strict=True):
        for number, (_seed, own) in enumerate(table.sort_values("learning_rate").groupby("seed")):
            label = f"{flow.replace('_', ' ')}, predicted slope {PREDICTED[flow]}"
            axis.plot(
                *(own["learning_rate"], own[flow]),
                marker=marker,
                ms=4,
                lw=0.8,
                color=color,
                label=None if number else label,
            )
        eta, mean = own["learning_rate"], table.groupby("learning_rate")[flow].median()
        last = mean.iloc[-1] * (eta / eta.iloc[-1]) ** PREDICTED[flow]
        axis.plot(eta, last, ":", color=color, lw=1)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel=r"learning rate $\eta$",
        ylabel="distance to the flow after one step",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.5)
    axis.legend(fontsize=8)
    return fig
