"""At the edge of stability the central flow predicts the mean loss, and gradient flow does not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d  # type: ignore[import-untyped]

from lmech.collecting import Run
from lmech.plotting import colors, log_scale

SMOOTHING = 25  # steps: σ of the Gaussian mean that stands for the average in time
BAND = 0.05
HOLD = 2 * SMOOTHING
NEAR = 0.95
NAMES = {"sgd": "GD", "rmsprop": "RMSProp", "scalar_rmsprop": "scalar RMSProp"}


def smooth(values: pd.Series, steps: np.ndarray) -> np.ndarray:
    """The centred Gaussian mean at every step, of a column measured now and then."""
    every = np.interp(steps, values.index, values)
    return gaussian_filter1d(every, SMOOTHING, mode="nearest")


def locked(sharpness: pd.Series) -> float:
    """First step, near the edge or later, from which it stays within 5 % of it for 50 steps.

    Effective sharpness, by step. Infinite: never.
    """
    arrived = sharpness.index[sharpness >= NEAR].min()
    near = (sharpness - 1).abs() <= BAND
    for step in sharpness.index[sharpness.index >= arrived]:
        window = near[(near.index >= step) & (near.index <= step + HOLD)]
        if window.all() and window.index[-1] + HOLD / 5 > step + HOLD:
            return float(step)
    return np.inf


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run, errors relative to the run's smoothed curve and averaged over steps.

    ``error``, ``flow_error``: of the central flow's predicted mean loss, and of gradient flow's
    loss (of gradient descent alone), from the first crossing of the edge on, both where the mean
    in time has all of its window (2σ); ``squared_gradient_error`` as the first, of |∇L|².
    ``error_locked``, ``flow_error_locked``: from when the sharpness at midpoints stays within 5 %
    of the edge (NaN if it never does). ``worst``: largest single error from the crossing on.
    ``highest``: largest eigenvalue of P⁻¹H along the flow, over 2. ``crossing``, ``lock``: steps.
    ``critical``: how many eigenvalues of the flow are critical (above 0.995) at the end.
    """
    return pd.DataFrame([_measure(run) for run in runs])


def _measure(run: Run) -> dict[str, Any]:
    labels = {
        "job": run.job,
        "seed": run.config["seed"],
        "arm": arm(run),
    }
    loss = run.column("batch_loss")
    steps = loss.index.to_numpy()
    measured, squared = smooth(loss, steps), smooth(run.column("gradient_norm") ** 2, steps)
    predicted = smooth(run.column("central_flow_mean_loss"), steps)
    wanted = smooth(run.column("central_flow_mean_squared_gradient"), steps)
    descent = run.config["optimizer"]["_target_"] == "optax.sgd"  # others follow no ẇ = −∇L
    flow = (
        smooth(run.column("gradient_flow_loss"), steps) if descent else np.full(len(steps), np.nan)
    )
    sharpness = run.column("effective_sharpness")
    crossing = min(sharpness.index[sharpness >= 1], default=np.inf)
    lock = locked(run.column("midpoint_sharpness"))
    top = run.column("central_flow_eigenvalues").map(max)
    last = run.column("central_flow_eigenvalues").iloc[-1]
    begun = run.column("central_flow").index[0]

    def error(prediction: np.ndarray, truth: np.ndarray, start: float) -> np.ndarray:
        first = max(start, begun + HOLD)
        return np.abs(prediction / truth - 1)[(steps >= first) & (steps <= steps[-1] - HOLD)]

    def mean(errors: np.ndarray) -> float:
        return float(errors.mean()) if len(errors) else np.nan

    return labels | {
        "crossing": crossing,
        "lock": lock,
        "error": mean(error(predicted, measured, crossing)),
        "worst": max(error(predicted, measured, crossing), default=np.nan),
        "squared_gradient_error": mean(error(wanted, squared, crossing)),
        "flow_error": mean(error(flow, measured, crossing)),
        "error_locked": mean(error(predicted, measured, lock)),
        "flow_error_locked": mean(error(flow, measured, lock)),
        "highest": top[top.index > begun].max(),
        "critical": sum(value > 0.995 for value in last),
    }


def arm(run: Run) -> str:
    """What the run is trained by, and on which labels."""
    name = run.config["optimizer"]["_target_"].rpartition(".")[2]
    return f"{NAMES[name]}, {run.config['dataset']['labels']} labels"


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """A column an arm, its first seed: loss and |∇L|², measured and predicted; eigenvalues."""
    shown = {arm(run): run for run in reversed(runs)}
    arms = sorted(shown)
    fig = Figure(figsize=(3.2 * len(arms), 7.2), layout="constrained", dpi=150)
    grid = fig.subplots(3, len(arms), sharex="col", squeeze=False)
    for column, name in zip(grid.T, arms, strict=True):
        _draw(column, shown[name])
        mean = measurements.loc[measurements["arm"] == name, "error"].mean()
        column[0].set_title(f"{name}\nerror {100 * mean:.1f} %", fontsize=9)
    for axis, label in zip(grid[:, 0], LABELS, strict=True):
        axis.set_ylabel(label)
    lines, names = grid[0, 0].get_legend_handles_labels()
    fig.legend(lines, names, loc="outside lower center", ncols=3, fontsize=8)
    return fig


LABELS = (
    "training loss",
    r"squared gradient $\|\nabla L\|^2$",
    "eigenvalues of $P^{-1}H$, over 2",
)


def _draw(axes: Any, run: Run) -> None:
    run_color, central, flow = "0.75", colors(3)[0], colors(3)[2]
    loss, gradient = run.column("batch_loss"), run.column("gradient_norm") ** 2
    for axis, values, predicted in (
        (axes[0], loss, run.column("central_flow_mean_loss")),
        (axes[1], gradient, run.column("central_flow_mean_squared_gradient")),
    ):
        steps = values.index.to_numpy()
        axis.plot(steps, values, color=run_color, lw=0.7, label="run")
        whole = (steps >= HOLD) & (steps <= steps[-1] - HOLD)
        mean = smooth(values, steps)[whole]
        axis.plot(steps[whole], mean, color="0.3", lw=2, label="run: average in time")
        axis.plot(
            predicted.index, predicted, "--", color=central, lw=1.4, label="central flow: average"
        )
        log_scale(axis)
    along = run.column("central_flow_loss")
    axes[0].plot(along.index, along, ":", color=central, lw=1.2, label="central flow: at its point")
    if arm(run).startswith("GD"):
        gradient_flow = run.column("gradient_flow_loss")
        axes[0].plot(gradient_flow.index, gradient_flow, color=flow, lw=1.2, label="gradient flow")
    middle = run.column("midpoint_sharpness")
    axes[2].plot(middle.index, middle, color=run_color, lw=0.7)
    eigenvalues = run.column("central_flow_eigenvalues")
    for index in range(len(eigenvalues.iloc[0])):
        top = eigenvalues.map(lambda values, index=index: values[index])
        axes[2].plot(top.index, top, "--", color=central, lw=1)
    axes[2].axhline(1, color="0.3", lw=0.8, ls=(0, (1, 2)))
    axes[2].set(xlabel="step", ylim=(0, 1.6))
