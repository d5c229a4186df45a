"""Instabilities of large transformers, seen in a small one at high learning rates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lmech import summaries
from lmech.collecting import Run
from lmech.plotting import colors, log_scale

ARMS = {
    (False, False): "plain",
    (True, False): "qk-norm",
    (False, True): "z-loss",
    (True, True): "both",
}
PAIRS = (
    ("plain", "plain"),
    ("qk-norm", "plain"),
    ("z-loss", "plain"),
    ("both", "plain"),
    ("both", "qk-norm"),
)
"""An arm, and the one that it is compared with: the same net without the remedy."""

UNIGRAM, BIGRAM = 3.309, 2.452
"""Entropy of Tiny Shakespeare's training characters, alone and given the one before, in nats."""

LOST = (UNIGRAM + BIGRAM) / 2
"""Above it a net has lost half of what the previous character tells of the next one."""

HIGHEST = 0.31
"""The sensitivity's rates end here (Wortsman et al. 2023); those above it only find where arms end.
"""

LAST = 20
"""Steps at the end whose batch losses are averaged."""


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a seed and pair of arms: ``arm``, and ``over``, what it is compared with.

    A run's loss is the mean of its last 20 batches' losses, with the z-loss's term where there is
    one. ``lost_at``: log2 of the learning rate at which it rises above ``LOST`` past the arm's best
    rate, linear in log2 of the rate between grid points; infinite if it never does.
    ``octaves_gained``: that less the other's. ``sensitivity``: the mean over the rates up to
    ``HIGHEST`` of min(loss, loss at the start) − best (Wortsman et al. 2023, section 2.2);
    ``sensitivity_ratio``: over the other's. ``attention_growth``: slope of log2 of the largest
    attention logit at the end against log2 of the rate, over the rates at which neither net is
    lost. ``attention_lost``: log10 of that logit where the net is lost. ``log_z``: mean over the
    same rates of mean log² Z at the end, as a ratio to the other's; ``log_z_growth``: its slope
    against log2 of the rate, from the arm's best one on, in octaves an octave.
    """
    frame = losses(runs)
    found = {key: _arm(own) for key, own in frame.groupby(["arm", "seed"], sort=False)}
    return pd.DataFrame(
        _compared(arm, over, seed, found)
        for arm, over in PAIRS
        for seed in sorted(frame["seed"].unique())
        if (arm, seed) in found and (over, seed) in found
    )


def _arm(own: pd.DataFrame) -> dict[str, Any]:
    """What one arm and seed say alone; ``end`` has a row a rate."""
    few = own[own["rate"] <= HIGHEST]
    end = own[own["step"] > 0].assign(log_rate=np.log2(own["rate"])).sort_values("log_rate")
    u, loss = end["log_rate"].to_numpy(), end["loss"].to_numpy()
    sensitivity = summaries.learning_rate_sensitivity(few, "rate", "loss").iloc[0]
    lost_at = crossing(u, np.nan_to_num(loss, nan=np.inf), LOST)
    attention = np.log10(end["attention"].to_numpy())
    return {
        "end": end,
        "best": u[np.nanargmin(loss)],
        "lost_at": lost_at,
        "sensitivity": sensitivity["sensitivity"],
        "attention_lost": np.interp(lost_at, u, attention) if lost_at < np.inf else np.nan,
        "jobs": own["job"].unique().tolist(),
    }


def crossing(u: np.ndarray, loss: np.ndarray, level: float) -> float:
    """The first u past the best point at which the loss, linear between points, exceeds level.

    Before an infinite loss it is the last finite point; infinite if there is none.
    """
    best = int(np.argmin(loss))
    above = np.flatnonzero(loss[best:] > level)
    if not len(above):
        return np.inf
    after = best + int(above[0])
    if after == best:
        return float(u[best])
    before = after - 1
    share = (level - loss[before]) / (loss[after] - loss[before])
    return float(u[before] + share * (u[after] - u[before]))


def _compared(arm: str, over: str, seed: int, found: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    own, other = found[arm, seed], found[over, seed]
    until = min(own["lost_at"], other["lost_at"])
    here, there = (one["end"][one["end"]["log_rate"] <= until] for one in (own, other))
    late = here[here["log_rate"] >= own["best"]]
    return {
        "arm": arm,
        "over": over,
        "seed": seed,
        "lost_at": own["lost_at"],
        "octaves_gained": own["lost_at"] - other["lost_at"],
        "sensitivity": own["sensitivity"],
        "sensitivity_ratio": own["sensitivity"] / other["sensitivity"],
        "attention_growth": _slope(here["log_rate"], np.log2(here["attention"])),
        "attention_lost": own["attention_lost"],
        "log_z": here["log_z"].mean() / there["log_z"].mean(),
        "log_z_growth": _slope(late["log_rate"], np.log2(late["log_z"])),
        "jobs": own["jobs"] if arm == over else [*own["jobs"], *other["jobs"]],
    }


def _slope(u: pd.Series, values: pd.Series) -> float:
    return float(np.polyfit(u, values, 1)[0]) if len(values) > 1 else np.nan


def losses(runs: Sequence[Run]) -> pd.DataFrame:
    """Two rows a run, step 0 and its end, in the layout that ``lmech.summaries`` takes."""
    rows = []
    for run in runs:
        config, loss = run.config, run.column("batch_loss")
        labels = {
            "job": run.job,
            "arm": ARMS[config["model"]["qk_norm"], config["loss"]["z_loss"] > 0],
            "rate": config["optimizer"]["learning_rate"],
            "seed": config["seed"],
            "status": run.result["status"],
        }
        late = loss[loss.index >= config["steps"] - LAST]
        end = {
            "loss": late.mean() if len(late) else np.nan,
            "attention": run.column("attention_logits").iloc[-1],
            "log_z": run.column("logits_log_partition").iloc[-1],
        }
        rows.append({**labels, "step": 0, "loss": loss.iloc[0]})
        rows.append({**labels, "step": config["steps"], **end})
    return pd.DataFrame(rows)


PANELS = {
    "loss": "training loss, last 20 steps (nats)",
    "attention": "largest attention logit at the end",
    "log_z": r"mean $\log^2 Z$ at the end",
}


def figure(runs: Sequence[Run], _: pd.DataFrame) -> Figure:
    """Against learning rate: a dot a run, a line through the medians of an arm's seeds.

    A colour for nets without qk-norm and one for those with it, dashes for the z-loss.
    """
    frame = losses(runs)
    start = frame.loc[frame["step"] == 0, "loss"].mean()
    ends = frame[frame["step"] > 0]
    fig = Figure(figsize=(10, 3.3), layout="constrained", dpi=150)
    axes = dict(zip(PANELS, fig.subplots(1, len(PANELS)), strict=True))
    shades = colors(3)
    for name, axis in axes.items():
        for (qk_norm, z_loss), arm in ARMS.items():
            own, color = ends[ends["arm"] == arm], shades[2 * qk_norm]
            axis.plot(own["rate"], own[name], "s" if z_loss else "o", ms=2, alpha=0.5, color=color)
            centre = own.groupby("rate")[name].median()
            line = "--" if z_loss else "-"
            axis.plot(centre.index, centre, line, lw=1.3, color=color, label=arm)
        axis.set_title(PANELS[name], fontsize=9)
        _dress(axis, name)
    for level, word in ((start, "at the start"), (UNIGRAM, "without context"), (LOST, "lost")):
        axes["loss"].axhline(level, color="0.5", lw=1, ls=":")
        place = {"xycoords": ("axes fraction", "data"), "fontsize": 7, "va": "bottom"}
        axes["loss"].annotate(word, (0.02, level), **place)
    axes["loss"].set_ylim(ends["loss"].min() - 0.1, 1.15 * start)
    axes["attention"].legend(fontsize=7)
    return fig


def _dress(axis: Axes, name: str) -> None:
    axis.set_xscale("log")
    if name == "attention":
        axis.set_yscale("log")
    elif name == "log_z":
        log_scale(axis)
    axis.set_xlabel(r"learning rate $\eta$")
    for line in (axis.xaxis, axis.yaxis):
        line.set_minor_locator(NullLocator())
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, lw=0.5)
