"""Fixing a sweep's manifest: once, whoever comes first, before anything runs. No JAX here."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lmech import locking, manifest
from lmech.disk import read_json, write_json
from lmech.manifest import Entry
from lmech.planning import Job
from lmech.values import ConfigError

Entries = Sequence[Entry]
Execution = Callable[[Entries, Sequence[Job]], Mapping[str, Any]]
"""``(old lines, jobs of a group) → record`` of the group's new batches: how they run, or ``lanes``
alone where that is left to the machine that runs the first of them."""


def freeze(
    target: Path,
    jobs: Sequence[Job],
    todo: Sequence[Job],
    request: Mapping[str, Any],
    execution: Execution,
    decided: Callable[[Entries], Entries] = lambda entries: entries,
) -> Entries:
    """Write which jobs make which batch, and what was asked for; the manifest's lines.

    ``decided`` may say of the lines how their batches run, where they do not say it yet. All of it
    while nobody else fixes anything. With ``rerun=all`` old results are moved to ``previous/<n>``.
    """
    rerun = jobs[0].config["rerun"]
    afresh = rerun == "all"
    with locking.waited(target / "manifest.lock"):
        old = manifest.read(target)
        ways = partial(execution, [] if afresh else old)
        entries = decided(manifest.planned(jobs, todo, old, ways, afresh))
        if afresh:
            _set_aside(target, todo)
        _write_request(target, request)
        manifest.write(target, entries)
        if rerun != "missing":
            for job in todo:
                (target / job.id / "error.txt").unlink(missing_ok=True)
    return entries


def _write_request(target: Path, request: Mapping[str, Any]) -> None:
    """What was asked for; an experiment's request stays, with its claims to be judged."""
    path = target / manifest.REQUEST
    if path.is_file() and read_json(path)["experiment"]:
        return
    write_json(path, request)


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
