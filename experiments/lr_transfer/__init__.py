"""The best learning rate moves with the width under SP and stays under μP (Yang et al. 2022)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from lmech import summaries
from lmech.collecting import Run
from lmech.plotting import colors

KEYS = {
    "parametrization": "parametrization",
    "width": "model.width",
    "depth": "model.depth",
    "steps": "steps",
    "batch_size": "batch_size",
}
ALONG = ("width", "depth", "steps", "batch_size")


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a parametrization and key that grows (``along``), the others at their usual values.

    A run's loss is the mean of its batches' losses over the second half of its steps; one that
    diverged is the worst there is. The best learning rate is that of the mean over the seeds of its
    logarithm. ``drift``: octaves of the best learning rate a doubling
    (``summaries.drift``), ``drift_low`` and ``drift_high`` its bootstrap interval over the seeds;
    ``octaves`` the same from the smallest to the largest value. ``regret``: what the largest loses
    with the smallest's best rate, in nats (means of the loss itself).
    ``worst_step``: the largest ratio of the best losses of successive values (at most 1: wider is
    better). ``first_best``, ``last_best``: log2 of the best rate on the grid, of the smallest and
    of the largest value; ``lowest_best``, ``highest_best``: of all. ``sensitivity``: octaves within
    10 % of the best loss, of the value
    where that is narrowest. ``edges``: values whose best rate is at the grid's edge, where nothing
    else is known.
    """
    frame = losses(runs)
    rows = []
    for (parametrization, along), own in arms(frame).items():
        best = summaries.optimum(own, "rate", "log_loss", by=along).sort_values(along)
        drift = summaries.drift(own, "rate", "log_loss", along).iloc[0]
        smallest = {along: best[along].iloc[0]}
        lost = summaries.regret(own, "rate", "loss", along, smallest).sort_values(along).iloc[-1]
        flat = summaries.sensitivity(own, "rate", "loss", 0.1, by=along, relative=True)
        inside = (best["position"] == "inside").all()
        rows.append(
            {
                "parametrization": parametrization,
                "along": along,
                "drift": drift["drift"],
                "drift_low": drift["low"],
                "drift_high": drift["high"],
                "octaves": drift["octaves"],
                "regret": lost["regret"] if inside else np.nan,
                "worst_step": np.exp((best["log_loss"] - best["log_loss"].shift()).max()),
                "first_best": np.log2(best["best"].iloc[0]),
                "last_best": np.log2(best["best"].iloc[-1]),
                "lowest_best": np.log2(best["best"]).min(),
                "highest_best": np.log2(best["best"]).max(),
                "sensitivity": flat["octaves"].min(),
                "edges": int((best["position"] != "inside").sum()),
                "seeds": sorted(own["seed"].unique().tolist()),
                "jobs": own["job"].tolist(),
            }
        )
    return pd.DataFrame(rows)


def losses(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run, in the layout that ``lmech.summaries`` takes."""
    rows = []
    for run in runs:
        config, loss = run.config, run.column("batch_loss")
        late = loss[loss.index >= config["steps"] / 2]
        rows.append(
            {
                "job": run.job,
                "parametrization": run.overrides.get("parametrization", "as configured"),
                "width": config["model"]["width"],
                "depth": config["model"].get("depth"),
                "steps": config["steps"],
                "batch_size": config["batch_size"],
                "rate": config["optimizer"]["learning_rate"],
                "seed": config["seed"],
                "status": run.result["status"],
                "step": run.result["steps"],
                "loss": late.mean() if len(late) else np.nan,
            }
        )
    frame = pd.DataFrame(rows)
    return frame.assign(log_loss=np.log(frame["loss"]))


def arms(frame: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The runs of each parametrization that differ in one key alone (beside rate and seed).

    A key's usual value is the one that most runs have.
    """
    usual = {key: frame[key].mode().iloc[0] for key in ALONG if frame[key].notna().any()}
    found = {}
    for along in usual:
        others = {key: value for key, value in usual.items() if key != along}
        same = frame[(frame[list(others)] == pd.Series(others)).all(axis=1)]
        for parametrization, own in same.groupby("parametrization", sort=False):
            if own[along].nunique() > 1:
                found[str(parametrization), along] = own
    return found


LABELS = {"width": "width", "depth": "depth", "steps": "steps", "batch_size": "batch size"}


def figure(runs: Sequence[Run], _: pd.DataFrame) -> Figure:
    """Loss against learning rate, one curve a width, the optimum marked; where it goes, beside."""
    found = arms(losses(runs))
    alongs = list(dict.fromkeys(along for _, along in found))
    widest = max(sum(along == own for _, own in found) for along in alongs)
    size = (3.2 * (widest + 1), 2.9 * len(alongs))
    fig = Figure(figsize=size, layout="constrained", dpi=150)
    axes = fig.subplots(len(alongs), widest + 1, squeeze=False)
    for line, along in zip(axes, alongs, strict=True):
        own = {name: part for (name, key), part in found.items() if key == along}
        shown = line[: len(own)]
        for axis, (name, part) in zip(shown, own.items(), strict=True):
            axis.sharey(line[0])
            _curves(axis, part, along)
            axis.set_title(f"{name}: one curve a {LABELS[along]}", fontsize=9)
        _limits(shown[0], list(own.values()), along)
        for axis in line[len(own) : widest]:
            axis.set_visible(False)
        _optima(line[-1], own, along)
        line[0].set_ylabel("training loss, second half")
    return fig


def _curves(axis: Axes, part: pd.DataFrame, along: str) -> None:
    sizes = sorted(part[along].unique())
    best = summaries.optimum(part, "rate", "log_loss", by=along).set_index(along)
    for value, color in zip(sizes, colors(len(sizes)), strict=True):
        own = part[(part[along] == value)]
        known = own.assign(log_loss=own["log_loss"].where(own["status"] != "diverged"))
        y = known.groupby("rate")["log_loss"].agg(lambda values: values.mean(skipna=False))
        y = np.exp(y.dropna())
        axis.plot(y.index, y, "-", lw=1.2, color=color, label=f"{value:g}")
        at = best.loc[value]
        if at["position"] == "inside":
            axis.plot(at["optimum"], np.exp(at["log_loss"]), "o", ms=5, color=color)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(r"learning rate $\eta$")
    axis.legend(fontsize=6)
    _plain(axis)


def _limits(axis: Axes, parts: Sequence[pd.DataFrame], along: str) -> None:
    """From the best loss of all to the highest of the curves' medians over the rates."""
    lowest = min(part["loss"].min() for part in parts)
    highest = max(part.groupby(along)["loss"].median().max() for part in parts)
    axis.set_ylim(lowest * (lowest / highest) ** 0.1, highest)
    if highest / lowest < 5:  # no two powers of ten to label
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())


def _optima(axis: Axes, own: dict[str, pd.DataFrame], along: str) -> None:
    """The best rates with their intervals, a line a parametrization."""
    for (name, part), color in zip(own.items(), colors(len(own)), strict=True):
        best = summaries.optimum(part, "rate", "log_loss", by=along).sort_values(along)
        slope = summaries.drift(part, "rate", "log_loss", along).iloc[0]
        known = best[best["position"] == "inside"]
        label = f"{name}: {slope['drift']:+.2f}"
        if np.isfinite(slope["low"]):  # more than one seed
            label += f" [{slope['low']:.2f}, {slope['high']:.2f}]"
        bounds = np.abs(known[["low", "high"]].to_numpy().T - known["optimum"].to_numpy())
        bounds = np.where(np.isfinite(bounds), bounds, 0)
        axis.errorbar(
            known[along], known["optimum"], bounds, fmt="o-", ms=4, lw=1.2, color=color, label=label
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    sizes = sorted({value for part in own.values() for value in part[along]})
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.set_xlabel(LABELS[along])
    axis.set_title("best learning rate", fontsize=9)
    axis.legend(fontsize=6, title="octaves a doubling [95 % over seeds]", title_fontsize=6)
    _plain(axis)


def _plain(axis: Any) -> None:
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.5)
