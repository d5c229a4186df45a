"""manifest.jsonl: a sweep's jobs, a line each, fixed before the first step. No JAX here.

A line has the job's ``id``, its ``overrides``, the ``group`` of jobs that share its program, the
number of its ``batch``, the ``execution`` record (mode, lanes, machine, versions; of a batch that
was sent to run elsewhere ``lanes`` alone, until the first of its group runs), its resolved
``config``, and ``whole``, the identity of what its files hold.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmech import planning, values
from lmech.disk import read_json_lines, write_text
from lmech.planning import Job
from lmech.values import ConfigError

NAME = "manifest.jsonl"
REQUEST = "request.json"
"""Beside it: the command, and the experiment and scale if it was one."""
FIELDS = ("id", "overrides", "group", "batch", "whole", "execution", "config", "made_of")
SPREAD = 4
"""Jobs whose numbers of steps differ by more than this factor are not of one batch."""
Entry = dict[str, Any]


def read(sweep: Path) -> list[Entry]:
    """The lines, in the sweep's order; none where there is no manifest. Raises ConfigError."""
    path = sweep / NAME
    if not path.is_file():
        return []
    entries = read_json_lines(path)
    for entry in entries:
        lacking = [key for key in FIELDS if key not in entry]
        if lacking:
            raise ConfigError(
                f"{path} is of another version of lmech (its lines have no {lacking[0]!r}): only "
                "`lmech collect` reads it; give the command again with another output=… to train"
            )
    return entries


def found(sweep: Path) -> list[Entry]:
    """The lines. Raises ConfigError where there is no manifest."""
    entries = read(sweep)
    if not entries:
        raise ConfigError(f"no sweep at {sweep}: its folder holds a {NAME}")
    return entries


def write(sweep: Path, entries: Sequence[Entry]) -> None:
    """Replace the manifest."""
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    write_text(sweep / NAME, text)


def check_unchanged(entries: Sequence[Entry]) -> None:
    """Raise ConfigError, saying what it is, if a job would not be today what it is here."""
    for entry in entries:
        lacking = [key for key in values.KEYS if not _has(entry["config"], key)]
        if lacking:
            raise ConfigError(
                f"job {entry['id']}: its config has no {lacking[0]}, so another version of lmech "
                "wrote it; give the sweep's own command again for a new sweep"
            )
        what = changed(entry)
        if what:
            raise ConfigError(
                f"job {entry['id']}: its {what} changed since the manifest was written; give the "
                "sweep's own command again for a new sweep"
            )


def _has(config: Mapping[str, Any], key: str) -> bool:
    """Whether the key is there; of stop rules, which one that is not there leaves unset, always."""
    section, _, leaf = key.rpartition(".")
    return section == "stop" or leaf in (config.get(section, {}) if section else config)


def changed(entry: Entry) -> str:
    """What of a job would not be today what it is here, as in ``data and its sources``; or ""."""
    lacking = [key for key in planning.SCIENCE if key not in entry["config"]]
    if lacking:  # and so its id was made otherwise
        return f"config (it has no {lacking[0]}: another version of lmech wrote it)"
    now = planning.identity(entry["config"])
    if planning.digest(now) == entry["id"]:
        return ""
    then = entry["made_of"]
    return " and its ".join(name for name in then if then[name] != now.get(name)) or "config"


def jobs(entries: Sequence[Entry]) -> list[Job]:
    """The jobs as they were when the manifest was written."""
    return [Job(entry["id"], entry["config"], entry["overrides"]) for entry in entries]


def of_batch(entries: Sequence[Entry], batch: int) -> list[Entry]:
    """The lines of one batch. Raises ConfigError if it has none."""
    own = [entry for entry in entries if entry["batch"] == batch]
    if not own:
        known = sorted({entry["batch"] for entry in entries} - {None})
        raise ConfigError(f"no batch {batch}: the manifest has {spans(known) or 'none'}")
    return own


def spans(numbers: Iterable[int]) -> str:
    """Numbers as ``0-3,7``."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ",".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in found)


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
    ``execution(group)`` is the execution record that a group's new batches have. Where the old
    lines have other jobs too, those stay as they are.
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
    lines = known | kept | made | adopted
    if known.keys() <= {job.id for job in jobs}:
        return [lines[job.id] for job in jobs]
    return [lines[job] for job in known]  # these jobs are some of a sweep's


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
