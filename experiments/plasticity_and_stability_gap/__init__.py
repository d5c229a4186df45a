"""Task after task a net fits new labels worse; at each switch it loses old ones for some steps."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lmech.collecting import Run
from lmech.plotting import colors, curves

NETS = {
    "relu": "ReLU, Adam",
    "gelu": "GELU, Adam",
    "gd": "ReLU, gradient descent",
    "layer norm": "with layer norm, Adam",
}
PLAIN = ("relu", "gelu")
"""The nets under Adam without layer norm."""

COLUMNS = ["row", "job", "seed", "jobs", "seeds", "net", "learning_rate", "tasks"]
COLUMNS += ["first", "last", "growth", "order_of_tasks", "of_first", "dead", "sharpness"]
COLUMNS += ["dead_correlation", "sharpness_correlation", "sharpness_ahead", "adam_over_gd"]
COLUMNS += ["angle", "replay", "before", "drop", "at", "unrecovered", "seen", "order_of_angles"]


def measure(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of five kinds, told apart by ``row``; losses in nats, accuracies in points.

    ``sequence``: a run on tasks of random labels. ``tasks`` says which: ``new`` ones, one after the
    other; the ``same`` one again and again; the last one from a ``fresh`` net. ``first``, ``last``:
    the training loss before the last update on the first task and on the last, ``growth`` their
    quotient; ``order_of_tasks``: Spearman's correlation between that loss and the task's number;
    ``of_first``, of a fresh net, its loss over that of the ``new`` run's first task. ``dead``: the
    share of dead units at the last task's start; ``sharpness``: the median over the tasks after the
    first of λ₁ of the new task's loss at its start, over that of the first task's.

    ``correlation``: one a seed, over the plain nets under Adam and all their tasks but the first.
    Spearman's between the loss at a task's end and what was measured at its start:
    ``dead_correlation`` of the dead units, ``sharpness_correlation`` of λ₁ of the new task's loss;
    ``sharpness_ahead``: by how much the latter's size is the larger.

    ``optimizers``: one a seed. ``adam_over_gd``: the mean loss at the end of the tasks but the
    first, Adam's over gradient descent's, each of the ReLU net at its smaller rate.

    ``switch``: a run on upright digits, then on digits turned by ``angle``. Of the test accuracy on
    upright ones, ``before``: at the switch; ``drop``: from there to the least after it, ``at`` so
    many steps; ``unrecovered``: from there to the end, which is all that an evaluation at the ends
    of the tasks sees, and ``seen`` its share of the drop.

    ``trend``: one a seed, ``order_of_angles``: Spearman's between angle and drop, under replay.

    A run that diverged has a row of its kind without values.
    """
    fitted = [run for run in runs if not _switches(run)]
    switched = [run for run in runs if _switches(run)]
    rows = [*map(_sequence, fitted), *map(_switch, switched)]
    frame = pd.DataFrame([*rows, *_correlations(fitted), *_optimizers(fitted)], columns=COLUMNS)
    frame["of_first"] = _of_first(frame)
    return pd.DataFrame([*frame.to_dict("records"), *_trends(frame)], columns=COLUMNS)


def _switches(run: Run) -> bool:
    """Whether a run's tasks are turned digits."""
    return "angles" in run.config["dataset"]


def _net(run: Run) -> str:
    """Which of ``NETS`` it trains."""
    if run.config["optimizer"]["_target_"] == "optax.sgd":
        return "gd"
    return "layer norm" if "norm" in run.config["model"] else run.config["model"]["activation"]


def _label(run: Run) -> dict[str, Any]:
    return {"job": run.job, "seed": run.config["seed"], "net": _net(run)}


def _starts(run: Run) -> list[int]:
    """The steps at which a run's tasks start."""
    return list(range(0, run.config["steps"], run.config["task_steps"]))


def _losses(run: Run) -> np.ndarray:
    """The training loss before the last update on each task."""
    ends = [start + run.config["task_steps"] - 1 for start in _starts(run)]
    return run.column("train_loss")[ends].to_numpy()


def _kind(run: Run) -> str:
    """Whether the tasks are ``new``, the ``same``, or one, of a ``fresh`` net."""
    if len(set(run.config["task_order"])) > 1:
        return "new"
    return "same" if len(_starts(run)) > 1 else "fresh"


def _sequence(run: Run) -> dict[str, Any]:
    row = {
        **_label(run),
        "row": "sequence",
        "tasks": _kind(run),
        "learning_rate": run.config["optimizer"]["learning_rate"],
    }
    if run.result["status"] != "done":
        return row
    losses, starts = _losses(run), _starts(run)
    sharpness = run.column("sharpness")[starts].to_numpy()
    numbers = np.arange(len(losses))
    return {
        **row,
        "first": losses[0],
        "last": losses[-1],
        "growth": losses[-1] / losses[0],
        "order_of_tasks": _rank_correlation([(numbers, losses)]),
        "dead": run.column("dead_units")[starts[-1]],
        "sharpness": np.median(sharpness[1:]) / sharpness[0] if len(starts) > 1 else np.nan,
    }


def _of_first(frame: pd.DataFrame) -> pd.Series:
    """Of fresh nets, the loss over that on the first task of the same net's ``new`` run."""
    keys = ["net", "learning_rate", "seed"]
    new = frame[frame["tasks"] == "new"].set_index(keys)["first"]
    fresh = frame[frame["tasks"] == "fresh"]
    firsts = new.reindex(pd.MultiIndex.from_frame(fresh[keys])).to_numpy()
    return pd.Series(fresh["last"].to_numpy(float) / firsts.astype(float), fresh.index, float)


def points(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """An observable at each task's start but the first, and the loss at the same task's end."""
    return run.column(name)[_starts(run)[1:]].to_numpy(), _losses(run)[1:]


def _rank_correlation(pairs: Iterable[Sequence[np.ndarray]]) -> float:
    """Spearman's, over the numbers of all pairs; not a number where one side is constant."""
    one, other = (pd.Series(np.concatenate(side)).rank() for side in zip(*pairs, strict=True))
    return float(one.corr(other)) if one.nunique() > 1 and other.nunique() > 1 else np.nan


def _plain(runs: Sequence[Run]) -> list[Run]:
    new = [run for run in runs if _kind(run) == "new" and _net(run) in PLAIN]
    return [run for run in new if run.result["status"] == "done"]


def _correlations(runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows = []
    for seed in sorted({run.config["seed"] for run in _plain(runs)}):
        own = [run for run in _plain(runs) if run.config["seed"] == seed]
        found = {
            f"{short}_correlation": _rank_correlation([points(run, name) for run in own])
            for short, name in (("dead", "dead_units"), ("sharpness", "sharpness"))
        }
        dead, sharpness = found.values()
        found["sharpness_ahead"] = abs(sharpness) - abs(dead)
        rows.append(
            {"row": "correlation", "jobs": [run.job for run in own], "seeds": [seed], **found}
        )
    return rows


def _optimizers(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Adam and gradient descent, seed by seed."""
    new = [run for run in runs if _kind(run) == "new" and run.result["status"] == "done"]
    means: dict[tuple[int, str], tuple[float, Run]] = {}
    for run in sorted(new, key=lambda run: -run.config["optimizer"]["learning_rate"]):
        means[run.config["seed"], _net(run)] = (_losses(run)[1:].mean(), run)  # the smallest last
    rows = []
    for seed in sorted({seed for seed, net in means if net == "gd"}):
        if (seed, "relu") in means:
            (gd, one), (adam, other) = means[seed, "gd"], means[seed, "relu"]
            jobs = {"jobs": [one.job, other.job], "seeds": [seed]}
            rows.append({"row": "optimizers", **jobs, "adam_over_gd": adam / gd})
    return rows


def _old_accuracy(run: Run) -> pd.Series:
    """The test accuracy on the first task, in points, by step."""
    return run.column("test_tasks_accuracy").map(lambda accuracies: 100 * accuracies[0])


def _switch(run: Run) -> dict[str, Any]:
    angles, order = run.config["dataset"]["angles"], run.config["task_order"]
    row = {
        **_label(run),
        "row": "switch",
        "angle": abs(angles[order[1]] - angles[order[0]]),
        "replay": run.config["replay"],
    }
    if run.result["status"] != "done":
        return row
    accuracy, switch = _old_accuracy(run), run.config["task_steps"]
    before, after = accuracy[switch], accuracy[accuracy.index > switch]
    drop, lost = before - after.min(), before - after.iloc[-1]
    return {
        **row,
        "before": before,
        "drop": drop,
        "at": after.idxmin() - switch,
        "unrecovered": lost,
        "seen": lost / drop if drop > 0 else np.nan,
    }


def _trends(frame: pd.DataFrame) -> list[dict[str, Any]]:
    replayed = frame[(frame["row"] == "switch") & (frame["replay"] > 0)]
    return [
        {
            "row": "trend",
            "jobs": own["job"].tolist(),
            "seeds": [seed],
            "order_of_angles": _rank_correlation(
                [(own["angle"].to_numpy(), own["drop"].to_numpy())]
            ),
        }
        for seed, own in replayed.groupby("seed")
        if own["angle"].nunique() > 1
    ]


def figure(runs: Sequence[Run], measurements: pd.DataFrame) -> Figure:
    """Loss by task; dead units against it; old accuracy around the switch; its drop by angle.

    Without such runs, the runs' curves.
    """
    done = [run for run in runs if run.result["status"] == "done"]
    fitted = [run for run in done if not _switches(run)]
    switched = [run for run in done if _switches(run)]
    if not fitted or not switched:
        return curves(runs)
    fig = Figure(figsize=(10, 7), layout="constrained", dpi=110)
    (by_task, dead), (around, angles) = fig.subplots(2, 2)
    _by_task(by_task, fitted)
    _dead(dead, fitted)
    _around(around, switched)
    _angles(angles, measurements[measurements["row"] == "switch"])
    for axis in (by_task, dead, around, angles):
        axis.title.set_size(9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    return fig


SHADES = dict(zip(NETS, ("#c0392b", "#d68910", "#7d3c98", "#1a5276"), strict=True))


def _shown(runs: Sequence[Run], kind: str) -> list[Run]:
    """Of each net the runs of that kind at its largest rate."""
    own = [run for run in runs if _kind(run) == kind]
    rates = pd.Series([run.config["optimizer"]["learning_rate"] for run in own], dtype=float)
    largest = rates.groupby([_net(run) for run in own]).transform("max") if own else rates
    return [run for run, keep in zip(own, rates == largest, strict=True) if keep]


def _by_task(axis: Axes, runs: Sequence[Run]) -> None:
    """A line a run; a fresh net's loss on the last task as a cross."""
    for net, label in NETS.items():
        for number, run in enumerate(r for r in _shown(runs, "new") if _net(r) == net):
            rate = run.config["optimizer"]["learning_rate"]
            losses, told = _losses(run), f"{label}, η = {rate:g}" if number == 0 else None
            axis.plot(
                np.arange(1, len(losses) + 1), losses, ".-", color=SHADES[net], lw=1, label=told
            )
    for number, run in enumerate(_shown(runs, "same")):
        losses, told = _losses(run), "ReLU, Adam: the task never changes" if number == 0 else None
        axis.plot(np.arange(1, len(losses) + 1), losses, ":", color="0.4", lw=1, label=told)
    for number, run in enumerate(_shown(runs, "fresh")):
        told = "ReLU, Adam: a fresh net" if number == 0 else None
        last = run.config["task_order"][0] + 1
        axis.plot([last], _losses(run)[-1:], "x", color=SHADES["relu"], ms=7, label=told)
    axis.set(yscale="log", xlabel="task (random labels, new in each)")
    axis.set_ylabel("training loss at the task's end (nats)")
    axis.set_ylim(None, 1e3)  # room for the legend
    axis.set_title(f"How well each new task is fitted in {runs[0].config['task_steps']} steps")
    axis.legend(fontsize=6.5, ncols=2, loc="upper left")


def _dead(axis: Axes, runs: Sequence[Run]) -> None:
    """A dot a task of each run but its first."""
    for net in PLAIN:
        own = [run for run in _plain(runs) if _net(run) == net]
        pairs = [points(run, "dead_units") for run in own]
        if pairs:
            x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
            axis.plot(100 * x, y, "o", ms=4, alpha=0.6, color=SHADES[net], label=NETS[net])
    axis.set(yscale="log", xlabel="dead units at the task's start (%)")
    axis.set_ylabel("training loss at its end (nats)")
    axis.set_title("The same loss against the units that were dead before the task")
    axis.legend(fontsize=7)


def _around(axis: Axes, runs: Sequence[Run]) -> None:
    """Means over the seeds, a line an angle; circles are all that is seen at the tasks' ends."""
    switch = runs[0].config["task_steps"]
    curve: dict[tuple[bool, float], list[pd.Series]] = {}
    for run in runs:
        row = _switch(run)
        curve.setdefault((row["replay"] > 0, row["angle"]), []).append(_old_accuracy(run))
    angles = sorted(angle for replayed, angle in curve if replayed)
    for angle, color in zip(angles, colors(len(angles)), strict=True):
        mean = pd.concat(curve[True, angle], axis=1).mean(axis=1)
        near = mean[(mean.index >= switch - 15) & (mean.index <= switch + 60)]
        axis.plot(near.index - switch, near, color=color, lw=1.2, label=f"{angle:g}°")
        axis.plot([0], [mean[switch]], "o", mfc="none", color=color, ms=5)
        axis.plot([63], [mean.iloc[-1]], "o", mfc="none", color=color, ms=5, clip_on=False)
    axis.axvline(0, color="0.5", lw=0.8, ls=":")
    axis.set(xlabel="steps after the switch (last: the end of the run)")
    axis.set_ylabel("test accuracy on the first task (points)")
    axis.set_title("Mean over seeds around the switch; circles: at the tasks' ends")
    axis.legend(fontsize=7, title="turned by", title_fontsize=7, ncols=2, loc="lower right")


def _angles(axis: Axes, rows: pd.DataFrame) -> None:
    """A dot a run; the mean joined."""
    replayed = rows[rows["replay"] > 0]
    for column, label, color in (
        ("drop", "drop to the least", SHADES["relu"]),
        ("unrecovered", "lost at the end", SHADES["layer norm"]),
    ):
        means = replayed.groupby("angle")[column].mean()
        axis.plot(means.index, means, "-", lw=1.2, color=color, label=label)
        axis.plot(replayed["angle"], replayed[column], ".", ms=5, color=color)
        alone = rows[rows["replay"] == 0]
        told = f"{label}, no replay"
        axis.plot(
            alone["angle"], alone[column], "+" if column == "drop" else "x", color="0.3", label=told
        )
    axis.xaxis.set_major_formatter(FuncFormatter(lambda angle, _: f"{angle:g}°"))
    axis.set(
        xlabel="the second task's digits are turned by",
        ylabel="lost of the first task's accuracy (points)",
    )
    axis.set_title("What step-by-step evaluation sees, and what one at the ends")
    axis.legend(fontsize=7)
