"""Measure later: observables of finished runs, from the weights that they kept. Trains nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lmech import (
    building,
    compiling,
    engine,
    formats,
    locking,
    manifest,
    planning,
    programs,
    snapshots,
    tuning,
)
from lmech.building import Setup
from lmech.disk import read_json, read_table, read_yaml, write_json, write_table, write_yaml
from lmech.engine import Visit
from lmech.inputs import Room
from lmech.manifest import Entry
from lmech.member import Program
from lmech.mistakes import one_line
from lmech.numerics import trees
from lmech.numerics.precision import numerics
from lmech.planning import Job
from lmech.provenance import provenance
from lmech.recorder import Recorder
from lmech.values import Config, ConfigError

Steps = Sequence[int] | slice | str | None
Asked = dict[str, list[int]]  # observable → steps


class Task(NamedTuple):
    """What is left to measure of one job."""

    folder: Path
    job: Job
    """Its observables are those that are left."""
    steps: Asked
    """At weights that there are."""
    files: dict[int, Path]
    end: int
    """The job's last step."""
    room: Room | None
    """For the examples that count, when it was trained."""


class Gap(NamedTuple):
    """What could not be answered, and for whom."""

    reason: str
    observables: list[str]
    job: Path


class Done(NamedTuple):
    """What was added to a job."""

    job: Path
    observables: list[str]
    columns: list[str]
    steps: list[int]


class Outcome(NamedTuple):
    """What a measurement came to."""

    done: list[Done]
    gaps: list[Gap]
    known: int
    """Jobs of which nothing was left to measure."""
    unfinished: int


def measure(sweeps: Sequence[Path], observables: Config, steps: Steps) -> Outcome:
    """Add columns to the finished jobs of these sweeps.

    ``observables`` is that section of a resolved config; ``steps`` are the snapshots to measure
    at: some, those of a slice, ``"last"``, or (None) all that a job has. What has been answered
    before is skipped, and a number that is there stays.
    """
    tasks, gaps, known, unfinished = [], [], 0, 0
    for sweep in sweeps:
        for entry in manifest.read(sweep):
            result = _result(sweep / entry["id"])
            if result is None:
                unfinished += 1
                continue
            task, missing = _task(sweep / entry["id"], entry, result, observables, steps)
            gaps += missing
            tasks += [task] if task.steps else []
            known += not task.steps and not missing
    if any(task.job.config["execution"]["compile_cache"] for task in tasks):
        compiling.keep()
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        place = planning.digest([planning.program_key(task.job.config), task.room])
        groups.setdefault(place, []).append(task)
    events: list[Done | Gap] = []
    for number, group in enumerate(groups.values(), start=1):
        print(f"program {number} of {len(groups)}: {len(group)} to measure", flush=True)
        events += _measured(group)
    done = [event for event in events if isinstance(event, Done)]
    gaps += [event for event in events if isinstance(event, Gap)]
    return Outcome(done, gaps, known, unfinished)


def _result(folder: Path) -> dict[str, Any] | None:
    """A finished job's result.json."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    result = read_json(path)
    return None if result["status"] == "failed" else result


def _task(
    folder: Path, entry: Entry, result: dict[str, Any], observables: Config, steps: Steps
) -> tuple[Task, list[Gap]]:
    """What is left to measure of a job, and what cannot be."""
    execution = {**entry["config"]["execution"], "devices": 1, "share": "members"}
    config = {**entry["config"], "observables": observables, "execution": execution}
    job = Job(entry["id"], config, entry["overrides"])
    room = (entry["execution"] or {}).get("room")
    room = None if room is None else Room(*room)
    task = Task(folder, job, {}, snapshots.kept(folder), int(result["steps"]), room)
    changed = _changed(entry)
    if changed:
        return task, [Gap(changed, list(observables), folder)]
    left, gaps = {}, []
    for name, identity in planning.observable_ids(config).items():
        left[name], reason = _left(task, result, name, identity, steps)
        gaps += [Gap(reason, [name], folder)] if reason else []
    left = {name: at for name, at in left.items() if at}
    config = {**config, "observables": {name: observables[name] for name in left}}
    return task._replace(job=replace(job, config=config), steps=left), gaps


def _left(
    task: Task, result: dict[str, Any], name: str, identity: str, steps: Steps
) -> tuple[list[int], str]:
    """The steps to measure an observable at; why not at all that were asked for."""
    wanted = _wanted(steps, sorted(task.files), task.end)
    own = result.get("observables", {}).get(name)
    before = result.get("measured", {}).get(name, {"id": identity, "steps": []})
    if {own or identity, before["id"]} != {identity}:
        return [], "its columns are there, with other settings"
    every = task.job.config["observables"][name]["every"]
    known = {*before["steps"], *(_cadence(every, task.end) if own else ())}
    rest = [step for step in wanted if step not in known]
    if own:
        at = formats.listed(rest)
        return [], f"it is recorded every {every} steps; nothing is added at {at}" if rest else ""
    missing = [step for step in rest if step not in task.files and step > 0]  # w₀ is drawn again
    there = [step for step in rest if step not in missing]
    if not missing:
        return there, ""
    kept = formats.listed(sorted(task.files))
    return there, f"no snapshot at {formats.listed(missing)}; there are {kept}"


def _changed(entry: Entry) -> str:
    """Why a job cannot be measured as what it was; "" if it can."""
    try:
        what = manifest.changed(entry)
    except ConfigError as error:
        return str(error)
    return f"the job's {what} changed since its manifest was written" if what else ""


def _wanted(steps: Steps, kept: list[int], end: int) -> list[int]:
    if steps is None:
        return kept
    if isinstance(steps, slice):
        return list(range(*steps.indices(end + 1)))
    return [end] if isinstance(steps, str) else sorted(set(steps))


def _cadence(every: int, end: int) -> list[int]:
    """The steps at which a run records an observable."""
    return sorted({*range(0, end, every), end})


def _measured(group: Sequence[Task]) -> Iterator[Done | Gap]:
    """Measure the jobs of one program, as many at once as memory has room for."""
    config = group[0].job.config
    with numerics(config["precision"]["matmul"]):
        try:
            configs = [task.job.config for task in group]
            whole = building.extent(configs, building.load_data(config))
            whole = whole._replace(room=group[0].room or whole.room)
            setup = building.build(configs, whole=whole)
        except ValueError as error:
            yield from _failures(group, list(config["observables"]), error)
            return
        program, refused = _answerable(setup)
        for name, reason in refused.items():
            yield from (Gap(reason, [name], task.folder) for task in group)
        if not program.observables:
            return
        lanes = config["execution"]["lanes"]
        lanes = lanes or tuning.lanes(setup._replace(program=program), tuning.free_memory())
        lanes = min(lanes, len(group))
        for start in range(0, len(group), lanes):
            tasks = group[start : start + lanes]
            try:
                yield from _measured_together(tasks, program, lanes)
            except Exception as error:
                yield from _failures(tasks, list(program.observables), error)


def _failures(tasks: Sequence[Task], names: list[str], error: Exception) -> Iterator[Gap]:
    return (Gap(one_line(error), names, task.folder) for task in tasks)


def _answerable(setup: Setup) -> tuple[Program, dict[str, str]]:
    """The program with the observables that snapshots answer; why they do not the others."""
    program = setup.program
    refused = {}
    for name in program.observables:
        reason = _refusal(setup._replace(program=_only(program, [name])), name)
        if reason:
            refused[name] = reason
    return _only(program, [name for name in program.observables if name not in refused]), refused


def _only(program: Program, names: Sequence[str]) -> Program:
    return replace(
        program,
        observables={name: program.observables[name] for name in names},
        every={name: program.every[name] for name in names},
    )


def _refusal(setup: Setup, name: str) -> str:
    """Why snapshots do not answer the program's observable; "" if they do."""
    observable = setup.program.observables[name]
    if observable.past:
        return "it looks at past iterates, and a snapshot has none"
    if observable.needs == "path":
        return "it follows the path between two measurements, and a snapshot is one point"
    try:
        building.check(setup)
    except Exception as error:
        return one_line(error)
    carry, _ = setup.state_shapes()
    if observable.needs == "optimizer" and jax.tree.leaves(carry.optimizer):
        return "it looks at the optimizer's state, and a snapshot has the weights alone"
    return ""


def _measured_together(tasks: Sequence[Task], program: Program, lanes: int) -> Iterator[Done | Gap]:
    """Measure the jobs, then write what was found to their files."""
    setup = building.build([task.job.config for task in tasks], program)
    recorder = Recorder(len(tasks))
    answered: list[Asked] = [{name: [] for name in program.observables} for _ in tasks]
    gaps: list[Gap] = []
    for record in engine.revisit(*setup, _visits(tasks, setup, answered, gaps), lanes=lanes):
        recorder.add(record)
    yield from gaps
    machine = provenance()
    for place, (task, found) in enumerate(zip(tasks, answered, strict=True)):
        own = {name: steps for name, steps in found.items() if steps}
        if own:
            table = recorder.table(place)
            _write(task, table, own, machine)
            yield Done(task.folder, list(own), table.column_names[1:], table["step"].to_pylist())


def _visits(
    tasks: Sequence[Task], setup: Setup, answered: list[Asked], gaps: list[Gap]
) -> Iterator[Visit]:
    """The jobs' weights step by step; what is due at them is ``answered``."""
    names = list(setup.program.observables)
    start = programs.initial_weights(setup.program, setup.inputs, setup.params)
    for step in sorted({step for task in tasks for name in names for step in task.steps[name]}):
        rows, due = [], {name: np.zeros(len(tasks), bool) for name in names}
        for place, task in enumerate(tasks):
            own = trees.take(start, place)
            asked = [name for name in names if step in task.steps[name]]
            try:
                rows.append(
                    building.kept_weights(task.files[step], own)
                    if asked and step in task.files
                    else own
                )
            except ValueError as error:
                gaps.append(Gap(str(error), asked, task.folder))
                rows.append(own)
                continue
            for name in asked:
                due[name][place] = True
                answered[place][name].append(step)
        yield Visit(step, jax.tree.map(lambda *leaves: np.stack(leaves), *rows), due)


def _write(task: Task, table: pa.Table, answered: Asked, machine: Mapping[str, Any]) -> None:
    """Add to the job's files; the result last."""
    folder = task.folder
    with locking.waited(folder.parent / "manifest.lock"):
        result = read_json(folder / "result.json")
        config = read_yaml(folder / "config.yaml")
        whole = merged(read_table(folder / "metrics.parquet"), table)
        last = whole.slice(len(whole) - 1).select(table.column_names[1:]).to_pylist()[0]
        added = {name: value for name, value in last.items() if value is not None}
        asked = {name: task.job.config["observables"][name] for name in answered}
        write_table(folder / "metrics.parquet", whole)
        write_yaml(
            folder / "config.yaml", {**config, "observables": {**config["observables"], **asked}}
        )
        result["final"] = dict(sorted({**added, **result["final"]}.items()))
        write_json(folder / "result.json", result | _answers(task, result, answered, machine))


def _answers(
    task: Task, result: dict[str, Any], answered: Asked, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """What result.json says of the job's observables.

    ``observables`` are those that need not be trained for again. A measured one is among them only
    if it is just what a run would have recorded: at the steps of its cadence, in one go.
    """
    ids = planning.observable_ids(task.job.config)
    own, measured = dict(result.get("observables", {})), dict(result.get("measured", {}))
    for name, steps in answered.items():
        before = measured.get(name, {"steps": []})["steps"]
        steps_now = sorted({*before, *steps})
        measured[name] = {"id": ids[name], "steps": steps_now, "provenance": machine}
        if steps == _cadence(task.job.config["observables"][name]["every"], task.end):
            own[name] = ids[name]
    return {"observables": own, "measured": measured}


def merged(old: pa.Table, new: pa.Table) -> pa.Table:
    """The rows and columns of both, by step; where both have a value, the old one."""
    steps = np.union1d(old["step"].to_numpy(), new["step"].to_numpy())
    columns: dict[str, Any] = {}
    for table in (old, new):
        rows = pc.index_in(pa.array(steps), value_set=table["step"].combine_chunks())
        for name in table.column_names[1:]:
            column = table[name].combine_chunks().take(rows)
            columns[name] = pc.coalesce(columns[name], column) if name in columns else column
    ordered = {name: columns[name] for name in sorted(columns)}
    return pa.table({"step": pa.array(steps, pa.int64()), **ordered})
