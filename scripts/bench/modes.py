"""The modes side by side: 64 runs of 3,000 full-batch steps, where arithmetic is all there is.

Digits, 500 images, width 32, loss alone. One run at a time, ``map``, ``vmap``, both on two host
devices, and ``auto`` (which times them the first time and then remembers). Commands in processes of
their own, in turns, after one untimed of each, which compiles: the time is the sweep's own, from
its plan to its last result, with all that it loads or compiles.
"""

import json
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scripts.bench.asked import Asked
from scripts.bench.sweeps import RUN, lmech, told
from scripts.bench.tables import Cell, Table, Target
from scripts.bench.timing import Ratio, ratio_of

NET = ("model.width=32", "dataset.train_size=500")
ONE, FIRST, AGAIN = "one run at a time", "auto, for the first time", "auto, again"
WAYS = {
    ONE: ("execution.lanes=1", "execution.mode=map"),
    "map": ("execution.mode=map",),
    "vmap": ("execution.mode=vmap",),
    "map on 2 devices": ("execution.mode=map", "execution.devices=2"),
    "vmap on 2 devices": ("execution.mode=vmap", "execution.devices=2"),
    FIRST: (),
    AGAIN: (),
}
LIMITS = "it traces, compiles or loads, and times the ways that it does not choose"


def measure(asked: Asked) -> Iterator[Table]:
    """Each mode's time, over one run at a time and over the fastest that needs no choice."""
    steps, runs = asked.size(3000, 10), asked.size(64, 2)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    chosen: dict[str, list[str]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        for turn in range(1 + asked.repetitions):
            for name, way in WAYS.items():
                if name == FIRST:
                    shutil.rmtree(room / "cache" / "modes", ignore_errors=True)
                words = ("-m", *RUN, *NET, f"steps={steps}", f"seed=range({runs})", *way)
                lmech(room / f"{turn} {name}", words, room / "cache")
                if turn > 0:
                    found[name].append(told(room / f"{turn} {name}")["seconds"]["wall"])
                    chosen[name].append(mode_of(room / f"{turn} {name}"))
    best = min((ONE, "map", "vmap"), key=lambda name: statistics.median(found[name]))
    rows: list[list[Cell]] = [
        [
            name,
            ", ".join(f"{mode}: {count}" for mode, count in Counter(chosen[name]).items()),
            statistics.median(spent),
            over(found[ONE], spent),
            over(found[best], spent),
        ]
        for name, spent in found.items()
    ]
    targets = tuple(
        Target(f"{best} over {name}", over(found[best], found[name]), "≥", 1.0, LIMITS)
        for name in (FIRST, AGAIN)
    )
    title = f"{runs} runs of {steps} full-batch steps (digits, 500 images, width 32)"
    columns = ("mode", "ran as", "sweep s", "times as fast as one at a time", f"as {best}")
    yield Table(title, columns, rows, targets=targets)


def mode_of(folder: Path) -> str:
    """How the first job of a sweep ran: its mode, and on how many devices."""
    (jobs,) = folder.glob("outputs/run/*/manifest.jsonl")
    with jobs.open(encoding="utf-8") as lines:
        execution = json.loads(next(lines))["execution"]
    return f"{execution['mode']} on {execution['devices']}"


def over(first: list[float], second: list[float]) -> Ratio:
    """Paired ratios."""
    return ratio_of([a / b for a, b in zip(first, second, strict=True)])
