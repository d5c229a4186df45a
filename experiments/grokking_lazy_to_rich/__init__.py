"""Grokking as the transition from lazy to rich training (Kumar et al. 2024)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from lmech.collecting import Run
from lmech.plotting import colors

POWER = 0.75
"""E y² of the targets over the distribution of the inputs: errors are shares of it."""

FITTED, GENERALISES = 0.02, 0.1
"""The shares of the targets' power below which the training and the test error are small."""

KEYS = ("linearized", "alpha", "epsilon")


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of three kinds, told apart by ``row``; errors are mean squares over the targets' power.

    ``run``: one a run. ``ratio`` t_te/t_tr of the first steps at which the test error is below 10 %
    (``test_step``) and the training error below 2 % (``train_step``), infinite without the former;
    ``delayed`` whether it is infinite, 1 or 0. ``final`` and ``lowest`` test error, ``alignment``
    of the weights at the end, ``growth`` of their squared norm. ``plateau``: test error at t_tr;
    ``kernel`` that of kernel regression at the end, ``plateau_ratio`` the first over the second.
    ``kernel_deviation``: largest relative difference of the test error to that of kernel gradient
    descent with the first kernel. ``alignment_late``: share of the rise of the kernel's alignment
    that comes after t_tr. ``edge``: ηλ₁ of the first kernel.

    ``setting``: the medians of a setting's runs, as ``median_ratio`` and so on; ``over_rich``: of
    the ratio over that at the smallest α of the same ε.

    ``trend``: over the settings that share ε (``along`` alpha), α (``along`` epsilon) or α·ε
    (``along`` none), those that are not ``linearized``. ``ratio_least`` and ``ratio_most``:
    smallest and largest of the quotients of successive medians of the ratio, of two infinite ones
    none; ``final_least`` and ``alignment_most`` alike; ``ratio_spread``: largest over smallest
    median ratio; ``scatter``: the mean over the settings of the same of their own runs.
    """
    rows = pd.DataFrame([_measure(run) for run in runs])
    settings = _settings(rows)
    parts = [rows.assign(row="run"), settings.assign(row="setting"), _trends(settings)]
    return pd.concat(parts, ignore_index=True)


def _measure(run: Run) -> dict[str, Any]:
    test, train, kernel = curves(run)
    alignment, norm = run.column("population_alignment"), run.column("population_norm")
    t_tr, t_te = _below(train, FITTED), _below(test, GENERALISES)
    complete = run.result["status"] == "done" and test.index[-1] == run.config["steps"]
    quantities = {
        "train_step": t_tr,
        "test_step": t_te,
        "ratio": t_te / t_tr if t_tr < np.inf else np.nan,
        "delayed": float(t_te == np.inf),
        "final": test.iloc[-1],
        "lowest": test.min(),
        "alignment": alignment.iloc[-1],
        "growth": norm.iloc[-1] / norm.iloc[0],
        "plateau": test.get(t_tr, np.nan),
        "kernel": kernel.iloc[-1],
        "plateau_ratio": test.get(t_tr, np.nan) / kernel.iloc[-1],
        "kernel_deviation": (test[kernel.index] / kernel - 1).abs().max(),
        "alignment_late": _late(run.column("kernel_alignment"), t_tr),
        "edge": run.column("kernel_regression_edge").iloc[0],
    }
    labels = {"job": run.job, "seed": run.config["seed"], **setting(run)}
    return labels | (quantities if complete else dict.fromkeys(quantities, np.nan))


def setting(run: Run) -> dict[str, Any]:
    """What tells a run's setting from others: linearized or not, α, ε."""
    values = (
        run.config["linearized"],
        run.config["output_scale"],
        run.config["parametrization"]["epsilon"],
    )
    return dict(zip(KEYS, values, strict=True))


def curves(run: Run) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Test and training error of a run, and kernel regression's test error, by step."""
    test, loss = run.column("population"), run.column("batch_loss")
    return test / POWER, 2 * loss / POWER, run.column("kernel_regression") / POWER


def _below(error: pd.Series, level: float) -> float:
    """The first step (infinite: never)."""
    return min(error.index[error < level], default=np.inf)


def _late(alignment: pd.Series, step: float) -> float:
    """Share of the rise from the start to the end that comes after the step."""
    at = np.interp(step, alignment.index, alignment)
    return _over(alignment.iloc[-1] - at, alignment.iloc[-1] - alignment.iloc[0])


MEDIANS = ("ratio", "train_step", "final", "alignment", "plateau", "plateau_ratio", "growth")


def _settings(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for key, own in rows.groupby(list(KEYS)):
        medians = {f"median_{name}": own[name].median(skipna=False) for name in MEDIANS}
        scatter = _over(own["ratio"].max(), own["ratio"].min())
        labels = {"seeds": own["seed"].tolist(), "jobs": own["job"].tolist()}
        found.append({**dict(zip(KEYS, key, strict=True)), **medians, "scatter": scatter, **labels})
    table = pd.DataFrame(found).sort_values(list(KEYS))
    rich = table.groupby(["linearized", "epsilon"])["median_ratio"].transform("first")
    return table.assign(over_rich=table["median_ratio"] / rich)


def _trends(settings: pd.DataFrame) -> pd.DataFrame:
    """Settings that differ in α alone, in ε alone, and that share α·ε."""
    plain = settings[~settings["linearized"]]
    product = (plain["alpha"] * plain["epsilon"]).round(9)
    groups = [
        *(("alpha", {"epsilon": value}, own) for value, own in plain.groupby("epsilon")),
        *(("epsilon", {"alpha": value}, own) for value, own in plain.groupby("alpha")),
        *(("none", {"product": value}, own) for value, own in plain.groupby(product)),
    ]
    return pd.DataFrame(
        {"row": "trend", "along": along, **shared, **_trend(along, own)}
        for along, shared, own in groups
        if len(own) > 1
    )


def _trend(along: str, own: pd.DataFrame) -> dict[str, Any]:
    own = own.sort_values(along) if along in own else own
    return {
        "ratio_least": _quotients(own["median_ratio"]).min(),
        "ratio_most": _quotients(own["median_ratio"]).max(),
        "ratio_spread": _over(own["median_ratio"].max(), own["median_ratio"].min()),
        "final_least": _quotients(own["median_final"]).min(),
        "alignment_most": _quotients(own["median_alignment"]).max(),
        "scatter": own["scatter"].mean(),
        "seeds": sorted({seed for seeds in own["seeds"] for seed in seeds}),
        "jobs": [job for jobs in own["jobs"] for job in jobs],
    }


def _over(a: float, b: float) -> float:
    """Not a number for two infinite delays."""
    with np.errstate(invalid="ignore"):
        return float(np.divide(a, b))


def _quotients(values: pd.Series) -> pd.Series:
    return (values / values.shift()).dropna()


def figure(runs: Sequence[Run], _: pd.DataFrame) -> Figure:
    """Errors against step; the delay against α·ε; one run's three terms; where training ends."""
    fig = Figure(figsize=(9, 6.4), layout="constrained", dpi=150)
    (along, delay), (terms, ends) = fig.subplots(2, 2)
    first = runs[0].config["seed"]
    usual = setting(runs[0])["epsilon"]
    own = [run for run in runs if run.config["seed"] == first]
    plain = [r for r in own if not r.config["linearized"] and setting(r)["epsilon"] == usual]
    _errors(along, plain, [run for run in own if run.config["linearized"]])
    _delays(delay, [run for run in runs if not run.config["linearized"]])
    _terms(terms, plain[len(plain) // 2])
    _ends(ends, [run for run in runs if setting(run)["epsilon"] == usual])
    for axis in (along, delay, terms, ends):
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


def _errors(axis: Axes, runs: Sequence[Run], linear: Sequence[Run]) -> None:
    """Training (dotted) and test error of one seed, a colour an α."""
    shades = [*zip(runs, colors(len(runs)), strict=True), *((run, "0.5") for run in linear)]
    for run, color in shades:
        test, train, _ = curves(run)
        linearized, alpha, _ = setting(run).values()
        label = "linearized" if linearized else rf"$\alpha$ = {alpha:g}"
        axis.plot(test.index + 1, test, "-", lw=1.2, color=color, label=label)
        axis.plot(train.index + 1, train, ":", lw=1.0, color=color)
    for level, word in ((GENERALISES, "test: 10 %"), (FITTED, "training: 2 %")):
        axis.axhline(level, color="0.6", lw=0.8, ls="--")
        place = ("axes fraction", "data")
        axis.annotate(word, (0.01, level), xycoords=place, fontsize=6, va="bottom")
    axis.set(xscale="log", yscale="log", ylim=(1e-3, 2), xlabel="step + 1")
    axis.set_ylabel("mean squared error / E y²", fontsize=8)
    axis.set_title(f"test (solid) and training (dotted), seed {runs[0].config['seed']}", fontsize=9)
    axis.legend(fontsize=6, loc="lower left", ncols=2)


def _delays(axis: Axes, runs: Sequence[Run]) -> None:
    """A dot a run, the medians joined, a colour an ε; runs that never generalise at the top."""
    rows = pd.DataFrame([_measure(run) for run in runs])
    rows["product"] = rows["alpha"] * rows["epsilon"]
    top = 2 * rows["ratio"][np.isfinite(rows["ratio"])].max()
    for (epsilon, own), color in zip(
        rows.groupby("epsilon"), colors(rows["epsilon"].nunique()), strict=True
    ):
        axis.plot(own["product"], own["ratio"].clip(upper=top), "o", ms=3, alpha=0.5, color=color)
        centre = own.groupby("product")["ratio"].median().clip(upper=top)
        label = rf"$\epsilon$ = {epsilon:g}"
        axis.plot(centre.index, centre, "s-", ms=4, lw=1.2, color=color, label=label)
    axis.set(xscale="log", yscale="log")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50) if tick < 0.8 * top]
    axis.set_yticks([*ticks, top], [*map(str, ticks), "never"])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(r"$\alpha\epsilon$")
    axis.set_ylabel(r"delay $t_{te}/t_{tr}$", fontsize=8)
    axis.set_title("a dot a run, squares: medians", fontsize=9)
    axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(0, 0.95))


TERMS = {
    "variance": "of the mean",
    "misalignment": r"of $M$: $\|\alpha\epsilon\Delta M - \beta\beta'\|^2/2D^2$",
    "linear": r"linear: $\alpha^2|\Delta\bar w|^2/D$",
}


def _terms(axis: Axes, run: Run) -> None:
    """The terms of the test error, the training error, and the kernel's alignment on the right."""
    shades = colors(len(TERMS))
    for (name, label), color in zip(TERMS.items(), shades, strict=True):
        term = run.column(f"population_{name}").iloc[1:] / POWER  # one of them starts at 0
        axis.plot(term.index + 1, term, lw=1.2, color=color, label=label)
    _, train, _ = curves(run)
    axis.plot(train.index + 1, train, ":", lw=1.0, color="0.4", label="training error")
    axis.set(xscale="log", yscale="log", ylim=(1e-5, 2), xlabel="step + 1")
    axis.set_ylabel("part of the test error / E y²", fontsize=8)
    axis.legend(fontsize=6, loc="lower left")
    _, alpha, epsilon = setting(run).values()
    title = rf"terms of the test error, $\alpha$ = {alpha:g}, $\epsilon$ = {epsilon:g}"
    axis.set_title(f"{title}, seed {run.config['seed']}", fontsize=9)


def _ends(axis: Axes, runs: Sequence[Run]) -> None:
    """Against α: test error when the training set is fitted and at the end, and alignment."""
    rows = pd.DataFrame([_measure(run) for run in runs])
    plain, linear = rows[~rows["linearized"]], rows[rows["linearized"]]
    shown = {
        "plateau": ("test error at $t_{tr}$", "^"),
        "final": ("test error at the end", "o"),
        "alignment": ("alignment of the weights", "s"),
    }
    for (name, (label, mark)), color in zip(shown.items(), colors(len(shown)), strict=True):
        axis.plot(plain["alpha"], plain[name], mark, ms=3, alpha=0.4, color=color)
        centre = plain.groupby("alpha")[name].median()
        axis.plot(centre.index, centre, "-", marker=mark, ms=4, lw=1.2, color=color, label=label)
    for value in linear["final"]:
        axis.axhline(value, color="0.6", lw=0.6, ls="--")
    axis.plot([], [], color="0.6", lw=0.8, ls="--", label="linearized, test error at the end")
    axis.set(xscale="log", yscale="log", xlabel=r"output scale $\alpha$")
    axis.xaxis.set_minor_formatter(NullFormatter())
    values = sorted(plain["alpha"].unique())
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.set_title("medians and runs of all seeds", fontsize=9)
    axis.legend(fontsize=6)
