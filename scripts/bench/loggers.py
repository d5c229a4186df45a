"""What the loggers cost a sweep: the same command with none and with all of them, in turn.

Whole commands in processes of their own, one after the other; the first with each choice of loggers
compiles and does not count. wandb is offline, so that no network is in it. Two ratios, each the
median over the pairs: the time of training alone, which the processes beside it may slow, and the
whole command's, which waits at its end for what they have not yet written.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts.bench.asked import Asked
from scripts.bench.tables import Table
from scripts.bench.timing import process, ratio_of

RUNS = 4
SWEEP = (
    *("-m", "dataset=digits", "dataset.train_size=500", "observables=[loss]"),
    *("model.width=64", f"seed=range({RUNS})", "execution.mode=map", "execution.save_every=5"),
)
NONE, ALL = "logger=none", "logger=[console,tensorboard,wandb]"


def measured(folder: Path, logger: str, steps: int) -> tuple[float, float]:
    """Seconds of the sweep's training, and of the whole command."""
    command = [sys.executable, "-m", "lmech", *SWEEP, f"steps={steps}", logger]
    whole, _ = process(command, folder, WANDB_MODE="offline")
    (summary,) = folder.glob("outputs/run/*/summary.json")
    return json.loads(summary.read_text(encoding="utf-8"))["seconds"]["run"], whole


def measure(asked: Asked) -> Iterator[Table]:
    """Training and the whole command, without and with."""
    steps, pairs = asked.size(2000, 20), []
    with tempfile.TemporaryDirectory() as room:
        for pair in range(1 + asked.repetitions):
            folder = Path(room) / str(pair)
            pairs.append([measured(folder / name, name, steps) for name in (NONE, ALL)])
    kept = pairs[1:]
    rows = [
        [
            name,
            *(statistics.median(pair[side][clock] for pair in kept) for side in (0, 1)),
            ratio_of([pair[1][clock] / pair[0][clock] for pair in kept]),
        ]
        for clock, name in enumerate(("training", "whole command"))
    ]
    waits = [(b[1] - a[1]) - (b[0] - a[0]) for a, b in kept]
    wait, count = statistics.median(waits), RUNS * steps
    yield Table(
        f"{count} rows of {RUNS} runs",
        ("what", f"{NONE}, s", f"{ALL}, s", "ratio"),
        rows,
        f"Waiting at the end: {wait:.1f} s for {count} rows, {wait / count * 1e3:.2f} ms a row.",
    )
