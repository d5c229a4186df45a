"""Steps of gradient descent lower the loss by η‖∇L‖² each, as long as they are small."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from lmech.numerics import trees
from lmech.observables import Observable, gradient, memoryless

if TYPE_CHECKING:
    from lmech.collecting import Run


def slope() -> Observable:
    """‖∇L‖² over the training set, L the mean loss: how fast gradient flow lowers it."""
    return memoryless(lambda state: {"": trees.squared_norm(gradient(state))})


def predicted(run: "Run") -> pd.Series:
    """The loss by step, if each step lowered it by η‖∇L‖²."""
    falls = run.config["optimizer"]["learning_rate"] * run.column("slope")
    return run.column("train_loss").iloc[0] - falls.cumsum().shift(fill_value=0)


def fall(run: "Run") -> dict[str, object]:
    """The loss's fall over the predicted one, and what is missing to 1 in units of ηλ₁/2."""
    loss, promised = run.column("train_loss"), predicted(run)
    ratio = (loss.iloc[0] - loss.iloc[-1]) / (promised.iloc[0] - promised.iloc[-1])
    unit = run.config["optimizer"]["learning_rate"] * run.column("sharpness").iloc[0] / 2
    return {"job": run.job, **run.overrides, "ratio": ratio, "missing": (1 - ratio) / unit}


def measure(runs: Sequence["Run"]) -> pd.DataFrame:
    """One row a run: the quantities that the claims are about."""
    return pd.DataFrame([fall(run) for run in runs])


def figure(runs: Sequence["Run"], _: pd.DataFrame) -> Figure:
    """The losses of each rate, and dashed what they were predicted to be."""
    drawn = Figure(figsize=(6, 4), layout="constrained")
    axes = drawn.subplots()
    colors: dict[float, str] = {}
    for run in runs:
        rate = run.config["optimizer"]["learning_rate"]
        label = None if rate in colors else f"η = {rate:g} (dashed: L₀ − Σ η‖∇L‖²)"
        color = colors.setdefault(rate, f"C{len(colors)}")
        axes.plot(run.column("train_loss"), color=color, label=label)
        axes.plot(predicted(run), "--", color=color)
    axes.set(xlabel="step", ylabel="training loss L")
    axes.legend()
    return drawn
