"""Run a sweep's batches and write what they leave on disk."""

import json
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import yaml
from hydra.utils import instantiate

from lmech import building, checkpoints, engine, locking, planning
from lmech.checkpoints import Checkpoint
from lmech.config import ConfigError
from lmech.disk import atomically, write_json, write_table, write_weights
from lmech.engine import TRAINING_PROGRAM, End, Record, Saved
from lmech.loggers import Progress
from lmech.numerics import trees
from lmech.numerics.precision import numerics
from lmech.planning import Job
from lmech.progress import Tally
from lmech.provenance import provenance
from lmech.recorder import Recorder
from lmech.stopping import Due, StoppedError, listening

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Compilations(NamedTuple):
    """Programs compiled since counting began: all seconds, and the training ones by name."""

    training: list[str]
    seconds: list[float]


@contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Count XLA compilations inside the block, by JAX's own monitoring events."""
    count = Compilations([], [])

    def listen(event: str, duration_secs: float, **labels: Any) -> None:
        if event == COMPILE_EVENT:
            count.seconds.append(duration_secs)
            if labels.get("fun_name", "").removeprefix("jit(").rstrip(")") == TRAINING_PROGRAM:
                count.training.append(labels["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def run_sweep(
    jobs: Sequence[Job], todo: Sequence[Job], target: Path
) -> tuple[dict[str, int], dict[str, str]]:
    """Train what is to do of the jobs; everything that is known ends up under ``target``.

    Every group's program is traced before anything is written: what cannot work raises
    ConfigError. A batch that fails is halved until the jobs that do stand alone, each with its
    traceback in its folder; the others go on. Returns counts by status (finished jobs count as
    skipped), and why each failed job did.
    """
    groups = planning.group(todo)
    for same in groups:
        _check(same)
    record = provenance()
    _write_manifest(target, jobs, groups, record)
    statuses: dict[str, str] = {}
    reasons: Reasons = {}
    started = time.monotonic()
    run = Run(target, record, Due(jobs[0].config["execution"]["save_every"]))
    logger = instantiate(jobs[0].config["logger"])()
    horizons = [{job.id: job.config["steps"] for job in group} for group in groups]
    tally = Tally(horizons, skipped=len(jobs) - len(todo))
    free = closing(_free(run, groups))  # an exception lets go of the lock at once
    with count_compilations() as compilations, logger as show, listening(run.due), free as held:
        follow = _harmless(show)
        for number, group in held:
            if all(planning.finished(target / job.id, job) for job in group):
                follow(tally.ends, dict.fromkeys([job.id for job in group], "skipped"))
                continue  # by another process, meanwhile
            follow(tally.begins, number)
            ended, why = _guarded(run, group, partial(follow, tally.reaches))
            follow(tally.ends, ended)
            statuses |= ended
            reasons |= why
    wall = time.monotonic() - started
    kinds = ("done", "diverged", "failed")
    counts = {kind: list(statuses.values()).count(kind) for kind in kinds}
    counts["skipped"] = len(jobs) - len(statuses)
    write_json(target / "summary.json", _summary(len(jobs), counts, compilations, wall, record))
    return counts, reasons


def _summary(
    jobs: int,
    counts: dict[str, int],
    compilations: Compilations,
    wall: float,
    record: dict[str, Any],
) -> dict[str, Any]:
    """What summary.json says; ``run`` is the wall time without the compilations."""
    compiling = sum(compilations.seconds)
    return {
        "jobs": jobs,
        **counts,
        "compilations": len(compilations.training),
        "seconds": {"wall": wall, "compile": compiling, "run": wall - compiling},
        "provenance": record,
    }


def _check(group: Sequence[Job]) -> None:
    with numerics():
        try:
            building.check(building.build([job.config for job in group]))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(planning.one_line(error)) from error


def _write_manifest(
    target: Path, jobs: Sequence[Job], groups: Sequence[Sequence[Job]], record: dict[str, Any]
) -> None:
    """One line a job. A skipped job keeps the line of the run that made it."""
    path = target / "manifest.jsonl"
    old = {}
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        old = {entry["id"]: entry for entry in map(json.loads, lines)}
    place = {job.id: number for number, group in enumerate(groups) for job in group}
    entries = []
    for job in jobs:
        fresh = {
            "id": job.id,
            "overrides": dict(job.overrides),
            "group": planning.digest(planning.program_key(job.config)),
            "batch": place.get(job.id),
            "execution": record,
        }
        entries.append(fresh if job.id in place else old.get(job.id, fresh))
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class Run(NamedTuple):
    """What the batches of one sweep share."""

    target: Path
    record: dict[str, Any]
    """The execution record."""
    due: Due


Group = Sequence[Job]
Reasons = dict[str, str]  # job id → why it failed


def _free(run: Run, groups: Sequence[Group]) -> Generator[tuple[int, Group], None, None]:
    """The groups by number, each held while it is worked on; others' are waited for."""
    waiting = list(enumerate(groups))
    while waiting:
        busy = []
        for number, group in waiting:
            with locking.held(_place(run, group).with_suffix(".lock")) as mine:
                if mine:
                    yield number, group
                else:
                    busy.append((number, group))
        if len(busy) == len(waiting):
            time.sleep(1.0)
        waiting = busy


def _guarded(
    run: Run, group: Group, show: Callable[..., None], begun: Checkpoint | None = None
) -> tuple[dict[str, str], Reasons]:
    """Run a batch; if it raises, its halves, until the guilty jobs stand alone.

    Halves go on from the batch's last state. A job that fails alone has its traceback in its
    folder; a result that it already had stays. Returns statuses, and why the failed ones did.
    """
    try:
        return _run_batch(run, group, show, begun), {}
    except StoppedError:
        raise
    except Exception as error:
        if len(group) == 1 or isinstance(error, checkpoints.DamageError):
            return _failed(run, group, error)
        kept = _kept(run, group, _built(group)) or begun
    half = len(group) // 2
    statuses: dict[str, str] = {}
    reasons: Reasons = {}
    for members in (slice(0, half), slice(half, None)):
        from_here = checkpoints.of_members(kept, members) if kept else None
        ended, why = _guarded(run, group[members], show, from_here)
        statuses |= ended
        reasons |= why
    checkpoints.clear(_place(run, group))
    return statuses, reasons


def _failed(run: Run, group: Group, error: Exception) -> tuple[dict[str, str], Reasons]:
    for job in group:
        folder = run.target / job.id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        if not (folder / "result.json").is_file():
            _write_config(folder, job)
            result = {"id": job.id, "observables": {}, "status": "failed"}
            write_json(folder / "result.json", {**result, "provenance": run.record})
    reason = planning.one_line(error)
    return {job.id: "failed" for job in group}, {job.id: reason for job in group}


def _place(run: Run, group: Group) -> Path:
    """The batch's folder while it runs."""
    return run.target / "batches" / planning.digest([planning.whole_id(job) for job in group])


def _kept(run: Run, group: Group, batch: building.Batch) -> Checkpoint | None:
    """The batch's last state on disk."""
    if not (_place(run, group) / checkpoints.STATE).is_file():
        return None
    with numerics():
        shapes = engine.state_shapes(batch.program, batch.inputs, batch.data, batch.feed(0))
    return checkpoints.read(_place(run, group), shapes)


def _built(group: Group) -> building.Batch:
    with numerics():
        return building.build([job.config for job in group])


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
            print(f"lmech: the logger stopped: {planning.one_line(error)}", file=sys.stderr)

    return guarded


def _write_config(job_folder: Path, job: Job) -> None:
    text = yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True)
    atomically(
        job_folder / "config.yaml",
        lambda temporary: temporary.write_text(text, encoding="utf-8"),
    )


def _run_batch(
    run: Run, group: Group, show: Callable[..., None], begun: Checkpoint | None
) -> dict[str, str]:
    """Train a batch and write its jobs' files: from its last state, or ``begun``, or step 0."""
    ids = [job.id for job in group]
    batch = _built(group)
    kept = _kept(run, group, batch) or begun
    recorder, fresh = Recorder(len(group)), list(kept.records if kept and not kept.parts else [])
    with numerics(group[0].config["precision"]["matmul"]):
        for old in kept.records if kept else []:
            recorder.add(old)
        resumed = _resumption(kept, run.record)
        parts, saved = (kept.parts, kept.saved) if kept else (0, None)
        for event in engine.train(*batch, saved=saved, save=run.due):
            if isinstance(event, Record):
                recorder.add(event)
                fresh.append(event)
                show(ids, int(event.steps.max(initial=0)), recorder.last)
            elif isinstance(event, Saved):
                parts = checkpoints.write(_place(run, group), event, fresh, parts, run.record)
                fresh = []
                run.due.saved(event.step)
            else:
                end = event
    record = {**run.record, **resumed}
    statuses = {}
    for member, job in enumerate(group):
        statuses[job.id] = _write_job(run.target / job.id, job, member, recorder, end, record)
    checkpoints.clear(_place(run, group))
    return statuses


def _resumption(kept: Checkpoint | None, record: dict[str, Any]) -> dict[str, Any]:
    """What to say of a run that went on under another execution record than it began under.

    The last bits may differ from there on; under the same record there is nothing to say.
    """
    if kept is None or kept.execution == record:
        return {}
    changed = {key: [kept.execution.get(key), now] for key, now in record.items()}
    changed = {key: pair for key, pair in changed.items() if pair[0] != pair[1]}
    print(f"lmech: goes on from step {kept.saved.step} with another {', '.join(changed)}")
    return {"resumed": {"step": kept.saved.step, "changed": changed}}


def _final(table: pa.Table) -> dict[str, Any]:
    """The last recorded value of each column."""
    columns = {name: table.column(name).drop_null() for name in table.column_names}
    return {name: column[-1].as_py() for name, column in columns.items() if name != "step"}


def _write_job(
    job_folder: Path,
    job: Job,
    member: int,
    recorder: Recorder,
    end: End,
    record: dict[str, Any],
) -> str:
    """The job's files; the result last, since it says that the others are whole."""
    _write_config(job_folder, job)
    table = recorder.table(member)
    write_table(job_folder / "metrics.parquet", table)
    leaves = trees.named_leaves(jax.tree.map(lambda leaf: leaf[member], end.params))
    step = int(end.step[member])
    write_weights(job_folder / "weights" / f"{step}.npz", leaves)
    (job_folder / "error.txt").unlink(missing_ok=True)
    final = _final(table)
    loss = "train_loss" if "train_loss" in final else "batch_loss"
    finite = bool(end.finite[member]) and bool(np.isfinite(final.get(loss, 0.0)))
    rose = job.config["batch_size"] is None or loss == "train_loss"
    rose = rose and loss in final and final[loss] > table.column(loss).drop_null()[0].as_py()
    status = "diverged" if rose or not finite else "done"
    write_json(
        job_folder / "result.json",
        {
            "id": job.id,
            "observables": planning.observable_ids(job.config),
            "status": status,
            "steps": step,
            "nonfinite_at": None if finite else step,
            "final": final,
            "provenance": record,
        },
    )
    return status
