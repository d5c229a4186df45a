"""A batch's log: what became of it, for whoever goes on with it, or gives it up. No JAX here."""

import faulthandler
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

LOG = "log.txt"
DEATHS = 3
"""Deaths in a row, without a state saved or an exception told in between, that are enough."""
BEGINS = "begins"
LINE = re.compile(r"^\d{4}-\d\d-\d\dT\S+ (.*)$")


class GivenUpError(Exception):
    """A batch that killed its process again and again."""


def write(folder: Path, text: str) -> None:
    """Add a line."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{now} {text}\n")


def begin(folder: Path) -> None:
    """Say that the batch begins. Raises GivenUpError where that was its last word too often."""
    path = folder / LOG
    log = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    told = [match[1] for match in map(LINE.match, log.splitlines()) if match]
    deaths = next((n for n, text in enumerate(reversed(told)) if text[:6] != BEGINS), len(told))
    if deaths >= DEATHS:
        raise GivenUpError(
            f"given up: {deaths} times in a row its process died without an exception (memory?); "
            f"rerun=failed tries again. Its log:\n{log}"
        )
    write(folder, f"{BEGINS} ({socket.gethostname()}, process {os.getpid()})")


@contextmanager
def crashes(folder: Path) -> Iterator[None]:
    """Have Python write its stack into the log if the process crashes inside the block."""
    if faulthandler.is_enabled():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
