"""Once their units are matched, two wide nets have a straight path of low loss between them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lmech.collecting import Run
from lmech.plotting import colors, curves

LINES = {"naive": "as trained", "random": "permuted at random", "matched": "weights matched"}
"""The comparisons along the line."""
LAYERS = {"hidden_1": "first layer", "hidden_2": "second", "readout": "readout", "all": "all three"}
NUMBERS = [
    f"{split}_{number}"
    for split in ("test", "train")
    for number in ("loss_barrier", "accuracy_midpoint")
]

COLUMNS = ["row", "jobs", "seeds", "width", "activation", "output_change", "deficit", "curvature"]
COLUMNS += ["kinks", "layer_ratio", *(f"{layer}_test_loss" for layer in LAYERS)]
COLUMNS += [f"{line}_{number}" for line in LINES for number in (*NUMBERS, "test_ratio")]
COLUMNS += [f"{line}_{number}" for line in LINES for number in ("train_ratio", "growth")]


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of two kinds, told apart by ``row``; a barrier is the rise above the chord, in nats.

    ``pair``: one a pair of seeds. Of the line ``naive`` (the nets as trained), ``matched`` (the
    second net's units in the order that weight matching finds) and ``random`` (in an order drawn
    evenly): ``…_test_loss_barrier``, ``…_train_loss_barrier``, and how much the accuracy falls
    midway, ``…_test_accuracy_midpoint``, ``…_train_accuracy_midpoint``; of the latter two lines the
    barriers over the naive one's, ``…_test_ratio`` and ``…_train_ratio``. ``output_change``: the
    largest change of an output by a permutation. Of the matched line ``deficit``, the mean of
    the ends' training losses less the midpoint's; ``curvature``, ½∫min(t, 1 − t)L″dt, which it
    is where L is smooth; ``kinks``, the share of the deficit that this leaves. ``layer_ratio``:
    test loss gained by averaging all layers, over that by averaging the costliest alone.

    ``trend``: one an activation with several widths; ``…_growth``, the largest quotient of the
    barrier's mean at one width and the next smaller one.

    A run that diverged has no pairs, and a row of its own without values.
    """
    seeds = {run.job: run.config["seed"] for run in runs}
    pairs = [_pair(run, other, seeds) for run in runs for other in _others(run)]
    diverged = [_setting([run]) for run in runs if run.result["status"] != "done"]
    rows = pd.DataFrame([*pairs, *diverged], columns=COLUMNS).assign(row="pair")
    several = [own for _, own in rows.groupby("activation") if own["width"].nunique() > 1]
    return pd.DataFrame([*rows.to_dict("records"), *map(_trend, several)], columns=COLUMNS)


def _others(run: Run) -> list[dict[str, dict[str, Any]]]:
    """What was measured of the run and each of its partners, by comparison."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own in run.pairs.items():
        for row in own.to_dict("records"):
            found.setdefault(row["other"], {})[name] = {str(key): row[key] for key in row}
    return list(found.values())


def _setting(runs: Sequence[Run]) -> dict[str, Any]:
    """Of runs that differ in their seed alone."""
    return {
        "jobs": [run.job for run in runs],
        "seeds": [run.config["seed"] for run in runs],
        "width": runs[0].config["model"]["width"],
        "activation": runs[0].config["model"]["activation"],
    }


def _pair(
    run: Run, found: Mapping[str, Mapping[str, Any]], seeds: Mapping[str, int]
) -> dict[str, Any]:
    naive, matched, random = (found[name] for name in ("naive", "matched", "random"))
    curvature, layers = found["curvature"], found["layers"]
    row = {
        **_setting([run]),
        "jobs": [run.job, naive["other"]],
        "seeds": [run.config["seed"], seeds[naive["other"]]],
        "output_change": max(matched["output_change"], random["output_change"]),
        "deficit": curvature["deficit"],
        "curvature": curvature["curvature"],
        "kinks": curvature["kinks"] / curvature["deficit"],
        "layer_ratio": layers["all_test_loss"]
        / max(layers[f"{layer}_test_loss"] for layer in LAYERS if layer != "all"),
        **{f"{layer}_test_loss": layers[f"{layer}_test_loss"] for layer in LAYERS},
    }
    for line in LINES:
        row |= {f"{line}_{number}": found[line][number] for number in NUMBERS}
        for split in ("test", "train"):
            barriers = [one[f"{split}_loss_barrier"] for one in (found[line], naive)]
            row[f"{line}_{split}_ratio"] = barriers[0] / barriers[1]
    return row


def _trend(pairs: pd.DataFrame) -> dict[str, Any]:
    means = pairs.groupby("width")[[f"{line}_test_loss_barrier" for line in LINES]].mean()
    growth = (means / means.shift()).max()
    return {
        "row": "trend",
        "activation": pairs["activation"].iloc[0],
        "jobs": [job for own in pairs["jobs"] for job in own],
        "seeds": sorted({seed for own in pairs["seeds"] for seed in own}),
        **{f"{line}_growth": growth[f"{line}_test_loss_barrier"] for line in LINES},
    }


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """The line at the largest width; barriers against width; curvature; layer by layer.

    Without pairs, the runs' curves.
    """
    pairs = measurements[measurements["row"] == "pair"].dropna(subset="deficit")
    if not len(pairs):
        return curves(runs)
    fig = Figure(figsize=(13, 3.3), layout="constrained", dpi=110)
    line, width, curved, layers = fig.subplots(1, 4)
    relu = pairs[pairs["activation"] == "relu"]
    widest = relu["width"].max()
    shown = [run for run in runs if run.config["model"]["width"] == widest]
    _along(line, [run for run in shown if run.config["model"]["activation"] == "relu"])
    line.set_title(f"test loss between two nets of width {widest:g}", fontsize=9)
    _barriers(width, relu)
    _curvature(curved, pairs)
    _layers(layers, relu)
    for axis in (line, width, curved, layers):
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def _along(axis: Axes, runs: Sequence[Run]) -> None:
    """A line a pair, a colour an order of the second net's units."""
    for (name, label), color in zip(LINES.items(), colors(len(LINES)), strict=True):
        pairs = [pair for run in runs for pair in run.pairs[name].to_dict("records")]
        for number, pair in enumerate(pairs):
            told = label if number == 0 else None
            axis.plot(pair["position"], pair["test_loss"], lw=1.2, color=color, label=told)
    axis.set(xlabel="position t on the line from one to the other", ylabel="test loss (nats)")
    axis.set_ylim(0, None)
    axis.legend(fontsize=7, loc="upper right", bbox_to_anchor=(1, 0.98))
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.3 * (high - low))  # room for the legend


def _barriers(axis: Axes, pairs: pd.DataFrame) -> None:
    """A dot a pair, their means joined; training loss dotted."""
    for (name, label), color in zip(LINES.items(), colors(len(LINES)), strict=True):
        for split, style in (("test", "-"), ("train", ":")):
            column = f"{name}_{split}_loss_barrier"
            means = pairs.groupby("width")[column].mean()
            told = label if split == "test" else None
            axis.plot(means.index, means, style, lw=1.2, color=color, label=told)
        axis.plot(pairs["width"], pairs[f"{name}_test_loss_barrier"], ".", ms=4, color=color)
    _widths(axis, pairs)
    axis.set(yscale="log", ylabel="barrier (nats)")
    axis.set_title("barrier: test (dots, solid), training (dotted)", fontsize=9)
    axis.legend(fontsize=7, loc="lower left")


def _widths(axis: Axes, pairs: pd.DataFrame) -> None:
    widths = sorted(pairs["width"].unique())
    axis.set(xscale="log", xlabel="width")
    axis.set_xticks(widths, [f"{width:g}" for width in widths])
    axis.xaxis.set_minor_locator(NullLocator())


def _curvature(axis: Axes, pairs: pd.DataFrame) -> None:
    """The midpoint's barrier in training loss against its curvature; the identity is the line."""
    ends = np.asarray([-pairs["deficit"].min(), -pairs["deficit"].max()])
    axis.plot(ends, ends, "-", lw=1, color="0.5", label="theory where L is smooth: equal")
    shades = colors(pairs["activation"].nunique())
    for (name, own), color in zip(pairs.groupby("activation"), shades, strict=True):
        axis.plot(-own["deficit"], -own["curvature"], ".", ms=6, color=color, label=f"{name} nets")
    axis.set(xscale="log", yscale="log", xlabel="training loss midway, above the chord (nats)")
    axis.set_ylabel(r"$-\frac{1}{2}\int\min(t,1-t)\,L''(t)\,dt$ (nats)")
    axis.set_title("matched line: curvature and kinks", fontsize=9)
    axis.set_ylim(None, 8 * ends.max())  # room for the legend
    axis.legend(fontsize=7, loc="upper left")


def _layers(axis: Axes, pairs: pd.DataFrame) -> None:
    for (layer, label), color in zip(LAYERS.items(), colors(len(LAYERS)), strict=True):
        means = pairs.groupby("width")[f"{layer}_test_loss"].mean()
        style = "--" if layer == "all" else "-"
        axis.plot(means.index, means, style, marker=".", lw=1.2, color=color, label=label)
        axis.plot(pairs["width"], pairs[f"{layer}_test_loss"], ".", ms=3, alpha=0.4, color=color)
    _widths(axis, pairs)
    axis.set(yscale="log", ylabel="test loss gained (nats)")
    axis.set_title("a net with a layer averaged with its match", fontsize=9)
    axis.legend(fontsize=7, loc="lower left")
