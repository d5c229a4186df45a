"""Where a sweep's jobs stand on the disk: what is finished, failed, missing, and so to do."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lmech import snapshots
from lmech.disk import read_json, read_yaml
from lmech.planning import Job, observable_ids
from lmech.values import ConfigError


def of(job_folder: Path, job: Job) -> Literal["finished", "failed", "missing"]:
    """Where a job stands: it has a result with all that is asked for, or an error, or none.

    Asked for are its observables, and the snapshots up to the step at which it ended.
    """
    path = job_folder / "result.json"
    if path.is_file():
        result = read_json(path)
        wanted = observable_ids(job.config).items()
        if (
            result["status"] != "failed"
            and wanted <= result.get("observables", {}).items()  # another version's may have none
            and {step for step in job.config["snapshots"] if step < result["steps"]}
            <= snapshots.kept(job_folder).keys()
        ):
            return "finished"
    return "failed" if (job_folder / "error.txt").is_file() else "missing"


RERUN = {
    "missing": ("missing",),
    "failed": ("missing", "failed"),
    "all": ("missing", "failed", "finished"),
}


def reason(job_folder: Path) -> str:
    """Why a job failed, when it did: the last line of its traceback."""
    lines = (job_folder / "error.txt").read_text(encoding="utf-8").strip().splitlines()
    return f"{lines[-1] if lines else 'no traceback'} (rerun=failed tries again)"


def check_place(folder: Path) -> None:
    """Raise ConfigError if a sweep's folder cannot be made; nothing of it is left."""
    above = next(path for path in folder.absolute().parents if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=above, prefix=".lmech"):
            return
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"results go to {folder}, and no folder can be made in {above} ({reason}): choose "
            "another output=…"
        ) from error


def todo(jobs: Sequence[Job], target: Path) -> list[Job]:
    """The jobs to train, by the config's ``rerun``, with the observables an old result has too.

    A rerun for another observable then drops no column.
    """
    again = RERUN[jobs[0].config["rerun"]]
    left = [job for job in jobs if of(target / job.id, job) in again]
    return [_with_recorded(job, target / job.id) for job in left]


def elsewhere(jobs: Sequence[Job], target: Path) -> dict[str, Path]:
    """Folders of these jobs' finished results in other sweeps of the same output folder, by id.

    Of those that have no result of their own, which would be lost.
    """
    jobs = [job for job in jobs if not (target / job.id / "result.json").is_file()]
    found: dict[str, Path] = {}
    for manifest in sorted(target.parent.parent.glob("*/*/manifest.jsonl")):
        if manifest.parent != target:
            there = {path.name: path for path in manifest.parent.iterdir()}
            for job in jobs:
                if job.id in there and of(there[job.id], job) == "finished":
                    found[job.id] = there[job.id]
    return found


def _with_recorded(job: Job, job_folder: Path) -> Job:
    """With the observables that its result has: of a failed one none, as one may be why it did."""
    config, result = job_folder / "config.yaml", job_folder / "result.json"
    if not (config.is_file() and result.is_file()):
        return job
    told = read_json(result)
    recorded = {*told.get("observables", {}), *told.get("measured", {})}
    old = {name: own for name, own in read_yaml(config)["observables"].items() if name in recorded}
    return replace(job, config={**job.config, "observables": {**old, **job.config["observables"]}})
