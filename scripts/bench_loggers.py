"""What the loggers cost a sweep: the same command with none and with all of them, in turn.

    make bench-loggers

Whole commands in processes of their own, one after the other; the first with each choice of loggers
compiles and does not count. wandb is offline, so that no network is in it. Two ratios, each the
median over the pairs: the time of training alone, which the processes beside it may slow, and the
whole command's, which waits at its end for what they have not yet written.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAIRS = 3
ROWS = 4 * 2000
"""Of all jobs of the sweep."""
SWEEP = (
    *("-m", "dataset=digits", "dataset.train_size=500", "observables=[loss]", "seed=range(4)"),
    *("model.width=64", "steps=2000", "execution.mode=map", "execution.save_every=5"),
)
NONE, ALL = "logger=none", "logger=[console,tensorboard,wandb]"


def measured(folder: Path, logger: str) -> tuple[float, float]:
    """Seconds of the sweep's training, and of the whole command."""
    environment = {**os.environ, "WANDB_MODE": "offline"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])
    folder.mkdir(parents=True)
    started = time.perf_counter()
    command = [sys.executable, "-m", "lmech", *SWEEP, logger]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    whole = time.perf_counter() - started
    (summary,) = folder.glob("outputs/run/*/summary.json")
    return json.loads(summary.read_text(encoding="utf-8"))["seconds"]["run"], whole


def main(room: Path) -> None:
    """Print a line a pair, then the medians."""
    ratios, waits = [], []
    for pair in range(PAIRS + 1):
        without, beside = (measured(room / f"{pair}{name}", name) for name in (NONE, ALL))
        if pair:
            ratios.append([b / a for a, b in zip(without, beside, strict=True)])
            waits.append((beside[1] - beside[0]) - (without[1] - without[0]))
            print(
                f"pair {pair}: training {without[0]:.1f} s, with all loggers {beside[0]:.1f} s;"
                f" command {without[1]:.1f} s, {beside[1]:.1f} s",
                flush=True,
            )
    training, command = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"all loggers: training {training - 1:+.1%}, whole command {command - 1:+.1%}")
    wait = statistics.median(waits)
    print(f"waiting at the end: {wait:.1f} s for {ROWS} rows, {wait / ROWS * 1e3:.2f} ms a row")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
