"""Compute-optimal size and loss are powers of compute, with other exponents in each phase."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lmech.collecting import Run
from lmech.plotting import colors

from . import theory
from .fronts import decline, envelope, exponents

RESAMPLES = 200
LEVEL = 0.95
CONTROL_DECADES = 3
ORDERED = ("Ia", "II", "III")


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows by ``kind``.

    - curves: a phase and seed, its loss curves averaged over the draws of W: ``size`` and ``loss``,
      the exponents of d* and P*; ``size_error`` and ``loss_error``, less the theory's; ``decades``
      of compute with an optimum; ``decline``, the slope of the best loss over the last 3 decades.
    - phase: the same of all seeds' draws, with ``size_low`` … ``loss_high``: percentiles of 200
      bootstrap resamples of the draws.
    - order: a seed: ``gap``, the smaller of the differences of d* exponents, II − Ia and III − II.
    - sgd: a phase and width: of the mean over the runs of test loss over exact mean loss (averaged
      over the steps after the first) ``ratio``, its ``error`` (standard error), and ``deviation``,
      (ratio − 1)/error; ``noiseless_ratio`` and ``noiseless_deviation``, of the loss of gradient
      descent.
    """
    curves = [run for run in runs if not _trained(run)]
    sgd = [run for run in runs if _trained(run)]
    rows = []
    for name in dict.fromkeys(map(_phase, curves)):
        own = [run for run in curves if _phase(run) == name]
        each = [_curves(seed, own) for seed in dict.fromkeys(map(_seed, own))]
        rows += [*each, _whole(own)]
    rows += _orders(rows)
    groups = dict.fromkeys((_phase(run), _width(run)) for run in sgd)
    rows += [_agreement([run for run in sgd if (_phase(run), _width(run)) == g]) for g in groups]
    return pd.DataFrame(rows)


def _trained(run: Run) -> bool:
    """Whether it is a run of SGD, and not of a step for the sake of its curves."""
    return run.config["steps"] > 1


def _seed(run: Run) -> int:
    return run.config["seed"]


def _width(run: Run) -> int:
    return run.config["model"]["width"]


def _powers(run: Run) -> tuple[float, float]:
    return run.config["dataset"]["alpha"], run.config["dataset"]["beta"]


def _phase(run: Run) -> str:
    return theory.phase(*_powers(run)) or "another"


def _labels(runs: Sequence[Run]) -> dict[str, Any]:
    alpha, beta = _powers(runs[0])
    return {
        "phase": _phase(runs[0]),
        "alpha": alpha,
        "beta": beta,
        "jobs": [run.job for run in runs],
    }


def loss_curves(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes [S], steps [T] and losses [S, N, T] of N draws of W, those of all the runs' seeds."""
    sizes = sorted({_width(run) for run in runs})
    steps = np.asarray(runs[0].column("loss_curves_steps").iloc[0])

    def draws(run: Run) -> np.ndarray:
        return np.reshape(run.column("loss_curves").iloc[0], (-1, len(steps)))

    each = [np.concatenate([draws(run) for run in runs if _width(run) == d]) for d in sizes]
    return np.asarray(sizes, float), steps, np.stack(each)


def _exponents(runs: Sequence[Run]) -> dict[str, float]:
    alpha, beta = _powers(runs[0])
    sizes, steps, losses = loss_curves(runs)
    mean = losses.mean(axis=1)
    size, loss, decades = exponents(envelope(sizes, steps, mean))
    row = {
        "size": size,
        "loss": loss,
        "decades": decades,
        "decline": decline(sizes, steps, mean, CONTROL_DECADES),
    }
    if _phase(runs[0]) in theory.PHASES:
        predicted = theory.compute_optimal(alpha, beta)
        row |= {"size_error": size - predicted.size, "loss_error": loss - predicted.loss}
        row |= {"size_predicted": predicted.size, "loss_predicted": predicted.loss}
    return row


def _curves(seed: int, runs: Sequence[Run]) -> dict[str, Any]:
    own = [run for run in runs if _seed(run) == seed]
    return {"kind": "curves", "seed": seed, **_labels(own), **_exponents(own)}


def _whole(runs: Sequence[Run]) -> dict[str, Any]:
    """Of all draws, which are resampled as one: each has the same features at every size."""
    sizes, steps, losses = loss_curves(runs)
    generator = np.random.default_rng(0)
    count = losses.shape[1]
    found = []
    for _ in range(RESAMPLES):
        chosen = losses[:, generator.integers(count, size=count)].mean(axis=1)
        found.append(exponents(envelope(sizes, steps, chosen))[:2])
    ends = np.percentile(found, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    bounds = {
        f"{name}_{end}": ends[i, j]
        for j, name in enumerate(("size", "loss"))
        for i, end in enumerate(("low", "high"))
    }
    seeds = list(dict.fromkeys(map(_seed, runs)))
    return {"kind": "phase", "seeds": seeds, **_labels(runs), **_exponents(runs), **bounds}


def _orders(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One a seed that has all three phases."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "curves" and row["phase"] in ORDERED:
            found.setdefault(row["seed"], {})[row["phase"]] = row
    return [
        {
            "kind": "order",
            "seed": seed,
            "jobs": [job for row in own.values() for job in row["jobs"]],
            "gap": float(np.diff([own[name]["size"] for name in ORDERED]).min()),
        }
        for seed, own in found.items()
        if len(own) == len(ORDERED)
    ]


def _agreement(runs: Sequence[Run]) -> dict[str, Any]:
    row = {"kind": "sgd", "seeds": [_seed(run) for run in runs], "width": _width(runs[0])}
    row |= _labels(runs)
    for prefix, column in (("", "expected_loss"), ("noiseless_", "expected_loss_noiseless")):
        ratios = np.asarray([_ratio(run, column) for run in runs])
        error = ratios.std(ddof=1) / len(ratios) ** 0.5 if len(ratios) > 1 else np.nan
        row |= {
            f"{prefix}ratio": ratios.mean(),
            f"{prefix}error": error,
            f"{prefix}deviation": (ratios.mean() - 1) / error,
        }
    return row


def _ratio(run: Run, column: str) -> float:
    """The mean over the steps after the first of the test loss over what was predicted of it."""
    if run.result["status"] != "done":
        return np.nan
    found = run.column("test_loss")
    return float((found / run.column(column))[found.index > 0].mean())


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure | None:
    """A column a phase: loss against compute with the envelope, and the best size below."""
    curves = [run for run in runs if not _trained(run)]
    there = [name for name in theory.PHASES if name in {_phase(run) for run in curves}]
    if not there:
        return None
    fig = Figure(figsize=(2.7 * len(there) + 0.9, 5.6), layout="constrained", dpi=110)
    axes = fig.subplots(2, len(there), squeeze=False, sharex="col", height_ratios=[3, 2])
    for column, name in zip(axes.T, there, strict=True):
        own = [run for run in curves if _phase(run) == name]
        sgd = [run for run in runs if _trained(run) and _phase(run) == name]
        rows = measurements[(measurements["kind"] == "phase") & (measurements["phase"] == name)]
        _column(column, own, sgd, rows.iloc[0])
    axes[0, 0].set_ylabel("mean loss P/2")
    axes[1, 0].set_ylabel("best size d*")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    sizes = sorted({_width(run) for run in curves})
    _, norm = _size_colors(sizes)
    bar = matplotlib.cm.ScalarMappable(norm, matplotlib.colors.ListedColormap(colors(256)))
    shown = fig.colorbar(bar, ax=list(axes[0]), label="size d", pad=0.01, aspect=30)
    marked = [sizes[0], round((sizes[0] * sizes[-1]) ** 0.5), sizes[-1]]
    shown.set_ticks(marked, labels=[f"{d:g}" for d in marked])
    shown.minorticks_off()
    return fig


def _size_colors(sizes: Sequence[int]) -> tuple[dict[int, Any], Any]:
    """A colour a size, by its logarithm, and that scale."""
    norm = matplotlib.colors.LogNorm(sizes[0], max(sizes[-1], sizes[0] + 1))
    map_ = matplotlib.colors.ListedColormap(colors(256))
    return {size: map_(norm(size)) for size in sizes}, norm


def _column(axes: np.ndarray, runs: Sequence[Run], sgd: Sequence[Run], row: pd.Series) -> None:
    top, bottom = axes
    sizes, steps, losses = loss_curves(runs)
    mean = losses.mean(axis=1)
    shades, _ = _size_colors([int(size) for size in sizes])
    for size, own in zip(sizes, mean, strict=True):
        top.plot(size * steps, own, color=shades[int(size)], lw=0.8)
    _dots(top, sgd)
    best = envelope(sizes, steps, mean)
    top.plot(best.compute, best.loss, "-", color="black", lw=2, label="envelope P*, d*")
    bottom.plot(best.compute, best.size, "-", color="black", lw=2)
    panels = ((top, best.loss, "loss", 0.5), (bottom, best.size, "size", 1.7))
    for axis, values, name, apart in panels:
        _slope(axis, best.compute, values, row[f"{name}_predicted"], apart)
        told = f"slope {row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
        told += f"\ntheory {row[f'{name}_predicted']:.2f}"
        x, side = (0.97, "right") if axis is top else (0.03, "left")
        axis.text(x, 0.96, told, ha=side, va="top", fontsize=8, transform=axis.transAxes)
        axis.set(xscale="log", yscale="log")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
        axis.tick_params(labelsize=8)
    end = max(best.compute[-1:], default=sizes[-1] ** 2) * 10
    top.set_xlim(sizes[0], end)
    seen = mean[np.outer(sizes, steps) <= end]
    top.set_ylim(0.6 * seen.min(), 3 * seen.max())
    bottom.set_ylim(0.6 * sizes[0], 12 * sizes[-1])
    top.set_title(f"{row['phase']}: α = {row['alpha']:g}, β = {row['beta']:g}", fontsize=9)
    bottom.set_xlabel("compute d · examples", fontsize=9)


def _dots(axis: Axes, sgd: Sequence[Run]) -> None:
    """Of the runs of each width the mean test loss (dots) and the mean of what is exact (lines)."""
    for number, width in enumerate(sorted({_width(run) for run in sgd})):
        own = [run for run in sgd if _width(run) == width]
        losses, exact = (
            pd.concat([run.column(name) for run in own], axis=1).mean(axis=1)
            for name in ("test_loss", "expected_loss")
        )
        at, told = losses.index[losses.index > 0], number == 0
        style: dict[str, Any] = {"ms": 3, "mfc": "white", "mec": "tab:red", "mew": 0.8}
        label = f"SGD, mean of {len(own)} seeds" if told else None
        axis.plot(width * at, losses[at], "o", label=label, zorder=3, **style)
        label = "exact, of the same W" if told else None
        axis.plot(width * at, exact[at], color="tab:red", lw=1, label=label)


def _slope(axis: Axes, compute: np.ndarray, values: np.ndarray, power: float, apart: float) -> None:
    """A line of the theory's slope beside the envelope, a factor ``apart`` from its middle."""
    if not len(compute):
        return
    middle = len(compute) // 2
    line = apart * values[middle] * (compute / compute[middle]) ** power
    axis.plot(compute, line, "--", color="tab:orange", lw=1.5, label="theory's slope")
