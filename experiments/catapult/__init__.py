"""Beyond ηλ₀ = 2 the loss rises, then falls where the kernel is smaller (Lewkowycz et al. 2020)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lmech.collecting import Run
from lmech.plotting import colors

BANDS = {"lazy": (0.0, 1.9), "catapult": (2.1, 3.9), "divergent": (4.1, np.inf)}
"""By c = ηλ₀ of the single point's model; runs between two bands are in none."""

NET_BANDS = {"lazy": (0.0, 1.9), "catapult": (2.4, 3.0), "divergent": (8.0, np.inf)}
"""The same for the nets on images, whose boundaries are measured."""

FAILED = 1e6
"""A run whose loss grows by more has diverged."""


def trajectory(
    f: float, kernel: float, rate: float, width: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values of f and λ at steps 0 … ``steps`` of f = n^-½ v·u, L = ½f², under GD (paper, §2).

    u' = u − η f v/√n and v' = v − η f u/√n give, with λ = (|u|² + |v|²)/n,

        f' = f (1 − ηλ + η²f²/n),   λ' = λ + (ηf²/n)(ηλ − 4).

    Infinite or not a number once it has overflowed.
    """
    f, kernel = np.float64(f), np.float64(kernel)  # which overflow without an exception
    fs, kernels = [f], [kernel]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            share = rate * f**2 / width
            f, kernel = (
                f * (1 - rate * kernel + rate * share),
                kernel + share * (rate * kernel - 4),
            )
            fs.append(f)
            kernels.append(kernel)
    return np.array(fs), np.array(kernels)


def lazy_drop(c: float, f: float, kernel: float, width: float) -> float:
    """(λ₀ − λ_∞)/λ₀ to first order in 1/n for c < 2: (4 − c) f₀² / ((2 − c) n λ₀²).

    From λ_{t+1} − λ_t ≈ −(4 − c)(η/n) f_t² and f_t ≈ (1 − c)ᵗ f₀, summed.
    """
    return (4 - c) * f**2 / ((2 - c) * width * kernel**2)


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of two kinds, told apart by ``row``.

    ``run``: one a run, by ``data``, ``activation`` and ``band`` of ``c`` = ηλ₀ (empty between two
    bands). ``diverged``: 1 if the loss grew a millionfold or is not finite, else 0. ``peak``: its
    largest value, ``end`` its last, over the first. ``ratio``: λ at the end over λ₀, ``stability``
    ηλ there; not a number of a run that diverged. Of the single point: ``deviation``, the largest
    of |λ − λ_map|/λ₀ along the run, of the map from the run's own f₀ and λ₀; ``drop_ratio``, λ's
    relative drop over the first-order theory's.

    ``boundary``: of the runs of one ``seed`` on the same ``data`` with one ``activation``, the
    geometric mean of the smallest c that diverged and the largest below it that did not.
    """
    rows = pd.DataFrame([_measure(run) for run in runs])
    found = [_boundary(key, own) for key, own in rows.groupby(["data", "activation", "seed"])]
    return pd.concat([rows.assign(row="run"), pd.DataFrame(found)], ignore_index=True)


def _measure(run: Run) -> dict[str, Any]:
    kernel, loss = run.column("ntk_top"), run.column("train_loss")
    rate, data = run.config["optimizer"]["learning_rate"], run.config["dataset"]["kind"]
    c, peak = rate * kernel.iloc[0], loss.max() / loss.iloc[0]
    diverged = run.result["status"] == "diverged" or not peak < FAILED
    last = np.nan if diverged else kernel.iloc[-1]
    own = {
        "job": run.job,
        "seed": run.config["seed"],
        "data": data,
        "activation": run.config["model"]["activation"],
        "c": c,
        "band": _band(c, BANDS if data == "point" else NET_BANDS),
        "diverged": float(diverged),
        "peak": peak,
        "end": loss.iloc[-1] / loss.iloc[0],
        "ratio": last / kernel.iloc[0],
        "stability": rate * last,
    }
    return {**own, **_beside_theory(run)} if data == "point" and not diverged else own


def _band(c: float, bands: dict[str, tuple[float, float]]) -> str:
    return next((name for name, (low, high) in bands.items() if low <= c <= high), "")


def _beside_theory(run: Run) -> dict[str, float]:
    kernel, f = run.column("ntk_top"), np.sqrt(2 * run.column("train_loss").iloc[0])
    rate, width = run.config["optimizer"]["learning_rate"], run.config["model"]["width"]
    first = kernel.iloc[0]
    _, predicted = trajectory(f, first, rate, width, len(kernel) - 1)
    drop = 1 - kernel.iloc[-1] / first
    return {
        "deviation": np.abs(kernel - predicted).max() / first,
        "drop_ratio": drop / lazy_drop(rate * first, f, first, width),
    }


def _boundary(key: tuple[Any, ...], own: pd.DataFrame) -> dict[str, Any]:
    first = own["c"][own["diverged"] == 1].min()
    below = own["c"][(own["c"] < first) & (own["diverged"] == 0)].max()
    labels = dict(zip(("data", "activation", "seed"), key, strict=True))
    jobs = own["job"][own["c"].isin([first, below])].tolist()
    return {"row": "boundary", **labels, "boundary": float(np.sqrt(first * below)), "jobs": jobs}


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """λ_end/λ₀ against c of the single point with the map's line, and of the nets; three losses."""
    fig = Figure(figsize=(10, 3.4), layout="constrained", dpi=130)
    losses, point, nets = fig.subplots(1, 3)
    rows = measurements[measurements["row"] == "run"]
    own = [run for run in runs if run.config["dataset"]["kind"] == "point"]
    seed = min(run.config["seed"] for run in own)
    shown = [run for run in own if run.config["seed"] == seed]
    _losses(losses, shown, (1.5, 2.5, 3.5, 4.3))
    _theory(point, shown[0])
    _ratios(point, rows[rows["data"] == "point"], {"linear": ("run", colors(1)[0])})
    point.set_title("one point, f = v·u/√n, n = 1,024", fontsize=9)
    kinds = dict(zip(("linear", "relu", "tanh"), colors(3), strict=True))
    labels = {name: (f"{name}, one hidden layer", color) for name, color in kinds.items()}
    _ratios(nets, rows[rows["data"] == "digits"], labels)
    nets.set_title("nets on 128 digits", fontsize=9)
    for axis in (point, nets):
        axis.set(xlabel=r"$c = \eta\lambda_0$", ylabel=r"$\lambda_{end}/\lambda_0$")
        axis.set_xlim(0, 6)
        axis.legend(fontsize=7, loc="upper right")
    for axis in (losses, point, nets):
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def _losses(axis: Axes, runs: Sequence[Run], wanted: Sequence[float]) -> None:
    """Loss against step of the runs nearest to some c, and the map's (dotted)."""
    for c, color in zip(wanted, colors(len(wanted)), strict=True):
        run = min(runs, key=lambda run: abs(_measure(run)["c"] - c))
        rate, loss = run.config["optimizer"]["learning_rate"], run.column("train_loss")
        first = run.column("ntk_top").iloc[0]
        f, _ = trajectory(
            np.sqrt(2 * loss.iloc[0]), first, rate, run.config["model"]["width"], len(loss) - 1
        )
        axis.plot(loss.index, loss, "-", lw=1.3, color=color, label=f"c = {rate * first:.2f}")
        axis.plot(loss.index, f**2 / 2, "k:", lw=1)
    axis.plot([], [], "k:", lw=1, label="map")
    axis.set(xlim=(0, 25), ylim=(1e-8, 1e6), yscale="log", xlabel="step", ylabel="training loss")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title(f"one point, seed {runs[0].config['seed']}", fontsize=9)
    axis.legend(fontsize=7, loc="upper right", ncols=2)


def _theory(axis: Axes, run: Run) -> None:
    """λ_end/λ₀ of the map from one run's start, over all c, and where a minimum is unstable."""
    first, f = run.column("ntk_top").iloc[0], np.sqrt(2 * run.column("train_loss").iloc[0])
    grid = np.linspace(0.4, 3.999, 1500)
    width = run.config["model"]["width"]
    ends = [trajectory(f, first, c / first, width, 3000)[1][-1] / first for c in grid]
    axis.plot(grid, ends, "-", lw=2.5, color="0.75", label="map, from one seed's start")


def _ratios(axis: Axes, rows: pd.DataFrame, kinds: dict[str, tuple[str, Any]]) -> None:
    """A dot a run; on the upper rim a cross where it diverged."""
    for number, (activation, (label, color)) in enumerate(kinds.items()):
        own = rows[rows["activation"] == activation]
        done, lost = own[own["diverged"] == 0], own[own["diverged"] == 1]
        axis.plot(done["c"], done["ratio"], ".", ms=3, color=color, label=label)
        axis.plot(lost["c"], [1.2 + 0.05 * number] * len(lost), "x", ms=3.5, color=color)
    axis.plot([], [], "kx", ms=3.5, label=r"diverged: no $\lambda_{end}$")
    c = np.linspace(2, 6, 50)
    axis.plot(c, 2 / c, "--", lw=1, color="0.3", label=r"$\eta\lambda_{end} = 2$")
    axis.set_ylim(0, 2.1)
