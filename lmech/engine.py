"""The one training loop.

A batch of members (jobs that share a program) trains in lanes, and in chunks of rows: row t is
about w_t, and a step follows each row but the last, at the horizon. A chunk is one compiled loop of
fixed capacity whose number of rows is an input; it returns its metrics as arrays. The next chunk is
dispatched before the last one's metrics are fetched. What a member does in it is ``member``'s.

Run this inside ``numerics.precision.numerics()``.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np

from lmech.datasets import Data
from lmech.inputs import Inputs, switches
from lmech.lanes import Lanes, Record, Saved, in_lanes, survivors
from lmech.member import Program
from lmech.numerics import trees
from lmech.problem import Params

REVIEW = 8
"""Chunks between two looks at how many lanes are alive."""


class Begun(NamedTuple):
    """The first chunk is on its way: what it needs is compiled, and the host is free."""

    step: int


class Snapshot(NamedTuple):
    """The weights of the members that have come to a step that was asked for, on the host."""

    step: int
    members: np.ndarray
    params: Params


class Visit(NamedTuple):
    """Weights that were kept at a step, to measure at."""

    step: int
    params: Params
    """[M, …]; anything for the members that are not due."""
    due: Mapping[str, np.ndarray]
    """Observable → [M], the members to measure."""


class End(NamedTuple):
    """The last state of members that are through, on the host; leading axis: ``members``."""

    members: np.ndarray
    params: Params
    step: np.ndarray
    finite: np.ndarray


Event = Begun | Record | Saved | Snapshot | End


def marks(
    every: Mapping[str, int], horizon: int, capacity: int, snapshots: Iterable[int] = ()
) -> list[int]:
    """Steps at which a chunk starts: measurements, snapshots, never more than capacity apart.

    The last chunk ends before what stands last.
    """
    end = horizon + 1  # the horizon has a row too
    steps = {0, end, *(step for step in snapshots if step < end)}
    for cadence in every.values():
        if cadence > 1:
            steps |= set(range(0, horizon, cadence))
    ordered = sorted(steps)
    filled = [t for a, b in pairwise(ordered) for t in range(a, b, capacity)]
    return [*filled, end]


def chunk_capacity(every: Mapping[str, int], horizon: int, longest: int) -> int:
    """Room of a chunk: the widest gap between measurements, at most ``longest``."""
    steps = marks(every, horizon, longest)
    return max([b - a for a, b in pairwise(steps)], default=1)


def train(
    program: Program,
    inputs: Inputs,
    data: Data,
    rates: Callable[[np.ndarray], Any],
    batches: Callable[[np.ndarray], Any] | None = None,
    params: Params | None = None,
    *,
    lanes: int | None = None,
    saved: Saved | None = None,
    save: Callable[[], bool] = lambda: False,
    snapshots: Collection[int] = (),
) -> Iterator[Event]:
    """Train the members to their horizons; yields records as they arrive, and each one's end.

    ``rates(steps [S])`` gives the learning rates [M, S], ``batches(steps)`` the examples' indices
    [M, S, B] (None: full batch), ``params`` the members' initial parameters if they are not to be
    drawn. A record arrives one chunk late, while the next chunk runs. The first value recorded
    for a column and step is the one to keep.

    A program is compiled for a number of ``lanes``: the members, or more. Side by side (``vmap``) a
    lane whose member has ended costs as much as any other, so now and then what is left of the
    members moves into half as many, and the end of those that have ended is told.

    Where ``save()`` says so between two chunks, all records up to there are yielded, then the
    state. Going on from it as ``saved`` yields what was still to come, bit for bit.
    """
    members = in_lanes(len(inputs.horizon), lanes, program.devices)
    members = members if saved is None else saved.members
    batch = Lanes(program, inputs, data, rates, batches, members)
    if saved is None:
        batch.start(params)
    else:
        batch.go_on(saved)
    begun = 0 if saved is None else saved.step
    horizon = int(np.max(inputs.horizon))
    # A state may be of a run that stopped elsewhere, for other snapshots.
    # A chunk's data are one task's.
    others = {*snapshots, begun, *switches(inputs)}
    steps = marks(program.every, horizon, program.capacity, others)
    for number, (start, stop) in enumerate(pairwise(steps)):
        if start < begun:
            continue
        if start > begun and save():
            yield from _told(batch)
            yield Saved(start, batch.members, *batch.state())
        if start in snapshots and start < horizon:  # the last weights are told at the end
            yield _snapshot(start, batch)
        if program.mode == "vmap" and number % REVIEW == REVIEW - 1:
            yield from _review(batch, start)
        records = _told(batch)  # fetched below, while the next chunk runs
        batch.measure(_due(program, start), start, due=True, last=False)
        batch.chunk(start, stop)
        if start == begun:
            yield Begun(start)
        running = True
        for record in records:
            running = record.running
            yield record
        if not running:
            break
    batch.measure(_between(program), horizon, due=True, last=True)
    yield from _told(batch)
    yield _end(batch, np.ones(len(batch.members), bool))


def revisit(
    program: Program,
    inputs: Inputs,
    data: Data,
    rates: Callable[[np.ndarray], Any],
    batches: Callable[[np.ndarray], Any] | None,
    params: Params | None,
    visits: Iterable[Visit],
    *,
    lanes: int | None = None,
) -> Iterator[Record]:
    """Measure members at weights that were kept, in order of step; nothing is trained.

    The other arguments are those of ``train``, and at the steps of an observable's cadence so are
    the records, bit for bit (``map`` on one device; to rounding where a cadence of 1 measures
    inside the loop). Memories are made at step 0. One that is only a warm start is made anew where
    the last measurement is further off than the cadence.
    """
    members = in_lanes(len(inputs.horizon), lanes, program.devices)
    batch = Lanes(program, inputs, data, rates, batches, members)
    batch.start(params)
    last = {name: np.zeros(len(members), int) for name in program.observables}
    at, time = 0, np.zeros_like(rates(np.arange(1)))
    for visit in visits:
        passed = rates(np.arange(at, visit.step))
        time = np.cumsum(np.concatenate([time, passed], axis=1), axis=1, dtype=time.dtype)[:, -1:]
        at = visit.step
        batch.place(at, visit.params, time[:, 0])
        for name, members_due in visit.due.items():
            due = (members >= 0) & members_due[members]
            far = at - last[name] > program.every[name]
            batch.visit(name, at, due, due & far & program.observables[name].warm)
            last[name] = np.where(due, at, last[name])
        yield from _told(batch)


def _between(program: Program) -> list[str]:
    """The observables that are measured between chunks, not at each row inside."""
    return [name for name, every in program.every.items() if every > 1]


def _due(program: Program, step: int) -> list[str]:
    """Those of them that are due at this step."""
    return [name for name in _between(program) if step % program.every[name] == 0]


def _told(batch: Lanes) -> Iterator[Record]:
    """What has been dispatched up to now, each fetched when it is asked for."""
    return (fetch() for fetch in batch.pending())


def _review(batch: Lanes, step: int) -> Iterator[Event]:
    """Move the members that are left into fewer lanes, if there are few; tell the others' end."""
    ended = jax.device_get(batch.carry.ended)
    kept = survivors(batch.members, ended, batch.program.devices)
    if kept is None:
        return
    batch.measure(_between(batch.program), step, due=False, last=True)
    yield from _told(batch)
    yield _end(batch, ended)
    batch.shrink(kept)


def _end(batch: Lanes, ended: np.ndarray) -> End:
    carry = jax.device_get(batch.carry)
    through = np.flatnonzero(ended & (batch.members >= 0))
    own = trees.take((carry.params, carry.step, carry.finite), through)
    return End(batch.members[through], *own)


def _snapshot(step: int, batch: Lanes) -> Snapshot:
    params, at = jax.device_get((batch.carry.params, batch.carry.step))
    there = np.flatnonzero((at == step) & (batch.members >= 0))
    return Snapshot(step, batch.members[there], trees.take(params, there))
