"""Experiments: run the sweep, read it back, measure, judge, draw, report."""

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from lmech import (
    catalogue,
    config,
    formats,
    hints,
    manifest,
    pairs,
    planning,
    signatures,
    standing,
    summing,
    sweeps,
)
from lmech import claims as verdicts
from lmech.disk import atomically, link_folder, read_json, write_json
from lmech.loggers import Progress
from lmech.loggers.following import following
from lmech.mistakes import one_line
from lmech.planning import Job
from lmech.values import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from lmech.collecting import Run
    from lmech.report import Section


class Experiment(NamedTuple):
    """An experiment at one scale, before it runs."""

    name: str
    module: str
    paper: str
    overrides: list[str]
    """What composes its config: the experiment, the scale's overrides, the user's."""
    sweep: list[sweeps.Block]
    claims: list[verdicts.Claim]
    comparisons: Sequence[pairs.Comparison] = ()
    scale: str = catalogue.DEFAULT_SCALE


def _checked(name: str, node: dict[str, Any] | None) -> dict[str, Any]:
    """The experiment section, with all that it needs and a module that measures."""
    place = f"{catalogue.place('experiment', name)}: experiment"
    if node is None:
        raise ConfigError(f"{place}: there is none, with its name, module, sweep and claims")
    for key in ("name", "module", "sweep", "claims"):
        if key not in node:
            raise ConfigError(f"{place}.{key} is missing")
    try:
        module = importlib.import_module(node["module"])
    except Exception as error:
        raise ConfigError(f"{place}.module={node['module']}: {one_line(error)}") from error
    if not callable(getattr(module, "measure", None)):
        raise ConfigError(f"{place}.module={node['module']} has no function measure(runs)")
    return node


def load(name: str, scale: str, overrides: Sequence[str]) -> Experiment:
    """The experiment's sweep and claims at a scale, with the user's overrides on top.

    An override of a swept key replaces its values. Raises ConfigError.
    """
    options = catalogue.groups().get("experiment", [])
    if name not in options:
        where = "lmech list; a project's own are found where its pyproject.toml is"
        raise ConfigError(f"no experiment '{name}'{hints.nearest(name, options)} ({where})")
    chosen = [f"experiment={name}"]
    node = _checked(name, config.plain(config.compose(chosen))["experiment"])
    scales = catalogue.scales(node)
    if scale not in scales:
        raise ConfigError(
            f"--scale {scale}: no such scale{hints.nearest(scale, scales)} "
            f"({name} has {', '.join(scales)})"
        )
    own = scales[scale]
    blocks = sweeps.parse(own["sweep"])
    plain, blocks = sweeps.on_top(blocks, overrides)
    return Experiment(
        name=name,
        module=node["module"],
        paper=node.get("paper", ""),
        overrides=[*chosen, *own.get("overrides", []), *plain],
        sweep=blocks,
        claims=verdicts.parse(own["claims"]),
        comparisons=pairs.parse(own.get("comparisons", node.get("comparisons"))),
        scale=scale,
    )


def having(scale: str) -> dict[str, float | None]:
    """The experiments that have the scale, and the minutes that each took where it was measured.

    Raises ConfigError if none has the scale.
    """
    scales = {}
    for name in catalogue.groups().get("experiment", []):
        node = _checked(name, config.plain(config.compose([f"experiment={name}"]))["experiment"])
        scales[name] = catalogue.scales(node)
    found = {name: own[scale].get("minutes") for name, own in scales.items() if scale in own}
    if not found:
        known = dict.fromkeys(word for own in scales.values() for word in own)
        raise ConfigError(
            f"--scale {scale}: no experiment has it{hints.nearest(scale, known)} "
            f"(there are {', '.join(known)})"
        )
    return found


def forget() -> None:
    """Let go of what the process holds of the programs that it has run: memory, above all."""
    if "jax" in sys.modules:
        from lmech import programs

        programs.forget()


class Outcome(NamedTuple):
    """What a sweep came to."""

    folder: Path
    counts: dict[str, int]
    """Jobs trained now, by status, and those skipped because they were finished."""
    failures: dict[str, str]
    """Last line of the traceback of each failed job, of this time or before."""
    claims: list[dict[str, Any]]


def reproduce(name: str, scale: str, overrides: Sequence[str], command: str) -> Outcome:
    """Run an experiment's sweep (what is not finished of it) and judge its claims."""
    experiment = load(name, scale, overrides)
    jobs = planning.expand(experiment.overrides, experiment.sweep)
    pairs.check(experiment.comparisons, jobs)
    folder = planning.folder(jobs)
    request = {"command": command, "title": "", "experiment": name, "scale": scale}
    with _at_work(jobs[0].config, folder) as show:
        counts, failures = train(jobs, folder, request, show)
        judged = _conclude(experiment, folder, command)
    return Outcome(folder, counts, failures, judged)


def run(jobs: Sequence[Job], command: str, draw: bool = True) -> Outcome:
    """Train these runs and ``draw`` them, without claims."""
    folder = planning.folder(jobs)
    title = ", ".join(jobs[0].overrides) or "one run"
    request = {"command": command, "title": title, "experiment": None, "scale": None}
    return _trained(jobs, folder, request, draw)


def _trained(
    jobs: Sequence[Job], folder: Path, request: dict[str, Any], draw: bool = True
) -> Outcome:
    with _at_work(jobs[0].config, folder) as show:
        counts, failures = train(jobs, folder, request, show)
        trained = sum(counts.values()) > counts["skipped"]
        if draw and (trained or not (folder / "report.html").is_file()):
            _draw_runs(folder, request["title"], request["command"])
    return Outcome(folder, counts, failures, [])


def resume(folder: Path, changes: Mapping[str, Any], batch: int | None = None) -> Outcome:
    """Go on with the sweep in a folder, as its manifest has it; its jobs' YAML is not read again.

    With a ``batch``, that alone is trained, and nothing judged or drawn. ``changes`` are values of
    keys that change no result. Raises ConfigError where something that a job's result depends on
    has changed since.
    """
    entries = manifest.found(folder)
    if batch is not None:
        entries = manifest.of_batch(entries, batch)
    manifest.check_unchanged(entries)
    changes = {"rerun": "missing", **changes}  # what was asked for again has been
    jobs = [
        replace(job, config=config.changed(job.config, changes)) for job in manifest.jobs(entries)
    ]
    request = read_json(folder / manifest.REQUEST)
    if batch is not None:
        with _at_work(jobs[0].config, folder) as show:
            return Outcome(folder, *train(jobs, folder, request, show, batch), [])
    if request["experiment"] is None:
        return _trained(jobs, folder, request)
    experiment = load(request["experiment"], request["scale"], [])
    with _at_work(jobs[0].config, folder) as show:
        counts, failures = train(jobs, folder, request, show)
        judged = _conclude(experiment, folder, request["command"])
    return Outcome(folder, counts, failures, judged)


@contextmanager
def _at_work(config: Mapping[str, Any], folder: Path) -> Iterator[Callable[[Progress], None]]:
    """What a sweep's training and drawing happen in: its loggers follow it.

    Of several processes that are one run, only the first gets here. Raises FollowedError in others.
    """
    with ExitStack() as stack:
        if config["execution"].get("processes"):
            from lmech import together

            stack.enter_context(together.led(config["execution"]))
        yield stack.enter_context(following(config["logger"], folder))


def _draw_runs(folder: Path, title: str, command: str) -> None:
    from lmech import collecting

    runs = collecting.read_runs(folder)
    if runs:
        _draw(_of_runs(folder, runs, title, command))


def _of_runs(folder: Path, runs: "Sequence[Run]", title: str, command: str) -> "Section":
    """The section of a sweep that no experiment judges: every observable against step."""
    from lmech import plotting, report

    figure = plotting.curves(runs) if runs else None
    return report.Section(folder, folder.parent.name, title, "", command, "", figure, [])


def train(
    jobs: Sequence[Job],
    folder: Path,
    request: Mapping[str, Any],
    show: Callable[[Progress], None],
    batch: int | None = None,
) -> tuple[dict[str, int], dict[str, str]]:
    """Train what is not finished: counts by status, why each failed job did.

    What another sweep of the same output folder has finished is taken from there. ``request`` says
    what was asked for, so that ``resume`` can go on with it; ``show`` is called as it goes.
    ``batch``: the jobs are that one's.
    """
    if jobs[0].config["rerun"] != "all":
        adopt(jobs, folder)
    todo = standing.todo(jobs, folder)
    again = {job.id for job in todo}
    left = [job.id for job in jobs if standing.of(folder / job.id, job) == "failed"]
    before = {job: standing.reason(folder / job) for job in left if job not in again}
    if not todo and batch is None:
        summing.add_up(folder)
    if not todo and (batch is not None or (folder / summing.NAME).is_file()):
        return {"failed": len(before), "skipped": len(jobs) - len(before)}, before
    standing.check_place(folder)
    from lmech import running

    shown = show if batch is not None else _beside(show)
    counts, reasons = running.run_sweep(
        jobs, todo, folder, request, shown, failed=len(before), alone=batch
    )
    return counts, before | reasons


def _beside(show: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """What the host does while it waits for the first batch, which is compiled and trains."""
    begun = False

    def shown(progress: Progress) -> None:
        nonlocal begun
        show(progress)
        if progress.event == "runs" and not begun:
            begun = True
            Thread(target=_import_what_draws).start()
            signatures.remember_presets()

    return shown


def _import_what_draws() -> None:
    """Meant for a thread: these take most of a second.

    Nothing of lmech's own, nor JAX: two threads that import a cycle of modules may see half of it.
    """
    for name in ("pandas", "matplotlib.figure", "jinja2"):
        with suppress(Exception):  # who needs it imports it again, and is told
            importlib.import_module(name)


def adopt(jobs: Sequence[Job], folder: Path) -> None:
    """Take finished jobs from other sweeps of the same output folder."""
    for job, found in standing.elsewhere(jobs, folder).items():
        link_folder(found, folder / job)


def _conclude(experiment: Experiment, folder: Path, command: str) -> list[dict[str, Any]]:
    """Compare, measure, judge and draw from what is on the disk."""
    from lmech import collecting

    compare(folder, experiment.comparisons)
    runs = collecting.read_runs(folder)
    if not runs:
        return []
    measurements, judged = _judged(experiment, folder, runs)
    write_json(folder / CLAIMS, judged)  # before it is drawn: a figure may fail
    _draw(_told(experiment, folder, runs, measurements, judged, command))
    return judged


def compare(folder: Path, comparisons: Sequence[pairs.Comparison]) -> int:
    """Compare the pairs of a sweep's finished runs that have not been; how many there were."""
    entries = manifest.read(folder) if comparisons else []
    left = [(one, pairs.left(folder, entries, one)) for one in comparisons]
    todo = [(one, own) for one, own in left if own]
    if todo:
        from lmech import comparing

        comparing.compare(folder, todo)
    return sum(len(own) for _, own in todo)


CLAIMS = "claims.json"


def _judged(
    experiment: Experiment, folder: Path, runs: "Sequence[Run]"
) -> "tuple[pd.DataFrame, list[dict[str, Any]]]":
    """What an experiment's module measures of its sweep, and its claims with their verdicts."""
    import pandas as pd

    from lmech import collecting

    module = importlib.import_module(experiment.module)
    measured = {run.job for run in runs}
    jobs = collecting.read_jobs(folder).drop(columns=["status", "ended_at"])
    missing = jobs[~jobs["job"].isin(measured)]
    measurements = pd.concat([module.measure(runs), missing], ignore_index=True)
    return measurements, [verdicts.judge(claim, measurements) for claim in experiment.claims]


def _told(
    experiment: Experiment,
    folder: Path,
    runs: "Sequence[Run]",
    measurements: "pd.DataFrame",
    judged: Sequence[dict[str, Any]],
    command: str,
) -> "Section":
    """The section of an experiment's sweep, with the figure that its module draws."""
    from lmech import plotting, report

    module = importlib.import_module(experiment.module)
    draw = getattr(module, "figure", lambda runs, _: plotting.curves(runs))
    return report.Section(
        folder=folder,
        name=experiment.name,
        headline=next(iter((module.__doc__ or "").strip().splitlines()), ""),
        paper=experiment.paper,
        command=command,
        scale=experiment.scale,
        figure=draw(runs, measurements),
        claims=judged,
    )


def _draw(section: "Section") -> None:
    from lmech import report

    figure = section.figure
    if figure is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # it is laid out now, and stays so in each format
        atomically(section.folder / "figure.png", lambda path: figure.savefig(path, format="png"))
    report.write(section.folder / "report.html", [section], interactive=False)


def redrawn(folder: Path) -> "Section":
    """A sweep's section of a report, measured, judged and drawn anew from the disk.

    Trains nothing and writes nothing. What cannot be measured today is shown as it was recorded,
    with a note that says why.
    """
    from lmech import collecting

    file = folder / manifest.REQUEST
    request = read_json(file) if file.is_file() else dict.fromkeys(REQUESTED, "")
    runs = collecting.read_runs(folder)
    if not request["experiment"]:
        return _of_runs(folder, runs, request["title"], request["command"])
    recorded = folder / CLAIMS
    before: Any = read_json(recorded, list) if recorded.is_file() else []
    try:
        if not runs:
            raise ConfigError("no job has a result")
        experiment = load(request["experiment"], request["scale"], [])
        found = _judged(experiment, folder, runs)
        section = _told(experiment, folder, runs, *found, request["command"])
    except Exception as error:
        plain = _of_runs(folder, runs, "", request["command"])
        note = f"not measured anew, claims are as recorded: {one_line(error)}"
        return plain._replace(scale=request["scale"], claims=before, notes=[note])
    return section._replace(notes=_differences(before, section.claims))


REQUESTED = ("command", "title", "experiment", "scale")


def _differences(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What was measured or judged otherwise when the sweep ended: by another module or YAML."""
    if not before:
        return []
    if [claim["claim"] for claim in before] != [claim["claim"] for claim in now]:
        return ["the claims are today's; when recorded there were others"]
    told = [
        f"claim '{own['claim']}': {_result(own)} now, {_result(then)} when recorded"
        for then, own in zip(before, now, strict=True)
    ]
    same = [
        then["verdict"] == own["verdict"] and _close(then["measured"], own["measured"])
        for then, own in zip(before, now, strict=True)
    ]
    return [line for line, alike in zip(told, same, strict=True) if not alike]


def _result(claim: Mapping[str, Any]) -> str:
    return f"{claim['verdict']} ({formats.number(claim['measured'])})"


def _close(then: float | None, now: float | None) -> bool:
    """Whether they are one number but for rounding; what is not finite was written as none."""
    if then is None or now is None or not math.isfinite(now):
        return then is None and (now is None or not math.isfinite(now))
    return math.isclose(then, now, rel_tol=1e-6)
