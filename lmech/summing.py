"""summary.json: what the processes of a sweep did and what it took them. No JAX here.

A process that runs the whole sweep writes its own. One that runs a batch alone writes
``summaries/<batch>.json``, and whoever finds nothing left to train adds these up.
"""

import shutil
from pathlib import Path
from typing import Any

from lmech.disk import read_json, write_json

NAME = "summary.json"
APART = "summaries"
COUNTED = ("done", "diverged", "failed", "skipped", "missing")
"""Kinds of jobs."""


def write(sweep: Path, batch: int | None, summary: dict[str, Any]) -> None:
    """Keep what a process says of the sweep, or of one batch."""
    if batch is not None:
        write_json(sweep / APART / f"{batch}.json", summary)
        return
    write_json(sweep / NAME, summary)
    shutil.rmtree(sweep / APART, ignore_errors=True)


def add_up(sweep: Path) -> None:
    """Make summary.json of those of the batches, where there are any.

    Its seconds are those of all processes together; ``batches`` says of how many.
    """
    files = sorted((sweep / APART).glob("*.json"), key=lambda path: int(path.stem))
    parts = [read_json(path) for path in files]
    if parts:
        write_json(sweep / NAME, total(parts))


def total(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The sum; the provenance is the first one's."""
    names = ("jobs", *COUNTED, "compilations", "cached_compilations")
    seconds = {name: sum(part["seconds"][name] for part in parts) for name in parts[0]["seconds"]}
    return {
        **{name: sum(part[name] for part in parts) for name in names},
        "seconds": seconds,
        "batches": len(parts),
        "provenance": parts[0]["provenance"],
    }
