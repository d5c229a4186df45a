"""Features collapse onto their class means, and small classes onto 0 (Papyan et al. 2020)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import colors, log_scale

from . import theory

ALIVE = 1e-3
"""A class is there if its mean has this share of the length that it has as decays go to 0."""

STYLES = {
    "clusters": ("-", "clusters (5 classes × 3), weight decay"),
    "no decay": (":", "the same without weight decay"),
    "random labels": ("--", "the same with random labels"),
    "digits": ("-", "digits (10 classes), weight decay"),
    "cifar10": ("-", "CIFAR-10, weight decay"),
}
"""The arms that are nets: line and name."""

QUANTITIES = {
    "nc1": ("nc1", 1.0),
    "angles": ("nc2_equiangularity", 1.0),
    "norms": ("nc2_equinorm", 1.0),
    "duality": ("nc3", 0.5),  # a norm; the observable has its square
    "nc4": ("nc4", 1.0),
}
"""A quantity's column of the observable, and the power of it that is taken."""


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run, its ``arm`` free features ("balanced", "imbalanced") or a net (``STYLES``).

    Free features at the end of the run, lengths as shares of those that theory has as the decays
    go to 0 (``theory.uncollapsed``). ``length_error``: the largest difference of a ‖w_k‖ or class
    mean's length from the closed form, ``equal_error`` from that for classes of N/K examples each.
    ``collapsed``: how many classes theory has at 0, ``collapsed_length`` their largest length, and
    ``miscounted`` the classes that are at 0 (below 10⁻³) and should not be, or the other way round.
    ``cosine``: the largest |cos| between class means that are there, ``misaligned`` the largest
    1 − cos(w_k, mean k), ``scatter`` the largest distance of an example to its class mean (root
    mean square over the class), ``inequality`` the standard deviation of the means' lengths over
    their mean.

    Nets, at the end, as ``first_…`` where the training accuracy was first measured to be 1, and as
    ``…_ratio`` of the two: ``nc1`` tr(Σ_W Σ_B⁺)/K; ``angles`` mean |cos + 1/(K − 1)| of centred
    class means; ``norms`` standard deviation over mean of their lengths; ``duality``
    ‖Wᵀ/‖W‖ − M/‖M‖‖_F; ``nc4`` share of the examples that the nearest class mean puts elsewhere.
    ``first_step``; ``train_accuracy`` and ``test_accuracy`` at the end.
    """
    return pd.DataFrame([_row(run) for run in runs])


def arm(run: Run) -> str:
    """What the run is of."""
    config = run.config
    dataset = config["dataset"]
    if "sizes" in dataset:
        return "balanced" if len(set(dataset["sizes"])) == 1 else "imbalanced"
    if "clusters" not in dataset:
        return str(dataset["_target_"]).rpartition(".")[2]
    if config["label_noise"]:
        return "random labels"
    return "clusters" if config["optimizer"]["weight_decay"] else "no decay"


def decays(config: Mapping[str, Any]) -> tuple[float, float]:
    """λ_W and λ_H: of the readout and of the free features, the kernel of the first layer."""
    factors, decay = config["parametrization"]["decays"], config["optimizer"]["weight_decay"]
    return decay * factors["output"], decay * factors["input"]


def _row(run: Run) -> dict[str, Any]:
    kind = arm(run)
    complete = run.result["status"] == "done" and run.result["steps"] == run.config["steps"]
    found = (_net if kind in STYLES else _free)(run)
    labels = {"job": run.job, "seed": run.config["seed"], "arm": kind}
    return labels | (found if complete else dict.fromkeys(found, np.nan))


class Geometry:
    """The lengths and angles of a run of free features, at its last measurement."""

    def __init__(self, run: Run) -> None:
        """From the columns of ``class_geometry``."""
        sizes = np.asarray(run.config["dataset"]["sizes"], float)

        def last(name: str) -> np.ndarray:
            return np.asarray(run.column(f"class_geometry_{name}").iloc[-1], float)

        def matrix(name: str) -> np.ndarray:
            return last(name).reshape(len(sizes), len(sizes))

        self.sizes, self.decays = sizes, decays(run.config)
        self.means, self.cross, self.within = matrix("means"), matrix("cross"), last("within")
        self.lengths = theory.Lengths(
            np.sqrt(np.diag(matrix("readout"))), np.sqrt(np.diag(self.means))
        )


def _free(run: Run) -> dict[str, Any]:
    here = Geometry(run)
    full = theory.uncollapsed(here.sizes, *here.decays)
    expected = theory.lengths(here.sizes, *here.decays)
    equal = theory.lengths(np.full_like(here.sizes, here.sizes.mean()), *here.decays)
    share, there = here.lengths.means / full.means, expected.means > 0
    w, h = (lengths[there] for lengths in here.lengths)
    with np.errstate(invalid="ignore", divide="ignore"):  # of classes that are not there after all
        cosines = here.means[np.ix_(there, there)] / np.outer(h, h)
        aligned = np.diag(here.cross)[there] / (w * h)
        inequality = here.lengths.means.std() / here.lengths.means.mean()
    both = zip(here.lengths, full, strict=True)
    return {
        "length_error": _furthest(here.lengths, expected, full),
        "equal_error": _furthest(here.lengths, equal, full),
        "collapsed": int((~there).sum()),
        "collapsed_length": max((max(a[~there] / b[~there], default=np.nan) for a, b in both)),
        "miscounted": int(((share > ALIVE) != there).sum()),
        "cosine": np.abs(cosines - np.diag(np.diag(cosines))).max() if sum(there) > 1 else np.nan,
        "misaligned": np.abs(1 - aligned).max() if there.any() else np.nan,
        "scatter": (np.sqrt(here.within) / full.means).max(),
        "inequality": inequality,
    }


def _furthest(found: theory.Lengths, expected: theory.Lengths, full: theory.Lengths) -> float:
    """The largest difference, in units of the lengths as decays go to 0."""
    parts = zip(found, expected, full, strict=True)
    return float(max(np.abs((a - b) / c).max() for a, b, c in parts))


def curve(run: Run, quantity: str) -> pd.Series:
    """A quantity of a net, by step."""
    column, power = QUANTITIES[quantity]
    return run.column(f"neural_collapse_{column}") ** power


def fitted(run: Run) -> int | None:
    """The first step at which the training accuracy was measured to be 1 (None: never)."""
    accuracy = run.column("train_accuracy")
    return min(accuracy.index[accuracy >= 1], default=None)


def _net(run: Run) -> dict[str, Any]:
    first = fitted(run)
    row = {"first_step": np.nan if first is None else first}
    for name in QUANTITIES:
        values = curve(run, name)
        start = np.nan if first is None else values.get(first, np.nan)
        row |= {name: values.iloc[-1], f"first_{name}": start}
        row[f"{name}_ratio"] = values.iloc[-1] / start if start else np.nan
    for split in ("train", "test"):
        row[f"{split}_accuracy"] = run.column(f"{split}_accuracy").iloc[-1]
    return row


def figure(runs: Sequence[Run], _: pd.DataFrame) -> Figure:
    """Lengths of free features against the decay; NC1, angles and self-duality against step."""
    fig = Figure(figsize=(10, 5.6), layout="constrained", dpi=110)
    top, bottom = fig.subplots(2, 3)
    free = [run for run in runs if arm(run) == "imbalanced"]
    _lengths(top[0], free, "readout", r"$\|w_k\|$, readout")
    _lengths(top[1], free, "means", r"$\|\mu_k\|$, class mean")
    panels = {
        "nc1": r"NC1  $\mathrm{tr}(\Sigma_W\Sigma_B^+)/K$",
        "angles": r"NC2  mean $|\cos + 1/(K-1)|$",
        "duality": r"NC3  $\|W^T/\|W\| - M/\|M\|\|_F$",
    }
    axes = (top[2], *bottom[:2])
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        _curves(axis, runs, name, label)
    legend = bottom[2]
    handles, labels = top[2].get_legend_handles_labels()
    legend.axis("off")
    legend.legend(handles, labels, loc="center left", fontsize=9, frameon=False)
    for axis in (*top, *bottom[:2]):
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def _lengths(axis: Axes, runs: Sequence[Run], part: str, label: str) -> None:
    """A dot a run and class; the closed form as a line, down to 0 at the class's threshold."""
    found = [(np.sqrt(np.prod(decays(run.config))), Geometry(run)) for run in runs]
    axis.set(xlabel=r"$\sqrt{\lambda_W\lambda_H}$", ylabel=label)
    axis.set_title("free features (dots), closed form (lines)", fontsize=9)
    if not found:
        return
    first, most = found[0][1], max(decay for decay, _ in found)
    ratio = np.sqrt(first.decays[0] / first.decays[1])
    grid = np.linspace(1e-4, 1.05 * most, 800)
    lines = np.asarray(
        [getattr(theory.lengths(first.sizes, g * ratio, g / ratio), part) for g in grid]
    )
    for k, color in enumerate(colors(len(first.sizes))):
        name = f"{first.sizes[k]:.0f} of {first.sizes.sum():.0f}"
        axis.plot(grid, lines[:, k], "-", lw=1.2, color=color, label=name)
        dots = [(decay, getattr(here.lengths, part)[k]) for decay, here in found]
        axis.plot(*zip(*dots, strict=True), ".", ms=5, color=color)
    axis.set_xlim(0, None)
    axis.set_ylim(0, 1.08 * lines.max())
    axis.legend(fontsize=7, loc="upper right", title="size", title_fontsize=7)


def _curves(axis: Axes, runs: Sequence[Run], quantity: str, label: str) -> None:
    """A line a run, from where all training labels are fitted, which a circle marks."""
    there = [kind for kind in STYLES if kind in {arm(run) for run in runs}]
    for color, kind in zip(colors(len(there)), there, strict=True):
        for number, run in enumerate(own for own in runs if arm(own) == kind):
            first, values = fitted(run), curve(run, quantity)
            style, name = STYLES[kind]
            shown = name if number == 0 else None
            axis.plot(values.index + 1, values, style, lw=1.1, color=color, label=shown)
            if first is not None:
                axis.plot(first + 1, values[first], "o", ms=4, mfc="none", color=color)
    log_scale(axis)
    axis.set(xscale="log", xlabel="step + 1", ylabel=label)
    axis.set_title("circles: all training labels fitted", fontsize=9)
