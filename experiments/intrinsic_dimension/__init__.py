"""A net has 90 % of its accuracy in 100 to 160 random directions, of 2,000 weights or 20,000."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import WIDTH, colors

GOAL = 0.9
LABELS = {True: "true", False: "random"}


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows by ``kind``: a run; a net (a seed and width, in all its subspaces); a seed, of all nets.

    - run: ``dimension`` d (of the ``whole`` net its weights), ``labels``, and accuracies over the
      whole net's, ``relative`` (test) and ``relative_train``.
    - net: ``weights`` D, ``d90``: where ``relative`` first reaches 0.9, between two dimensions
      linear in log d (NaN if it does not); ``share``: d90 / D.
    - seed: over the widths, the largest over the smallest ``d90_ratio`` and ``share_ratio``, and at
      each d the largest difference of ``relative``, ``spread_<d>``.

    Nets and seeds are of the runs with true labels.
    """
    table = _relative(pd.DataFrame([_row(run) for run in runs]))
    own = table[table["labels"] == "true"]
    groups = own.groupby(["seed", "width"])
    nets = pd.DataFrame([_net(seed, width, net) for (seed, width), net in groups])
    rows = [_seed(seed, nets[nets["seed"] == seed], part) for seed, part in own.groupby("seed")]
    return pd.concat([table, nets, pd.DataFrame(rows)], ignore_index=True)


def _row(run: Run) -> dict[str, object]:
    config = run.config
    return {
        "job": run.job,
        "kind": "run",
        "seed": config["seed"],
        "width": config["model"]["width"],
        "whole": config["subspace"] is None,
        "dimension": config["subspace"] or _weights(config),
        "labels": LABELS[not config["label_noise"]],
        "test_accuracy": run.column("test_accuracy").iloc[-1],
        "train_accuracy": run.column("train_accuracy").iloc[-1],
        "weights": _weights(config),
    }


def _weights(config: Mapping[str, dict]) -> int:
    """Number of weights of the MLP, biases among them."""
    model, data = config["model"], config["dataset"]
    widths = [data["dimension"], *[model["width"]] * model["depth"], data["classes"]]
    return sum((a + model["bias"]) * b for a, b in pairwise(widths))


def _relative(table: pd.DataFrame) -> pd.DataFrame:
    """With each accuracy over the whole net's, of the same seed, width and labels."""
    keys = ["seed", "width", "labels"]
    whole = table[table["whole"]].set_index(keys)
    whole = whole.reindex(pd.MultiIndex.from_frame(table[keys]))
    ratios = {
        name: table[column].to_numpy() / whole[column].to_numpy()
        for name, column in (("relative", "test_accuracy"), ("relative_train", "train_accuracy"))
    }
    return table.assign(**ratios)


def _net(seed: Any, width: Any, runs: pd.DataFrame) -> dict[str, object]:
    inside = runs[~runs["whole"]].sort_values("dimension")
    weights = int(runs["weights"].iloc[0])
    d90 = reached(inside["dimension"].to_numpy(float), inside["relative"].to_numpy(float))
    return {
        "kind": "net",
        "seeds": [seed],
        "seed": seed,
        "jobs": runs["job"].tolist(),
        "width": width,
        "weights": weights,
        "d90": d90,
        "share": d90 / weights,
    }


def reached(dimensions: np.ndarray, relative: np.ndarray) -> float:
    """The dimension at which a curve first reaches 0.9, linear in log d between two of them.

    The smallest of the dimensions if it is there already, NaN if it never gets there.
    """
    there = np.flatnonzero(relative >= GOAL)
    if not len(there):
        return np.nan
    last = there[0]
    if last == 0:
        return float(dimensions[0])
    low, high = np.log(dimensions[last - 1 : last + 1])
    below, above = relative[last - 1 : last + 1]
    return float(np.exp(low + (high - low) * (GOAL - below) / (above - below)))


def _seed(seed: Any, nets: pd.DataFrame, runs: pd.DataFrame) -> dict[str, object]:
    inside = runs[~runs["whole"]].groupby("dimension")["relative"]
    spread = inside.agg(lambda own: own.max() - own.min())
    ratios = {name: nets[name].max() / nets[name].min() for name in ("d90", "share")}
    missing = nets["d90"].isna().any()
    return {
        "kind": "seed",
        "seed": seed,
        "jobs": runs["job"].tolist(),
        **{f"{name}_ratio": np.nan if missing else ratio for name, ratio in ratios.items()},
        **{f"spread_{d:.0f}": value for d, value in spread.items()},
    }


def figure(_: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Relative accuracy against the dimension and against its share of the weights, by width."""
    runs = measurements[(measurements["kind"] == "run") & (measurements["whole"].eq(other=False))]
    fig = Figure(figsize=(WIDTH, 4), layout="constrained", dpi=150)
    left, right = fig.subplots(1, 2, sharey=True)
    true = runs[runs["labels"] == "true"]
    for (width, own), color in zip(true.groupby("width"), colors(3), strict=False):
        weights = int(own["weights"].iloc[0])
        label = f"width {width:.0f}: {weights:,} weights"
        for number, (_seed, one) in enumerate(own.sort_values("dimension").groupby("seed")):
            told = None if number else label
            style = {"color": color, "marker": "o", "ms": 3, "lw": 0.9}
            left.plot(one["dimension"], one["relative"], label=told, **style)
            right.plot(one["dimension"] / weights, one["relative"], **style)
    random = runs[runs["labels"] == "random"].sort_values("dimension")
    for number, (_seed, one) in enumerate(random.groupby("seed")):
        told = None if number else f"width {one['width'].iloc[0]:.0f}, random labels (train)"
        left.plot(one["dimension"], one["relative_train"], ":", color="0.5", lw=1, label=told)
    for axis in (left, right):
        axis.axhline(GOAL, color="0.2", lw=0.8, ls="--")
        axis.set(xscale="log", ylim=(0, 1.05))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    left.set(xlabel="dimension d of the subspace", ylabel="accuracy / accuracy of the whole net")
    dimensions = sorted(true["dimension"].unique())
    left.set_xticks(dimensions, [f"{d:.0f}" for d in dimensions])
    left.minorticks_off()
    right.set(xlabel="d / number of weights")
    left.legend(fontsize=7, loc="lower right")
    left.set_title("over d, widths differ as much as seeds …", fontsize=9)
    right.set_title("… and over d / weights tenfold", fontsize=9)
    return fig
