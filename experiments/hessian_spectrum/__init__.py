"""The Hessian's few large eigenvalues come from the classes, whatever the number of weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.hessian_spectrum import theory
from lmech.collecting import Run
from lmech.plotting import colors, log_scale

WIDTHS, FIVE, EXAMPLES = (10, 20, 40), 5, (150, 600)
"""What is compared: widths and examples, and the number of classes at which they are."""

LARGE, SMALL, NEAR_ZERO = 0.1, 0.01, 0.001
"""Times λ₁: above the first an eigenvalue is counted as large, below the others as near zero."""
RANK_TOLERANCE = 1e-10  # times σ₁
SMOOTHING = 0.03  # times λ₁: standard deviation of the Gaussians that smooth a density
SHOWN = 1e-4  # times the widest net's λ₁: eigenvalues below are not drawn

LABELS = ("classes", "width", "examples", "spread", "dimension")
OF_A_NET = (
    *("weights", "overlap", "overlap_start", "overlap_random", "overlap_bulk", "outliers"),
    *("per_class", "per_square", "first", "large", "small", "near_zero", "class_means"),
    *("gauss_newton", "gauss_newton_start", "density_error", "density_error_large"),
    *("density_error_single", "first_missed"),
)
OF_A_CNN = (
    *("weights", "rank", "over_16m", "from_theory", "last_kept", "first_dropped"),
    *("gauss_newton_rank", "gauss_newton_share", "trained_over_16m"),
)
ACROSS = (
    *("first_change", "small_rise", "near_zero_rise", "large_growth", "large_by_weights"),
    *("growth", "first_by_spread", "slope"),
)


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of six kinds, told apart by ``kind``; of the end of the run unless something else says.

    ``run``, a tanh net, by ``classes`` C, ``width``, ``examples`` and ``spread``. ``overlap``: mean
    squared projection of the top C eigenvectors on the span of the class means of logit gradients,
    of dimension r; ``overlap_start``; ``overlap_random``, r/P, that of any direction drawn evenly;
    ``overlap_bulk``, that of the eigenvectors with |λ| < λ₁/100. ``outliers``: eigenvectors that
    lie more in the span than outside, λ ≠ 0; ``per_class`` and ``per_square``, over C and (C − 1)².
    ``first`` λ₁; ``large``, how many λ > λ₁/10; ``small`` and ``near_zero``, shares of
    |λ| < λ₁/100 and λ₁/1000. ``class_means`` and ``gauss_newton``: largest relative difference of
    the top C eigenvalues of the class means' matrix, and of G, from those of H;
    ``gauss_newton_start``. ``density_error``, ``density_error_large`` (λ > λ₁/10 alone) and
    ``density_error_single``: see ``_density``; ``first_missed``: |λ₁ of the quadrature / λ₁ − 1|.

    ``widths``, one a seed: of width 40 against 20 ``first_change`` |λ₁'/λ₁ − 1| and the rises of
    the shares, ``small_rise`` and ``near_zero_rise``; of 40 against 10 ``large_growth``, the
    quotient of ``large``, and ``large_by_weights``, that over the quotient of the weights.

    ``classes``, one a seed: ``growth``, the smallest increase of the outliers from one C to the
    next. ``data``, one a seed: ``first_change`` from the most examples to the fewest, and
    ``first_by_spread``, λ₁ of the largest spread over that of the smallest.

    ``cnn``, a linear CNN, by ``width`` m and ``dimension`` d: ``rank`` at the start, singular
    values above 1e-10 σ₁; ``over_16m``, rank − 16m; ``from_theory``, rank − ``theory.cnn_rank``;
    ``last_kept`` and ``first_dropped`` of σ/σ₁, the second over P times the rounding unit;
    ``gauss_newton_rank`` and ``gauss_newton_share`` of the rank; ``trained_over_16m``.

    ``slope``, one a seed: that of log rank in log P over the upper half of the CNN's widths.
    """
    nets = [_net(run) for run in runs if run.config["model"]["kind"] == "mlp"]
    cnns = [_cnn(run) for run in runs if run.config["model"]["kind"] != "mlp"]
    across = [
        *(row for seed, own in _by_seed(nets, OF_A_NET) for row in _across(seed, own)),
        *(_slope(seed, own) for seed, own in _by_seed(cnns, OF_A_CNN)),
    ]
    return _table([*nets, *cnns, *across], (*LABELS, *OF_A_NET, *OF_A_CNN, *ACROSS))


def _table(rows: Sequence[dict[str, Any]], quantities: Sequence[str]) -> pd.DataFrame:
    """The rows, with a column for each quantity even where no run has it."""
    table = pd.DataFrame(rows)
    missing = [name for name in quantities if name not in table]
    return table.assign(**dict.fromkeys(missing, np.nan))


def _by_seed(rows: Sequence[dict[str, Any]], quantities: Sequence[str]) -> Any:
    return _table(rows, quantities).groupby("seed") if rows else ()


def _net(run: Run) -> dict[str, Any]:
    config, steps = run.config, run.config["steps"]
    classes = config["dataset"]["classes"]
    row = {
        "kind": "run",
        "job": run.job,
        "seed": config["seed"],
        "classes": classes,
        "width": config["model"]["width"],
        "examples": config["dataset"]["train_size"],
        "spread": config["dataset"]["spread"],
    }
    if run.result["status"] != "done":
        return row
    values, overlaps = spectrum(run)
    outliers = len(outlying(values, overlaps))
    directions = run.column("outlier_overlap_directions")[steps]
    small = np.abs(values) < SMALL * values[0]
    return {
        **row,
        "weights": len(values),
        "overlap": run.column("outlier_overlap")[steps],
        "overlap_start": run.column("outlier_overlap")[0],
        "overlap_random": directions / len(values),
        "overlap_bulk": overlaps[small].mean() if small.any() else np.nan,
        "outliers": outliers,
        "per_class": outliers / classes,
        "per_square": outliers / (classes - 1) ** 2,
        "first": values[0],
        "large": (values > LARGE * values[0]).sum(),
        "small": small.mean(),
        "near_zero": (np.abs(values) < NEAR_ZERO * values[0]).mean(),
        "class_means": _off(class_values(run), values, classes),
        "gauss_newton": _off(gauss_newton(run, steps), values, classes),
        "gauss_newton_start": _off(gauss_newton(run, 0), spectrum(run, 0)[0], classes),
        **_density(run, values),
    }


def spectrum(run: Run, step: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of H ↓ and overlaps of their eigenvectors, [P] each, at a step (the last)."""
    at = run.config["steps"] if step is None else step
    names = ("outlier_overlap_eigenvalues", "outlier_overlap_overlaps")
    values, overlaps = (np.asarray(run.column(name)[at]) for name in names)
    return values, overlaps


def outlying(values: np.ndarray, overlaps: np.ndarray) -> np.ndarray:
    """Places of the eigenvectors that lie more in the span than outside, without the null space's.

    A shift of all logits changes nothing, so λ = 0 belongs to w + 1 dimensions and its eigenvectors
    are what rounding makes them: which of them lie in the span differs from machine to machine.
    """
    return np.flatnonzero((overlaps > 0.5) & (np.abs(values) > RANK_TOLERANCE * values[0]))


def gauss_newton(run: Run, step: int) -> np.ndarray:
    """Eigenvalues of the Gauss–Newton matrix ↓ [P] at a step."""
    return np.asarray(run.column("gauss_newton_density_nodes")[step])[::-1]


def class_values(run: Run) -> np.ndarray:
    """Eigenvalues ↓ [C²] of the class means' Gauss–Newton matrix at the end."""
    return np.asarray(run.column("class_curvature_eigenvalues")[run.config["steps"]])


def quadrature(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [probes, depth] of Lanczos quadrature at the end, weights of 1 a probe."""
    probes = run.config["observables"]["spectral_density"]["samples"]
    nodes, weights = (
        np.asarray(run.column(f"spectral_density_{name}")[run.config["steps"]])
        for name in ("nodes", "weights")
    )
    return nodes.reshape(probes, -1), probes * weights.reshape(probes, -1)


def _off(found: np.ndarray, values: np.ndarray, count: int) -> float:
    """Largest relative difference of the first ``count`` eigenvalues."""
    return float(np.abs(found[:count] / values[:count] - 1).max())


def _density(run: Run, values: np.ndarray) -> dict[str, float]:
    """Errors of the smoothed density: root mean square on a grid over that which theory expects.

    The expectation, ``theory.standard_error``, is that of the mean over all probes, so that the
    squares have mean 1; those of ``density_error_single``, of one probe (root mean square over the
    probes), have the number of probes. The grid reaches over all eigenvalues; and over those above
    λ₁/10, where the eigenvalues are single peaks.
    """
    nodes, weights = quadrature(run)
    width = SMOOTHING * values[0]

    def error(low: float, one: bool = False) -> float:
        grid = np.linspace(low, values[0] + width, 400)
        exact = theory.smoothed(values, np.full(len(values), 1 / len(values)), grid, width)
        each = [theory.smoothed(*probe, grid, width) for probe in zip(nodes, weights, strict=True)]
        off = (np.asarray(each) if one else np.mean(each, axis=0)[None]) - exact
        expected = theory.standard_error(values, grid, width, len(nodes))
        return float(np.sqrt(np.mean(off**2) / np.mean(expected**2)))

    lowest = values[-1] - width
    return {
        "density_error": error(lowest),
        "density_error_large": error(LARGE * values[0]),
        "density_error_single": error(lowest, one=True),
        "first_missed": abs(nodes.max() / values[0] - 1),
    }


def _across(seed: Any, own: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows ``widths``, ``classes`` and ``data`` of a seed's nets."""
    middle, fewest, tight = WIDTHS[1], EXAMPLES[0], own["spread"].min()
    plain = own[(own["spread"] == tight) & (own["examples"] == fewest)]
    five = own["classes"] == FIVE
    usual = five & (own["width"] == middle)
    widths = plain[plain["classes"] == FIVE]
    classes = plain[plain["width"] == middle]
    data = own[usual]
    return [
        {"seed": seed, "jobs": rows["job"].tolist(), **made(rows)}
        for rows, made in ((widths, _widths), (classes, _classes), (data, _data))
    ]


def _widths(rows: pd.DataFrame) -> dict[str, Any]:
    table = rows.set_index("width").reindex(list(WIDTHS))
    narrow, middle, wide = (table.loc[width] for width in WIDTHS)
    growth = wide["large"] / narrow["large"]
    return {
        "kind": "widths",
        "first_change": abs(wide["first"] / middle["first"] - 1),
        "small_rise": wide["small"] - middle["small"],
        "near_zero_rise": wide["near_zero"] - middle["near_zero"],
        "large_growth": growth,
        "large_by_weights": growth * narrow["weights"] / wide["weights"],
    }


def _classes(rows: pd.DataFrame) -> dict[str, Any]:
    steps = np.diff(rows.sort_values("classes")["outliers"].to_numpy())
    whole = len(steps) and np.isfinite(steps).all()
    return {"kind": "classes", "growth": steps.min() if whole else np.nan}


def _data(rows: pd.DataFrame) -> dict[str, Any]:
    tight, wide = rows["spread"].min(), rows["spread"].max()

    def first(examples: int, spread: float) -> float:
        chosen = rows[(rows["examples"] == examples) & (rows["spread"] == spread)]
        return chosen["first"].iloc[0] if len(chosen) else np.nan

    fewest, most = EXAMPLES
    return {
        "kind": "data",
        "first_change": abs(first(fewest, tight) / first(most, tight) - 1),
        "first_by_spread": first(fewest, wide) / first(fewest, tight) if wide > tight else np.nan,
    }


def _cnn(run: Run) -> dict[str, Any]:
    config, steps = run.config, run.config["steps"]
    width, data = config["model"]["width"], config["dataset"]
    row = {
        "kind": "cnn",
        "job": run.job,
        "seed": config["seed"],
        "width": width,
        "dimension": data["dimension"],
    }
    if run.result["status"] != "done":
        return row
    sizes = _singular(spectrum(run, 0)[0])
    rank, after = (_rank(own) for own in (sizes, _singular(spectrum(run, steps)[0])))
    curved = _rank(_singular(gauss_newton(run, 0)))
    rounding = len(sizes) * np.finfo(float).eps
    return {
        **row,
        "weights": len(sizes),
        "rank": rank,
        "over_16m": rank - 16 * width,
        "from_theory": rank - theory.cnn_rank(width, data["classes"], data["dimension"]),
        "last_kept": sizes[rank - 1],
        "first_dropped": sizes[rank] / rounding if rank < len(sizes) else 0.0,
        "gauss_newton_rank": curved,
        "gauss_newton_share": curved / rank,
        "trained_over_16m": after - 16 * width,
    }


def _singular(values: np.ndarray) -> np.ndarray:
    """Singular values of a symmetric matrix ↓, over the largest."""
    sizes = np.sort(np.abs(values))[::-1]
    return sizes / sizes[0]


def _rank(sizes: np.ndarray) -> int:
    return int((sizes > RANK_TOLERANCE).sum())


def _slope(seed: Any, rows: pd.DataFrame) -> dict[str, Any]:
    same = rows[rows["dimension"] == rows["dimension"].min()].sort_values("width")
    upper = same.iloc[len(same) // 2 :]
    whole = len(upper) > 1 and upper["rank"].notna().all()
    slope = np.nan
    if whole:
        weights, ranks = (np.log(upper[name].to_numpy(float)) for name in ("weights", "rank"))
        slope = np.polyfit(weights, ranks, 1)[0]
    return {
        "kind": "slope",
        "seed": seed,
        "jobs": upper["job"].tolist(),
        "slope": slope,
    }


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Four panels, of the smallest seed; the CNNs' ranks of all seeds."""
    fig = Figure(figsize=(9.4, 6.8), layout="constrained", dpi=98)
    (density, widths), (overlaps, ranks) = fig.subplots(2, 2)
    nets = _plain(runs)
    five = [run for run in nets if run.config["dataset"]["classes"] == FIVE]
    middle = [run for run in nets if run.config["model"]["width"] == WIDTHS[1]]
    for run in five:
        if run.config["model"]["width"] == WIDTHS[1]:
            _draw_density(density, run)
    _draw_weights(widths, sorted(five, key=lambda run: run.config["model"]["width"]))
    _draw_overlaps(overlaps, sorted(middle, key=lambda run: run.config["dataset"]["classes"]))
    _draw_ranks(ranks, measurements[measurements["kind"] == "cnn"])
    for axis, where in (
        *((density, "upper right"), (widths, "lower left")),
        *((overlaps, (0.02, 0.2)), (ranks, "upper left")),
    ):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, loc=where)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def _plain(runs: Sequence[Run]) -> list[Run]:
    """The finished tanh nets of the smallest seed, spread and number of examples."""
    nets = [
        run
        for run in runs
        if run.config["model"]["kind"] == "mlp" and run.result["status"] == "done"
    ]
    seed = min((run.config["seed"] for run in nets), default=0)
    spread = min((run.config["dataset"]["spread"] for run in nets), default=0)
    return [
        run
        for run in nets
        if run.config["seed"] == seed
        and run.config["dataset"]["spread"] == spread
        and run.config["dataset"]["train_size"] == EXAMPLES[0]
    ]


def _draw_density(axis: Axes, run: Run) -> None:
    """Exact density and two standard errors about it, and Lanczos quadrature, smoothed alike."""
    values, _ = spectrum(run)
    nodes, weights = quadrature(run)
    probes, width = len(nodes), SMOOTHING * values[0]
    grid = np.linspace(values[-1] - 3 * width, values[0] + 3 * width, 800)
    exact = theory.smoothed(values, np.full(len(values), 1 / len(values)), grid, width)
    error = theory.standard_error(values, grid, width, probes)
    estimate = theory.smoothed(nodes.ravel(), weights.ravel() / probes, grid, width)
    low, high = np.maximum(exact - 2 * error, 1e-9), exact + 2 * error
    axis.fill_between(grid, low, high, color="0.85", lw=0, label="exact ± 2 standard errors")
    axis.plot(grid, exact, color="0.35", lw=1.6, label=f"exact, {len(values)} eigenvalues")
    name = f"Lanczos quadrature, {probes} probes"
    axis.plot(grid, estimate, color=colors(3)[1], lw=1.2, ls="--", label=name)
    axis.plot(values, np.full_like(values, 2.5e-3), "|", ms=7, mew=0.7, color="0.2")
    axis.set(yscale="log", ylim=(1.5e-3, 1e3))
    axis.set(xlabel=r"eigenvalue $\lambda$ of H (bars: all of them)", ylabel="density")
    axis.set_title(f"a bulk at 0 and outliers ({FIVE} classes, width {WIDTHS[1]})", fontsize=9)


def _draw_weights(axis: Axes, runs: Sequence[Run]) -> None:
    """Positive eigenvalues by rank, one line a width, and those of the class means alone."""
    top = 1.0
    for run, color in zip(runs, colors(len(runs)), strict=True):
        values, _ = spectrum(run)
        means = class_values(run)[: FIVE * (FIVE - 1)]
        label = f"width {run.config['model']['width']}: {len(values):,} weights"
        values, top = values[values > 0], values[0]
        axis.plot(np.arange(1, len(values) + 1), values, lw=1.4, color=color, label=label)
        axis.plot(np.arange(1, len(means) + 1), means, "o", ms=4, mfc="none", color=color)
    if runs:
        axis.plot([], [], "o", ms=4, mfc="none", color="0.3", label="from class means alone")
    axis.set(xscale="log", yscale="log", ylim=(SHOWN * top, 2 * top))
    axis.set(xlabel="rank i", ylabel=r"eigenvalue $\lambda_i$")
    axis.set_title(f"more weights, same largest eigenvalues ({FIVE} classes)", fontsize=9)


def _draw_overlaps(axis: Axes, runs: Sequence[Run]) -> None:
    """Each eigenvector's squared projection on the span of the class means, by rank, λ ≠ 0."""
    for run, color in zip(runs, colors(len(runs)), strict=True):
        count = run.config["dataset"]["classes"]
        values, own = spectrum(run)
        outliers = len(outlying(values, own))
        own = own[np.abs(values) > RANK_TOLERANCE * values[0]]
        rank = np.arange(1, len(own) + 1)
        label = f"C = {count}: {outliers} outliers"
        axis.plot(rank, own, ".", ms=3.5, color=color, label=label)
        axis.plot(rank[:count], own[:count], "o", ms=6, mfc="none", color=color)
    axis.axhline(0.5, color="0.2", lw=0.8, ls="--")
    axis.set(
        xscale="log",
        ylim=(-0.03, 1.05),
        xlabel="rank i among λ ≠ 0 (ringed: i ≤ C, the classes)",
    )
    axis.set_ylabel("squared projection on class means")
    axis.set_title(f"what the classes explain of eigenvectors (width {WIDTHS[1]})", fontsize=9)


def _draw_ranks(axis: Axes, table: pd.DataFrame) -> None:
    """Rank of the linear CNN's Hessian against its weights, and the closed form."""
    same = table[(table["dimension"] == table["dimension"].min()) & table["rank"].notna()]
    if not len(same):
        return
    widths = np.arange(2, same["width"].max() + 1)
    weights = 3 * widths**2 + 15 * widths
    axis.plot(weights, weights, color="0.6", lw=1, ls=":", label="all weights")
    axis.plot(weights[1:], 16 * widths[1:] + 18, color=colors(3)[1], lw=1.2, label="16m + 18")
    axis.plot(same["weights"], same["rank"], "o", ms=5, mfc="none", color="0.2", label="rank of H")
    for width, own in same.groupby("width"):
        at = own.iloc[0]
        place = (at["weights"], at["rank"])
        axis.annotate(
            f"m = {width:.0f}", place, xytext=(4, -11), textcoords="offset points", fontsize=7
        )
    axis.plot(
        same["weights"], same["gauss_newton_rank"], "s", ms=4, mfc="none", color=colors(3)[0],
        label="rank of G",
    )  # fmt: skip
    log_scale(axis)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="weights P", ylabel="rank")
    axis.set_title("rank of a linear CNN's Hessian, m channels", fontsize=9)
