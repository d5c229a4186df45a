"""In products of weights no step sharpens the gradient-flow solution (Kreisler et al. 2023)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import colors

EDGE = (2.0, 2.5)
"""Starts are ``stable`` below, at the ``edge`` between and ``beyond`` above these values of ηφ."""

LABELS = ["kind", "depth", "band"]


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of two kinds, told apart by ``row``; φ is the sharpness of the gradient-flow solution.

    ``run``: one a run, by ``kind`` of net, ``depth`` (of the scalar net, else 0) and ``band`` of
    its start (``EDGE``). ``start``, ``final``: ηφ at step 0 and at the end; ``converged``: whether
    the loss came to the threshold at which a run stops, 1 or 0. ``worst``: the largest relative
    increase of φ from one measurement to the next (negative: none), ``error`` the largest relative
    error of φ; ``plain_worst`` and ``loss_worst``: the same increase of the sharpness and of the
    loss, which ``rising`` has as 1 where both are above 0.

    ``group``: of a kind, depth and band, ``converged`` and ``rising`` shares, ``final`` the median
    over the runs that converged, ``worst`` the largest of all.
    """
    rows = pd.DataFrame([_measure(run) for run in runs])
    groups = [_group(key, own) for key, own in rows.groupby(LABELS)]
    return pd.concat([rows.assign(row="run"), pd.DataFrame(groups)], ignore_index=True)


def _measure(run: Run) -> dict[str, Any]:
    phi, plain, loss = series(run)
    kind, start = run.config["model"]["kind"], phi.iloc[0]
    own = {
        "job": run.job,
        "seed": run.config["seed"],
        "kind": kind,
        "depth": run.config["model"]["depth"] if kind == "scalar" else 0,
        "band": ("stable", "edge", "beyond")[int(np.searchsorted(EDGE, start))],
        "start": start,
        "final": phi.iloc[-1],
        "converged": float(loss.iloc[-1] <= run.config["stop"]["train_loss"]),
        "worst": _rise(phi),
        "error": run.column("solution_error").max(),
        "plain_worst": _rise(plain),
        "loss_worst": _rise(loss),
    }
    return {**own, "rising": float(own["plain_worst"] > 0 and own["loss_worst"] > 0)}


def series(run: Run) -> tuple[pd.Series, pd.Series, pd.Series]:
    """ηφ, ηλ₁ and the training loss by step, where they are finite."""
    eta = run.config["optimizer"]["learning_rate"]
    names = {"solution": eta, "solution_plain": eta, "train_loss": 1.0}
    phi, plain, loss = (
        run.column(name)[np.isfinite(run.column(name))] * unit for name, unit in names.items()
    )
    return phi, plain, loss


def _rise(values: pd.Series) -> float:
    """Largest relative increase from one value to the next."""
    return float((values / values.shift() - 1).max())


def _group(key: tuple[Any, ...], own: pd.DataFrame) -> dict[str, Any]:
    return {
        "row": "group",
        **dict(zip(LABELS, key, strict=True)),
        "converged": own["converged"].mean(),
        "rising": own["rising"].mean(),
        "final": own["final"][own["converged"] == 1].median(),
        "worst": own["worst"].max(),
        "seeds": sorted(set(own["seed"])),
        "jobs": own["job"].tolist(),
    }


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """ηφ and ηλ₁ against step of two kinds of nets; where the scalar nets' ηφ ends."""
    fig = Figure(figsize=(10, 3.4), layout="constrained", dpi=130)
    scalar, diagonal, ends = fig.subplots(1, 3)
    _paths(scalar, runs, "scalar", 4, "product of 4 weights")
    _paths(diagonal, runs, "diagonal", 0, "squared regression, 5 points")
    rows = measurements[(measurements["row"] == "run") & (measurements["kind"] == "scalar")]
    rows = rows[(rows["band"] == "edge") & (rows["converged"] == 1)]
    depths = sorted(rows["depth"].unique())
    for number, (depth, color) in enumerate(zip(depths, colors(len(depths)), strict=True)):
        own = rows[rows["depth"] == depth]
        shifted = own["start"] + 0.012 * (number - 1.5)
        ends.plot(shifted, own["final"], ".", ms=3.5, color=color, label=f"{depth:g} weights")
    ends.axhline(2, color="0.3", lw=1, ls=(0, (4, 3)), label="stable up to 2")
    ends.set(xlabel=r"$\eta\varphi$ at the start", ylabel=r"$\eta\varphi$ at the minimum found")
    ends.set_title("runs that converged, all seeds", fontsize=9)
    ends.legend(fontsize=7, loc="lower left")
    for axis in (scalar, diagonal, ends):
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def _paths(axis: Axes, runs: Sequence[Run], kind: str, depth: int, title: str) -> None:
    """One seed's runs at the edge: φ thick, the plain sharpness thin, 2/η dashed."""
    rows = [(run, _measure(run)) for run in runs if run.config["model"]["kind"] == kind]
    own = [run for run, row in rows if row["band"] == "edge" and row["depth"] == depth]
    seeds = [run.config["seed"] for run in own]
    shown = [run for run, seed in zip(own, seeds, strict=True) if seed == min(seeds)]
    for number, (run, color) in enumerate(zip(shown, colors(len(shown)), strict=True)):
        phi, plain, _ = (values[values.index <= 60] for values in series(run))
        names = (r"$\eta\varphi$, of the flow's solution", r"$\eta\lambda_1$, of the iterate")
        label = names if number == 0 else (None, None)
        axis.plot(phi.index, phi, "-", lw=2, color=color, label=label[0])
        axis.plot(plain.index, plain, "-", lw=0.6, alpha=0.8, color=color, label=label[1])
    axis.axhline(2, color="0.3", lw=1, ls=(0, (4, 3)), label="stable up to 2")
    axis.set(xlabel="step", ylabel=r"sharpness times $\eta$")
    axis.set_title(f"{title}, seed {min(seeds, default='-')}", fontsize=9)
    axis.legend(fontsize=7)
