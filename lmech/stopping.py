"""When a batch saves its state, and what a signal does to it."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StoppedError(Exception):
    """A signal asked for it: the batch is saved, the same command goes on from there."""


class FollowedError(Exception):
    """The first process of a run has been followed to its end: nothing is left for this one."""


class Due:
    """When to save: every so many seconds, and when a signal asks to stop."""

    def __init__(self, seconds: float) -> None:
        """Nothing asked for yet."""
        self._seconds = seconds
        self._at = time.monotonic()
        self._asked: str | None = None
        self._ending = False

    def stop(self, number: int, _frame: Any = None) -> None:
        """A signal's handler: save at the next chance, then stop."""
        self._asked = signal.Signals(number).name

    def __call__(self) -> bool:
        """Whether to save now. If so, ``last`` says whether to stop then; later signals wait."""
        self._ending = self._asked is not None
        return self._ending or time.monotonic() - self._at >= self._seconds

    def last(self) -> bool:
        """Whether the state that was found due is the last."""
        return self._ending

    def saved(self, step: int) -> None:
        """It has been saved. Raises StoppedError if that was the last, as was decided before."""
        self._at = time.monotonic()
        if self._ending:
            self.check(f"at step {step}")

    def check(self, where: str) -> None:
        """Raise StoppedError if a signal asked to stop: nothing is left to be saved here."""
        if self._asked is not None:
            raise StoppedError(f"stopped by {self._asked} {where}; the same command goes on")


@contextmanager
def listening(due: Due) -> Iterator[None]:
    """SIGTERM and SIGUSR1 (what a cluster sends before it kills) save and stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, due.stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
