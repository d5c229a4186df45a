"""How far a sweep is, as its folder says it, whoever works on it and wherever. No JAX here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lmech import locking, manifest, planning, snapshots, states
from lmech.disk import DamagedFileError, read_json
from lmech.manifest import Entry

STATUSES = ("done", "diverged", "failed", "running", "queued", "waiting")
ENDED = STATUSES[:3]


class BatchStatus(NamedTuple):
    """How far a batch is."""

    number: int | None
    """None: of the jobs that another sweep has trained."""
    counts: Mapping[str, int]
    """Its jobs by status."""
    step: int | None
    """The last one of which it has a state on disk; None if there is no state."""
    horizon: int
    host: str | None
    """Where it is at work."""
    damaged: bool
    """Whether a state cannot be read."""

    @property
    def status(self) -> str:
        """That of the jobs that are furthest from their end."""
        return next(status for status in reversed(STATUSES) if self.counts[status])


def look(sweep: Path, queued: Mapping[int, tuple[int, str]]) -> list[BatchStatus]:
    """Every batch, by number; ``queued`` (see ``slurm.queue``) says what the disk does not.

    Results and errors say what has ended, locks whose heart beats what is at work, states how far
    it was. Raises ConfigError for a folder with no manifest.
    """
    batches: dict[int | None, list[Entry]] = {}
    for entry in manifest.found(sweep):
        batches.setdefault(entry["batch"], []).append(entry)
    ordered = sorted(batches, key=lambda number: -1 if number is None else number)
    return [_batch(sweep, number, batches[number], queued) for number in ordered]


def _batch(
    sweep: Path,
    number: int | None,
    entries: Sequence[Entry],
    queued: Mapping[int, tuple[int, str]],
) -> BatchStatus:
    ended = [ending(sweep / entry["id"], entry) for entry in entries]
    host = locking.holder(sweep / "batches" / f"{number}.lock")
    place = queued.get(-1 if number is None else number, (0, ""))[1]
    left = "running" if host or place == "RUNNING" else "queued" if place else "waiting"
    counted = Counter(status or left for status in ended)
    step, damaged = _reached(sweep, number)
    return BatchStatus(
        number,
        {status: counted[status] for status in STATUSES},
        step,
        max(entry["config"]["steps"] for entry in entries),
        host,
        damaged,
    )


def _reached(sweep: Path, number: int | None) -> tuple[int | None, bool]:
    """The furthest step among the states of a batch and its parts; whether one is damaged."""
    folder, steps, damaged = sweep / "batches", [], False
    for path in (*folder.glob(f"{number}/{states.STATE}"), *folder.glob(f"{number}.*/*.npz")):
        if path.name == states.STATE:
            try:
                steps.append(states.holds(path.parent)[0])
            except states.DamageError:
                damaged = path.exists()  # else it was cleared meanwhile
    return max(steps, default=None), damaged


def ending(folder: Path, entry: Entry) -> str | None:
    """How a job ended: done, diverged, failed; None while it is to do.

    As ``standing.of``, but by what the manifest says of its observables, so that nobody's
    code is looked at.
    """
    result: dict[str, Any] = {}
    with suppress(FileNotFoundError, NotADirectoryError, DamagedFileError):
        result = read_json(folder / "result.json")
    if result.get("status") in ENDED[:2] and _is_whole(folder, entry, result):
        return str(result["status"])
    return "failed" if (folder / "error.txt").is_file() else None


def _is_whole(folder: Path, entry: Entry, result: Mapping[str, Any]) -> bool:
    """Whether a result has all that the manifest asks for."""
    config, found = entry["config"], result.get("observables", {})
    asked = {name: found.get(name) for name in config["observables"]}
    wanted = {step for step in config["snapshots"] if step < result["steps"]}
    return (
        planning.whole([entry["id"], asked], config) == entry["whole"]
        and wanted <= snapshots.kept(folder).keys()
    )


def total(batches: Sequence[BatchStatus]) -> dict[str, int]:
    """The jobs of all batches by status."""
    counted: Counter[str] = Counter()
    for batch in batches:
        counted.update(batch.counts)
    return {status: counted[status] for status in STATUSES}
