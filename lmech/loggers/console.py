"""Progress on the terminal: live where there is one, a line now and then where there is not."""

import html
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from rich import progress as progress_bar
from rich.console import Console
from rich.progress import BarColumn, TextColumn

from lmech.formats import duration
from lmech.loggers import Logger, Progress, Totals

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


def counted(counts: Mapping[str, int]) -> str:
    """``3 running, 2 done``: what there is of each status."""
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _time_left(seconds: float) -> str:
    return "" if np.isnan(seconds) else f"{duration(seconds)} left"


def _share(totals: Totals) -> str:
    """``40 % of 1,200 steps``, summed over the members."""
    return f"{100 * totals.steps // max(totals.horizon, 1)} % of {totals.horizon:,} steps"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def batch_line(progress: Progress) -> str:
    """A batch in a line: as it begins, on its way (the sweep behind it), or what it came to."""
    if progress.event == "begins":
        return f"{_title(progress)}: begins, {progress.horizon} steps"
    if progress.event == "ends":
        took = f"{counted(progress.counts)} in {duration(progress.seconds)}"
        return _joined(f"{_title(progress)}: {took}", summary(progress.last))
    speed = f"{progress.rate:.3g} steps/s" if progress.rate else ""
    place = f"{_title(progress)}: step {progress.step}/{progress.horizon}"
    own = _joined(place, speed, _time_left(progress.left), summary(progress.last))
    return f"{own}; {sweep_line(progress.sweep)}"


def sweep_line(totals: Totals) -> str:
    """``sweep: 3 running, 2 done, 40 % of 1,200 steps, 5 min left``."""
    return "sweep: " + _joined(counted(totals.counts), _share(totals), _time_left(totals.left))


def total_line(totals: Totals) -> str:
    """How the sweep has ended, or where it was cut off."""
    return f"sweep: {counted(totals.counts)}, {_share(totals)} in {duration(totals.seconds)}"


@contextmanager
def _live(terminal: Console) -> Iterator[Callable[[Progress], None]]:
    """A bar for the sweep and below it one for the batch; a batch that has ended is a line above.

    Steps of the sweep are summed over its members.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24 if terminal.width >= 110 else 6),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[told]}"),
    )
    with progress_bar.Progress(*columns, console=terminal) as bar:
        tasks: dict[str, progress_bar.TaskID] = {}

        def draw(name: str, title: str, steps: int, horizon: int, told: str) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(title, total=horizon, told="")
            bar.update(tasks[name], description=title, completed=steps, total=horizon, told=told)

        def show(progress: Progress) -> None:
            totals = progress.sweep
            told = _joined(counted(totals.counts), _time_left(totals.left))
            draw("sweep", "sweep", totals.steps, totals.horizon, told)
            if progress.event == "ends":
                if "batch" in tasks:
                    bar.remove_task(tasks.pop("batch"))
                bar.console.print(batch_line(progress), highlight=False, markup=False)
                return
            speed = f"{progress.rate:.3g}/s" if progress.rate else ""
            own = _joined(speed, _time_left(progress.left), summary(progress.last))
            draw("batch", _title(progress), progress.step, progress.horizon, own)

        yield show


@contextmanager
def _plain(seconds: float, clock: Callable[[], float]) -> Iterator[Callable[[Progress], None]]:
    """A line when a batch begins and ends, one every ``seconds`` between, and one at the end."""
    shown, totals = clock(), None

    def show(progress: Progress) -> None:
        nonlocal shown, totals
        totals = progress.sweep
        if progress.event != "runs" or clock() - shown >= seconds:
            shown = clock()
            print(batch_line(progress), flush=True)

    try:
        yield show
    finally:
        if totals is not None:
            print(total_line(totals), flush=True)


@contextmanager
def _notebook(seconds: float, clock: Callable[[], float]) -> Iterator[Callable[[Progress], None]]:
    """One output of the cell, drawn anew at most every ``seconds``, which ends as the total line.

    Not rich's own bars, which need ipywidgets and are gone from a notebook that is saved.
    """
    from IPython.display import display  # noqa: PLC0415 there in a notebook, and not elsewhere

    handle = display({"text/plain": ""}, raw=True, display_id=True)
    shown, totals = -math.inf, None

    def show(progress: Progress) -> None:
        nonlocal shown, totals
        totals = progress.sweep
        if progress.event != "runs" or clock() - shown >= seconds:
            shown = clock()
            handle.update(_bars(progress), raw=True)

    try:
        yield show
    finally:
        if totals is not None:
            handle.update({"text/plain": total_line(totals)}, raw=True)


def _bars(progress: Progress) -> dict[str, str]:
    """The batch and the sweep, as a notebook shows them; as text where it cannot."""
    bar = '<progress value="{}" max="{}"></progress> {}'
    done, horizon = progress.sweep.steps, max(progress.sweep.horizon, 1)
    own = html.escape(batch_line(progress).partition("; ")[0])
    lines = [
        bar.format(done, horizon, html.escape(sweep_line(progress.sweep))),
        bar.format(progress.step, max(progress.horizon, 1), own),
    ]
    return {"text/plain": batch_line(progress), "text/html": "<br>".join(lines)}


def console(seconds: float = 10.0) -> Logger:
    """Live bars on a terminal or in a notebook; elsewhere, a line every ``seconds``."""

    def follow(_: Path) -> AbstractContextManager[Callable[[Progress], None]]:
        terminal = Console(file=sys.stdout)
        if terminal.is_jupyter:
            return _notebook(0.2, time.monotonic)
        return _live(terminal) if terminal.is_terminal else _plain(seconds, time.monotonic)

    return follow


@contextmanager
def _nothing(_: Path) -> Iterator[Callable[[Progress], None]]:
    yield lambda _: None


def silent() -> Logger:
    """Nothing."""
    return _nothing
