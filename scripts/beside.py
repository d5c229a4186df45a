"""What the benches share that stand beside a loop in PyTorch: clocks, threads, ratios."""

import importlib
import importlib.metadata
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Trained(NamedTuple):
    """A peer's run: losses [steps], and from the end of its first step to its last's, seconds."""

    losses: list[float]
    wall: float
    cpu: float
    """Of all threads of this process."""


def clocks() -> tuple[float, float]:
    """Wall and CPU time, seconds."""
    return time.perf_counter(), time.process_time()


def middle(ratios: np.ndarray) -> str:
    """Median and range of ratios [rounds, 2] of wall and CPU time."""
    named = zip(("wall", "CPU"), ratios.T, strict=True)
    return ", ".join(
        f"{name} {np.median(r):.2f} ({r.min():.2f}–{r.max():.2f})" for name, r in named
    )


def same_threads(count: int | None) -> int:
    """Both sides on the same cores. XLA has as many threads as the process has cores."""
    torch = importlib.import_module("torch")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[:count]
        os.sched_setaffinity(0, cores)
        count = len(cores)
    elif count is not None:
        raise SystemExit("--threads needs a system that pins a process to cores (Linux)")
    torch.set_num_threads(count or os.cpu_count() or 1)
    return torch.get_num_threads()


def installed(names: tuple[str, ...]) -> Iterator[str]:
    """Their versions."""
    for name in names:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"no {name}"
