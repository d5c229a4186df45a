"""Sending a sweep's batches to a cluster, an array of tasks; nothing of it trains here, or traces.

The manifest is fixed with batches of so many jobs; how they run, the machine that runs the first of
a program decides. Beside it, ``slurm/`` has the scripts, the tasks' logs, and what was sent.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from lmech import freezing, locking, planning, project, reproducing, slurm, standing
from lmech.disk import read_json_lines, write_text
from lmech.freezing import Entries
from lmech.planning import Job
from lmech.slurm import Cluster
from lmech.values import ConfigError

FOLDER = "slurm"
SENT = "submissions.jsonl"


class Submission(NamedTuple):
    """What became of the batches that are to do."""

    folder: Path
    jobs: int
    """Jobs to do."""
    array: int | None
    """The new array's id; None if nothing was left to send."""
    script: Path | None
    batches: list[int]
    """What it was sent."""
    waiting: dict[int, tuple[int, str]]
    """Batch → array and state, of those that were in the queue already."""
    held: list[int]
    """Those that some process works on."""


def submit(jobs: Sequence[Job], cluster: Cluster, request: Mapping[str, Any]) -> Submission:
    """Fix the manifest and send what is to do, as one array, but for what is on its way already.

    Raises ConfigError, also where the cluster's queue cannot be asked or takes nothing.
    """
    folder, several = planning.folder(jobs), jobs[0].config["execution"]["processes"]
    if several:
        raise ConfigError(
            f"execution.processes={several}: a task is one process; srun starts a run of several"
        )
    if jobs[0].config["rerun"] != "all":
        reproducing.adopt(jobs, folder)
    todo = standing.todo(jobs, folder)
    if not todo:
        return Submission(folder, 0, None, None, [], {}, [])
    standing.check_place(folder)
    with locking.waited(folder / FOLDER / "submit.lock"):
        waiting = queue(folder)
        if waiting and jobs[0].config["rerun"] == "all":
            arrays = sorted({array for array, _ in waiting.values()})
            raise ConfigError(
                f"rerun=all: array {', '.join(map(str, arrays))} has batches of this sweep in the "
                "queue: wait, or scancel it"
            )
        entries = freezing.freeze(folder, jobs, todo, request, _by_size(cluster.members))
        wanted = {job.id for job in todo}
        numbers = sorted({entry["batch"] for entry in entries if entry["id"] in wanted})
        locks = {n: locking.holder(folder / "batches" / f"{n}.lock") for n in numbers}
        held = [n for n in numbers if locks[n] is not None and n not in waiting]
        new = [n for n in numbers if n not in waiting and n not in held]
        array, script = _sent(folder, cluster, new) if new else (None, None)
    there = {n: waiting[n] for n in numbers if n in waiting}
    return Submission(folder, len(todo), array, script, new, there, held)


def _by_size(members: int) -> freezing.Execution:
    """Batches of at most so many jobs, or as many lanes as are asked for; the rest is left open."""

    def lanes(_: Entries, group: Sequence[Job]) -> dict[str, Any]:
        asked = group[0].config["execution"]["lanes"]
        return {"lanes": min(members, asked or members, len(group))}

    return lanes


def _sent(folder: Path, cluster: Cluster, batches: list[int]) -> tuple[int, Path]:
    """Write the array's script, send it, and remember it."""
    at = (folder / FOLDER).absolute()
    sent = submissions(folder)
    file = at / f"{len(sent)}.sh"
    # -P: no module of the working directory is imported before an installed one.
    python = [sys.executable, "-P", "-m", "lmech"]
    program = [*python, *project.words(), "resume", str(folder.absolute())]
    name = f"lmech-{folder.parent.name}"
    write_text(file, slurm.script(cluster, name, batches, program, at))
    array = slurm.send(file)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    sent.append({"array": array, "batches": batches, "script": file.name, "at": now})
    write_text(at / SENT, "".join(json.dumps(line) + "\n" for line in sent))
    return array, file


def submissions(folder: Path) -> list[dict[str, Any]]:
    """What was sent of a sweep: each array, its batches, its script, when."""
    path = folder / FOLDER / SENT
    return read_json_lines(path) if path.is_file() else []


def queue(folder: Path) -> dict[int, tuple[int, str]]:
    """Batch → array and state, of a sweep's that are in the queue. Raises ConfigError."""
    return slurm.queue({line["array"] for line in submissions(folder)})
