"""SGD on single examples ends where η tr(H) ≤ 2, full batches where ηλ₁ ≤ 2 (Wu & Su 2023)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from lmech.collecting import Run
from lmech.plotting import colors

from . import recursion
from .geometry import gram

BEGIN = 4
"""The linear models' growth is measured from this step on: at first all directions weigh alike."""

LARGE = 2.0
"""What stable minima keep η times the sharpness, or the necessary form, below."""


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of six kinds, told apart by ``row``; ``batch`` is B, infinite for the full batch.

    Of the diagonal nets: ``minimum``, one a run, at its end, where its loss has met the stop rule
    (else the numbers are missing): ``trace`` η tr(H), ``sharpness`` ηλ₁, ``necessary`` η [tr(H)/B +
    (1 − 1/B)‖H‖_F²/tr(H)], ``exact`` η/η*, η* the boundary of the linear recursion there; the
    ``excess`` risk Σ(β_k − β*_k)²; ``kernel_error``, largest difference of H's eigenvalues to
    those of K/n, over λ₁. ``series``, one a B and seed, over the learning rates: ``trace_most``,
    ``sharpness_most``, ``spearman`` of η and excess, ``excess_ratio`` of the largest η's over the
    smallest's. ``share``, one a B: ``obey``, the share of its minima with ``necessary`` ≤ 2, and
    ``obey_trace`` with ``trace`` ≤ 2.

    Of the linear models: ``moments``, one a run: ``growth`` a step of E|w|², from step 4 to the
    end, its ``predicted`` value, ``grows`` (1 or 0) and whether that is what is predicted,
    ``right``. ``crossing``, one a geometry, B and seed: the learning rate at which growth is 1
    (interpolated), over that of the predicted growth at the same learning rates (``measured``) and
    over η* (``over_exact``). ``theory``, one a geometry and B, without a run: ``form`` and
    ``guarantee``, 2 over the necessary and the sufficient form, and ``dexter``, each over its exact
    boundary (of the sampling that it is about); ``seeds`` are those of the runs beside it.
    """
    nets = [run for run in runs if "minimum" in _kind(run)]
    linear = [run for run in runs if "moments" in _kind(run)]
    parts = []
    if nets:
        minima = pd.DataFrame([_minimum(run) for run in nets])
        parts += [minima.assign(row="minimum"), _series(minima), _shares(minima)]
    if linear:
        moments = pd.DataFrame([_moments(run) for run in linear])
        parts += [moments.assign(row="moments"), _crossings(moments), _theory(moments)]
    return pd.concat(parts, ignore_index=True)


def _kind(run: Run) -> str:
    return "minimum" if run.config["model"]["_target_"].endswith(".diagonal") else "moments"


def _labels(run: Run) -> dict[str, Any]:
    config = run.config
    size = config["batch_size"]
    each = 1 if _kind(run) == "minimum" else config["model"]["replicas"]
    return {
        "job": run.job,
        "seed": config["seed"],
        "rate": config["optimizer"]["learning_rate"],
        "batch": np.inf if size is None else size / each,
        "spread": np.nan if _kind(run) == "minimum" else config["dataset"]["spread"],
    }


# the minima of the nets


def _minimum(run: Run) -> dict[str, Any]:
    labels = _labels(run)
    loss, wanted = run.column("train_loss").iloc[-1], run.config["stop"]["train_loss"]
    if run.result["status"] != "done" or wanted is None or not loss <= wanted:
        return labels | dict.fromkeys(("loss", *MINIMUM), np.nan)
    values = np.asarray(run.column("stability_eigenvalues").iloc[-1])
    kernel = np.asarray(run.column("stability_gram").iloc[-1])
    kernel = kernel.reshape(round(kernel.size**0.5), -1)
    rate, size = labels["rate"], labels["batch"]
    trace, squares = float(values.sum()), float(np.square(values).sum())
    numbers = (
        rate * trace,
        rate * values.max(),
        rate * recursion.necessary(trace, squares, size),
        rate / recursion.boundary(recursion.problem(kernel), _weights(len(kernel), size)),
        2 * run.column("test_loss").iloc[-1],
        _difference(values, kernel) / values.max(),
    )
    return labels | {"loss": loss, **dict(zip(MINIMUM, numbers, strict=True))}


MINIMUM = ("trace", "sharpness", "necessary", "exact", "excess", "kernel_error")


def _weights(n: int, size: float) -> tuple[float, float]:
    return recursion.WEIGHTS["replacement"](n, size)


def _difference(values: np.ndarray, kernel: np.ndarray) -> float:
    """Between the Hessian's eigenvalues and K/n's, the others being 0."""
    own = np.zeros_like(values)
    own[-len(kernel) :] = np.linalg.eigvalsh(kernel) / len(kernel)
    return float(np.abs(np.sort(values) - np.sort(own)).max())


def _series(minima: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (size, seed), own in minima.sort_values("rate").groupby(["batch", "seed"]):
        complete = own["excess"].notna().all()
        ratio = own["excess"].iloc[-1] / own["excess"].iloc[0]
        rows.append(
            {
                "batch": size,
                "seed": seed,
                "jobs": own["job"].tolist(),
                "trace_most": own["trace"].max(skipna=False),
                "sharpness_most": own["sharpness"].max(skipna=False),
                "spearman": own["rate"].rank().corr(own["excess"].rank()) if complete else np.nan,
                "excess_ratio": ratio,
            }
        )
    return pd.DataFrame(rows).assign(row="series")


def _shares(minima: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for size, own in minima.groupby("batch"):
        shares = {"obey": own["necessary"], "obey_trace": own["trace"]}
        means = {name: (values <= LARGE).mean() for name, values in shares.items()}
        complete = own["necessary"].notna().all()
        rows.append(
            {
                "batch": size,
                "seeds": sorted(own["seed"].unique().tolist()),
                "jobs": own["job"].tolist(),
                **(means if complete else dict.fromkeys(means, np.nan)),
            }
        )
    return pd.DataFrame(rows).assign(row="share")


# the linear models


def _moments(run: Run) -> dict[str, Any]:
    labels, data = _labels(run), run.config["dataset"]
    found = run.column("stability_moment")
    end = run.config["steps"]
    kernel = gram(data["examples"], data["cosine"], data["spread"])
    own = recursion.problem(kernel)
    weights = _weights(len(kernel), labels["batch"])
    wanted = recursion.moments(own, labels["rate"], weights, end)
    growth = (found.get(end, np.nan) / found[BEGIN]) ** (1 / (end - BEGIN))
    predicted = (wanted[end] / wanted[BEGIN]) ** (1 / (end - BEGIN))
    exact = recursion.boundary(own, weights)
    return labels | {
        "cosine": data["cosine"],
        "examples": data["examples"],
        "growth": growth,
        "predicted": predicted,
        "eta_exact": exact,
        "over": labels["rate"] / exact,
        "right": float((growth > 1) == (predicted > 1)) if growth > 0 else np.nan,
    }


GEOMETRY = ["spread", "batch", "cosine", "examples"]


def _crossings(moments: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for key, own in moments.sort_values("rate").groupby([*GEOMETRY, "seed"]):
        found, wanted = (crossing(own["rate"], own[name]) for name in ("growth", "predicted"))
        numbers = {"measured": found / wanted, "over_exact": found / own["eta_exact"].iloc[0]}
        labels = dict(zip([*GEOMETRY, "seed"], key, strict=True))
        rows.append({**labels, "jobs": own["job"].tolist(), **numbers})
    return pd.DataFrame(rows).assign(row="crossing")


def crossing(rates: pd.Series, growth: pd.Series) -> float:
    """The first learning rate at which growth is 1, log growth interpolated; NaN without one."""
    logs, at = np.log(growth.to_numpy()), rates.to_numpy()
    (above,) = np.nonzero(logs > 0)
    if np.isnan(logs).any() or not len(above) or above[0] == 0:
        return np.nan
    low, high = above[0] - 1, above[0]
    return float(at[low] + (at[high] - at[low]) * logs[low] / (logs[low] - logs[high]))


def _theory(moments: pd.DataFrame) -> pd.DataFrame:
    rows = []
    key: Any
    for key, runs in moments.groupby(GEOMETRY):
        labels: dict[str, Any] = dict(zip(GEOMETRY, key, strict=True))
        curve = {name: own(labels["batch"]) for name, own in curves(**labels).items()}
        numbers = {
            "form": curve["necessary"] / curve["exact"],
            "guarantee": curve["sufficient"] / curve["exact"],
            "dexter": curve["coherence"] / curve["bernoulli"],
        }
        seeds = sorted(runs["seed"].unique().tolist())
        rows.append({**labels, "seeds": seeds, "jobs": runs["job"].tolist(), **numbers})
    return pd.DataFrame(rows).assign(row="theory")


def curves(
    spread: float, cosine: float, examples: int, **_: Any
) -> dict[str, Callable[[float], float]]:
    """Learning rates as functions of B: the exact boundaries and what bounds them."""
    kernel = gram(int(examples), cosine, spread)
    own, n = recursion.problem(kernel), len(kernel)
    trace, squares = float(own.curvatures.sum()), float(np.square(own.curvatures).sum())
    bernoulli = recursion.WEIGHTS["bernoulli"]
    return {
        "exact": lambda size: recursion.boundary(own, _weights(n, size)),
        "necessary": lambda size: LARGE / recursion.necessary(trace, squares, size),
        "sufficient": lambda size: LARGE / recursion.sufficient(own, _weights(n, size)),
        "bernoulli": lambda size: recursion.boundary(own, bernoulli(n, size)),
        "coherence": lambda size: recursion.coherent(kernel, size),
    }


# the figure


def figure(_: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """The nets' minima above; below where the second moment of the linear models grows."""
    fig = Figure(figsize=(10.5, 6.6), layout="constrained", dpi=110)
    above, below = fig.subplots(2, 3)
    kinds = dict(list(measurements.groupby("row")))
    _traces(above[0], kinds["minimum"])
    _stable(above[1], kinds["minimum"])
    _risks(above[2], kinds["minimum"])
    spreads = sorted(kinds["moments"]["spread"].unique())
    for axis, spread in zip(below, spreads, strict=False):
        _phases(axis, kinds["moments"][kinds["moments"]["spread"] == spread])
    below[0].legend(fontsize=6, loc="upper left", ncols=2)
    _growths(below[2], kinds["moments"][kinds["moments"]["spread"] == spreads[-1]])
    for axis in (*above, *below):
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def _arms(minima: pd.DataFrame) -> list[tuple[float, str, Any, pd.DataFrame]]:
    """B, its name, colour and rows."""
    groups: list[Any] = list(minima.sort_values("rate").groupby("batch"))
    names = ["GD" if np.isinf(size) else f"SGD, B = {size:g}" for size, _ in groups]
    shades = [*colors(len(groups) - 1), "0.5"]
    return [
        (size, name, color, own)
        for (size, own), name, color in zip(groups, names, shades, strict=True)
    ]


def _line(axis: Axes, level: float, text: str) -> None:
    axis.axhline(level, color="C3", lw=1, ls="--")
    axis.annotate(
        text,
        (0.02, level),
        xycoords=("axes fraction", "data"),
        fontsize=6.5,
        va="bottom",
        color="C3",
    )


def _rates(axis: Axes) -> None:
    axis.set_xscale("log")
    ticks = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(r"learning rate $\eta$", fontsize=8)


def _traces(axis: Axes, minima: pd.DataFrame) -> None:
    """η tr(H) of B = 1 and of the full batch, and the latter's ηλ₁."""
    arms = _arms(minima)
    for _, name, color, own in (arms[0], arms[-1]):
        axis.plot(
            own["rate"], own["trace"], "o", ms=3.5, color=color, label=rf"{name}: $\eta\,$tr$\,H$"
        )
    own = arms[-1][3]
    axis.plot(own["rate"], own["sharpness"], "x", ms=4, color="0.5", label=r"GD: $\eta\lambda_1$")
    _rates(axis)
    axis.set_yscale("log")
    ticks = [0.01, 0.1, 1, 10]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    _line(axis, LARGE, "2")
    axis.set_ylabel("at the minimum that is found", fontsize=8)
    axis.set_title("trace and sharpness", fontsize=9)
    axis.legend(fontsize=6.5, loc="lower right")


def _stable(axis: Axes, minima: pd.DataFrame) -> None:
    """Share of the boundary: exact, and by the necessary form."""
    for size, name, color, own in _arms(minima):
        if np.isfinite(size):
            axis.plot(own["rate"], own["exact"], "o", ms=3.5, color=color, label=name)
            axis.plot(own["rate"], own["necessary"] / LARGE, "o", ms=3.5, mfc="none", color=color)
    axis.plot([], [], "o", ms=3.5, mfc="none", color="0.3", label="open: necessary form / 2")
    _rates(axis)
    axis.set_ylim(0, 1.08)
    _line(axis, 1, "unstable in mean square above")
    axis.set_ylabel(r"$\eta\,/\,\eta^*$ at the minimum", fontsize=8)
    axis.set_title("filled: by the exact boundary of its recursion", fontsize=9)
    axis.legend(fontsize=6.5, loc="upper left", bbox_to_anchor=(0, 0.92))


def _risks(axis: Axes, minima: pd.DataFrame) -> None:
    """Excess risk over that at a seed's smallest learning rate."""
    for _, name, color, own in _arms(minima):
        for number, (_, line) in enumerate(own.groupby("seed")):
            share = line["excess"] / line["excess"].iloc[0]
            label = name if number == 0 else None
            axis.plot(line["rate"], share, ".-", ms=4, lw=1, color=color, label=label)
    _rates(axis)
    axis.set_ylim(0, None)
    axis.set_ylabel(r"excess risk / that at the smallest $\eta$", fontsize=8)
    axis.set_title("excess risk: a line a seed", fontsize=9)
    axis.legend(fontsize=6.5, loc="lower left")


STYLES = {
    "exact": ("k-", "exact"),
    "necessary": ("C3--", "necessary form"),
    "sufficient": ("C0--", "sufficient form"),
    "coherence": ("C4:", "coherence (Bernoulli)"),
}


def _phases(axis: Axes, moments: pd.DataFrame) -> None:
    """Where E|w|² grows: runs (the seeds' mean growth), and the theory's lines."""
    first = moments.iloc[0]
    theory = curves(first["spread"], first["cosine"], first["examples"])
    sizes = np.geomspace(1, moments["batch"].max(), 25)
    for name, (style, label) in STYLES.items():
        axis.plot(sizes, [theory[name](size) for size in sizes], style, lw=1.2, label=label)
    cells = moments.groupby(["batch", "rate"])["growth"].mean().reset_index()
    marks = {True: ("^", "C1", "runs: grows"), False: ("v", "C2", "runs: shrinks")}
    for grows, (mark, color, label) in marks.items():
        own = cells[(cells["growth"] > 1) == grows]
        axis.plot(own["batch"], own["rate"], mark, ms=5, color=color, label=label)
    axis.set_xscale("log", base=2)
    ticks = sorted(moments["batch"].unique())
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(0.8, 6.2)
    axis.set_xlabel("batch size B", fontsize=8)
    axis.set_ylabel(r"learning rate $\eta$", fontsize=8)
    title = f"linear models, n = {first['examples']:.0f}, {_norms(moments)}"
    axis.set_title(title, fontsize=9)


def _norms(moments: pd.DataFrame) -> str:
    spread = moments["spread"].iloc[0]
    return f"|x|² = {1 - spread:g} … {1 + spread:g}" if spread else "|x|² = 1"


def _growths(axis: Axes, moments: pd.DataFrame) -> None:
    """Growth a step against η: runs, and the recursion's (a line through the same points)."""
    groups = list(moments.sort_values("rate").groupby("batch"))
    for (size, own), color in zip(groups, colors(len(groups)), strict=True):
        line = own.drop_duplicates("rate")
        axis.plot(line["rate"], line["predicted"], "-", lw=1.2, color=color, label=f"B = {size:g}")
        axis.plot(own["rate"], own["growth"], "o", ms=3, color=color)
    axis.set_ylim(0.8, 2)
    _line(axis, 1, "")
    axis.set_xlabel(r"learning rate $\eta$", fontsize=8)
    axis.set_ylabel("growth of E|w|² a step", fontsize=8)
    axis.set_title(f"{_norms(moments)}; dots: runs, lines: recursion", fontsize=9)
    axis.legend(fontsize=6.5, loc="upper left")
