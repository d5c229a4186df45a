"""SGD raises its minibatches' sharpness towards 2/η (Andreyev & Beneventano 2024)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import colors


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run (``row: run``), and one a seed (``row: seed``) of the rate that all sizes have.

    In units of 2/η. Of a run, by ``batch_size`` (0: full batch), ``rate`` and ``momentum`` β:
    ``initial`` and ``second_half`` of batch sharpness E[gᵀHg]/E[gᵀg], g and H of the same
    minibatch, at step 0 and on average over the second half of the run; ``full``, the mean λ₁ of
    the full loss there; ``small_limit`` and ``large_limit``: batch sharpness in units of
    2(1 − β)/η and of 2(1 + β)/η instead. NaN where a run is not complete.

    Of a seed: ``least``, the smallest ratio of ``full`` at one minibatch size to that at the next
    smaller one (above 1: the smaller the batch, the lower λ₁); ``full_over_largest``, the full
    batch's over that of the largest minibatches; ``spread``, over that of the smallest.
    """
    rows = [_measure(run) for run in runs]
    frame = pd.DataFrame(rows)
    plain = frame[frame["momentum"] == 0]
    by_seed = [
        {"row": "seed", "seed": seed, "rate": rate, "momentum": 0.0, **_ordered(own)}
        for (seed, rate), own in plain.groupby(["seed", "rate"])
        if len(own) == plain["batch_size"].nunique() > 2
    ]
    return pd.concat([frame, pd.DataFrame(by_seed)], ignore_index=True)


def _measure(run: Run) -> dict[str, Any]:
    config, steps = run.config, run.config["steps"]
    eta, beta = config["optimizer"]["learning_rate"], config["optimizer"]["momentum"]
    batch = run.column("batch_sharpness") * eta / 2
    full = run.column("sharpness") * eta / 2
    complete = run.result["nonfinite_at"] is None and full.index[-1] == steps
    mean = batch[batch.index >= steps / 2].mean()
    quantities = {
        "initial": batch.iloc[0],
        "second_half": mean,
        "full": full[full.index >= steps / 2].mean(),
        "small_limit": mean / (1 - beta),
        "large_limit": mean / (1 + beta),
    }
    return {
        "row": "run",
        "job": run.job,
        "seed": config["seed"],
        "batch_size": config["batch_size"] or 0,
        "rate": eta,
        "momentum": beta,
        **(quantities if complete else dict.fromkeys(quantities, np.nan)),
    }


def _ordered(own: pd.DataFrame) -> dict[str, Any]:
    """How λ₁ goes with the batch size, at one seed and rate; the full batch comes last."""
    size = own["batch_size"].replace(0, np.inf)
    full = own.loc[size.sort_values().index, "full"].to_numpy()
    ratios = full[1:] / full[:-1]
    return {
        "least": ratios[:-1].min(),
        "full_over_largest": ratios[-1],
        "spread": full[-1] / full[0],
        "jobs": own["job"].tolist(),
    }


SMOOTH = 9  # measurements: single ones are of minibatches drawn anew


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Both sharpnesses against step, a colour a batch size; and both against the batch size."""
    frame = measurements[(measurements["row"] == "run") & (measurements["momentum"] == 0)]
    rate = frame["rate"].max()
    frame = frame[frame["rate"] == rate]
    sizes = sorted(frame["batch_size"].unique(), key=lambda size: size or np.inf)
    fig = Figure(figsize=(10, 3.5), layout="constrained", dpi=130)
    left, middle, right = fig.subplots(1, 3, sharey=True)
    by_job = {run.job: run for run in runs}
    for color, size in zip(colors(len(sizes)), sizes, strict=True):
        own = [by_job[job] for job in frame.loc[frame["batch_size"] == size, "job"]]
        name = f"{size:g}" if size else "all"
        _lines(left, own, "batch_sharpness", color, name)
        _lines(middle, own, "sharpness", color, name)
    _by_size(right, frame, sizes)
    left.set_title("batch sharpness", fontsize=9)
    middle.set_title(r"$\lambda_1$ of the full loss", fontsize=9)
    right.set_title("second half of the run, mean", fontsize=9)
    left.set_ylabel(r"in units of $2/\eta$", fontsize=9)
    for axis in (left, middle):
        axis.set_xscale("log")
        axis.set_xlabel("step", fontsize=8)
    left.legend(fontsize=7, title="batch size", title_fontsize=7, loc="center left")
    for axis in (left, middle, right):
        axis.axhline(1, color="0.2", lw=1, ls=(0, (4, 3)))
        axis.set_ylim(0, 1.45)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    fig.suptitle(rf"SGD at $\eta$ = {rate:g}, squared loss, 3 seeds; dashed: $2/\eta$", fontsize=9)
    return fig


def _lines(axis: Axes, own: Sequence[Run], column: str, color: Any, name: str) -> None:
    """A line a seed, batch sharpness as a running mean."""
    for number, run in enumerate(own):
        values = run.column(column) * run.config["optimizer"]["learning_rate"] / 2
        if column == "batch_sharpness":
            values = values.rolling(SMOOTH, center=True, min_periods=1).mean()
        look = {"lw": 1.3, "label": name} if number == 0 else {"lw": 0.6, "alpha": 0.6}
        axis.plot(values.index[1:], values.iloc[1:], color=color, **look)


def _by_size(axis: Axes, frame: pd.DataFrame, sizes: Sequence[float]) -> None:
    """Dots a seed, lines the means."""
    places = range(len(sizes))
    for column, name, mark in (
        ("second_half", "batch sharpness", "o"),
        ("full", r"$\lambda_1$ of the full loss", "s"),
    ):
        color = {"o": "#d55e00", "s": "#0072b2"}[mark]
        own = [frame.loc[frame["batch_size"] == size, column] for size in sizes]
        axis.plot(places, [values.mean() for values in own], mark + "-", ms=5, lw=1.2, color=color)
        for place, values in zip(places, own, strict=True):
            axis.plot([place] * len(values), values, mark, ms=2.5, color=color, alpha=0.5)
        axis.plot([], [], mark + "-", color=color, label=name)
    axis.set_xticks(places, [f"{size:g}" if size else "all" for size in sizes])
    axis.set_xlabel("batch size", fontsize=8)
    axis.legend(fontsize=7, loc="lower right")
