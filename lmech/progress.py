"""How far a sweep has come and when it will end: counting, with no JAX and no disk."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lmech.loggers import Event, Progress, Totals

STATUSES = ("waiting", "running", "done", "diverged", "failed", "skipped")

Jobs = Sequence[str]  # ids
NO_RECORD: tuple[Jobs, float, int] = ([], 0.0, 0)


class Stretch(NamedTuple):
    """Jobs of a batch at work together, from where they are compiled on."""

    steps: float
    """Those between there and the last record."""
    trained: float
    """The same, summed over the jobs."""
    seconds: float

    def longer(self, *more: float) -> "Stretch":
        """With so much of each more."""
        return Stretch(*(a + b for a, b in zip(self, more, strict=True)))


class Tally:
    """The accounts of a sweep: each entry returns the ``Progress`` to show.

    A batch has one ``begins``, a ``reaches`` where it is compiled and for each record, of all its
    jobs or of some (the halves of a batch that raised), and one ``ends``.
    """

    def __init__(
        self,
        batches: Sequence[Mapping[str, int]],
        skipped: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing begun. ``batches``: job id → number of steps; ``skipped``: finished jobs."""
        self._batches, self._skipped, self._clock = batches, skipped, clock
        self._horizons = {job: steps for batch in batches for job, steps in batch.items()}
        self._place = {job: number for number, batch in enumerate(batches) for job in batch}
        self._steps = dict.fromkeys(self._horizons, 0)
        self._status = dict.fromkeys(self._horizons, "waiting")
        self._start = clock()
        self._begun: dict[int, float] = {}
        self._startups: dict[int, float] = {}
        self._stretches: list[Stretch] = []
        self._record = NO_RECORD  # the last one: whose, when, its step
        self._last: dict[str, dict[str, Any]] = {}

    def begins(self, number: int) -> Progress:
        """The batch of that number begins."""
        jobs = list(self._batches[number])
        self._begun[number] = self._clock()
        self._status |= dict.fromkeys(jobs, "running")
        self._record, self._last = NO_RECORD, {}
        return self._progress("begins", jobs)

    def reaches(self, jobs: Jobs, step: int, last: Sequence[dict[str, Any]]) -> Progress:
        """These jobs of one batch have come to a step; ``last``: the last values of each."""
        now, number = self._clock(), self._place[jobs[0]]
        self._startups.setdefault(number, now - self._begun[number])
        whose, before, at = self._record
        step = max(step, at) if whose == jobs else step  # an ended member's record comes late
        if whose != jobs:
            before, at = now, step
            self._stretches.append(Stretch(0, 0, 0.0))
        trained = sum(self._capped(job, step) - self._capped(job, at) for job in jobs)
        self._stretches[-1] = self._stretches[-1].longer(step - at, trained, now - before)
        self._record = jobs, now, step
        self._steps |= {job: self._capped(job, step) for job in jobs}
        self._last |= dict(zip(jobs, last, strict=True))
        return self._progress("runs", jobs)

    def ends(self, statuses: Mapping[str, str]) -> Progress:
        """All jobs of a batch have ended: the status of each. Nothing of them is left to train."""
        self._begun.setdefault(self._place[next(iter(statuses))], self._clock())
        self._status |= statuses
        self._steps |= {job: self._horizons[job] for job in statuses}
        return self._progress("ends", list(statuses))

    def _capped(self, job: str, step: int) -> int:
        return min(step, self._horizons[job])

    def _progress(self, event: Event, jobs: Jobs) -> Progress:
        number, now = self._place[jobs[0]], self._clock()
        current = self._stretches[-1:] if event == "runs" else []
        seconds = sum(stretch.seconds for stretch in current)
        return Progress(
            event,
            number,
            len(self._batches),
            len(self._batches[number]),
            self._counts(self._batches[number]),
            step=max(self._steps[job] for job in jobs),
            horizon=max(self._horizons[job] for job in jobs),
            rate=current[0].steps / seconds if seconds > 0 else 0.0,
            seconds=now - self._begun[number],
            left=self._left(self._batches[number], current),
            last=[self._last[job] for job in jobs if job in self._last],
            sweep=self._totals(now),
        )

    def _totals(self, now: float) -> Totals:
        counts = self._counts(self._horizons)
        waiting = len(self._batches) - len(self._begun)
        startups = self._startups.values()
        return Totals(
            {**counts, "skipped": counts["skipped"] + self._skipped},
            steps=sum(self._steps.values()),
            horizon=sum(self._horizons.values()),
            seconds=now - self._start,
            left=self._left(self._horizons, self._stretches)
            + waiting * (sum(startups) / max(len(startups), 1)),
        )

    def _counts(self, jobs: Iterable[str]) -> dict[str, int]:
        counted = Counter(self._status[job] for job in jobs)
        return {status: counted[status] for status in STATUSES}

    def _left(self, jobs: Iterable[str], stretches: Sequence[Stretch]) -> float:
        """Seconds to train what is left of the jobs, at the speed of these stretches."""
        left = sum(self._horizons[job] - self._steps[job] for job in jobs)
        trained = sum(stretch.trained for stretch in stretches)
        if not left or not trained:
            return math.nan if left else 0.0
        return left * sum(stretch.seconds for stretch in stretches) / trained
