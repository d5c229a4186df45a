"""A ReLU net fits flipped labels of XOR clusters at once and generalises later (Xu et al. 2024)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import colors

ARMS = {"relu": "ReLU", "linear": "linear"}


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run; ``first`` is step 1, ``last`` the end of the run.

    ``train_first``, ``test_first``, ``train_last``, ``test_last``: accuracies; training labels
    include the flipped ones, test labels are clean. ``noisy_first`` and ``noisy_last``: a lower
    bound on the share of the flipped labels that are fitted, 1 − (1 − training accuracy) / flips,
    which would be all errors among them; it is exact at training accuracy 1. ``neurons_first``,
    ``neurons_last``: share of neurons along the axis of the class that they vote for.
    ``train_loss_last``.
    """
    return pd.DataFrame([_measure(run) for run in runs])


def _measure(run: Run) -> dict[str, Any]:
    config, steps = run.config, {"first": 1, "last": run.config["steps"]}
    row = {
        "job": run.job,
        "seed": config["seed"],
        "activation": config["model"]["activation"],
        "separation": config["dataset"]["separation"],
    }
    for name, step in steps.items():
        train = run.column("train_accuracy").get(step, np.nan)
        row[f"train_{name}"] = train
        row[f"noisy_{name}"] = 1 - (1 - train) / config["dataset"]["flips"]
        row[f"test_{name}"] = run.column("test_accuracy").get(step, np.nan)
        row[f"neurons_{name}"] = run.column("neurons").get(step, np.nan)
    return {**row, "train_loss_last": run.column("train_loss").get(steps["last"], np.nan)}


def figure(runs: Sequence[Run], _: pd.DataFrame) -> Figure:
    """Accuracy against step, one colour an arm; where the neurons point, at step 1 and the end."""
    fig = Figure(figsize=(10, 3.3), layout="constrained", dpi=150)
    left, *cosines = fig.subplots(1, 3)
    shown = arms(runs)
    for color, (name, own) in zip(colors(len(shown)), shown.items(), strict=True):
        for number, run in enumerate(own):
            test, train = run.column("test_accuracy"), run.column("train_accuracy")
            label = name if number == 0 else None
            left.plot(test.index + 1, test, "-", lw=1.2, color=color, label=label)
            left.plot(train.index + 1, train, ":", lw=1.0, color=color)
    left.set_xscale("log")
    ticks = [0, 1, 2, 5, 10, 20, 60]
    left.set_xticks([tick + 1 for tick in ticks], [str(tick) for tick in ticks])
    left.minorticks_off()
    left.set(xlabel="step", ylabel="accuracy", ylim=(0.4, 1.03))
    left.set_title("test (solid), training with flipped labels (dotted)", fontsize=9)
    left.legend(fontsize=7, loc=(0.42, 0.43))
    first = next(iter(shown.values()))[0]
    last = first.config["steps"]
    limit = 1.08 * np.abs(pointing(first, last)).max()
    for axis, step in zip(cosines, (1, last), strict=True):
        _neurons(axis, first, step, limit)
    cosines[0].legend(fontsize=7, loc="upper right", markerscale=3)
    for axis in (left, *cosines):
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def arms(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by model and separation, the ReLU net at the largest separation first."""

    def key(run: Run) -> tuple[bool, float]:
        return run.config["model"]["activation"] != "relu", -run.config["dataset"]["separation"]

    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=key):
        activation = ARMS[run.config["model"]["activation"]]
        name = f"{activation}, ‖μ‖ = {run.config['dataset']['separation']:g}"
        found.setdefault(name, []).append(run)
    return found


def pointing(run: Run, step: int) -> np.ndarray:
    """Cosines of the neurons with μ₁ and μ₂ at a step, [m, 2]."""
    return np.asarray(run.column("neurons_along")[step]).reshape(-1, 2)


def _neurons(axis: Axes, run: Run, step: int, limit: float) -> None:
    """A dot a neuron, coloured by the label that it votes for."""
    along, votes = pointing(run, step), np.asarray(run.column("neurons_votes")[step])
    for label, color in enumerate(colors(2)):
        own = along[votes == label]
        axis.plot(own[:, 0], own[:, 1], ".", ms=2.5, color=color, label=f"votes for label {label}")
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axis.set_xlabel(r"cosine with $\mu_1$")
    axis.set_ylabel(r"cosine with $\mu_2$")
    axis.set_title(f"neurons at step {step}, seed {run.config['seed']}", fontsize=9)
