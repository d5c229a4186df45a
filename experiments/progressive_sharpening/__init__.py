"""Models quadratic in their weights sharpen to the edge of stability (Agarwala et al. 2023)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmech.collecting import Run
from lmech.plotting import colors


def trajectory(
    z: float, t0: float, t1: float, epsilon: float, rate: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values of z and T₀ = |J|² at steps 0 … ``steps`` for one example, Q = diag(1, −ε), L = ½z².

    A step θ' = θ − ηzJ changes z = f − y by J·(θ' − θ) + ½(θ' − θ)ᵀQ(θ' − θ) and J by Q(θ' − θ):

        z' = z (1 − ηT₀ + ½η²z T₁),   J_i' = J_i (1 − ηzω_i),   T_k = JQᵏJᵀ,

    so that (z, J₁², J₂²) is a map of its own, and T₀ and T₁ at the start say what J_i² are.
    """
    squares = np.array([(t1 + epsilon * t0) / (1 + epsilon), (t0 - t1) / (1 + epsilon)])
    omega = np.array([1.0, -epsilon])
    residuals, kernels = [z], [squares.sum()]
    for _ in range(steps):
        moved = rate * z
        z = z * (1 - rate * squares.sum() + 0.5 * rate * moved * (omega @ squares))
        squares = squares * (1 - moved * omega) ** 2
        residuals.append(z)
        kernels.append(squares.sum())
    return np.array(residuals), np.array(kernels)


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of two kinds, told apart by ``row``; λ is the largest eigenvalue of the tangent kernel.

    ``run``: one a run, of ``model`` pair (one example, two weights, by ``epsilon``) or random (20
    examples, 64 weights, by ``curvature``), by ``rate``. ``first``, ``peak``, ``final``: ηλ at the
    start, at most, and at the end; ``growth``, the last over the first; ``crossed``, 1 if the peak
    is 2 or more, ``converged``, 1 if the loss came to the threshold at which a run stops. Of a
    pair: ``deviation``, the largest difference of ηλ from the map of the run's own start; ``slow``,
    1 if it took more than 3/ε steps; ``deficit`` (2 − ``final``)/ε. Of a run that diverged
    the peak is infinite, and there are no other numbers.

    ``group``: the pairs of an ``epsilon`` that crossed, converged, and were slow: medians of
    ``final`` and ``deficit``, and ``runs``, how many there are. One with epsilon 0 has
    ``trend``, the median of 2 − ηλ at the largest ε over that at the smallest.
    """
    rows = pd.DataFrame([_measure(run) for run in runs])
    return pd.concat([rows.assign(row="run"), _groups(rows)], ignore_index=True)


def _measure(run: Run) -> dict[str, Any]:
    model, rate = run.config["model"], run.config["optimizer"]["learning_rate"]
    eigenvalues = model["eigenvalues"]
    labels = {
        "job": run.job,
        "seed": run.config["seed"],
        "model": "random" if eigenvalues is None else "pair",
        "epsilon": np.nan if eigenvalues is None else -eigenvalues[1],
        "curvature": model["curvature"],
        "rate": rate,
    }
    if run.result["status"] == "diverged":
        return {**labels, "peak": np.inf, "crossed": 1.0, "converged": 0.0}
    edge = kernel(run)
    loss = run.column("train_loss")
    own = {
        "first": edge.iloc[0],
        "peak": edge.max(),
        "final": edge.iloc[-1],
        "growth": edge.iloc[-1] / edge.iloc[0],
        "crossed": float(edge.max() >= 2),
        "converged": float(loss.iloc[-1] <= run.config["stop"]["train_loss"]),
    }
    pair = labels["model"] == "pair"
    return labels | own | (_of_pair(run, edge, labels["epsilon"]) if pair else {})


def kernel(run: Run) -> pd.Series:
    """ηλ by step, of a pair at every one."""
    name = "ntk_top" if run.config["model"]["eigenvalues"] is None else "moments"
    return run.config["optimizer"]["learning_rate"] * run.column(name)


def predicted(run: Run) -> np.ndarray:
    """ηλ of the map from the run's start, at every step of a pair."""
    z, t0, t1 = (
        run.column(name).iloc[0] for name in ("moments_residual", "moments", "moments_first")
    )
    rate, epsilon = run.config["optimizer"]["learning_rate"], -run.config["model"]["eigenvalues"][1]
    steps = len(run.column("moments")) - 1
    return rate * trajectory(z, t0, t1, epsilon, rate, steps)[1]


def _of_pair(run: Run, edge: pd.Series, epsilon: float) -> dict[str, float]:
    return {
        "deviation": float(np.abs(edge - predicted(run)).max()),
        "slow": float(edge.index[-1] > 3 / epsilon),
        "deficit": (2 - edge.iloc[-1]) / epsilon,
    }


def _groups(rows: pd.DataFrame) -> pd.DataFrame:
    chosen = rows[(rows["model"] == "pair") & (rows["crossed"] == 1)]
    chosen = chosen[(chosen["converged"] == 1) & (chosen["slow"] == 1)]
    found = [
        {
            "epsilon": epsilon,
            "final": own["final"].median(),
            "deficit": own["deficit"].median(),
            "runs": len(own),
            "seeds": sorted(set(own["seed"])),
            "jobs": own["job"].tolist(),
        }
        for epsilon, own in chosen.groupby("epsilon")
    ]
    if not found:
        return pd.DataFrame()
    below = 2 - np.array([group["final"] for group in found])
    both = {"seeds": sorted(set(chosen["seed"])), "jobs": chosen["job"].tolist()}
    found.append({"epsilon": 0.0, "trend": below[-1] / below[0], **both})
    return pd.DataFrame(found).assign(row="group")


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """ηλ against step of pairs beside their map; where pairs end; ηλ of the random models."""
    fig = Figure(figsize=(10, 3.4), layout="constrained", dpi=130)
    paths, ends, random = fig.subplots(1, 3)
    rows = measurements[measurements["row"] == "run"].set_index("job")
    named = {run.job: run for run in runs}
    _pairs(paths, rows[rows["epsilon"] == 0.05], named)
    _ends(ends, measurements)
    _random(random, rows[rows["model"] == "random"], named)
    for axis in (paths, ends, random):
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def _edge(axis: Axes) -> None:
    axis.axhline(2, color="0.3", lw=1, ls=(0, (4, 3)))
    axis.set(xlabel="step", ylabel=r"$\eta\lambda$ of the tangent kernel")


def _pairs(axis: Axes, rows: pd.DataFrame, runs: dict[str, Run]) -> None:
    """Four runs that crossed the edge, of different lengths, and the map's (dotted)."""
    good = rows[(rows["crossed"] == 1) & (rows["slow"] == 1) & (rows["converged"] == 1)]
    good = good[good["peak"] < 3]
    shown = good.sort_values("first").index[:: max(1, len(good) // 4)][:4]
    for job, color in zip(shown, colors(len(shown)), strict=True):
        edge = kernel(runs[job])
        axis.plot(edge.index, edge, "-", lw=1.3, color=color)
        axis.plot(edge.index, predicted(runs[job]), "k:", lw=0.9)
    axis.plot([], [], "-", color="0.5", label="run")
    axis.plot([], [], "k:", label="map")
    _edge(axis)
    axis.set(xlim=(0.8, 500), xscale="log", ylim=(0, 3))
    axis.set_title(r"one example, two weights, $\epsilon = 0.05$", fontsize=9)
    axis.legend(fontsize=7)


def _ends(axis: Axes, measurements: pd.DataFrame) -> None:
    """2 − ηλ at the end of slow pairs against ε, their medians, and ε/2."""
    pairs = measurements[(measurements["slow"] == 1) & (measurements["crossed"] == 1)]
    pairs = pairs[pairs["converged"] == 1]
    groups = measurements[(measurements["row"] == "group") & (measurements["epsilon"] > 0)]
    axis.plot(pairs["epsilon"], 2 - pairs["final"], "_", ms=9, color=colors(3)[1], label="run")
    axis.plot(groups["epsilon"], 2 - groups["final"], "ko", ms=5, label="median")
    grid = np.array([0.008, 0.12])
    axis.plot(grid, grid / 2, "--", lw=1, color="0.3", label=r"$\epsilon/2$")
    axis.set(
        xscale="log", yscale="log", xlabel=r"$\epsilon$", ylabel=r"$2 - \eta\lambda$ at the end"
    )
    axis.set_title("pairs that crossed the edge slowly", fontsize=9)
    axis.legend(fontsize=7)


def _random(axis: Axes, rows: pd.DataFrame, runs: dict[str, Run]) -> None:
    """All seeds, a colour a learning rate; the linear model at its largest rate dotted."""
    curved = rows[(rows["curvature"] > 0) & rows["final"].notna()]
    rates = sorted(curved["rate"].unique())
    for rate, color in zip(rates, colors(len(rates)), strict=True):
        for number, job in enumerate(curved.index[curved["rate"] == rate]):
            edge, label = kernel(runs[job]), f"{rate:g}" if number == 0 else None
            axis.plot(edge.index + 1, edge, "-", lw=0.8, color=color, label=label)
    linear = rows[(rows["curvature"] == 0) & (rows["rate"] == max(rates))]
    for number, job in enumerate(linear.index):
        edge, label = kernel(runs[job]), f"{max(rates):g}, Q = 0" if number == 0 else None
        axis.plot(edge.index + 1, edge, "k:", lw=1.2, label=label)
    _edge(axis)
    axis.set(xscale="log", xlim=(1, 2000), ylim=(0, 3.5))
    axis.set_xlabel("step + 1")
    axis.set_title("20 examples, 64 weights, all seeds", fontsize=9)
    axis.legend(title="learning rate", fontsize=6.5, title_fontsize=7, ncols=3, loc="upper left")
