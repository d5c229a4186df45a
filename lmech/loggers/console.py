"""Progress on the terminal: live where there is one, a line now and then where there is not."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
from rich import progress as progress_bar
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from lmech.loggers import Logger, Progress

# Columns that are shown, first come first, and what they are called there.
SHOWN = {"train_loss": "loss", "batch_loss": "loss", "sharpness": "sharpness"}


def summary(last: list[dict[str, float]]) -> str:
    """``loss 0.01–0.3, sharpness 5–19``: the range over the members of what is shown."""
    parts: dict[str, str] = {}
    for name, label in SHOWN.items():
        values = [member[name] for member in last if np.isfinite(member.get(name, np.nan))]
        if values and label not in parts:
            low, high = (f"{value:.2g}" for value in (min(values), max(values)))
            parts[label] = f"{label} {low}" + (f"–{high}" if low != high else "")
    return ", ".join(parts.values())


def _title(progress: Progress) -> str:
    return f"batch {progress.batch + 1}/{progress.batches} × {progress.members}"


@contextmanager
def _live(terminal: Console) -> Iterator[Callable[[Progress], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24 if terminal.width >= 110 else 6),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[rate]:.3g}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with progress_bar.Progress(*columns, console=terminal) as bar:
        tasks = {}

        def show(progress: Progress) -> None:
            if progress.batch not in tasks:
                tasks[progress.batch] = bar.add_task(_title(progress), rate=0, last="")
            bar.update(
                tasks[progress.batch],
                completed=progress.step,
                total=progress.horizon,
                rate=progress.rate,
                last=summary(progress.last),
            )

        yield show


@contextmanager
def _plain(seconds: float) -> Iterator[Callable[[Progress], None]]:
    shown = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal shown
        if time.monotonic() - shown < seconds or not progress.rate:
            return
        shown = time.monotonic()
        left = (progress.horizon - progress.step) / progress.rate
        place = f"{_title(progress)}: step {progress.step}/{progress.horizon}"
        speed = f"{progress.rate:.3g} steps/s, {left:.0f} s left"
        print(f"{place}, {speed}, {summary(progress.last)}", flush=True)

    yield show


def console(seconds: float = 10.0) -> Logger:
    """A live bar on a terminal; elsewhere a line every ``seconds``."""

    def follow() -> AbstractContextManager[Callable[[Progress], None]]:
        terminal = Console(file=sys.stdout)
        return _live(terminal) if terminal.is_terminal else _plain(seconds)

    return follow


@contextmanager
def _nothing() -> Iterator[Callable[[Progress], None]]:
    yield lambda _: None


def silent() -> Logger:
    """Nothing."""
    return _nothing
