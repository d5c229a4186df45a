"""Loggers: they follow a sweep and know no JAX.

A logger is called with the sweep's plan and returns a context manager whose value is called with
each ``Progress``. What it does with it cannot cost a number: the disk is the truth.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a batch has come."""

    batch: int
    batches: int
    members: int
    step: int
    horizon: int
    rate: float
    """Steps per second (each is a step of every member), the compilation left out."""
    last: list[dict[str, float]]
    """Per member: the last value of each scalar column."""


Logger = Callable[[], AbstractContextManager[Callable[[Progress], None]]]
