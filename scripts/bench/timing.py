"""Clocks, paired repetitions and threads. Needs no JAX: the loops of peers use it too."""

import contextlib
import importlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.bench.tables import Ratio

Call = Callable[[], Any]
Clocks = Callable[[], tuple[float, float]]


class Trained(NamedTuple):
    """A peer's run: losses [steps], and from the end of its first step to its last's, seconds."""

    losses: list[float]
    wall: float
    cpu: float
    """Of all threads of this process."""


class Turns(NamedTuple):
    """Seconds of what ran in turns: name → [repetitions, 2], wall and CPU."""

    seconds: Mapping[str, np.ndarray]

    def middle(self, name: str) -> tuple[float, float]:
        """Median wall and CPU time."""
        wall, cpu = np.median(self.seconds[name], axis=0)
        return float(wall), float(cpu)

    def ratio(self, over: str, under: str, scale: float = 1.0) -> tuple[Ratio, Ratio]:
        """Wall and CPU time of the one over the other's in the same turn, times a scale."""
        ratios = scale * self.seconds[over] / self.seconds[under]
        wall, cpu = (ratio_of(column) for column in ratios.T)
        return wall, cpu


def ratio_of(values: Sequence[float] | np.ndarray) -> Ratio:
    """Median and range."""
    return Ratio(float(np.median(values)), float(np.min(values)), float(np.max(values)))


def clocks() -> tuple[float, float]:
    """Wall and CPU time of this process, seconds."""
    return time.perf_counter(), time.process_time()


def family() -> tuple[float, float]:
    """Wall time, and CPU time of the finished children, seconds."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), spent.ru_utime + spent.ru_stime


PAUSE = 0.3
"""Seconds before a call: threads that wait by spinning (OpenBLAS, OpenMP) come to rest."""


def rested(call: Call, clock: Clocks) -> tuple[float, float]:
    """What the call spends, on cores that the one before has left."""
    time.sleep(PAUSE)
    return spent(call, clock)


def spent(call: Call, clock: Clocks = clocks) -> tuple[float, float]:
    """Wall and CPU time of a call; arrays of JAX are waited for."""
    before = clock()
    ready(call())
    wall, cpu = (now - then for now, then in zip(clock(), before, strict=True))
    return wall, cpu


def ready(result: Any) -> Any:
    """The result, once it is computed."""
    jax = sys.modules.get("jax")
    return result if jax is None else jax.block_until_ready(result)


def turns(calls: Mapping[str, Call], repetitions: int, clock: Clocks = clocks) -> Turns:
    """Each call once to warm up, then all in turns: so load that comes and goes hits them alike."""
    for call in calls.values():
        ready(call())
    rounds = [[rested(call, clock) for call in calls.values()] for _ in range(repetitions)]
    by_name = np.asarray(rounds).transpose(1, 0, 2)
    return Turns(dict(zip(calls, by_name, strict=True)))


def same_threads(count: int | None) -> int:
    """Both sides on the same cores. XLA has as many threads as the process has cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[:count]
        os.sched_setaffinity(0, cores)
        count = len(cores)
    elif count is not None:
        raise SystemExit("--threads needs a system that pins a process to cores (Linux)")
    count = count or os.cpu_count() or 1
    with contextlib.suppress(ImportError):
        importlib.import_module("torch").set_num_threads(count)
    return count


def environment(**more: str) -> dict[str, str]:
    """For a process that imports what this one does, wherever it runs."""
    paths = os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": paths, **more}


def process(command: Sequence[str], folder: Path, **more: str) -> tuple[float, float]:
    """Wall and CPU seconds of a command and its children in a folder. Raises if it fails."""
    folder.mkdir(parents=True, exist_ok=True)

    def run() -> None:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, env=environment(**more), capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()[-2000:]}")

    return spent(run, family)
