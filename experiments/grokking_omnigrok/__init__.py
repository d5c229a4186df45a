"""Weights that start too large make a net on MNIST memorise first and generalise late."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lmech import summaries
from lmech.collecting import Run
from lmech.plotting import colors, log_scale

GENERALISED = 0.75
"""Of the test images; of the training images for the delay between the two."""


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: when it is right on 75 % of the test images, and that over another run's.

    ``arm``: ``small`` and ``large`` initial weights, and ``held``, large ones whose norm is
    projected to ``norm`` after each step. ``decay``: the weight decay. ``test_at``: first recorded
    step with that test accuracy, infinite if there is none; ``delay``: over the first step with
    that accuracy on the training images (``summaries.delay``); ``norm_at``: the norm of all weights
    at test_at.

    Of the same seed, NaN where there is no such run: ``over_small`` is test_at over that of the
    small weights, ``over_held`` over that of the lowest norm that is held, ``over_double`` over
    that of twice the decay; ``norm_over_double`` is the same for norm_at.
    """
    frame = pd.concat([_metrics(run) for run in runs], ignore_index=True)
    delay = summaries.delay(frame, threshold=GENERALISED)
    norm = summaries.final(frame, "weight_norm")["weight_norm"]
    table = delay.loc[:, :"job"].assign(
        test_at=delay["generalised_at"].fillna(np.inf),
        delay=delay["ratio"],
        norm_at=norm.where(delay["generalised_at"].notna()),
    )
    held = table[table["arm"] == "held"]
    small = _by_seed(table[table["arm"] == "small"], "test_at")
    lowest = _by_seed(held[held["norm"] == held["norm"].min()], "test_at")
    double = table[["arm", "seed", "test_at", "norm_at"]].assign(decay=table["decay"] / 2)
    doubled = table.merge(double[double["decay"] > 0], "left", on=["arm", "decay", "seed"])
    return table.assign(
        over_small=table["test_at"] / table["seed"].map(small),
        over_held=table["test_at"] / table["seed"].map(lowest),
        over_double=doubled["test_at_x"] / doubled["test_at_y"],
        norm_over_double=doubled["norm_at_x"] / doubled["norm_at_y"],
    )


def _by_seed(rows: pd.DataFrame, column: str) -> dict[int, float]:
    return dict(zip(rows["seed"], rows[column], strict=True))


def _labels(run: Run) -> dict[str, Any]:
    config = run.config
    norm = config["optimizer"].get("norm", np.nan)
    large = config["parametrization"]["init_scale"] > 1
    return {
        "arm": "held" if np.isfinite(norm) else "large" if large else "small",
        "norm": norm,
        "decay": config["optimizer"]["weight_decay"],
        "seed": config["seed"],
        "job": run.job,
    }


def _metrics(run: Run) -> pd.DataFrame:
    """A run's columns in the layout that ``lmech.summaries`` takes."""
    named = run.metrics[["step", "train_accuracy", "test_accuracy", "weight_norm"]]
    return pd.concat([pd.DataFrame(_labels(run), index=named.index), named], axis=1)


WORDS = {
    "small": "usual start",
    "large": "8 × as large, decay {decay:g}",
    "held": "8 × as large, norm held at {norm:.3g}",
}


TICKS = (0, 20, 100, 1_000, 10_000)


def figure(runs: Sequence[Run], _: pd.DataFrame) -> Figure:
    """Accuracy and norm of the weights against step; one colour an arm, a line a seed."""
    labelled = [
        (WORDS[labels["arm"]].format(**labels), run) for run in runs if (labels := _labels(run))
    ]
    names = list(dict.fromkeys(name for name, _ in labelled))
    color = dict(zip(names, colors(len(names)), strict=True))
    fig = Figure(figsize=(9, 3.9), layout="constrained", dpi=150)
    left, right = fig.subplots(1, 2)
    first = runs[0].config["seed"]
    for name, run in labelled:
        shown = run.config["seed"] == first
        style = {"color": color[name], "lw": 1.4 if shown else 0.6}
        accuracy, norm = run.column("test_accuracy"), run.column("weight_norm")
        left.plot(accuracy.index, accuracy, label=name if shown else None, **style)
        right.plot(norm.index, norm, **style)
        if accuracy.iloc[-1] >= GENERALISED:
            right.plot(norm.index[-1], norm.iloc[-1], "o", ms=4, color=color[name])
        if shown:
            train = run.column("train_accuracy")
            left.plot(train.index, train, ":", **style)
    left.axhline(GENERALISED, color="0.5", lw=0.8, ls="--")
    left.set_ylabel("accuracy: test solid, training dotted")
    log_scale(right)
    right.set_ylabel("norm of all weights")
    right.set_title("dots: 75 % of the test images are right", fontsize=9)
    left.set_title("a run ends at 75 % of the test images (dashed)", fontsize=9)
    for axis in (left, right):
        axis.set_xscale("symlog", linthresh=20, linscale=0.3)
        axis.set_xlim(0, None)
        axis.set_xticks(TICKS, [f"{tick:,}" for tick in TICKS])
        axis.set_xlabel("step")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    fig.legend(*left.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=3)
    return fig
