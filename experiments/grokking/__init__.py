"""A net that has memorised modular addition generalises long after (Power et al. 2022)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lmech import summaries
from lmech.collecting import Run
from lmech.plotting import colors, log_scale

FITTED = 0.01
"""Nats: the loss at which a split counts as learned (Nanda et al. 2023)."""
TURNED = 1.0
"""Nats: the test loss on its way down, below that of a guess (Nanda et al. 2023)."""
KNOWN = 0.99
"""Accuracy at which a split counts as known."""


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run (``kind`` run), and one a comparison of runs (fractions, decays).

    ``arm``: ``adamw``, or ``held``, the norm of all weights fixed. ``memorised_at``,
    ``generalised_at``: first recorded step at which the training, the test loss is at most 0.01
    nats; ``turned_at``: the test loss at most 1 nat. Infinite if that was not within the run:
    censored, at ``steps``. ``ratio``: generalised over memorised. ``known_at``: first recorded step
    with 99 % of the test pairs, ``known_ratio``: over that of the training pairs. ``peak``: the
    largest test loss, at step ``peak_at``. ``restricted_lead``: the step from which on the test
    loss, over that from which on the restricted loss is at most half of ln p, the loss of a guess;
    above 1 the structure is there first. ``excluded_rise``: the excluded loss at the end, over its
    least since memorising. ``gini_rise``: Fourier concentration of the embedding, last less at
    memorising. ``norm_fall``: weight norm when generalised (or last) over its largest.

    ``kind`` fractions, for each decay: ``falls``, the largest ratio of successive medians over the
    seeds of ``generalised_at``, with the fraction (1: neither generalised), below 1 if the delay
    falls; ``critical``, the smallest fraction at which the median run generalises.
    ``kind`` decays, for each fraction: ``falls``, the same with the decay, of ``turned_at``;
    ``slope`` of log median ``turned_at`` in log decay: −1 if the delay is ∝ 1/decay.
    """
    frame = pd.concat([_metrics(run) for run in runs], ignore_index=True)
    steps = {
        "memorised_at": _crossed(frame, "train_loss", FITTED),
        "generalised_at": _crossed(frame, "test_loss", FITTED),
        "turned_at": _crossed(frame, "test_loss", TURNED),
    }
    known = summaries.delay(frame, threshold=KNOWN)
    crossed = pd.DataFrame(steps).to_dict("records")
    rows = [{**_row(run, at), **at} for run, at in zip(runs, crossed, strict=True)]
    table = pd.DataFrame(rows).assign(
        known_at=known["generalised_at"].fillna(np.inf).to_numpy(),
        known_ratio=known["ratio"].to_numpy(),
    )
    finite = table["memorised_at"].where(np.isfinite(table["memorised_at"]))
    table["ratio"] = table["generalised_at"] / finite
    free = table[table["arm"] == "adamw"]
    compared = [
        *(_fractions(decay, own) for decay, own in free.groupby("decay")),
        *(_decays(fraction, own[own["decay"] > 0]) for fraction, own in free.groupby("fraction")),
    ]
    return pd.concat([table, pd.DataFrame(compared)], ignore_index=True)


def _metrics(run: Run) -> pd.DataFrame:
    """A run's columns in the layout that ``lmech.summaries`` takes."""
    named = ["step", "train_loss", "test_loss", "train_accuracy", "test_accuracy"]
    return pd.concat({run.job: run.metrics[named]}, names=["job"]).reset_index("job")


def _crossed(frame: pd.DataFrame, column: str, level: float) -> pd.Series:
    """Each job's first recorded step at or below the level; infinite: none."""
    return summaries.first_crossing(frame, column, level)["step"].fillna(np.inf)


def _labels(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "arm": "held" if "norm" in config["optimizer"] else "adamw",
        "p": config["dataset"]["p"],
        "fraction": config["data_fraction"],
        "decay": config["optimizer"]["weight_decay"],
        "seed": config["seed"],
    }


def _row(run: Run, crossed: dict[Any, float]) -> dict[str, Any]:
    names = ("test_loss", "progress_restricted_loss", "progress_excluded_loss")
    test, restricted, excluded = (run.column(name).dropna() for name in names)
    gini, norm = run.column("fourier_concentration").dropna(), run.column("weight_norm").dropna()
    since = crossed["memorised_at"] if np.isfinite(crossed["memorised_at"]) else 0
    end = min(crossed["generalised_at"], norm.index[-1])
    half = np.log(run.config["dataset"]["p"]) / 2
    known, structured = (for_good(loss, half) for loss in (test, restricted))
    return {
        "kind": "run",
        "job": run.job,
        **_labels(run.config),
        "steps": run.result["steps"],
        "peak": test.max(),
        "peak_at": test.idxmax(),
        "restricted_lead": known / structured if np.isfinite(structured) else np.nan,
        "excluded_rise": excluded.iloc[-1] / excluded[excluded.index >= since].min(),
        "gini_rise": gini.iloc[-1] - gini[gini.index >= since].iloc[0],
        "norm_fall": norm[norm.index <= end].iloc[-1] / norm.max(),
    }


def for_good(losses: pd.Series, level: float) -> float:
    """The first recorded step from which on the loss stays at most at the level; infinite: none."""
    above = losses.index[losses > level]
    after = losses.index[losses.index > above[-1]] if len(above) else losses.index
    return float(min(after, default=np.inf))


def _fractions(decay: Any, own: pd.DataFrame) -> dict[str, Any]:
    medians = own.groupby("fraction")["generalised_at"].median()
    row = {"kind": "fractions", "decay": decay, "falls": _largest_ratio(medians), **_from(own)}
    return {**row, "critical": min(medians.index[np.isfinite(medians)], default=np.inf)}


def _decays(fraction: Any, own: pd.DataFrame) -> dict[str, Any]:
    medians = own.groupby("decay")["turned_at"].median()
    row = {"kind": "decays", "fraction": fraction, "falls": _largest_ratio(medians), **_from(own)}
    there = medians[np.isfinite(medians)]
    if len(there) < 2:
        return row
    return {**row, "slope": np.polyfit(np.log(there.index), np.log(there), 1)[0]}


def _from(own: pd.DataFrame) -> dict[str, Any]:
    return {"jobs": own["job"].tolist(), "seeds": sorted(own["seed"].unique().tolist())}


def _largest_ratio(medians: pd.Series) -> float:
    """Of successive ones; 1 where both are infinite, NaN for fewer than two."""
    values = medians.to_numpy()
    with np.errstate(invalid="ignore"):
        ratios = values[1:] / values[:-1]
    return float(np.where(np.isnan(ratios), 1, ratios).max()) if len(ratios) else np.nan


COLUMNS = 3


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Losses of one seed, a panel a fraction; progress measures; delays, where they compare."""
    table = measurements[measurements["kind"] == "run"]
    free = table[table["arm"] == "adamw"]
    decay = free["decay"].mode().max()
    fractions = sorted(free.loc[free["decay"] == decay, "fraction"].unique())[-COLUMNS:]
    chosen = {
        (labels["arm"], labels["fraction"], labels["decay"]): run
        for run in runs
        if (labels := _labels(run.config))["seed"] == table["seed"].min()
    }
    slowest = chosen["adamw", _slowest(free[free["decay"] == decay]), decay]
    panels: list[Callable[[Axes], None]] = [
        *(
            partial(_losses, run=chosen["adamw", f, decay], without=chosen.get(("adamw", f, 0.0)))
            for f in fractions
        ),
        partial(_progress, run=slowest),
        *(
            partial(_delays, table=own, x=x, by=by, name=name, level=level)
            for own, x, by, name, level in (
                (free, "fraction", "decay", "generalised_at", FITTED),
                (free[free["decay"] > 0], "decay", "fraction", "turned_at", TURNED),
            )
            if own.groupby(by)[x].nunique().max() > 1
        ),
    ]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    fig = Figure(figsize=(3.3 * columns, 3.2 * rows), layout="constrained", dpi=150)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        panel(axis)
    for axis in axes[len(panels) :]:
        axis.remove()
    return fig


def _slowest(own: pd.DataFrame) -> float:
    """The smallest fraction whose median run generalises; if none does, the largest."""
    medians = own.groupby("fraction")["generalised_at"].median()
    return min(medians.index[np.isfinite(medians)], default=max(medians.index))


WORDS: dict[str, Callable[[float], str]] = {
    "fraction": lambda fraction: f"{fraction:.0%} of the pairs",
    "decay": lambda decay: f"decay {decay:g}",
}


def _losses(axis: Axes, run: Run, without: Run | None) -> None:
    lines = [(run, "train_loss", "C0", "-", "train"), (run, "test_loss", "C1", "-", "test")]
    if without is not None:
        lines.append((without, "test_loss", "C1", ":", "test, no decay"))
    for own, name, color, style, label in lines:
        loss = own.column(name).dropna()
        axis.plot(loss.index + 1, loss, color=color, ls=style, lw=1.3, label=label)
    axis.axhline(FITTED, color="0.6", lw=0.8, ls="--")
    labels = _labels(run.config)
    words = [WORDS[key](labels[key]) for key in ("fraction", "decay")]
    axis.set_title(", ".join(words), fontsize=9)
    axis.set_ylabel("loss (nats)")
    axis.legend(fontsize=7)
    axis.loglog()
    _dress(axis, "step + 1")


PROGRESS: dict[str, tuple[str, str]] = {
    "test_loss": ("test", "C1"),
    "progress_restricted_loss": ("restricted (test)", "C2"),
    "progress_excluded_loss": ("excluded (train)", "C3"),
}


def _progress(axis: Axes, run: Run) -> None:
    for name, (label, color) in PROGRESS.items():
        values = run.column(name).dropna()
        axis.plot(values.index + 1, values, lw=1.3, color=color, label=label)
    axis.set_title(f"progress, {run.config['data_fraction']:.0%} of the pairs", fontsize=9)
    axis.set_ylabel("loss (nats)")
    axis.legend(fontsize=7)
    axis.loglog()
    _dress(axis, "step + 1")


def _delays(axis: Axes, table: pd.DataFrame, x: str, by: str, name: str, level: float) -> None:
    """Steps against one setting, a line of medians a value of the other; triangles: censored."""
    values = sorted(table[by].unique())
    for value, color in zip(values, colors(len(values)), strict=True):
        own = table[table[by] == value]
        if own[x].nunique() < 2:
            continue
        there = own[np.isfinite(own[name])]
        axis.plot(there[x], there[name], "o", ms=4, mfc="none", color=color)
        medians = own.groupby(x)[name].median()
        axis.plot(medians[np.isfinite(medians)], lw=1.2, color=color, label=WORDS[by](value))
        never = own[~np.isfinite(own[name])]
        axis.plot(never[x], never["steps"], "^", ms=6, mfc="none", color=color)
    log_scale(axis)
    if x == "decay":
        axis.set_xscale("log")
        axis.set_xticks(ticks := sorted(table[x].unique()), [f"{tick:g}" for tick in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set_title(f"step at a test loss of {level:g} (△: not in the run)", fontsize=8)
    if axis.get_lines():
        axis.legend(fontsize=7)
    _dress(axis, {"fraction": "fraction of the pairs", "decay": "weight decay"}[x])


def _dress(axis: Axes, x: str) -> None:
    axis.set_xlabel(x)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.5)
