"""How much one step moves each layer, as a power of the width: the coordinate check of μP."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from scipy.stats import t  # type: ignore[import-untyped]

from lmech.collecting import Run
from lmech.plotting import colors

LAYERS = {"hidden_1": "$h_1$", "hidden_2": "$h_2$", "readout": "logits"}
# The rules of μP that are replaced, one at a time, and what they are.
RULES = {
    "input.c.sgd": -1.0,
    "output.c.sgd": 1.0,
    "output.b": 1.0,
    "hidden.c.adam": 1.0,
    "output.c.adam": 1.0,
}
LEVEL = 0.95


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a rule, optimizer, layer and seed: exponents of mean |Δ| after the step in the width.

    ``rule``: the parametrization, and the entry of its table that was replaced. ``exponent``: the
    least-squares slope of log mean |Δh| against log width; ``exponent_update`` the same of
    mean |ΔW h₀|, the layer's own term; ``steepening``: the mean of the last two local slopes less
    that of the first two.
    """
    points = pd.DataFrame([row for run in runs for row in _points(run)])
    keys = ["rule", "optimizer", "layer", "seed"]
    rows = []
    for key, group in points.sort_values("width").groupby(keys, sort=False):
        logs = np.log2(group[["width", "change", "update"]].to_numpy(float))
        local = np.diff(logs[:, 1]) / np.diff(logs[:, 0])
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "exponent": _slope(logs[:, 0], logs[:, 1]),
                "exponent_update": _slope(logs[:, 0], logs[:, 2]),
                "steepening": local[-2:].mean() - local[:2].mean(),
            }
        )
    return pd.DataFrame(rows)


def rule(run: Run) -> str:
    """``mup``, or ``mup with hidden.c.adam = 0``."""
    name = run.overrides["parametrization"]
    if name != "mup":
        return name
    now = {
        key: run.overrides.get(f"parametrization.table.{key}", own) for key, own in RULES.items()
    }
    told = [f"{key} = {now[key]:g}" for key, own in RULES.items() if now[key] != own]
    return " with ".join([name, *told])


def _points(run: Run) -> list[dict[str, Any]]:
    last = run.metrics.iloc[-1]
    return [
        {
            "rule": rule(run),
            "optimizer": run.overrides["optimizer"],
            "layer": layer,
            "seed": run.config["seed"],
            "width": run.config["model"]["width"],
            "change": last[f"activations_mean_change_{layer}"],
            "update": last[f"layer_updates_{layer}_kernel"],
        }
        for layer in LAYERS
    ]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.polyfit(x, y, 1)[0]) if np.isfinite(y).all() else np.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % confidence interval over the seeds (Student's t)."""
    mean, n = float(np.mean(values)), len(values)
    half = t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return mean, float(half)


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Mean |Δ| against width, a row an optimizer and kind of rule, a column a layer."""
    points = pd.DataFrame([row for run in runs for row in _points(run)])
    mean = points.groupby(["rule", "optimizer", "layer", "width"])["change"].mean()
    slopes = measurements.groupby(["rule", "optimizer", "layer"])["exponent"].apply(list)
    rows = [
        (optimizer, ablated)
        for optimizer in points["optimizer"].unique()
        for ablated in (False, True)
    ]
    fig = Figure(figsize=(9, 2.6 * len(rows)), layout="constrained", dpi=130)
    axes = fig.subplots(len(rows), len(LAYERS), sharex=True, sharey=True, squeeze=False)
    for (optimizer, ablated), line in zip(rows, axes, strict=True):
        known = points[points["optimizer"] == optimizer]["rule"].unique()
        shown = [r for r in known if (" with " in r) == ablated or (ablated and r == "mup")]
        for (layer, title), axis in zip(LAYERS.items(), line, strict=True):
            for name, color, style in zip(shown, colors(len(shown)), STYLES, strict=False):
                y = mean.xs((name, optimizer, layer))
                slope, half = interval(slopes[name, optimizer, layer])
                short = name.replace("mup with ", "").replace(f".{FAMILIES[optimizer]}", "")
                label = f"{short}: {slope:+.2f} ± {half:.2f}"
                axis.plot(y.index, y / y.iloc[0], style, lw=1.3, color=color, label=label)
            _dress(axis, f"{title}, {optimizer}" + (", μP with one rule replaced" * ablated))
        line[0].set_ylabel(r"mean $|\Delta|$, narrowest = 1")
    for axis in axes[-1]:
        axis.set_xlabel("width")
    widths = sorted(points["width"].unique())
    axes[0, 0].set_xticks(widths, [str(width) for width in widths])
    return fig


FAMILIES = {"gd": "sgd", "adam": "adam"}
STYLES = ("-", "--", "-.", ":")


def _dress(axis: Any, title: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_title(title, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.5)
    axis.legend(fontsize=6, title="exponent", title_fontsize=6)
