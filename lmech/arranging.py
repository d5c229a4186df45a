"""Which jobs run together and how: fixed in the manifest, once, before the first step."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lmech import building, locking, manifest, planning, tuning
from lmech.disk import read_json, write_json
from lmech.manifest import Entry
from lmech.member import Program, Room
from lmech.numerics.precision import numerics
from lmech.planning import Job
from lmech.values import ConfigError


class Batch(NamedTuple):
    """Jobs that run together."""

    name: str
    """Its number in the manifest; a half's has .0 or .1 behind it."""
    jobs: Sequence[Job]
    program: Program
    execution: dict[str, Any]
    """What the last bits depend on beside the jobs: mode, lanes, machine, versions."""


def arranged(
    target: Path,
    machine: Mapping[str, Any],
    jobs: Sequence[Job],
    todo: Sequence[Job],
    setups: Mapping[str, building.Setup],
    request: Mapping[str, Any],
) -> list[Batch]:
    """Fix the manifest, then the batches that are to do, by number.

    Whoever comes first decides, once, how each group runs; the others of this sweep, and whoever
    goes on with it, find it there.
    """
    afresh = jobs[0].config["rerun"] == "all"
    with locking.waited(target / "manifest.lock"):
        old = manifest.read(target)
        programs: dict[str, Program] = {}

        def execution(group: Sequence[Job]) -> dict[str, Any]:
            place = planning.group_id(group[0].config)
            ways = (entry["execution"] for entry in old if entry["group"] == place)
            known: dict[str, Any] = next(filter(None, ways), {})  # a job taken over has none
            known = {} if afresh else known
            programs[place], lanes = _tuned(group, setups[place], known)
            return {**machine, **_way(programs[place]), "lanes": lanes}

        entries = manifest.planned(jobs, todo, old, execution, afresh)
        if afresh:
            _set_aside(target, todo)
        _write_request(target, request)
        manifest.write(target, entries)
        if jobs[0].config["rerun"] != "missing":
            for job in todo:
                (target / job.id / "error.txt").unlink(missing_ok=True)
    for job in todo:  # groups of which nothing is new
        place = planning.group_id(job.config)
        if place not in programs:
            known = next(entry["execution"] for entry in entries if entry["id"] == job.id)
            programs[place], _ = _tuned([job], setups[place], known)
    return _batches(machine, entries, todo, programs)


def _write_request(target: Path, request: Mapping[str, Any]) -> None:
    """What was asked for; an experiment's request stays, with its claims to be judged."""
    path = target / manifest.REQUEST
    if path.is_file() and read_json(path)["experiment"]:
        return
    write_json(path, request)


def _way(program: Program) -> dict[str, Any]:
    """How a program runs."""
    way = {"mode": program.mode, "devices": program.devices, "capacity": program.capacity}
    return way | ({"room": list(program.room)} if program.room else {})


def _tuned(
    group: Sequence[Job], setup: building.Setup, known: Mapping[str, Any]
) -> tuple[Program, int]:
    """The group's program and lanes: as ``known`` from before, as asked for, or the best here."""
    asked = group[0].config["execution"]
    if known:
        fixed = {"mode": known["mode"], "capacity": known["capacity"]}
        fixed |= {"room": Room(*known["room"])} if "room" in known else {}
        lanes = min(asked["lanes"], len(group)) if asked["lanes"] else known["lanes"]
        return replace(setup.program, **fixed), lanes
    with numerics(group[0].config["precision"]["matmul"]):
        lanes = _lanes(group, setup)
        if asked["mode"] == "auto":
            few = [job.config for job in group[:lanes]]
            program = tuning.fastest(building.build(few, setup.program))
            if program.mode != setup.program.mode:
                lanes = _lanes(group, setup._replace(program=program))
            return program, lanes
    return setup.program, lanes


def _lanes(group: Sequence[Job], setup: building.Setup) -> int:
    asked = group[0].config["execution"]["lanes"]
    return min(asked, len(group)) if asked else tuning.lanes(setup, tuning.free_memory())


def _batches(
    machine: Mapping[str, Any],
    entries: Sequence[Entry],
    todo: Sequence[Job],
    programs: Mapping[str, Program],
) -> list[Batch]:
    """What is to do, by number in the manifest."""
    wanted = {job.id: job for job in todo}
    numbers: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry["id"] in wanted:
            numbers.setdefault(entry["batch"], []).append(entry)
    batches = []
    for number, own in sorted(numbers.items()):
        jobs = [wanted[entry["id"]] for entry in own]
        place, before = own[0]["group"], own[0]["execution"]
        execution = {**machine, **_way(programs[place]), "lanes": before["lanes"]}
        batches.append(Batch(str(number), jobs, programs[place], execution))
    return batches


def _set_aside(target: Path, jobs: Sequence[Job]) -> None:
    """Move the jobs' old results to ``previous/<n>``: what is done again overwrites nothing.

    Raises ConfigError while another process works on the sweep.
    """
    for lock in (target / "batches").glob("*.lock"):
        with locking.held(lock) as mine:
            if not mine:
                raise ConfigError(f"rerun=all: another process is at work on {target}")
    old = [job.id for job in jobs if (target / job.id).is_dir()]
    if not old:
        return
    aside = next(p for n in itertools.count(1) if not (p := target / "previous" / str(n)).exists())
    aside.mkdir(parents=True)
    for job in old:
        (target / job).rename(aside / job)
