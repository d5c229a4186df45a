"""Gradient descent sharpens until λ₁ = 2/η, and then stays there (Cohen et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import colors, log_scale, paper_figure

WINDOW = 100  # steps: long against the period-2 oscillation, short against the descent
LOSS_STEPS = (1000, 2000, 4000)
FITTED = 0.99 - 1e-6  # the accuracy at which the paper's runs end; in float32 0.99 may round down
LEFT = 0.02  # of λ₁: ten times what the run is apart from the flow before the edge


def predict(config: dict[str, Any]) -> float:
    """Largest λ₁ at which gradient descent on a quadratic is stable: 2/η."""
    return 2 / config["optimizer"]["learning_rate"]


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run; sharpness in units of the run's 2/η.

    Infinite where a complete run never got there; NaN throughout for one that is not complete
    (diverged, or ended early), so that no claim holds of it.

    ``initial``: at step 0. ``crossing``: first measured step at or above 1, ``crossing_share``
    as a share of the run. ``plateau``: mean over the second half of the run, ``lowest`` and
    ``highest`` its extremes. ``rises``: share of the single steps of the second half that raise
    the training loss. ``fall``: mean loss of its last window of 100 steps over that of its first;
    ``descends``: the largest such ratio of successive windows (below 1: each is lower than the
    last). ``loss_at_N``; ``step_of_99``: first step with 99 % training accuracy.

    With gradient flow beside the run: its own ``flow_step_of_99``, in steps' time, and λ₁ there,
    ``flow_sharpness_at_99`` (not in units of 2/η). ``apart_before``: the largest distance of run
    and flow, over how far the flow has come, before the crossing; ``apart_at_end``. ``leaves``:
    steps from the crossing to the first measurement where λ₁ of run and flow are more than 2 %
    apart, negative if they are apart before.
    """
    return pd.DataFrame([_measure(run) for run in runs])


def _measure(run: Run) -> dict[str, Any]:
    sharpness = run.column("sharpness") / predict(run.config)
    loss = run.column("train_loss")
    accuracy = run.column("train_accuracy")
    steps = run.config["steps"]
    crossing = _first(sharpness >= 1)
    beside = _beside_flow(run, crossing) if "gradient_flow" in run.metrics else {}
    complete = run.result["status"] == "done" and loss.index[-1] == steps
    late = sharpness[sharpness.index >= steps / 2]
    late_loss = loss[loss.index >= steps / 2]
    means = late_loss.groupby(late_loss.index // WINDOW).agg(["mean", "size"])
    windows = means["mean"][means["size"] == WINDOW]
    labels = {
        "job": run.job,
        "seed": run.config["seed"],
        "optimizer.learning_rate": run.config["optimizer"]["learning_rate"],
    }
    quantities = {
        "initial": sharpness.iloc[0],
        "crossing": crossing,
        "crossing_share": crossing / steps,
        "plateau": late.mean(),
        "lowest": late.min(),
        "highest": late.max(),
        "rises": (late_loss.diff().dropna() > 0).mean(),
        "fall": windows.iloc[-1] / windows.iloc[0] if len(windows) else np.nan,
        "descends": (windows / windows.shift()).max(),
        **{f"loss_at_{step}": loss.get(step, np.nan) for step in LOSS_STEPS},
        "step_of_99": _first(accuracy >= FITTED),
        **beside,
    }
    return labels | (quantities if complete else dict.fromkeys(quantities, np.nan))


def _beside_flow(run: Run, crossing: float) -> dict[str, float]:
    """The run beside gradient flow from the same start, until ``crossing`` and after it."""
    relative = run.column("gradient_flow_relative").dropna()  # at step 0 it is 0/0
    sharpness = run.column("gradient_flow_sharpness")
    apart = (run.column("sharpness") / sharpness - 1).dropna().abs()
    fitted = _first(run.column("gradient_flow_accuracy") >= FITTED)
    return {
        "flow_step_of_99": fitted,
        "flow_sharpness_at_99": sharpness.get(fitted, np.nan),
        "apart_before": relative[relative.index < crossing].max(),
        "apart_at_end": relative.iloc[-1],
        "leaves": _first(apart > LEFT) - crossing if np.isfinite(crossing) else np.nan,
    }


def _first(condition: pd.Series) -> float:
    """The first step at which it holds (infinite: never)."""
    return min(condition.index[condition], default=np.inf)


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Loss and sharpness against step, one colour a learning rate, 2/η dashed; grey, the flow."""
    fig, (top, bottom) = paper_figure(2)
    rates = sorted({run.config["optimizer"]["learning_rate"] for run in runs})
    color = dict(zip(rates, colors(len(rates)), strict=True))
    first_seed = runs[0].config["seed"]
    for run in runs:
        rate = run.config["optimizer"]["learning_rate"]
        shown = run.config["seed"] == first_seed
        style = {"color": color[rate], "lw": 1.3 if shown else 0.6, "alpha": 1 if shown else 0.45}
        loss, sharpness = run.column("train_loss"), run.column("sharpness")
        top.plot(loss.index, loss, label=f"{rate:g}" if shown else None, **style)
        bottom.plot(sharpness.index, sharpness, **style)
        if shown:
            bottom.axhline(predict(run.config), color=color[rate], lw=1, ls=(0, (4, 3)))
    log_scale(top)
    top.set_ylabel("training loss")
    steps = runs[0].config["steps"]
    _draw_flow(runs[0], measurements.iloc[0], top, bottom)
    highest = max(run.column(name).max() for run in runs for name in _sharpnesses(run))
    bottom.set(xlabel="step", ylabel=r"sharpness $\lambda_1$", xlim=(0, steps))
    bottom.set_ylim(0, 1.15 * highest)
    above = [f"{2 / rate:g} for {rate:g}" for rate in rates if 2 / rate > 1.15 * highest]
    seeds = len({run.config["seed"] for run in runs})
    thin = f"thin: {seeds - 1} more seeds; " if seeds > 1 else ""
    note = thin + r"dashed: $2/\eta$" + (f" (off the scale: {', '.join(above)})" if above else "")
    bottom.annotate(note, (0.99, 0.03), xycoords="axes fraction", ha="right", fontsize=8)
    top.legend(
        title=r"learning rate $\eta$", fontsize=8, title_fontsize=8, ncols=min(3, len(rates))
    )
    return fig


def _sharpnesses(run: Run) -> list[str]:
    return [name for name in ("sharpness", "gradient_flow_sharpness") if name in run.metrics]


def _draw_flow(run: Run, measured: pd.Series, top: Axes, bottom: Axes) -> None:
    """Gradient flow's loss and λ₁ at the steps' times, and where it has fitted the labels."""
    if "gradient_flow" not in run.metrics:
        return
    # Wide and pale, below the run: it is seen where the two are the same.
    style: dict[str, Any] = {"color": "0.72", "lw": 4, "zorder": 1, "solid_capstyle": "round"}
    for axis, name in ((top, "loss"), (bottom, "sharpness")):
        values = run.column(f"gradient_flow_{name}")
        (line,) = axis.plot(values.index, values, **style)
    bottom.legend([line], ["gradient flow from the same start"], fontsize=8, loc="upper left")
    at = measured["flow_step_of_99"], measured["flow_sharpness_at_99"]
    if np.isfinite(at).all():
        bottom.plot(*at, "o", color="0.3", ms=5)
        text = f"flow at 99 % accuracy: {at[1]:.0f}"
        bottom.annotate(text, at, (-6, 4), textcoords="offset points", ha="right", fontsize=8)
