"""SGD with a large learning rate ends with fewer distinct units (Andriushchenko et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import colors

FITTED = 1e-4
"""The mean squared training error up to which a run has fitted its training set."""

STABILISED = 1e-3
"""The mean squared training error above which it has stabilised before the drop."""

BEFORE_DROP = 0.35, 0.7
"""The part of a run over which the training error before the drop is averaged."""

SMALLEST, MODERATE = 0.01, 0.1
"""The rates that others are compared with: in units and test error, in the error of the plateau."""

EARLY = 1000
"""Minibatches that are early: 1/60 of a default run."""

KEYS = ("arm", "rate")


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of two kinds, told apart by ``row``; errors are mean squares, twice the loss.

    ``rate`` is a minibatch's: the learning rate times the steps in a row on one. ``arm``: plain,
    repeated (several steps on each minibatch) or warmed (a warm-up).

    ``run``: one a run. ``distinct`` units at the end and after ``EARLY`` minibatches
    (``distinct_early``), ``correlated`` the same by Pearson's correlation; ``train`` and ``test``
    error at the end, ``plateau``, the mean training error of the ``BEFORE_DROP`` part; ``fitted``,
    1 if ``train`` ≤ ``FITTED``, else 0. A run that ended in numbers that
    are not finite has infinite errors and no units; one whose error rose is measured as any other.

    ``setting``: of the runs of an arm and rate. ``distinct_ratio``: their mean number over that of
    the plain runs at the smallest rate; ``early_ratio`` (theirs early over the others' at the end),
    ``correlated_ratio`` and ``distinct_fitted_ratio`` (those that fitted alone) alike; ``fitted``,
    the share that did; ``test_ratio``: median error over that at the smallest rate;
    ``plateau_ratio`` and ``median_plateau_ratio``: of the plateau, over that at the moderate rate;
    ``recovered``: of the runs with a plateau above ``STABILISED``, the share that fitted; of the
    plain arm ``over_repeated``: the median test error over that of the repeated arm at this rate.
    """
    rows = pd.DataFrame([_measure(run) for run in runs])
    return pd.concat([rows.assign(row="run"), _settings(rows)], ignore_index=True)


def arm(run: Run) -> tuple[str, float]:
    """Which arm a run is of, and the rate of a minibatch."""
    repeats = run.config["batch_repeats"]
    rate = round(repeats * run.config["optimizer"]["learning_rate"], 9)
    if repeats > 1:
        return "repeated", rate
    return "warmed" if run.config["schedule"]["warmup"] else "plain", rate


def _measure(run: Run) -> dict[str, Any]:
    name, rate = arm(run)
    labels = {"job": run.job, "seed": run.config["seed"], "arm": name, "rate": rate}
    if run.result["nonfinite_at"] is not None:
        lost = {"distinct": 0.0, "distinct_early": 0.0, "correlated": 0.0, "fitted": 0.0}
        return labels | lost | dict.fromkeys(("train", "test", "plateau"), np.inf)
    units, train = run.column("distinct_units"), 2 * run.column("train_loss")
    start, end = (part * run.config["steps"] for part in BEFORE_DROP)
    quantities = {
        "distinct": units.iloc[-1],
        "distinct_early": units.get(EARLY * run.config["batch_repeats"], np.nan),
        "correlated": run.column("correlated_units").iloc[-1],
        "train": train.iloc[-1],
        "test": 2 * run.column("test_loss").iloc[-1],
        "plateau": train[(train.index >= start) & (train.index < end)].mean(),
        "fitted": float(train.iloc[-1] <= FITTED),
    }
    return labels | quantities


def _settings(rows: pd.DataFrame) -> pd.DataFrame:
    """A row an arm and rate; ratios are not numbers without the runs that they compare with."""
    groups = dict(list(rows.groupby(list(KEYS))))
    nobody = rows.iloc[:0]
    smallest = groups.get(("plain", SMALLEST), nobody)
    moderate = groups.get(("plain", MODERATE), nobody)
    found = []
    for (name, rate), own in groups.items():
        fit = own[own["fitted"] == 1]
        repeated = groups.get(("repeated", rate), nobody) if name == "plain" else nobody
        units = smallest["distinct"].mean()
        stable = own["plateau"].between(STABILISED, np.inf, inclusive="neither")
        ratios = {
            "distinct_ratio": own["distinct"].mean() / units,
            "early_ratio": own["distinct_early"].mean() / units,
            "distinct_fitted_ratio": fit["distinct"].mean() / units,
            "correlated_ratio": own["correlated"].mean() / smallest["correlated"].mean(),
            "test_ratio": own["test"].median() / smallest["test"].median(),
            "over_repeated": own["test"].median() / repeated["test"].median(),
            "plateau_ratio": own["plateau"].mean() / moderate["plateau"].mean(),
            "median_plateau_ratio": own["plateau"].median() / moderate["plateau"].median(),
            "fitted": own["fitted"].mean(),
            "recovered": own.loc[stable, "fitted"].mean(),
        }
        compared = pd.concat([own, smallest])
        labels = {"seeds": compared["seed"].tolist(), "jobs": compared["job"].tolist()}
        found.append({"row": "setting", "arm": name, "rate": rate, **ratios, **labels})
    return pd.DataFrame(found)


def overshooting(width: int, x: float) -> float:
    """The learning rate above which a step on x alone overshoots so far that its error grows.

    To first order a step multiplies the error of its example by 1 − η‖∇f(x)‖²; at the start, with
    w, b ~ U(±1) and a, c ~ U(±1/√width), E‖∇f(x)‖² = (width + 1)(x² + 1)/6 + 1. The rate is 2 over
    that: a mean over starts, of which one with 60 units is off by a fifth (standard deviation).
    """
    return 2 / ((width + 1) * (x**2 + 1) / 6 + 1)


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Training error and number of units along the runs; what is left at the end, by rate."""
    fig = Figure(figsize=(11, 3.5), layout="constrained", dpi=105)
    errors, units, ends = fig.subplots(1, 3)
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in sorted(runs, key=arm):
        groups.setdefault(arm(run), []).append(run)
    styles = _styles(groups)
    for key, own in groups.items():
        train = _together(own, "train_loss")
        errors.plot(train.index, 2 * train.median(axis=1), **styles[key])
        distinct = _together(own, "distinct_units").mean(axis=1)
        units.plot(distinct.index, distinct, **styles[key])
    errors.axvline(BEFORE_DROP[1] * max(train.index), color="0.6", lw=0.8, ls=":")
    errors.set(yscale="log", xlabel="minibatches", ylabel="mean squared training error")
    errors.set_title("median over seeds; the rate drops at the line", fontsize=9)
    errors.legend(
        fontsize=6, loc=(0.28, 0.5), ncols=2, title="rate a minibatch", title_fontsize=6.5
    )
    units.set_xscale("symlog", linthresh=1000)
    units.set_xticks([0, 500, 1000, 10_000, 60_000], ["0", "500", "1,000", "10,000", "60,000"])
    units.set(xlabel="minibatches (linear up to 1,000)", ylabel="distinct units", ylim=(0, None))
    units.set_title("mean over seeds", fontsize=9)
    units.minorticks_off()
    width = runs[0].config["model"]["width"]
    _ends(ends, measurements[measurements["row"] == "run"], width)
    for axis in (errors, units, ends):
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


MARKS = {"plain": ("o", "-"), "repeated": ("s", "--"), "warmed": ("^", "-.")}
NAMES = {"plain": "", "repeated": ", in small steps", "warmed": ", warm-up"}


def _styles(keys: Mapping[tuple[str, float], Any]) -> dict[tuple[str, float], dict[str, Any]]:
    """Line styles: a colour a rate of the plain arm; the other arms are red and orange."""
    rates = sorted(rate for name, rate in keys if name == "plain")
    own = dict(zip(rates, colors(len(rates)), strict=True)) | {"repeated": "C3", "warmed": "C1"}
    return {
        (name, rate): {
            "color": own[rate if name == "plain" else name],
            "ls": MARKS[name][1],
            "lw": 1.2,
            "label": f"{rate:g}{NAMES[name]}",
        }
        for name, rate in keys
    }


def _together(runs: Sequence[Run], name: str) -> pd.DataFrame:
    """A column of several runs side by side, by minibatches used; of the runs that stay finite."""
    done = [run for run in runs if run.result["nonfinite_at"] is None]
    found = [run.column(name) for run in done]
    by_batch = [
        column.set_axis(column.index / run.config["batch_repeats"])
        for column, run in zip(found, done, strict=True)
    ]
    return pd.concat(by_batch, axis=1).dropna()


ENDS = {
    "plain": ("0.25", 1.0, "one step, mean"),
    "repeated": ("C3", 1.04, "small steps, mean"),
    "warmed": ("C1", 1.08, "warm-up, mean"),
}
"""Of the arms at the end: colour, how far to the right they stand of their rate, name."""


def _ends(axis: Axes, rows: pd.DataFrame, width: int) -> None:
    """Units at the end, a dot a run: filled where it fitted; a line through the means."""
    low, high = (overshooting(width, x) for x in (1.0, 0.0))
    told = "theory: from here a step\novershoots (x = ±1 to 0)"
    axis.axvspan(low, high, color="0.9", lw=0, label=told)
    for name, (color, shift, label) in ENDS.items():
        own = rows[rows["arm"] == name]
        for fit, face in ((1, color), (0, "none")):
            chosen = own[own["fitted"] == fit]
            dots: dict[str, Any] = {"ms": 3, "mec": color, "mfc": face, "alpha": 0.6, "mew": 0.7}
            axis.plot(shift * chosen["rate"], chosen["distinct"], MARKS[name][0], **dots)
        means = own.groupby("rate")["distinct"].mean()
        line: dict[str, Any] = {"ms": 6, "color": color, "lw": 1, "label": label}
        axis.plot(shift * means.index, means, MARKS[name][0] + "-", **line)
    threshold = 0.7 * rows.query("arm == 'plain' and rate == @SMALLEST")["distinct"].mean()
    axis.axhline(threshold, color="0.5", lw=0.8, ls="--", label="0.7 of the mean at 0.01")
    axis.set_xscale("log")
    rates = sorted(rows["rate"].unique())
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=60)
    axis.minorticks_off()
    axis.set(xlabel="rate a minibatch", ylabel="distinct units at the end", ylim=(-0.5, 21.5))
    axis.set_yticks(range(0, 21, 5))
    axis.set_title("a small mark a run, hollow if it does not fit", fontsize=9)
    axis.legend(fontsize=6, loc="upper left", ncols=2)
