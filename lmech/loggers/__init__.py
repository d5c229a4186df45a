"""Loggers: they follow a sweep and know no JAX.

A logger is called with the sweep's folder and returns a context manager whose value is called with
each ``Progress``; the block ends when the sweep is trained, judged and drawn. What a logger does
cannot cost a number: the disk is the truth. One that repeats what lies there is ``replay.Beside``.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

Event = Literal["begins", "runs", "ends"]


class Totals(NamedTuple):
    """How far a sweep has come, all batches together."""

    counts: Mapping[str, int]
    """Jobs by status: waiting, running, done, diverged, failed, skipped."""
    steps: int
    """Steps trained, summed over the members: those of an ended member count as trained."""
    horizon: int
    """Steps in all, summed over the members, the batches that have not begun among them."""
    seconds: float
    """Since the sweep began."""
    left: float
    """Seconds, NaN while nothing is known: what is to be trained at the speed so far, and for each
    batch that has not begun the time that it took the others to start."""


class Progress(NamedTuple):
    """How far a batch has come, and with it the sweep."""

    event: Event
    batch: int
    batches: int
    members: int
    counts: Mapping[str, int]
    """The batch's members by status, as in ``Totals``."""
    step: int
    horizon: int
    rate: float
    """Steps per second (each is a step of every member), the compilation left out; 0: unknown."""
    seconds: float
    """Since the batch began."""
    left: float
    """Seconds of the batch, NaN while nothing is known."""
    last: list[dict[str, float]]
    """Per member: the last value of each scalar column."""
    sweep: Totals


Logger = Callable[[Path], AbstractContextManager[Callable[[Progress], None]]]
