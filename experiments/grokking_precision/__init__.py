"""Without weight decay rounding makes the loss jump; scaled logits keep addition unlearnt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lmech.collecting import Run
from lmech.plotting import colors

GENERALISED = 0.95
"""Of the pairs that are not trained on."""
FLOOR = 2.0**-24
"""Half the spacing of float32 below 1: smaller losses of an example may be rounded to 0."""


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run.

    ``arm``: ``float32`` and ``float64``, the precision of a softmax cross-entropy's logarithm in a
    float32 net under Adam; ``stablemax``; ``orthogonal``, float32 with the gradient's part along
    the weights taken out (⊥Grad).

    ``test``: highest recorded test accuracy. ``generalised_at``: first recorded step with 95 % of
    the test pairs, infinite if there is none; ``memorised_at`` of the training pairs.
    ``rounded``: highest recorded fraction of training pairs whose gradient on the right logit is
    exactly 0, and ``rounded_at`` the first step at which that is half of them (infinite: never).
    ``rise``: decades by which the training loss rises above what it was before, at most, once 95 %
    of the training pairs are right; losses count as at least 2⁻²⁴.
    """
    return pd.DataFrame([_measure(run) for run in runs])


def _measure(run: Run) -> dict[str, Any]:
    loss, test, rounded = (run.column(c) for c in ("train_loss", "test_accuracy", "rounded"))
    memorised = _first(run.column("train_accuracy") >= GENERALISED)
    late = np.log10(loss[loss.index >= memorised].clip(lower=FLOOR))
    return {
        "arm": _arm(run.config),
        "seed": run.config["seed"],
        "job": run.job,
        "test": test.max(),
        "memorised_at": memorised,
        "generalised_at": _first(test >= GENERALISED),
        "rounded": rounded.max(),
        "rounded_at": _first(rounded >= 0.5),
        "rise": (late - late.cummin()).max(),
    }


def _first(condition: pd.Series) -> float:
    """The first step at which it holds (infinite: never)."""
    return min(condition.index[condition], default=np.inf)


def _arm(config: dict[str, Any]) -> str:
    if "orthogonal" in config["optimizer"]["_target_"]:
        return "orthogonal"
    loss = config["loss"]
    return "stablemax" if loss["probabilities"] == "stablemax" else loss["precision"] or "float32"


NAMES = {
    "float32": "softmax",
    "float64": "softmax in float64",
    "stablemax": "StableMax",
    "orthogonal": "softmax, ⊥Grad",
}
PANELS = {
    "train_loss": "training loss",
    "rounded": "no gradient on the right logit,\nof training pairs",
    "test_accuracy": "test accuracy",
}


def figure(runs: Sequence[Run], _: pd.DataFrame) -> Figure:
    """Loss, rounded gradients and test accuracy against step; a colour an arm, a line a seed."""
    fig = Figure(figsize=(10, 3.4), layout="constrained", dpi=150)
    axes = dict(zip(PANELS, fig.subplots(1, len(PANELS)), strict=True))
    color = dict(zip(NAMES, colors(len(NAMES)), strict=True))
    first = runs[0].config["seed"]
    for run in runs:
        arm, shown = _arm(run.config), run.config["seed"] == first
        style = {"color": color[arm], "lw": 1.3 if shown else 0.5}
        for name, axis in axes.items():
            values = run.column(name)
            label = NAMES[arm] if shown else None
            axis.plot(values.index, values, label=label, **style)
    axes["train_loss"].axhline(FLOOR, color="0.5", lw=0.8, ls="--")
    axes["train_loss"].set_yscale("log")
    for name, axis in axes.items():
        axis.set_title(PANELS[name], fontsize=9)
        axis.set_xlabel("step")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    handles = axes["test_accuracy"].get_legend_handles_labels()
    fig.legend(*handles, fontsize=7, loc="outside lower center", ncols=len(NAMES))
    return fig
