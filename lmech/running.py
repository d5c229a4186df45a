"""Run a sweep's batches and write what they leave on disk."""

import errno
import itertools
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from lmech import (
    building,
    checking,
    checkpoints,
    compiling,
    journal,
    locking,
    planning,
    results,
    standing,
    states,
    summing,
    together,
    training,
    tuning,
)
from lmech.arranging import Batch, arranged
from lmech.checkpoints import Checkpoint
from lmech.compiling import Compilations
from lmech.loggers import Progress
from lmech.mistakes import one_line
from lmech.planning import Job
from lmech.progress import Tally
from lmech.provenance import provenance
from lmech.stopping import Due, StoppedError, listening
from lmech.training import Run


def run_sweep(
    jobs: Sequence[Job],
    todo: Sequence[Job],
    target: Path,
    request: Mapping[str, Any],
    show: Callable[[Progress], None],
    failed: int = 0,
    alone: int | None = None,
) -> tuple[dict[str, int], dict[str, str]]:
    """Train what is to do of the jobs; everything that is known ends up under ``target``.

    Every group's program is traced before anything is written: what cannot work raises
    ConfigError. A batch that fails is halved until the jobs that do stand alone, each with its
    traceback in its folder; the others go on, unless the config says to stop. ``failed`` jobs did
    before and are not to do; ``alone``: the jobs are that batch of the sweep. Returns counts by
    status (finished jobs count as skipped), and why each job failed now.
    """
    first = jobs[0].config
    _prepare(first["execution"])
    setups = {planning.group_id(group[0].config): _checked(group) for group in planning.group(todo)}
    record = provenance()
    run = Run(target, record, Due(first["execution"]["save_every"]))
    statuses: dict[str, str] = {}
    reasons: Reasons = {}
    started = time.monotonic()
    with compiling.counted() as compilations, listening(run.due):
        batches = arranged(target, record, jobs, todo, setups, request)
        horizons = [{job.id: job.config["steps"] for job in batch.jobs} for batch in batches]
        tally = Tally(horizons, skipped=len(jobs) - len(todo))
        follow = _harmless(show)
        with closing(_free(run, batches)) as held:  # an exception lets go of the lock at once
            for number, batch in held:
                if batch.jobs:
                    follow(tally.begins, number)
                trained, failures = _worked_on(run, batch, partial(follow, tally.reaches))
                others, why = _of_others(run, batches[number], batch)
                ended, why = others | trained, why | failures
                follow(tally.ends, ended)
                statuses |= ended
                reasons |= why
                if why and first["on_failure"] == "stop":
                    break
    with suppress(OSError):
        (target / "batches").rmdir()  # if nothing in it waits to be gone on with
    wall = time.monotonic() - started
    ends = list(statuses.values()) + ["failed"] * failed
    ends += ["skipped"] * (len(jobs) - len(todo) - failed)
    counts = {kind: ends.count(kind) for kind in ("done", "diverged", "failed", "skipped")}
    counts["missing"] = len(jobs) - sum(counts.values())
    summing.write(target, alone, _summary(len(jobs), counts, compilations, wall, record))
    return counts, reasons


def _prepare(execution: dict[str, Any]) -> None:
    """What has to be said to JAX before it looks at its devices, and where it keeps programs."""
    if execution["devices"] is not None:
        compiling.host_devices(execution["devices"])
    elif execution["mode"] == "auto" and not execution.get("processes"):
        compiling.device_a_core()  # for tuning to try
    if execution["compile_cache"]:
        compiling.keep()


def _summary(
    jobs: int,
    counts: dict[str, int],
    compilations: Compilations,
    wall: float,
    record: dict[str, Any],
) -> dict[str, Any]:
    """What summary.json says; ``run`` is the wall time without the compilations."""
    spent = sum(compilations.seconds)
    return {
        "jobs": jobs,
        **counts,
        "compilations": len(compilations.training),
        "cached_compilations": len(compilations.hits),
        "seconds": {"wall": wall, "compile": spent, "run": wall - spent},
        "provenance": record,
    }


def _checked(group: Sequence[Job]) -> building.Setup:
    """What the engine takes for all jobs of a group. Raises ConfigError for what cannot work."""
    first = group[0].config
    with checking.tracing(first):
        setup = building.build([job.config for job in group])
        building.check(setup)
        if planning.sources(first["model"], "model")[0][1]:  # a user's: ours are tested
            checking.apart(setup.program.problem, setup.data)
        tuning.check_room(setup, first["execution"]["lanes"], tuning.free_memory())
        return setup


Reasons = dict[str, str]  # job id → why it failed
HOPELESS = (states.DamageError, journal.GivenUpError)
"""Errors that the halves of a batch would have too."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _free(run: Run, batches: Sequence[Batch]) -> Generator[tuple[int, Batch], None, None]:
    """The batches by place, each held while it is worked on; others' are waited for.

    Of a batch that another process has had, those jobs that it left.
    """
    waiting = list(enumerate(batches))
    while waiting:
        busy = []
        for number, batch in waiting:
            run.due.check("between two batches")
            with locking.held(run.place(batch).with_suffix(".lock")) as mine:
                if not mine:
                    busy.append((number, batch))
                    continue
                yield number, batch._replace(jobs=_left(run, batch.jobs))
        if len(busy) == len(waiting):
            time.sleep(1.0)
        waiting = busy


def _worked_on(run: Run, batch: Batch, show: Callable[..., None]) -> tuple[dict[str, str], Reasons]:
    """Run a batch that is held, in parts if need be: its jobs' statuses, why those failed that did.

    Folders of parts that went on from another's state are cleared.
    """
    parts, folders = _parts(run, batch), _folders(run, batch)
    statuses: dict[str, str] = {}
    reasons: Reasons = {}
    for part in parts:
        ended, why = _guarded(run, part, show)
        statuses |= ended
        reasons |= why
    for folder in folders:
        if folder.name not in {part.name for part in parts}:
            checkpoints.clear(folder)
    return statuses, reasons


def _of_others(run: Run, asked: Batch, left: Batch) -> tuple[dict[str, str], Reasons]:
    """Statuses of jobs that another process has had meanwhile, and why those failed that did."""
    own = {job.id for job in left.jobs}
    jobs = [job for job in asked.jobs if job.id not in own]
    found = {job.id: standing.of(run.target / job.id, job) for job in jobs}
    failed = [job for job, how in found.items() if how == "failed"]
    reasons = {job: standing.reason(run.target / job) for job in failed}
    return {job: "failed" if job in reasons else "skipped" for job in found}, reasons


def _parts(run: Run, batch: Batch) -> list[Batch]:
    """The batch, or what has to go on apart: its jobs by the furthest state that holds them.

    After a kill some may be in a half's folder; others, that failed before, in none.
    """
    try:
        reached = {
            folder.name: states.holds(folder)
            for folder in _folders(run, batch)
            if (folder / states.STATE).is_file()
        }
    except states.DamageError as error:
        damaged = Path(str(error).partition(": ")[0]).name
        return [batch._replace(name=damaged)]  # which will say so
    parts: dict[str | None, list[Job]] = {}
    for job in batch.jobs:
        whole = planning.whole_id(job)
        own = [(step, name) for name, (step, ids) in reached.items() if whole in ids]
        parts.setdefault(max(own)[1] if own else None, []).append(job)
    new = _free_name(run, batch) if batch.name in parts else batch.name
    return [batch._replace(name=name or new, jobs=jobs) for name, jobs in parts.items()]


def _folders(run: Run, batch: Batch) -> list[Path]:
    """The batch's own folder and those of its parts, where they are."""
    own = run.place(batch)
    return [path for path in (own, *sorted(own.parent.glob(f"{batch.name}.*"))) if path.is_dir()]


def _free_name(run: Run, batch: Batch, start: int = 0) -> str:
    """A name for a part of the batch whose folder does not exist."""
    names = (f"{batch.name}.{n}" for n in itertools.count(start))
    return next(name for name in names if not (run.target / "batches" / name).exists())


def _left(run: Run, jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if standing.of(run.target / job.id, job) == "missing"]


def _guarded(
    run: Run, batch: Batch, show: Callable[..., None], begun: Checkpoint | None = None
) -> tuple[dict[str, str], Reasons]:
    """Run a batch; if it raises, its halves, until the guilty jobs stand alone.

    Halves go on from the batch's last state, in fewer lanes if memory was short. A job that fails
    alone has its traceback in its folder; a result that it already had stays. Returns statuses, and
    why the failed ones did. Raises StoppedError where no batch could go on: on a full disk. Where
    several processes are one run nothing is tried again here, and what was raised is raised.
    """
    statuses: dict[str, str] = {}
    reasons: Reasons = {}
    place = run.place(batch)
    try:
        journal.begin(place)
        with journal.crashes(place):
            training.run_batch(run, batch, show, begun, statuses)
        checkpoints.clear(place)
        return statuses, reasons
    except (StoppedError, KeyboardInterrupt) as stopped:
        journal.write(place, one_line(stopped))
        raise
    except Exception as error:
        if together.several() and not isinstance(error, HOPELESS):
            raise  # the others may be in the midst of it: all end, and for the log it is a death
        if isinstance(error, OSError) and error.errno in FULL:
            with suppress(OSError):  # not a death
                journal.write(place, one_line(error))
            raise StoppedError(f"{error}: make room; the same command goes on") from error
        journal.write(place, one_line(error))
        left = batch._replace(jobs=[job for job in batch.jobs if job.id not in statuses])
        short = "RESOURCE_EXHAUSTED" in str(error)
        parts = _smaller(run, left, short)
        if not parts or isinstance(error, HOPELESS):
            failed, reasons = _failed(run, left, error)
            if not isinstance(error, HOPELESS):
                checkpoints.clear(place)
            return statuses | failed, reasons
        try:
            kept = training.kept_state(run, left, training.built(left)) or begun
        except Exception:  # the parts will say so themselves
            kept = begun
    for half in parts:
        ended, why = _guarded(run, half, show, kept)
        statuses |= ended
        reasons |= why
    checkpoints.clear(run.place(batch))
    return statuses, reasons


def _smaller(run: Run, batch: Batch, short: bool) -> list[Batch]:
    """What to try when a batch failed: its halves, in fewer lanes if memory is ``short``.

    Where devices share the memory, or only empty lanes are to be given up, first the same jobs on
    one of them, in fewer lanes; none if that is no help.
    """
    count, lanes = len(batch.jobs), batch.execution["lanes"]
    program = tuning.on_one_device(batch.program)
    if short and program is not batch.program:
        groups = [batch.jobs]
    elif short and lanes > count:
        groups, lanes = [batch.jobs], max(count, lanes // 2)
    elif count > 1:
        groups = [batch.jobs[: count // 2], batch.jobs[count // 2 :]]
        lanes = max(1, lanes // 2) if short else lanes
    else:
        return []
    parts: list[Batch] = []
    for number, jobs in enumerate(groups):
        after = int(parts[-1].name.rpartition(".")[2]) + 1 if number else 0
        own = program if short else batch.program
        execution = {**batch.execution, "devices": own.devices, "lanes": lanes}
        parts.append(Batch(_free_name(run, batch, after), jobs, own, execution))
    return parts


def _failed(run: Run, batch: Batch, error: Exception) -> tuple[dict[str, str], Reasons]:
    """The jobs' statuses and reason, written too unless it lies in the batch's damaged state."""
    damaged = isinstance(error, states.DamageError)
    for job in () if damaged else batch.jobs:
        results.write_failure(run.target / job.id, job, batch.execution)
    reason = one_line(error)
    return {job.id: "failed" for job in batch.jobs}, {job.id: reason for job in batch.jobs}


def _harmless(show: Callable[[Progress], None]) -> Callable[..., None]:
    """``show(entry(*what))``, silenced by its first exception: it must not cost a number."""
    broken = False

    def guarded(entry: Callable[..., Progress], *what: Any) -> None:
        nonlocal broken
        if broken:
            return
        try:
            show(entry(*what))
        except Exception as error:
            broken = True
            print(f"lmech: progress is not shown: {one_line(error)}", file=sys.stderr)

    return guarded
