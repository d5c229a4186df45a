"""Wide nets train with their first kernel under NTK, not under μP (Jacot et al. 2018)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lmech.collecting import Run
from lmech.plotting import colors, log_scale

ARM = ["parametrization", "alpha", "linearized"]
NAMES = {"ntk": "NTK", "mup": "μP"}
SLOPES = ("change", "linear", "infinite", "error")
OF_A_RUN = ("seed", "width", "scale", *SLOPES, "rate_error", "mode_error", "deviation")
SPREADS = ("spread", "error_rms")
FITTED = 0.1
"""A mode's rate is read off until the prediction has fallen to this share of its start."""


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of four kinds, told apart by ``row``; α is ``alpha``, the scale of the outputs.

    ``run``: one a run that trains. ``change`` ‖ΔΘ‖/‖Θ₀‖ of the tangent kernel on the training set
    at the end. ``linear`` and ``infinite``: root mean square difference of the test outputs, at the
    end, to gradient descent with the net's own first kernel (its linearization) and with the
    infinite net's, over how far that moves them. ``error`` ‖Θ₀ − Θ_∞‖/‖Θ_∞‖ at the start.
    ``rate_error``: |measured/predicted − 1| of log|1 − ηλ|, the decay of the residual along the top
    eigenvectors of Θ₀, the median over them; ``mode_error``: largest distance along the run of the
    residual in these modes from its prediction, over its norm at the start. ``deviation``: largest
    distance of the outputs to the linearization at any step, on either split.

    ``slopes``: one a seed, the least-squares slopes in log width of ``change``, ``linear``,
    ``infinite`` and ``error``.

    ``pair``: one an NTK run and a μP run of one width and seed that are one net, since their
    outputs have the same scale, α and α√(base width/width); ``difference`` is the larger of those
    of ``change`` and ``linear``, relative.

    ``spread``: one a width, over its seeds at the start, NTK. ``spread``, the root mean square over
    the kernel's entries of their standard deviation, over that of their means; ``error_rms``, that
    of ``error``, and ``error_scaled``, times √width. The row of width 0 has the slopes of the first
    two, ``spread_slope`` and ``error_rms_slope``.
    """
    trained = [_measure(run) for run in runs if run.config["steps"] > 1]
    rows = pd.DataFrame(trained, columns=list(trained[0]) if trained else [*ARM, *OF_A_RUN])
    parts = [rows.assign(row="run"), _slopes(rows), _pairs(rows), _spreads(runs)]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return table.reindex(columns=list(dict.fromkeys([*table, *OF_A_RUN, "difference"])))


def _labels(run: Run) -> dict[str, Any]:
    return {
        "seed": run.config["seed"],
        "width": run.config["model"]["width"],
        "parametrization": run.overrides["parametrization"],
        "alpha": run.config["output_scale"],
        "linearized": run.config["linearized"],
    }


def _measure(run: Run) -> dict[str, Any]:
    linear, test = run.column("kernel_descent"), run.column("kernel_descent_test")
    complete = run.result["status"] == "done" and test.index[-1] == run.config["steps"]
    quantities = {
        "change": run.column("tangent_kernel").iloc[-1],
        "linear": _relative(run, "kernel_descent"),
        "infinite": _relative(run, "infinite_descent"),
        "error": run.column("infinite_descent_error").iloc[0],
        "rate_error": float(np.median(rate_errors(run))),
        "mode_error": _mode_error(run),
        "deviation": max(linear.max(), test.max()),
    }
    own = quantities if complete else dict.fromkeys(quantities, np.nan)
    labels = _labels(run)
    base = run.config["parametrization"]["base_width"] / labels["width"]
    scale = labels["alpha"] * (base**0.5 if labels["parametrization"] == "mup" else 1)
    return {"job": run.job, **labels, "scale": scale, **own}


def _relative(run: Run, name: str) -> float:
    """Distance of the test outputs at the end, over how far the prediction has moved them."""
    return run.column(f"{name}_test").iloc[-1] / run.column(f"{name}_test_moved").iloc[-1]


def modes(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps [T]; residuals along the top eigenvectors [T, k], measured and predicted."""
    own, predicted = (run.column(f"kernel_descent_modes{kind}") for kind in ("", "_predicted"))
    return own.index.to_numpy(), np.stack(own.to_list()), np.stack(predicted.to_list())


def rate_errors(run: Run) -> np.ndarray:
    """|measured/predicted − 1| of each mode's rate, [k].

    The measured rate is the slope through 0 of log |residual / its start| against the step, over
    the steps at which the prediction is above a tenth.
    """
    steps, own, _ = modes(run)
    rate = run.config["optimizer"]["learning_rate"]
    known = np.log(np.abs(1 - rate * np.asarray(run.column("kernel_descent_eigenvalues").iloc[0])))
    errors = []
    for residual, exact in zip(own.T, known, strict=True):
        early = (np.exp(exact * steps) >= FITTED) & (steps > 0)
        logs, at = np.log(np.abs(residual[early] / residual[0])), steps[early]
        errors.append(abs(at @ logs / (at @ at) / exact - 1) if early.any() else np.nan)
    return np.asarray(errors)


def _mode_error(run: Run) -> float:
    _, own, predicted = modes(run)
    return float(np.linalg.norm(own - predicted, axis=1).max() / np.linalg.norm(own[0]))


def _slope(widths: pd.Series, values: pd.Series) -> float:
    """Of log value against log width; not a number where a value is not one, or 0."""
    known = len(values) > 1 and bool((values > 0).all())
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0]) if known else np.nan


def _slopes(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for key, own in rows[~rows["linearized"].astype(bool)].groupby([*ARM, "seed"]):
        labels = dict(zip([*ARM, "seed"], key, strict=True))
        slopes = {name: _slope(own["width"], own[name]) for name in SLOPES}
        found.append({"row": "slopes", "width": 0, **labels, **slopes, "jobs": list(own["job"])})
    return pd.DataFrame(found)


def _pairs(rows: pd.DataFrame) -> pd.DataFrame:
    keys, names = ["scale", "width", "seed"], ["change", "linear"]
    plain = rows[~rows["linearized"].astype(bool)]
    ntk, mup = (plain[plain["parametrization"] == name] for name in NAMES)
    both = ntk.merge(mup, on=keys, suffixes=("", "_mup"))
    if not len(both):
        return pd.DataFrame()
    apart = [(both[name] / both[f"{name}_mup"] - 1).abs() for name in names]
    return both[keys].assign(
        row="pair",
        difference=np.max(apart, axis=0),
        jobs=pd.Series([*zip(both["job"], both["job_mup"], strict=True)], both.index).map(list),
    )


class Start(NamedTuple):
    """A net's first kernel: its entries, and how far it is from the infinite net's."""

    entries: np.ndarray
    error: float


def starts(runs: Sequence[Run]) -> dict[int, dict[int, Start]]:
    """First kernels under NTK at α = 1, by width and seed; also of runs that do not train."""
    found: dict[int, dict[int, Start]] = {}
    for run in runs:
        labels = _labels(run)
        if (labels["parametrization"], labels["alpha"], labels["linearized"]) == ("ntk", 1, False):
            entries = np.asarray(run.column("tangent_kernel_entries").iloc[0])
            start = Start(entries, run.column("infinite_descent_error").iloc[0])
            found.setdefault(labels["width"], {})[labels["seed"]] = start
    return dict(sorted(found.items()))


def relative_spread(kernels: Sequence[np.ndarray]) -> float:
    """√⟨variance over the seeds⟩ / √⟨mean²⟩, averages over the entries; NaN for one seed."""
    if len(kernels) < 2:
        return np.nan
    entries = np.stack(list(kernels))
    spread = np.sqrt(entries.var(axis=0, ddof=1).mean())
    return float(spread / np.sqrt(np.square(entries.mean(axis=0)).mean()))


def _spreads(runs: Sequence[Run]) -> pd.DataFrame:
    kernels = starts(runs)
    names = ["width", "seeds", *SPREADS, "error_scaled"]
    known = [_spread(width, own) for width, own in kernels.items()]
    table = pd.DataFrame(known, columns=names)
    slopes = {f"{name}_slope": _slope(table["width"], table[name]) for name in SPREADS}
    seeds = sorted({seed for own in kernels.values() for seed in own})
    whole = {"width": 0, "seeds": seeds, **slopes}
    labels = {"row": "spread", "parametrization": "ntk", "alpha": 1.0, "linearized": False}
    rows = [{**labels, **row} for row in (*known, whole)]
    return pd.DataFrame(rows).reindex(columns=[*labels, *names, *slopes])


def _spread(width: int, own: Mapping[int, Start]) -> dict[str, Any]:
    error = float(np.sqrt(np.mean([start.error**2 for start in own.values()])))
    return {
        "width": width,
        "seeds": sorted(own),
        "spread": relative_spread([start.entries for start in own.values()]),
        "error_rms": error,
        "error_scaled": error * width**0.5,
    }


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Against width: kernel change, spread at the start, distances of outputs; decay of modes."""
    rows = measurements[measurements["row"] == "run"]
    plain = rows[~rows["linearized"].astype(bool)]
    fig = Figure(figsize=(9, 6.6), layout="constrained", dpi=100)
    (change, start), (outputs, decay) = fig.subplots(2, 2)
    _changes(change, plain)
    lazy = plain[(plain["parametrization"] == "ntk") & (plain["alpha"] == 1)]
    spreads = measurements[(measurements["row"] == "spread") & (measurements["width"] > 0)]
    if len(spreads):
        _start(start, spreads)
    if len(lazy):
        _outputs(outputs, lazy)
        _decay(decay, [run for run in runs if run.job in set(lazy["job"])])
    for axis in (change, start, outputs):
        axis.set(xscale="log", xlabel="width n")
        log_scale(axis)
        widths = sorted(plain["width"].unique())
        axis.set_xticks(widths, [f"{width:g}" for width in widths])
        axis.xaxis.set_minor_locator(NullLocator())
    for axis, below, above in ((change, 0.2, 1), (start, 0.7, 1.3), (outputs, 0.2, 1)):
        low, high = axis.get_ylim()
        axis.set_ylim(low * below, high * above)  # room for the legend, and for a second tick
    for axis in (change, start, outputs, decay):
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, loc="lower left")
    return fig


def _points(axis: Axes, rows: pd.DataFrame, name: str, color: Any, style: str, label: str) -> None:
    """A dot a run, the geometric means joined."""
    axis.plot(rows["width"], rows[name], style[0], ms=3, alpha=0.5, color=color)
    logs = rows.assign(**{name: np.log(rows[name].to_numpy(float))})
    centre = np.exp(logs.groupby("width")[name].mean())
    axis.plot(centre.index, centre, style, ms=4, lw=1.2, color=color, label=label)


def _guide(axis: Axes, rows: pd.DataFrame, name: str, power: float, label: str | None) -> None:
    """The theory's power of the width, through the mean at the widest."""
    widths = np.sort(rows["width"].unique()).astype(float)
    last = rows[rows["width"] == widths[-1]][name].astype(float).mean()
    style = ":" if power == -1 else "-."
    curve = last * (widths / widths[-1]) ** power
    axis.plot(widths, curve, style, lw=1.2, color="0.4", label=label, zorder=1)


def _changes(axis: Axes, rows: pd.DataFrame) -> None:
    """Of the kernel in training, by arm; theory 1/n under NTK, constant under μP."""
    arms = list(rows.groupby(["parametrization", "alpha"], sort=True))
    for (key, own), color in zip(arms, colors(len(arms)), strict=True):
        name, alpha = str(key[0]), key[1]
        style = "o-" if name == "ntk" else "s--"
        _points(axis, own, "change", color, style, f"{NAMES[name]}, α = {alpha:g}")
        if name == "ntk":
            _guide(axis, own, "change", -1, "theory ∝ 1/n" if alpha == 1 else None)
    axis.set_ylabel(r"$\|\Theta_T-\Theta_0\|_F\,/\,\|\Theta_0\|_F$")
    axis.set_title("change of the kernel in training", fontsize=9)


def _start(axis: Axes, own: pd.DataFrame) -> None:
    """Of the kernel at the start: spread over seeds, and distance from the infinite net's."""
    first, second = colors(2)
    error = r"$\|\Theta_0-\Theta_\infty\|_F\,/\,\|\Theta_\infty\|_F$"
    axis.plot(own["width"], own["error_rms"], "s--", ms=4, lw=1.2, color=second, label=error)
    label = "standard deviation / mean of the entries"
    axis.plot(own["width"], own["spread"], "o-", ms=4, lw=1.2, color=first, label=label)
    _guide(axis, own, "error_rms", -0.5, "theory ∝ 1/√n")
    seeds = len(own["seeds"].iloc[0])
    axis.set_ylabel(f"root mean square, {seeds} seeds")
    axis.set_title("the kernel at the start (NTK, α = 1)", fontsize=9)


def _outputs(axis: Axes, rows: pd.DataFrame) -> None:
    """Of trained nets from the linearization, and from the infinite net's kernel."""
    first, second = colors(2)
    _points(axis, rows, "infinite", second, "s--", "the infinite net's, in closed form")
    _points(axis, rows, "linear", first, "o-", "its own at the start (linearized net)")
    _guide(axis, rows, "infinite", -0.5, "theory ∝ 1/√n")
    _guide(axis, rows, "linear", -1, "theory ∝ 1/n")
    axis.set_ylabel("difference / movement, test outputs, rms")
    axis.set_title("trained nets (NTK, α = 1) beside descent with a kernel that is …", fontsize=9)


def _decay(axis: Axes, runs: Sequence[Run]) -> None:
    """Residual along the top eigenvectors of one seed's first kernel, narrowest and widest net."""
    first = runs[0].config["seed"]
    own = sorted(
        (run for run in runs if run.config["seed"] == first),
        key=lambda run: run.config["model"]["width"],
    )
    for run, color, mark in zip((own[0], own[-1]), colors(2), ("s", "o"), strict=True):
        steps, measured, predicted = modes(run)
        for number in range(measured.shape[1]):
            start = measured[0, number]
            label = f"n = {run.config['model']['width']}" if number == 0 else None
            axis.plot(
                steps, np.abs(measured[:, number] / start), mark, ms=3, color=color, label=label
            )
            axis.plot(steps, np.abs(predicted[:, number] / start), lw=0.8, color=color)
    axis.plot([], [], lw=0.8, color="0.4", label=r"theory $(1-\eta\lambda_i)^t$")
    axis.set(yscale="log", xlim=(-2, 62), ylim=(1e-3, 1.5), xlabel="step t")
    axis.set_ylabel("residual / its start")
    axis.set_title(f"along the top three eigenvectors of Θ₀ (NTK, α = 1), seed {first}", fontsize=9)
