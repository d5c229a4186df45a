"""Loggers: what is told while a sweep trains."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmech.loggers import Logger, Progress


def diary(name: str = "diary.txt") -> Logger:
    """A line for each batch that ends, in a file of the sweep's folder."""

    @contextmanager
    def follow(folder: Path) -> Iterator[Callable[[Progress], None]]:
        def show(progress: Progress) -> None:
            if progress.event == "ends":
                with (folder / name).open("a", encoding="utf-8") as file:
                    counts = {status: count for status, count in progress.counts.items() if count}
                    file.write(f"batch {progress.batch}: {counts}\n")

        yield show

    return follow
