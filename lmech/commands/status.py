"""`lmech status`: how far a sweep is."""

import shutil
from collections.abc import Mapping, Sequence
from itertools import compress, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lmech import launching
from lmech.commands import new_parser
from lmech.values import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from lmech.watching import BatchStatus

Queue = Mapping[int, tuple[int, str]]


def main(words: list[str]) -> int:
    """Print how far a sweep is; returns the exit code."""
    parser = new_parser(
        "status",
        "How far a sweep is, batch by batch, from its folder and the cluster's queue.",
        {"lmech status outputs/run/3f2a9c": "wherever it runs, or ran"},
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder, with its manifest.jsonl")
    sweep = parser.parse_args(words).folder
    from lmech import watching

    queued = _queue(sweep)
    batches = watching.look(sweep, queued)
    launching.terminal().print(table(batches, queued))
    for line in told(sweep, batches):
        print(line)
    return 0


def _queue(sweep: Path) -> Queue:
    """What of the sweep the cluster has; what it does not say is told, and the disk goes on."""
    from lmech import submitting

    if not submitting.submissions(sweep):
        return {}
    if shutil.which("squeue") is None:
        print("squeue is not on this machine: what is queued counts as waiting")
        return {}
    try:
        return submitting.queue(sweep)
    except ConfigError as error:
        print(f"{error}: what is queued counts as waiting")
        return {}


PLACES = ("state saved at", "where")


def table(batches: Sequence["BatchStatus"], queued: Queue) -> "Table":
    """A batch a line; those in a row of which there is the same to say share one."""
    from rich.table import Table

    from lmech import manifest, watching

    everything = watching.total(batches)
    shown = [status for status, count in everything.items() if count]
    keys = [_same(batch, queued) for batch in batches]
    told = [any(column) for column in zip(*(places for _, places in keys), strict=True)]
    table = Table("batch", "jobs", *shown, *compress(PLACES, told))
    for (_, places), alike in groupby(batches, key=lambda batch: _same(batch, queued)):
        own = list(alike)
        numbers = [batch.number for batch in own if batch.number is not None]
        counts = _cells(watching.total(own), shown)
        name = manifest.spans(numbers) or "of other sweeps"
        table.add_row(name, *counts, *compress(places, told))
    table.add_section()
    table.add_row("all", *_cells(everything, shown))
    return table


def _same(batch: "BatchStatus", queued: Queue) -> tuple[tuple[str, ...], tuple[str, str]]:
    """What is to be the same of batches that share a line: statuses; state saved, and where."""
    saved = "" if batch.step is None else f"step {batch.step:,} of {batch.horizon:,}"
    if batch.damaged:
        saved = "damaged: delete its folder"
    array, state = queued.get(-1 if batch.number is None else batch.number, (0, ""))
    task = f"{state.lower()} in array {array}" if state else ""
    where = ", ".join(part for part in (batch.host or "", task) if part)
    return tuple(status for status, count in batch.counts.items() if count), (saved, where)


def _cells(counts: Mapping[str, int], shown: Sequence[str]) -> list[str]:
    return [str(sum(counts.values())), *(_colored(status, counts[status]) for status in shown)]


COLORS = {"done": "green", "diverged": "yellow", "failed": "red", "running": "cyan"}


def _colored(status: str, count: int) -> str:
    if not count:
        return ""
    return f"[{COLORS[status]}]{count}[/]" if status in COLORS else str(count)


def told(sweep: Path, batches: Sequence["BatchStatus"]) -> list[str]:
    """What to do next."""
    from lmech import manifest, watching
    from lmech.disk import read_json

    counts = watching.total(batches)
    jobs, ended = sum(counts.values()), sum(counts[status] for status in watching.ENDED)
    lines = [f"{bar(ended / jobs)} {ended} of {jobs} jobs"]
    request = sweep / manifest.REQUEST
    experiment = read_json(request)["experiment"] if request.is_file() else None
    if counts["failed"]:
        lines.append(f"failed: {counts['failed']}; the command again with rerun=failed tries them")
    if counts["waiting"]:
        how = f"lmech resume {sweep} trains them here, the same lmech submit sends them"
        lines.append(f"waiting: {counts['waiting']}, on nobody's list; {how}")
    if ended == jobs:
        what = f"judges the claims of {experiment}" if experiment else "draws them"
        lines.append(f"all have ended: lmech resume {sweep} {what} without training")
    return lines


def bar(fraction: float, width: int = 40) -> str:
    """Text that is filled so far."""
    full = int(fraction * width)
    return "█" * full + "░" * (width - full)
