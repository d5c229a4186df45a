"""The loop of locuslab/edge-of-stability beside lmech's, on the problem of its README's demo.

fc-tanh on the first 5,000 images of CIFAR-10, squared loss, gradient descent at η = 0.01; losses
and accuracies of training set and test set at every step, two eigenvalues every 100 steps, up to
99 % training accuracy (near step 9,050). The original runs as it is from a checkout (--peers), on
the CPU (``cpu.py``): a step is the time between two of its printed lines, a measurement of
eigenvalues what its line takes more than that. lmech trains the same by its engine with the same
columns, and measures its tracked sharpness (a block of four) where the original runs ``eigsh`` for
two. Both are extrapolated to the demo: 9,050 steps and 91 measurements.

Both sides run in turns, and a target is a ratio of whole demos. Beside them stands the time that
the matrix products of the demo's gradients alone take at this machine's GEMM peak (``steps``). The
original's eigenvalues are measured at the start, where ``eigsh`` needs other numbers of products
than at the edge.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import psutil

from lmech import building, config, engine
from lmech.lanes import Record
from lmech.numerics.precision import numerics
from scripts.bench import fc, timing
from scripts.bench.asked import Asked, Missing, need
from scripts.bench.steps import SQUARES, gemms
from scripts.bench.tables import Cell, Table, Target
from scripts.bench.timing import clocks, environment, ratio_of, same_threads, spent

STEPS, EVERY = 9050, 100
"""Of the demo: until 99 %, and between measurements."""
EIGENVALUES = "eigenvalues"
LOSSES = "observables=[loss,accuracy]"
SAME = ("observables.test_loss.every=1", "observables.test_accuracy.every=1")
CHUNKS = 3
"""The first one is not timed."""


class Costs(NamedTuple):
    """Wall and CPU seconds of a step and of a measurement, [2] each."""

    step: np.ndarray
    measurement: np.ndarray

    @property
    def demo(self) -> np.ndarray:
        """Of the README's demo."""
        return STEPS * self.step + -(-STEPS // EVERY) * self.measurement


def command(peer: Path, data: str, steps: int, every: int) -> list[str]:
    """The demo's words, for so many steps with a measurement every so many."""
    words = [data, "fc-tanh", "mse", "0.01", str(steps), "--acc_goal", "0.99"]
    script = [sys.executable, "-m", "scripts.bench.cpu", str(peer / "src" / "gd.py")]
    return [*script, *words, "--neigs", "2", "--eig_freq", str(every)]


def theirs(words: list[str], threads: int) -> Costs:
    """Run it; read the clocks at each line that it prints."""
    lines: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as room:
        more = {"DATASETS": room, "RESULTS": room, "PYTHONUNBUFFERED": "1"}
        more["OMP_NUM_THREADS"] = str(threads)
        process = subprocess.Popen(  # noqa: S603
            words,
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        watched = psutil.Process(process.pid)
        assert process.stdout  # noqa: S101 - a pipe
        for line in process.stdout:
            used = watched.cpu_times() if process.poll() is None else None
            lines.append((line, time.perf_counter(), used.user + used.system if used else np.nan))
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors[-2000:])
    return read(lines)


def read(lines: list[tuple[str, float, float]]) -> Costs:
    """Costs from printed lines and their wall and CPU times; the first two steps do not count."""
    steps, measurements, last, measured = [], [], None, None
    for line, *times in lines:
        now = np.asarray(times)
        if line.startswith(EIGENVALUES):
            measured = now
        elif line.partition("\t")[0].isdigit():
            number = int(line.partition("\t")[0])
            if measured is None and last is not None and number > 1:
                steps.append(now - last)
            if measured is not None and last is not None:
                measurements.append(measured - last)
            last, measured = now, None
    step = np.median(steps, axis=0)
    return Costs(step, np.median(measurements, axis=0) - step)


def ours(chunk: int, *more: str) -> building.Setup:
    """The same run with its losses and accuracies."""
    sizes = (
        f"steps={chunk * CHUNKS}",
        f"execution.chunk={chunk}",
        f"optimizer.learning_rate={fc.RATE}",
    )
    words = [*fc.OVERRIDES, LOSSES, *sizes, *more]
    built = building.build([config.resolve(config.compose(words))])
    return built._replace(data=jax.device_put(built.data))


def measured(built: building.Setup, sharpness: fc.Call) -> Costs:
    """From the end of the first chunk on."""
    arrivals, steps = [], 0
    for event in engine.train(*built):
        if isinstance(event, Record) and "train_loss" in event.columns and event.valid.sum() > 1:
            arrivals.append(np.asarray(clocks()))
            steps += 0 if len(arrivals) == 1 else int(event.valid.sum())
    return Costs((arrivals[-1] - arrivals[0]) / steps, np.asarray(spent(sharpness)))


def measure(asked: Asked) -> Iterator[Table]:
    """Steps, measurements and the demo."""
    need("torch", "torch")
    peer = asked.peers / "edge-of-stability"
    if not (peer / "src" / "gd.py").exists():
        raise Missing(f"no {peer}: a checkout of github.com/locuslab/edge-of-stability")
    threads = same_threads(asked.threads)
    demo = asked.size(("cifar10-5k", 8, 4), ("cifar10-1k", 6, 3))
    words = command(peer, *demo)
    chunk = asked.size(50, 2)
    with numerics():
        sides = {
            "lmech, the same columns": ours(chunk, *SAME),
            "lmech, test set every 50": ours(chunk),
        }
        sharpness = fc.engine(None, 1).measurement("sharpness")
        for built in sides.values():
            measured(built, sharpness)  # compiles
        turns = [
            {
                "the original": theirs(words, threads),
                **{name: measured(built, sharpness) for name, built in sides.items()},
            }
            for _ in range(asked.repetitions)
        ]
    yield table(turns, least(asked), threads, peer, words)


def least(asked: Asked) -> float:
    """Seconds of the matrix products in the demo's gradients at the fastest product's rate."""
    products = gemms(need("torch", "torch"), asked.size(SQUARES, ((64, 64, 64),)))
    timed = timing.turns({name: call for name, (_, call) in products.items()}, asked.repetitions)
    rate = max(count / timed.middle(name)[0] for name, (count, _) in products.items())
    return STEPS * fc.flops() / rate


def table(
    turns: list[dict[str, Costs]], least: float, threads: int, peer: Path, words: list[str]
) -> Table:
    """Medians and ratios of the turns."""
    whole = statistics.median(turn["the original"].demo[0] for turn in turns)
    limits = (
        f"the products of the gradients alone take {least / 60:.1f} minutes at the GEMM's peak, so "
        f"{whole / least:.1f} is the most; a step's test loss and accuracy are of 10,000 images"
    )
    rows: list[list[Cell]] = []
    targets = []
    for name in turns[0]:
        runs = [turn[name] for turn in turns]
        ratios = [
            ratio_of([turn["the original"].demo[c] / turn[name].demo[c] for turn in turns])
            for c in (0, 1)
        ]
        costs = (
            *(statistics.median(run.step[c] for run in runs) * 1e3 for c in (0, 1)),
            statistics.median(run.measurement[0] for run in runs),
            statistics.median(run.demo[0] for run in runs) / 60,
        )
        rows.append([name, *costs, *ratios])
        if name != "the original":
            targets.append(Target(f"the demo: original over {name}", ratios[0], "≥", 20, limits))
    only = "gradients' products at the GEMM's peak"
    rows.append([only, least / STEPS * 1e3, None, None, least / 60, whole / least, None])
    git = subprocess.run(  # noqa: S603
        ["git", "-C", str(peer), "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        check=False,
    )
    columns = ("side", "a step, wall ms", "CPU ms", "a measurement, s", "the demo, minutes")
    return Table(
        "the README's demo, extrapolated",
        (*columns, "original's demo over it: wall", "CPU"),
        rows,
        f"edge-of-stability at {git.stdout.decode().strip()}, {threads} threads on both sides; its "
        f"eigenvalues are measured at the start. The demo: {STEPS} steps, a measurement every "
        f"{EVERY}.",
        tuple(targets),
        (" ".join(["python", *words[1:]]).replace(f"{peer.parent}/", ""),),
    )
