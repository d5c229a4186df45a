"""Which jobs run together and how: fixed in the manifest, once, before the first step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lmech import building, checking, freezing, manifest, planning, tuning
from lmech.freezing import Entries
from lmech.inputs import Room
from lmech.member import Program
from lmech.numerics.precision import numerics
from lmech.planning import Job


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
    programs: dict[str, Program] = {}

    def execution(old: Entries, group: Sequence[Job]) -> dict[str, Any]:
        place, asked = planning.group_id(group[0].config), group[0].config["execution"]["lanes"]
        programs[place], lanes = _tuned(group, setups[place], _known(old, place), asked)
        return {**machine, **_way(programs[place]), "lanes": lanes}

    def decided(entries: Entries) -> Entries:
        ways = {place: _decided(entries, place) for place in setups}
        return [_with_way(entry, machine, ways.get(entry["group"])) for entry in entries]

    entries = freezing.freeze(target, jobs, todo, request, execution, decided)
    records = {entry["id"]: entry["execution"] for entry in entries}
    for job in todo:  # groups of which nothing is new
        place = planning.group_id(job.config)
        if place not in programs:
            programs[place], _ = _tuned([job], setups[place], records[job.id], None)
    return _batches(machine, entries, todo, programs)


def _known(entries: Entries, place: str) -> Mapping[str, Any]:
    """How a group runs, by the first of its lines that says so; else nothing."""
    records = (entry["execution"] for entry in entries if entry["group"] == place)
    return next((record for record in records if "mode" in record), {})


def _is_open(entry: manifest.Entry) -> bool:
    """Whether the line has a batch and leaves open how it runs."""
    return entry["batch"] is not None and "mode" not in entry["execution"]


def _decided(entries: Entries, place: str) -> dict[str, Any]:
    """How the batches of a group run that leave it open; nothing if there are none.

    As the group's others do, else by all of those batches, whichever of them is to do here: what is
    chosen does not depend on who comes first.
    """
    left = [entry for entry in entries if entry["group"] == place and _is_open(entry)]
    if not left:
        return {}
    group, lanes = manifest.jobs(left), max(entry["execution"]["lanes"] for entry in left)
    with checking.tracing(group[0].config):
        setup = building.build([job.config for job in group])
    return _way(_tuned(group, setup, _known(entries, place), lanes)[0])


def _with_way(
    entry: manifest.Entry, machine: Mapping[str, Any], way: Mapping[str, Any] | None
) -> manifest.Entry:
    """The line, with how it runs here if it has left that open."""
    if not way or not _is_open(entry):
        return entry
    return {**entry, "execution": {**machine, **way, "lanes": entry["execution"]["lanes"]}}


def _way(program: Program) -> dict[str, Any]:
    """How a program runs."""
    way = {"mode": program.mode, "devices": program.devices, "capacity": program.capacity}
    way |= {"spread": program.spread} if program.spread > 1 else {}
    return way | ({"room": list(program.room)} if program.room else {})


def _tuned(
    group: Sequence[Job], setup: building.Setup, known: Mapping[str, Any], asked: int | None
) -> tuple[Program, int]:
    """The group's program and lanes: as ``known`` from before, as ``asked``, or the best here."""
    execution = group[0].config["execution"]
    own, most = setup.program.devices, tuning.most_devices(setup.program, execution)
    if known:
        fixed = {"mode": known["mode"], "capacity": known["capacity"]}
        fixed |= {"devices": max(own, min(known["devices"], most))}
        fixed |= {"room": Room(*known["room"])} if "room" in known else {}
        lanes = min(asked, len(group)) if asked else known["lanes"]
        return replace(setup.program, **fixed), lanes
    with numerics(group[0].config["precision"]["matmul"]):
        lanes = _lanes(group, setup, asked)
        if execution["mode"] == "auto":
            few = [job.config for job in group[:lanes]]
            memo = tuning.memo_file(planning.group_id(few[0]), len(few), most)
            program = tuning.fastest(building.build(few, setup.program), most, memo)
            if (program.mode, program.devices) != (setup.program.mode, own):
                lanes = _lanes(group, setup._replace(program=program), asked)
            return program, lanes
    return setup.program, lanes


def _lanes(group: Sequence[Job], setup: building.Setup, asked: int | None) -> int:
    return min(asked, len(group)) if asked else tuning.lanes(setup, tuning.free_memory())


def _batches(
    machine: Mapping[str, Any],
    entries: Entries,
    todo: Sequence[Job],
    programs: Mapping[str, Program],
) -> list[Batch]:
    """What is to do, by number in the manifest."""
    wanted = {job.id: job for job in todo}
    numbers: dict[int, list[manifest.Entry]] = {}
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
