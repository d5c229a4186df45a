"""manifest.jsonl: a sweep's jobs, a line each, fixed before the first step. No JAX here.

A line has the job's ``id``, its ``overrides``, the ``group`` of jobs that share its program, the
number of its ``batch``, the ``execution`` record (mode, lanes, machine, versions), its resolved
``config``, and ``whole``, the identity of what its files hold.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmech import planning
from lmech.disk import write_text
from lmech.planning import Job
from lmech.values import ConfigError

NAME = "manifest.jsonl"
REQUEST = "request.json"
"""Beside it: the command, and the experiment and scale if it was one."""
SPREAD = 4
"""Jobs whose numbers of steps differ by more than this factor are not of one batch."""
Entry = dict[str, Any]


def read(sweep: Path) -> list[Entry]:
    """The lines, in the sweep's order; none where there is no manifest."""
    path = sweep / NAME
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(sweep: Path, entries: Sequence[Entry]) -> None:
    """Replace the manifest."""
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    write_text(sweep / NAME, text)


def check_unchanged(entries: Sequence[Entry]) -> None:
    """Raise ConfigError, saying what it is, if a job would not be today what it is here."""
    for entry in entries:
        what = changed(entry)
        if what:
            raise ConfigError(
                f"job {entry['id']}: its {what} changed since the manifest was written; give the "
                "sweep's own command again for a new sweep"
            )


def changed(entry: Entry) -> str:
    """What of a job would not be today what it is here, as in ``data and its sources``; or ""."""
    now = planning.identity(entry["config"])
    if planning.digest(now) == entry["id"]:
        return ""
    then = entry["made_of"]
    return " and its ".join(name for name in then if then[name] != now.get(name)) or "config"


def jobs(entries: Sequence[Entry]) -> list[Job]:
    """The jobs as they were when the manifest was written."""
    return [Job(entry["id"], entry["config"], entry["overrides"]) for entry in entries]


def batches(group: Sequence[Job], lanes: int) -> list[list[Job]]:
    """The group's jobs, at most so many together, those apart whose horizons differ too much."""
    return [
        bucket[start : start + lanes]
        for bucket in _by_horizon(group)
        for start in range(0, len(bucket), lanes)
    ]


def _by_horizon(group: Sequence[Job]) -> list[list[Job]]:
    buckets: list[list[Job]] = []
    for job in sorted(group, key=lambda job: job.config["steps"]):
        if not buckets or job.config["steps"] > SPREAD * buckets[-1][0].config["steps"]:
            buckets.append([])
        buckets[-1].append(job)
    place = {job.id: number for number, job in enumerate(group)}
    return [sorted(bucket, key=lambda job: place[job.id]) for bucket in buckets]


def planned(
    jobs: Sequence[Job],
    todo: Sequence[Job],
    old: Sequence[Entry],
    execution: Callable[[Sequence[Job]], Mapping[str, Any]],
    afresh: bool = False,
) -> list[Entry]:
    """The manifest's lines for these jobs, of which some are to do.

    A job keeps its line, and what is to do its batch (unless it is to be done ``afresh``), while
    what its files hold is the same. New batches take the next numbers, at most ``lanes`` jobs each.
    ``execution(group)`` is the execution record that a group's new batches have.
    """
    known = {entry["id"]: entry for entry in old}
    trained = {job.id: job for job in (*jobs, *todo)}  # with the observables of an old result
    kept = {
        job.id: {**known[job.id], "config": job.config}
        for job in trained.values()
        if job.id in known and known[job.id]["whole"] == planning.whole_id(job)
    }
    new = [job for job in todo if afresh or kept.get(job.id, {}).get("batch") is None]
    number = 1 + max((entry["batch"] for entry in old if entry["batch"] is not None), default=-1)
    made: dict[str, Entry] = {}
    for group in planning.group(new):
        record = dict(execution(group))
        for batch in batches(group, record["lanes"]):
            made |= {job.id: _entry(job, number, record) for job in batch}
            number += 1
    adopted = {job.id: _entry(job, None, {}) for job in jobs if job.id not in made | known}
    return [(made | adopted).get(job.id) or kept.get(job.id) or known[job.id] for job in jobs]


def _entry(job: Job, batch: int | None, execution: Mapping[str, Any]) -> Entry:
    made_of = planning.identity(job.config)
    return {
        "id": job.id,
        "overrides": dict(job.overrides),
        "group": planning.group_id(job.config),
        "batch": batch,
        "whole": planning.whole_id(job),
        "execution": dict(execution),
        "config": job.config,
        "made_of": {name: part for name, part in made_of.items() if name != "science"},
    }
