"""Experiments: run the sweep, read it back, measure, judge, draw, report."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from lmech import claims as verdicts
from lmech import collecting, config, planning, plotting, report, sweeps
from lmech.config import ConfigError
from lmech.disk import atomically, write_json
from lmech.planning import Job


class Experiment(NamedTuple):
    """An experiment at one scale, before it runs."""

    name: str
    module: str
    paper: str
    overrides: list[str]
    """What composes its config: the experiment, the scale's overrides, the user's."""
    sweep: list[sweeps.Block]
    claims: list[verdicts.Claim]


DEFAULT_SCALE = "default"


def _checked(name: str, node: dict[str, Any]) -> dict[str, Any]:
    """The experiment section, with all that it needs and a module that measures."""
    place = f"conf/experiment/{name}.yaml: experiment"
    for key in ("name", "module", "sweep", "claims"):
        if key not in node:
            raise ConfigError(f"{place}.{key} is missing")
    try:
        module = importlib.import_module(node["module"])
    except ImportError as error:
        raise ConfigError(f"{place}.module={node['module']}: {error}") from error
    if not callable(getattr(module, "measure", None)):
        raise ConfigError(f"{place}.module={node['module']} has no function measure(runs)")
    return node


def load(name: str, scale: str, overrides: Sequence[str]) -> Experiment:
    """The experiment's sweep and claims at a scale, with the user's overrides on top.

    An override of a swept key replaces its values. Raises ConfigError.
    """
    options = config.groups().get("experiment", [])
    if name not in options:
        raise ConfigError(f"no experiment '{name}'{config.nearest(name, options)} (lmech list)")
    chosen = [f"experiment={name}"]
    node = _checked(name, config.plain(config.compose(chosen))["experiment"])
    scales = {DEFAULT_SCALE: node, **node.get("scales", {})}
    if scale not in scales:
        raise ConfigError(
            f"--scale {scale}: no such scale{config.nearest(scale, scales)} "
            f"({name} has {', '.join(scales)})"
        )
    own = scales[scale]
    blocks = sweeps.parse(own["sweep"])
    known = sweeps.keys(blocks)
    plain, swept = sweeps.split(overrides)
    for text in plain:
        key, _, single = text.partition("=")
        if key in known:
            swept[key] = sweeps.values(key, single)
    plain = [text for text in plain if text.partition("=")[0] not in known]
    return Experiment(
        name=name,
        module=node["module"],
        paper=node.get("paper", ""),
        overrides=[*chosen, *own.get("overrides", []), *plain],
        sweep=sweeps.override(blocks, swept),
        claims=verdicts.parse(own["claims"]),
    )


class Outcome(NamedTuple):
    """What a sweep came to."""

    folder: Path
    counts: dict[str, int]
    """Jobs trained now, by status, and those skipped because they were finished."""
    failures: dict[str, str]
    """Last line of the traceback of each failed job."""
    claims: list[dict[str, Any]]


def reproduce(name: str, scale: str, overrides: Sequence[str], command: str) -> Outcome:
    """Run an experiment's sweep (what is not finished of it) and judge its claims."""
    experiment = load(name, scale, overrides)
    folder, counts, failures = _train(planning.expand(experiment.overrides, experiment.sweep))
    judged = _conclude(experiment, folder, command)
    return Outcome(folder, counts, failures, judged)


def run(jobs: Sequence[Job], command: str) -> Outcome:
    """Train these runs and draw them, without claims."""
    folder, counts, failures = _train(jobs)
    trained = sum(counts.values()) > counts["skipped"]
    if trained or not (folder / "report.html").is_file():
        _draw_runs(folder, ", ".join(jobs[0].overrides) or "one run", command)
    return Outcome(folder, counts, failures, [])


def _draw_runs(folder: Path, title: str, command: str) -> None:
    runs = collecting.read_runs(folder)
    if runs:
        figure = plotting.curves(runs)
        _draw(folder, figure, title=f"{folder.parent.name}: {title}", paper="", command=command)


def _train(jobs: Sequence[Job]) -> tuple[Path, dict[str, int], dict[str, str]]:
    """Train what is not finished: the folder, counts by status, why each failed job did."""
    folder = planning.folder(jobs)
    todo = planning.unfinished(jobs, folder)
    if not todo and (folder / "summary.json").is_file():
        return folder, {"skipped": len(jobs)}, {}
    from lmech import running  # noqa: PLC0415 only what trains needs JAX

    return folder, *running.run_sweep(jobs, todo, folder)


def _conclude(experiment: Experiment, folder: Path, command: str) -> list[dict[str, Any]]:
    """Measure, judge and draw from what is on the disk."""
    module = importlib.import_module(experiment.module)
    runs = collecting.read_runs(folder)
    if not runs:
        return []
    measured = {run.job for run in runs}
    jobs = collecting.read_jobs(folder).drop(columns=["status", "ended_at"])
    missing = jobs[~jobs["job"].isin(measured)]
    measurements = pd.concat([module.measure(runs), missing], ignore_index=True)
    judged = [verdicts.judge(claim, measurements) for claim in experiment.claims]
    write_json(folder / "claims.json", judged)
    draw = getattr(module, "figure", lambda runs, _: plotting.curves(runs))
    headline = (module.__doc__ or "").strip().splitlines()[0]
    _draw(
        folder,
        draw(runs, measurements),
        title=f"{experiment.name}: {headline}",
        paper=experiment.paper,
        command=command,
        claims=judged,
    )
    return judged


def _draw(folder: Path, figure: Figure, **report_parts: Any) -> None:
    atomically(folder / "figure.png", lambda path: figure.savefig(path, format="png"))
    report.write(folder, figure=figure, **{"claims": [], **report_parts})
