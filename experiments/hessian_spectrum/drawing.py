"""The figure: density, outliers by weights, what the classes explain, rank of a linear CNN."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from lmech.experiments.hessian_spectrum import theory
from lmech.experiments.hessian_spectrum.reading import (
    EXAMPLES,
    FIVE,
    SMOOTHING,
    WIDTHS,
    class_values,
    quadrature,
    spectrum,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lmech.collecting import Run
from lmech.plotting import colors, log_scale

SHOWN = 1e-4
"""Times the widest net's λ₁: eigenvalues below are not drawn."""


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Four panels, of the smallest seed; the CNNs' ranks of all seeds."""
    fig = Figure(figsize=(9.4, 6.8), layout="constrained", dpi=110)
    (density, widths), (overlaps, ranks) = fig.subplots(2, 2)
    nets = _plain(runs)
    five = [run for run in nets if run.config["dataset"]["classes"] == FIVE]
    middle = [run for run in nets if run.config["model"]["width"] == WIDTHS[1]]
    for run in five:
        if run.config["model"]["width"] == WIDTHS[1]:
            _density(density, run)
    _weights(widths, sorted(five, key=lambda run: run.config["model"]["width"]))
    _overlaps(overlaps, sorted(middle, key=lambda run: run.config["dataset"]["classes"]))
    _ranks(ranks, measurements[measurements["kind"] == "cnn"])
    for axis, where in (
        *((density, "upper right"), (widths, "lower left")),
        *((overlaps, (0.02, 0.2)), (ranks, "upper left")),
    ):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, loc=where)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def _plain(runs: Sequence[Run]) -> list[Run]:
    """The finished tanh nets of the smallest seed, spread and number of examples."""
    nets = [
        run
        for run in runs
        if run.config["model"]["kind"] == "mlp" and run.result["status"] == "done"
    ]
    seed = min((run.config["seed"] for run in nets), default=0)
    spread = min((run.config["dataset"]["spread"] for run in nets), default=0)
    return [
        run
        for run in nets
        if run.config["seed"] == seed
        and run.config["dataset"]["spread"] == spread
        and run.config["dataset"]["train_size"] == EXAMPLES[0]
    ]


def _density(axis: Axes, run: Run) -> None:
    """Exact density and two standard errors about it, and Lanczos quadrature, smoothed alike."""
    values, _ = spectrum(run)
    nodes, weights = quadrature(run)
    probes, width = len(nodes), SMOOTHING * values[0]
    grid = np.linspace(values[-1] - 3 * width, values[0] + 3 * width, 800)
    exact = theory.smoothed(values, np.full(len(values), 1 / len(values)), grid, width)
    error = theory.standard_error(values, grid, width, probes)
    estimate = theory.smoothed(nodes.ravel(), weights.ravel() / probes, grid, width)
    low, high = np.maximum(exact - 2 * error, 1e-9), exact + 2 * error
    axis.fill_between(grid, low, high, color="0.85", lw=0, label="exact ± 2 standard errors")
    axis.plot(grid, exact, color="0.35", lw=1.6, label=f"exact, {len(values)} eigenvalues")
    name = f"Lanczos quadrature, {probes} probes"
    axis.plot(grid, estimate, color=colors(3)[1], lw=1.2, ls="--", label=name)
    axis.plot(values, np.full_like(values, 2.5e-3), "|", ms=7, mew=0.7, color="0.2")
    axis.set(yscale="log", ylim=(1.5e-3, 1e3))
    axis.set(xlabel=r"eigenvalue $\lambda$ of H (bars: all of them)", ylabel="density")
    axis.set_title(f"a bulk at 0 and outliers ({FIVE} classes, width {WIDTHS[1]})", fontsize=9)


def _weights(axis: Axes, runs: Sequence[Run]) -> None:
    """Positive eigenvalues by rank, one line a width, and those of the class means alone."""
    top = 1.0
    for run, color in zip(runs, colors(len(runs)), strict=True):
        values, _ = spectrum(run)
        means = class_values(run)[: FIVE * (FIVE - 1)]
        label = f"width {run.config['model']['width']}: {len(values):,} weights"
        values, top = values[values > 0], values[0]
        axis.plot(np.arange(1, len(values) + 1), values, lw=1.4, color=color, label=label)
        axis.plot(np.arange(1, len(means) + 1), means, "o", ms=4, mfc="none", color=color)
    if runs:
        axis.plot([], [], "o", ms=4, mfc="none", color="0.3", label="from class means alone")
    axis.set(xscale="log", yscale="log", ylim=(SHOWN * top, 2 * top))
    axis.set(xlabel="rank i", ylabel=r"eigenvalue $\lambda_i$")
    axis.set_title(f"more weights, same largest eigenvalues ({FIVE} classes)", fontsize=9)


def _overlaps(axis: Axes, runs: Sequence[Run]) -> None:
    """Each eigenvector's squared projection on the span of the class means, by rank."""
    for run, color in zip(runs, colors(len(runs)), strict=True):
        count = run.config["dataset"]["classes"]
        own = spectrum(run)[1]
        rank = np.arange(1, len(own) + 1)
        outliers = (own > 0.5).sum()
        label = f"C = {count}: {outliers} outliers"
        axis.plot(rank, own, ".", ms=3.5, color=color, label=label)
        axis.plot(rank[:count], own[:count], "o", ms=6, mfc="none", color=color)
    axis.axhline(0.5, color="0.2", lw=0.8, ls="--")
    axis.set(
        xscale="log", ylim=(-0.03, 1.05), xlabel="rank i (ringed: i ≤ C, the number of classes)"
    )
    axis.set_ylabel("squared projection on class means")
    axis.set_title(f"what the classes explain of eigenvectors (width {WIDTHS[1]})", fontsize=9)


def _ranks(axis: Axes, table: pd.DataFrame) -> None:
    """Rank of the linear CNN's Hessian against its weights, and the closed form."""
    same = table[(table["dimension"] == table["dimension"].min()) & table["rank"].notna()]
    if not len(same):
        return
    widths = np.arange(2, same["width"].max() + 1)
    weights = 3 * widths**2 + 15 * widths
    axis.plot(weights, weights, color="0.6", lw=1, ls=":", label="all weights")
    axis.plot(weights[1:], 16 * widths[1:] + 18, color=colors(3)[1], lw=1.2, label="16m + 18")
    axis.plot(same["weights"], same["rank"], "o", ms=5, mfc="none", color="0.2", label="rank of H")
    for width, own in same.groupby("width"):
        at = own.iloc[0]
        place = (at["weights"], at["rank"])
        axis.annotate(
            f"m = {width:.0f}", place, xytext=(4, -11), textcoords="offset points", fontsize=7
        )
    axis.plot(
        same["weights"], same["gauss_newton_rank"], "s", ms=4, mfc="none", color=colors(3)[0],
        label="rank of G",
    )  # fmt: skip
    log_scale(axis)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="weights P", ylabel="rank")
    axis.set_title("rank of a linear CNN's Hessian, m channels", fontsize=9)
