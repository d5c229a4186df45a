"""The Hessian's few large eigenvalues come from the classes, whatever the number of weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from lmech.experiments.hessian_spectrum import theory
from lmech.experiments.hessian_spectrum.drawing import figure
from lmech.experiments.hessian_spectrum.reading import (
    EXAMPLES,
    FIVE,
    SMOOTHING,
    WIDTHS,
    class_values,
    gauss_newton,
    quadrature,
    spectrum,
)

from lmech.collecting import Run

__all__ = ["figure", "measure"]

LARGE, SMALL, NEAR_ZERO = 0.1, 0.01, 0.001
"""Times λ₁: above the first an eigenvalue is counted as large, below the others as near zero."""
RANK_TOLERANCE = 1e-10  # times σ₁

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
    lie more in the span than outside; ``per_class`` and ``per_square``, over C and (C − 1)².
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
    outliers = run.column("outlier_overlap_outliers")[steps]
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
    logs = [np.log(upper[name].astype(float)) for name in ("weights", "rank")] if whole else None
    return {
        "kind": "slope",
        "seed": seed,
        "jobs": upper["job"].tolist(),
        "slope": np.polyfit(*logs, 1)[0] if logs else np.nan,
    }
