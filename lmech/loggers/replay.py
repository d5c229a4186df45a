"""Loggers that repeat what lies on disk: beside the training, in a process of their own, or later.

Nothing of the training waits for them. Every few seconds the process looks at the sweep's folder:
jobs that have ended are told from their Parquet, those that run from what their batch has saved. A
job that is told again takes the place of what was told before. No JAX here.
"""

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lmech import locking, states
from lmech.disk import read_json, read_json_lines, read_table, write_json
from lmech.loggers import Progress
from lmech.recorder import Recorder

SHORT = 16
"""Longest vector whose entries are told one by one, ``name/0``, ``name/1``, …"""
Values = Mapping[str, float | np.ndarray]


class Told(NamedTuple):
    """A job, as a sink is told of it."""

    id: str
    sweep: str
    """Id of the sweep."""
    experiment: str | None
    overrides: Mapping[str, Any]
    """The swept keys and their values."""
    config: Mapping[str, Any]
    """Resolved; without ``logger``."""
    sweeps: Sequence[str]
    """Ids of all sweeps of the output folder that have the job, this one first."""


class Ending(NamedTuple):
    """What a job came to."""

    status: str
    """done, diverged or failed."""
    result: Mapping[str, Any]
    """result.json."""
    reason: str
    """Last line of a failed job's traceback."""


class Verdict(NamedTuple):
    """What a sweep came to."""

    sweep: str
    experiment: str | None
    summary: Mapping[str, Any]
    """summary.json."""
    claims: Sequence[Mapping[str, Any]]
    figure: Path | None


class Sink(Protocol):
    """Where a sweep is told. Several jobs may be open at once."""

    @property
    def live(self) -> bool:
        """Whether it takes rows of jobs that have not ended."""

    def begin(self, job: Told) -> int:
        """Open a job, in the place of what was told of it; the first step that it wants."""

    def row(self, job: str, step: int, values: Values) -> None:
        """What was recorded at a step; of one step there may be two rows of different columns."""

    def end(self, job: str, ending: Ending) -> None:
        """The job has ended."""

    def verdict(self, verdict: Verdict) -> None:
        """Figure and claims of the sweep."""

    def close(self) -> list[str]:
        """Let go of jobs that are still open (they were cut off); lines for the user."""


def entries(values: Values) -> dict[str, float | np.ndarray]:
    """With the entries of short vectors one by one; of longer ones the finite values, if any."""
    found: dict[str, float | np.ndarray] = {}
    for name, value in values.items():
        if isinstance(value, float):
            found[name] = value
        elif len(value) <= SHORT:
            found |= {f"{name}/{place}": float(entry) for place, entry in enumerate(value)}
        elif np.isfinite(value).any():
            found[name] = value[np.isfinite(value)]
    return found


def _value(cell: Any) -> float | np.ndarray:
    return np.asarray(cell, float) if isinstance(cell, list) else float(cell)


@dataclass(frozen=True)
class Beside:
    """A logger that replays a sweep to a sink, every so many ``seconds``.

    ``opened`` makes the sink of a sweep's folder, in the process beside the training: it and what
    it holds are pickled. At the end the training's process waits for the other, ``patience``
    seconds at most; what is not written by then is written on, without anybody waiting.
    """

    name: str
    opened: Callable[[Path], Sink]
    seconds: float
    patience: float

    @contextmanager
    def __call__(self, folder: Path) -> Iterator[Callable[[Progress], None]]:
        """Follow a sweep that is trained in this process."""
        process = _start(self, folder.absolute())
        patience = 5.0  # if the block raises: whoever stops a process kills it soon
        try:
            yield lambda _: None
            patience = self.patience
        finally:
            self._wait(process, folder, patience)

    def _wait(self, process: subprocess.Popen[bytes], folder: Path, patience: float) -> None:
        """Tell the process that it is over; print its lines. Raises RuntimeError if it failed."""
        try:
            said, wrong = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.returncode = 0  # nobody waits for it
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()
            again = f"lmech log {folder} logger={self.name}"
            print(f"{self.name}: goes on as process {process.pid} (if that is cut off: {again})")
            return
        print(said.decode(), end="")
        if process.returncode:
            lines = wrong.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise RuntimeError(f"{lines[-1]} (lmech log {folder} logger={self.name} does it again)")

    def follow(self, folder: Path, over: Callable[[float], bool]) -> list[str]:
        """Tell what happens in a folder until ``over(seconds)``, which waits so long, is true.

        One process at a time tells a sweep; others of the same sweep leave it to that one.
        """
        ended = False
        while not ended and not (folder / MANIFEST).is_file():
            ended = over(self.seconds)
        while (folder / MANIFEST).is_file():
            with locking.held(folder / self.name / ".lock") as mine:
                if mine:
                    return self._followed(folder, over, ended)
            if ended:
                break
            ended = over(self.seconds)
        return []

    def _followed(self, folder: Path, over: Callable[[float], bool], ended: bool) -> list[str]:
        replay = Replay(self, folder)
        while not ended:
            replay.tell()
            ended = over(self.seconds)
        return replay.conclude()

    def replay(self, folder: Path) -> list[str]:
        """Tell all that lies in a sweep's folder, whatever was told before; the sink's lines."""
        with locking.held(folder / self.name / ".lock") as mine:
            if not mine:
                raise BlockingIOError("another process is at it")
            return Replay(self, folder, again=True).conclude()


def _start(logger: Beside, folder: Path) -> subprocess.Popen[bytes]:
    """The process beside; it ends when its standard input does, as where this process is killed."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lmech.loggers"],  # a user's module shadows none
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,  # Ctrl-C is for the training
    )
    assert process.stdin is not None  # noqa: S101 a pipe
    process.stdin.write(pickle.dumps((logger, folder)))
    process.stdin.flush()
    return process


MANIFEST = "manifest.jsonl"
RECORD = "logged.json"
VERDICT = "verdict"
ENDING = ("summary.json", "claims.json", "figure.png")
Stamp = list[Any]
Entry = Mapping[str, Any]


class Replay:
    """A sweep's folder on its way into a sink, which is opened when there is something to tell."""

    def __init__(self, logger: Beside, folder: Path, again: bool = False) -> None:
        """Nothing is told yet; ``again``: whatever an earlier replay has told."""
        self._logger, self._folder = logger, folder
        self._file = folder / logger.name / RECORD
        known = self._file.is_file() and not again
        self._told: dict[str, Stamp] = read_json(self._file) if known else {}
        self._sink: Sink | None = None
        self._open: dict[str, tuple[int, set[str]]] = {}
        self._parts: set[tuple[Path, int]] = set()
        self._sweeps: dict[str, list[str]] | None = None

    def tell(self) -> None:
        """Rows that are new, and the jobs that have ended since."""
        manifest = read_json_lines(self._folder / MANIFEST)
        if self._sink is None or self._sink.live:
            self._tell_running(manifest)
        for entry in manifest:
            stamp = self._stamp(entry["id"])
            if stamp is not None and self._told.get(entry["id"]) != stamp:
                self._tell_ended(entry)
                self._keep(entry["id"], stamp)

    def conclude(self) -> list[str]:
        """The same once more, then figure and claims; the sink's lines."""
        self.tell()
        verdict, stamp = self._verdict()
        if verdict is not None and self._told.get(VERDICT) != stamp:
            self._into().verdict(verdict)
            self._keep(VERDICT, stamp)
        return self._sink.close() if self._sink is not None else []

    def _into(self) -> Sink:
        if self._sink is None:
            self._sink = self._logger.opened(self._folder)
        return self._sink

    def _keep(self, name: str, stamp: Stamp) -> None:
        self._told[name] = stamp
        write_json(self._file, self._told)

    def _stamp(self, job: str) -> Stamp | None:
        """What changes when a job's results do; None while it has not ended."""
        folder = self._folder / job
        try:
            files = [(folder / "result.json").stat()]
        except FileNotFoundError:
            return None
        with suppress(FileNotFoundError):
            files.append((folder / "metrics.parquet").stat())
        return [number for file in files for number in (file.st_mtime_ns, file.st_size)]

    def _tell_ended(self, entry: Entry) -> None:
        job, folder = entry["id"], self._folder / entry["id"]
        result = read_json(folder / "result.json")
        if result["status"] == "failed" and not (folder / "error.txt").is_file():
            return  # it is tried again
        if (folder / "metrics.parquet").is_file():
            self._tell_rows(entry, read_table(folder / "metrics.parquet"))
        self._begun(entry)
        reason = ""
        if result["status"] == "failed":
            lines = (folder / "error.txt").read_text(encoding="utf-8").strip().splitlines()
            reason = lines[-1] if lines else ""
        self._into().end(job, Ending(result["status"], result, reason))
        del self._open[job]

    def _tell_running(self, manifest: Sequence[Entry]) -> None:
        """What the running batches have saved since the last look."""
        wholes = {entry["whole"]: entry for entry in manifest}
        for state in sorted((self._folder / "batches").glob(f"*/{states.STATE}")):
            with suppress(FileNotFoundError):  # it has just ended
                self._tell_batch(state.parent, wholes)

    def _tell_batch(self, place: Path, wholes: Mapping[str, Entry]) -> None:
        if not self._into().live:
            return
        head = states.head(place)
        members = [wholes.get(whole) for whole in head["ids"]]
        for number in range(*head["parts"]):
            if (place, number) in self._parts:
                continue
            recorder = Recorder(len(members))
            for rows in states.read(states.place(place, number)):
                recorder.add(rows)
            self._parts.add((place, number))
            for member, entry in enumerate(members):
                running = entry is not None and self._stamp(entry["id"]) is None
                if entry is not None and running and recorder.last[member]:
                    self._tell_rows(entry, recorder.table(member))

    def _begun(self, entry: Entry) -> int:
        """The first step to be told of a job."""
        if entry["id"] not in self._open:
            self._open[entry["id"]] = self._into().begin(self._of(entry)), set()
        return self._open[entry["id"]][0]

    def _tell_rows(self, entry: Entry, table: pa.Table) -> None:
        """The rows that are new: of the last step that was told, columns that were not there."""
        job = entry["id"]
        table = table.filter(pc.greater_equal(table["step"], self._begun(entry)))
        names = [name for name in table.column_names if name != "step"]
        for cells in table.to_pylist():
            at, told = self._open[job]
            step, known = cells["step"], told if cells["step"] == at else set()
            new = {name for name in names if cells[name] is not None} - known
            if new:
                values = {name: _value(cells[name]) for name in sorted(new)}
                self._into().row(job, step, values)
            self._open[job] = step, known | new

    def _of(self, entry: Entry) -> Told:
        config = {key: value for key, value in entry["config"].items() if key != "logger"}
        own = self._folder.name
        found = [name for name in self._found().get(entry["id"], []) if name != own]
        experiment = entry["config"]["experiment"]
        return Told(entry["id"], own, experiment, entry["overrides"], config, [own, *found])

    def _found(self) -> dict[str, list[str]]:
        """Sweeps of the output folder by job; looked for once."""
        if self._sweeps is None:
            self._sweeps = {}
            for manifest in sorted(self._folder.parent.parent.glob(f"*/*/{MANIFEST}")):
                for entry in read_json_lines(manifest):
                    self._sweeps.setdefault(entry["id"], []).append(manifest.parent.name)
        return self._sweeps

    def _verdict(self) -> tuple[Verdict | None, Stamp]:
        """Of a sweep that has ended and was drawn or judged."""
        files = {path.name: path for path in map(self._folder.joinpath, ENDING)}
        there = {name: path for name, path in files.items() if path.is_file()}
        if "summary.json" not in there or len(there) == 1:
            return None, []
        claims: Any = read_json(there["claims.json"], list) if "claims.json" in there else []
        request = read_json(self._folder / "request.json")
        summary = read_json(there["summary.json"])
        name, figure = request["experiment"], there.get("figure.png")
        told = Verdict(self._folder.name, name, summary, claims, figure)
        stamp = [hashlib.sha256(path.read_bytes()).hexdigest() for path in there.values()]
        return told, stamp
