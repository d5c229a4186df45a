"""What the figures share: sizes, colours, and a plain one for any sweep."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas.api.types import is_numeric_dtype

from lmech.collecting import Run

WIDTH = 6.4  # inches


def colors(count: int) -> list[Any]:
    """Perceptually ordered colours, dark to light, none too pale for white paper."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.88, count)))


def paper_figure(rows: int) -> tuple[Figure, Any]:
    """A column of panels over one horizontal axis."""
    fig = Figure(figsize=(WIDTH, 1 + 2.1 * rows), layout="constrained", dpi=150)
    axes = fig.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig, axes


def log_scale(axis: Axes) -> None:
    """Logarithmic vertical axis with plain numbers at 1, 2 and 5 times the powers of ten."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def curves(runs: Sequence[Run]) -> Figure:
    """Every scalar observable against step, one line a run: the figure of any sweep."""
    names = _scalars(runs[0]) or ["batch_loss"]
    fig, axes = paper_figure(len(names))
    for axis, name in zip(axes, names, strict=True):
        for run, color in zip(runs, colors(len(runs)), strict=True):
            values = run.column(name)
            dots = "." if len(values) <= 50 else ""  # a line alone would invent what lies between
            axis.plot(values.index, values, dots + "-", color=color, lw=1, label=_label(run))
        axis.set_ylabel(name)
    axes[-1].set_xlabel("step")
    if 1 < len(runs) <= 8:
        axes[0].legend(fontsize=7)
    return fig


def _label(run: Run) -> str:
    """``learning_rate 0.1, seed 3``: what sets the run apart in its sweep."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in run.overrides.items())


def _scalars(run: Run) -> list[str]:
    observed = [name for name in run.config["observables"] if name in run.metrics]
    return [name for name in observed if is_numeric_dtype(run.metrics[name])]
