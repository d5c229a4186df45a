"""Sharpness in training settles with the width under μP, fades under NTK (Noci et al. 2024)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lmech.collecting import Run
from lmech.plotting import colors

QUANTITIES = ("crossing", "growth", "kernel_change")


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a parametrization and learning rate: means over the seeds, compared over the widths.

    Effective sharpness is λ₁(C^½HC^½)η/2, C the parametrization's learning rates: 1 is the edge.
    ``crossing``: steps until it is at 1, straight lines between measurements, infinite if it never
    is. ``growth``: its last value over its first. ``kernel_change``: ‖Θ − Θ₀‖/‖Θ₀‖, Θ = J C Jᵀ, at
    the end. The last two are not numbers where a run diverged.

    A column of each name is that of the widest net. ``*_spread`` is the largest over the smallest
    of all widths, ``*_last`` the widest over the next, ``*_least`` and ``*_most`` the smallest and
    the largest ratio of a width to the one before (above 1: grows, below 1: falls, at every step),
    ``*_settles`` |log| of the last of these ratios over that of the first: corrections ∝ 1/width
    make it ¼ over three doublings, a power law 1. Not a number where neither of two widths crosses.
    """
    frame = points(runs)
    rows = []
    for (parametrization, rate), own in frame.groupby(["parametrization", "rate"], sort=False):
        by_width = over_seeds(own)
        compared = [_compared(name, by_width[name].to_numpy()) for name in QUANTITIES]
        rows.append(
            {
                "parametrization": parametrization,
                "rate": rate,
                **{name: value for part in compared for name, value in part.items()},
                "seeds": sorted(own["seed"].unique().tolist()),
                "jobs": own["job"].tolist(),
            }
        )
    return pd.DataFrame(rows)


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: what is compared, and where it stands in the sweep."""
    rows = []
    for run in runs:
        sharpness = run.column("effective_sharpness")
        stayed = run.result["status"] != "diverged"
        rows.append(
            {
                "job": run.job,
                "parametrization": run.overrides["parametrization"],
                "rate": run.config["optimizer"]["learning_rate"],
                "width": run.config["model"]["width"],
                "seed": run.config["seed"],
                "crossing": crossing(sharpness),
                "growth": sharpness.iloc[-1] / sharpness.iloc[0] if stayed else np.nan,
                "kernel_change": run.column("ntk_change").iloc[-1] if stayed else np.nan,
            }
        )
    return pd.DataFrame(rows)


def crossing(values: pd.Series) -> float:
    """The step at which values (by step) first reach 1, linear between two; infinite if never."""
    steps, heights = values.index.to_numpy(float), values.to_numpy(float)
    there = np.flatnonzero(heights >= 1)
    if not len(there):
        return np.inf
    after = there[0]
    if after == 0:
        return float(steps[0])
    pair = slice(after - 1, after + 1)
    return float(np.interp(1.0, heights[pair], steps[pair]))


def over_seeds(own: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds by width, narrowest first; one seed without a number leaves none."""
    parts = own.groupby("width")[list(QUANTITIES)]
    return pd.DataFrame({width: part.mean(skipna=False) for width, part in parts}).T


def _compared(name: str, values: np.ndarray) -> dict[str, float]:
    """The columns of ``measure`` for one quantity [widths], narrowest first."""
    with np.errstate(invalid="ignore", divide="ignore"):  # ∞/∞: neither crosses; x/0: at the start
        ratios = values[1:] / values[:-1]
        spread = values.max() / values.min()
        settles = abs(np.log(ratios[-1])) / abs(np.log(ratios[0]))
    return {
        name: values[-1],
        f"{name}_spread": spread,
        f"{name}_last": ratios[-1],
        f"{name}_least": ratios.min(),
        f"{name}_most": ratios.max(),
        f"{name}_settles": settles,
    }


def figure(runs: Sequence[Run], _: pd.DataFrame) -> Figure:
    """A row a learning rate: effective sharpness against step, and what it comes to by width."""
    frame = points(runs)
    names = list(frame["parametrization"].unique())
    rates = sorted(frame["rate"].unique())
    size = (3.0 * (len(names) + 1), 0.3 + 2.3 * len(rates))
    fig = Figure(figsize=size, layout="constrained", dpi=150)
    axes = fig.subplots(len(rates), len(names) + 1, squeeze=False)
    for line, rate in zip(axes, rates, strict=True):
        own = frame[frame["rate"] == rate]
        for axis, name in zip(line, names, strict=False):
            chosen = set(own.loc[own["parametrization"] == name, "job"])
            axis.set_visible(bool(chosen))
            _curves(axis, [run for run in runs if run.job in chosen])
            axis.set_title(rf"{LABELS.get(name, name)}, $\eta$ = {rate:g}", fontsize=9)
            axis.sharey(line[0])
        line[0].set_ylabel(r"$\lambda_1(C^{1/2}HC^{1/2})\,\eta/2$", fontsize=8)
        _by_width(line[-1], own)
    axes[0, 0].legend(fontsize=6, title="width", title_fontsize=6)
    return fig


LABELS = {"mup": "μP", "ntk": "NTK"}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers too


def _curves(axis: Axes, runs: Sequence[Run]) -> None:
    """A thick line a width, the mean of its seeds, which are thin; dashed: the edge."""
    widths = sorted({run.config["model"]["width"] for run in runs})
    for width, color in zip(widths, colors(len(widths)), strict=True):
        own = [run for run in runs if run.config["model"]["width"] == width]
        seeds = pd.DataFrame({run.job: run.column("effective_sharpness") for run in own})
        axis.plot(seeds.index, seeds, color=color, lw=0.5, alpha=0.3)
        axis.plot(seeds.index, seeds.mean(axis=1), color=color, lw=1.6, label=f"{width}")
    axis.axhline(1, color="0.4", lw=1, ls=(0, (4, 3)))
    axis.set_xlabel("step", fontsize=8)
    _plain(axis)


def _by_width(axis: Axes, own: pd.DataFrame) -> None:
    """Steps to the edge where runs reach it, else growth: means (lines) and seeds (dots)."""
    quantity = "crossing" if np.isfinite(own["crossing"]).any() else "growth"
    names = own["parametrization"].unique()
    for (name, color), marker in zip(zip(names, COLORS, strict=False), "osd^", strict=False):
        part = own[own["parametrization"] == name]
        mean = over_seeds(part)[quantity]
        label = LABELS.get(name, name)
        axis.plot(mean.index, mean, marker + "-", ms=5, lw=1.2, color=color, label=label)
        axis.plot(part["width"], part[quantity], marker, ms=2.5, color=color, alpha=0.5)
    axis.set_xscale("log", base=2)
    widths = sorted(own["width"].unique())
    axis.set_xticks(widths, [f"{width}" for width in widths])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(bottom=0)  # from 0, so that a spread is seen at its size
    axis.set_xlabel("width", fontsize=8)
    axis.set_title(TITLES[quantity], fontsize=9)
    axis.legend(fontsize=6)
    _plain(axis)


TITLES = {"crossing": "steps until the edge", "growth": "sharpness, last over first"}


def _plain(axis: Any) -> None:
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.5)
