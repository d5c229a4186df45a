"""Every optimizer sharpens until its own threshold of stability (Cohen et al. 2021, 2022)."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import colors

UNSCALED = ("gd", "polyak", "nesterov", "ema")  # P = 1
FITTED = 0.2  # of the first loss: where cross-entropy's window ends


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run; r is λ₁(P^-½HP^-½) over the optimizer's own threshold.

    Labels: ``optimizer`` (gd, polyak, nesterov, ema, rmsprop, adagrad, adam), ``beta`` of its
    momentum (0: none), ``loss``, ``rate``, ``decay``, ``warmup``, ``noise`` (share of wrong labels)
    and ``model``: net, or linear, whose loss is convex and for squares a quadratic.

    ``initial``: r at step 0. ``crossing``: first measured step at which r is 1 or more and was less
    at the one before (infinite: never), so that a start above 1 is none; ``crossing_share``: of the
    run. ``growth``: λ₁(H), without P, at the last measurement up to the crossing (never: of the
    run) over that at step 0; NaN where P is not 1 and λ₁(H) was not measured. ``second_half``: mean
    r over the second half of the run; ``final``: its last value. ``window``: mean r from the
    crossing to the first step whose training loss is at most a fifth of the first one; NaN if
    there is no crossing before it. ``warm``: mean r from the crossing to the end of the warm-up;
    ``warm_fall``: λ₁(P^-½HP^-½) at its end over that at the crossing.

    Infinite where a complete run never crossed; NaN throughout for one that is not complete.
    """
    return pd.DataFrame([_measure(run) for run in runs])


def _measure(run: Run) -> dict[str, Any]:
    r, loss, steps = (
        run.column("effective_sharpness"),
        run.column("batch_loss"),
        run.config["steps"],
    )
    # Not by its status: an orbit whose last loss is above its first counts there as diverged.
    complete = run.result["nonfinite_at"] is None and r.index[-1] == steps
    at = crossing(r)
    fitted = min(loss.index[loss <= FITTED * loss.iloc[0]], default=steps)
    own = run.column("effective_sharpness_eigenvalue")
    raw = raw_sharpness(run)
    warmup = run.config["schedule"]["warmup"]
    warm = own[(own.index >= at) & (own.index <= warmup)]
    quantities = {
        "initial": r.iloc[0],
        "crossing": at,
        "crossing_share": at / steps,
        "growth": raw[raw.index <= at].iloc[-1] / raw.iloc[0] if len(raw) else np.nan,
        "second_half": r[r.index >= steps / 2].mean(),
        "final": r.iloc[-1],
        "window": r[(r.index >= at) & (r.index <= fitted)].mean(),
        "warm": r[warm.index].mean(),
        "warm_fall": warm.iloc[-1] / warm.iloc[0] if len(warm) else np.nan,
    }
    return labels(run) | (quantities if complete else dict.fromkeys(quantities, np.nan))


def raw_sharpness(run: Run) -> pd.Series:
    """λ₁(H) by step; empty where P is not 1 and it was not measured beside λ₁(P^-½HP^-½)."""
    if "sharpness" in run.metrics:
        return run.column("sharpness")
    own = run.column("effective_sharpness_eigenvalue")
    return own if identified(run.config["optimizer"])[0] in UNSCALED else own.iloc[:0]


def crossing(r: pd.Series) -> float:
    """The first step at which r, by step, has come to 1 from below; infinite if it never does."""
    return min(r.index[(r >= 1) & (r.shift() < 1)], default=np.inf)


def labels(run: Run) -> dict[str, Any]:
    """What sets a run apart in the sweep, for ``where`` and the figure."""
    config = run.config
    optimizer, beta = identified(config["optimizer"])
    return {
        "job": run.job,
        "seed": config["seed"],
        "optimizer": optimizer,
        "beta": beta,
        "loss": config["loss"]["_target_"].rpartition(".")[2],
        "rate": config["optimizer"]["learning_rate"],
        "decay": config["optimizer"].get("weight_decay", 0.0),
        "warmup": config["schedule"]["warmup"],
        "noise": config["label_noise"],
        "model": "net" if config["model"]["depth"] else "linear",
    }


def identified(section: Mapping[str, Any]) -> tuple[str, float]:
    """Name and β of an ``optimizer`` section; momentum with β = 0 is gradient descent."""
    beta = section.get("momentum") or section.get("b1") or 0.0
    name = section["_target_"].rpartition(".")[2]
    if name == "general_momentum":
        averaged = "ema" if section["dampening"] else "polyak"
        name = "nesterov" if section["nesterov"] else averaged if beta else "gd"
    return {"adamw": "adam"}.get(name, name), beta


# Title, and what it shows, of the panels in their order.
Chosen = Callable[[Mapping[str, Any]], bool]
NAMES = {
    ("gd", 0.0): "gradient descent",
    ("polyak", 0.9): "Polyak, β = 0.9",
    ("nesterov", 0.9): "Nesterov, β = 0.9",
    ("ema", 0.9): "averaged momentum, β = 0.9",
    ("rmsprop", 0.0): "RMSProp",
    ("adagrad", 0.0): "Adagrad",
    ("adam", 0.0): "Adam, β₁ = 0",
    ("adam", 0.5): "Adam, β₁ = 0.5",
    ("adam", 0.9): "Adam, β₁ = 0.9",
}
CONVEX: dict[str, Chosen] = {
    "linear model, cross-entropy, GD": lambda row: row["loss"] == "cross_entropy",
    "linear model, squares: RMSProp": lambda row: row["optimizer"] == "rmsprop",
    "linear model, squares: Adam": lambda row: row["optimizer"] == "adam",
}
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.55"  # told apart by colour-blind readers too
LOSSES = {"mse": (BLUE, "squared loss"), "cross_entropy": (ORANGE, "cross-entropy")}
TOP = 2.2


def figure(runs: Sequence[Run], _: pd.DataFrame) -> Figure:
    """R against step: a panel an optimizer, both losses; below, the convex controls; dashed: 1."""
    rows = [(labels(run), run) for run in runs]
    plain = [(row, run) for row, run in rows if not row["warmup"] and not row["decay"]]
    fig = Figure(figsize=(9, 9.5), layout="constrained", dpi=110)
    axes = fig.subplots(4, 3, sharey=True)
    for axis, ((name, beta), title) in zip(axes[:3].flat, NAMES.items(), strict=True):
        own = [
            (row, run)
            for row, run in plain
            if row["model"] == "net" and (row["optimizer"], row["beta"]) == (name, beta)
        ]
        _nets(axis, own)
        axis.set_title(title, fontsize=9)
    for axis, (title, chosen) in zip(axes[3], CONVEX.items(), strict=True):
        _convex(
            axis, [(row, run) for row, run in plain if row["model"] == "linear" and chosen(row)]
        )
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.axhline(1, color="0.2", lw=1, ls=(0, (4, 3)))
        axis.set(ylim=(0, TOP))
        axis.set_xlim(left=0)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    fig.supylabel(r"effective sharpness: $\lambda_1(P^{-1/2}HP^{-1/2})$ / threshold", fontsize=9)
    return fig


Rows = Sequence[tuple[dict[str, Any], Run]]


def _nets(axis: Axes, own: Rows) -> None:
    """A colour a loss, a style a rate; grey: a rate at which λ₁ never gets there."""
    for loss, (color, name) in LOSSES.items():
        groups = grouped([(row, run) for row, run in own if row["loss"] == loss], "rate")
        styles = itertools.cycle(("-", ":", "-."))
        for rate, group in groups.items():
            never = all(np.isinf(crossing(run.column("effective_sharpness"))) for _, run in group)
            look = (GREY, "-") if never else (color, next(styles))
            _lines(axis, group, f"{name}, η = {rate:g}", *look)
    axis.legend(fontsize=6, loc="upper right")


def _convex(axis: Axes, own: Rows) -> None:
    """A line a share of wrong labels; least squares have one."""
    groups = grouped(own, "noise")
    for color, (noise, group) in zip(colors(len(groups)), groups.items(), strict=True):
        logistic = group[0][0]["loss"] == "cross_entropy"
        kind = ("not separable, " if noise else "separable, ") if logistic else "H constant, "
        _lines(axis, group, f"{kind}η = {group[0][0]['rate']:g}", color, "-")
    low = 0.14 if len(groups) > 1 else 0.88  # between the two lines, or above the one
    axis.legend(fontsize=6, loc=(0.45, low))


def grouped(rows: Rows, key: str) -> dict[float, Rows]:
    """By the value of a label, in order."""
    values = sorted({row[key] for row, _ in rows})
    return {value: [(row, run) for row, run in rows if row[key] == value] for value in values}


def _lines(axis: Axes, group: Rows, label: str, color: Any, style: str) -> None:
    """The first seed thick, the others thin."""
    for number, (_, run) in enumerate(group):
        r = run.column("effective_sharpness")
        look = {"lw": 1.2, "label": label} if number == 0 else {"lw": 0.5, "alpha": 0.5}
        axis.plot(r.index, r, style, color=color, **look)
