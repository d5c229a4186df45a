"""The one training loop.

A batch of members (jobs that share a program) trains in chunks. A chunk is one compiled loop of
fixed capacity whose number of steps is an input; it returns its metrics as arrays. The next chunk
is dispatched before the last one's metrics are fetched. What a member does in it is ``member``'s.

Run this inside ``numerics.precision.numerics()``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from lmech import member
from lmech.datasets import Data
from lmech.member import Carry, Feed, Inputs, Mode, Program
from lmech.observables import Memory, Values
from lmech.problem import Params


class Record(NamedTuple):
    """What one call returned, on the host: M members, up to S rows each."""

    steps: np.ndarray
    """[M, S]: the step of each row; row t is about w_t."""
    valid: np.ndarray
    """[M, S]: rows that the member lived to see."""
    columns: dict[str, np.ndarray]
    """[M, S, …] each."""
    running: bool
    """Whether any member goes on."""


class Saved(NamedTuple):
    """A batch between two chunks, on the host: all that it takes to go on from there."""

    step: int
    """Where the next chunk starts."""
    carry: Carry
    memories: dict[str, Memory]


class End(NamedTuple):
    """The members' last state, on the host; leading member axis."""

    params: Params
    step: np.ndarray
    finite: np.ndarray


def _over_members(f: Callable[..., Any], mode: Mode, name: str) -> Any:
    """Jit ``f(*carried, *fixed, *shared)`` over a leading member axis of ``carried`` and ``fixed``.

    ``carried`` is donated. ``map`` takes one member after another and gives each, bit for bit,
    what it would get alone (CPU); ``vmap`` takes them side by side. ``name`` is the program's name
    in profiles and in the count of compilations.
    """

    def batched(carried: tuple, fixed: tuple, *shared: Any) -> Any:
        def one(member: tuple[tuple, tuple]) -> Any:
            return f(*member[0], *member[1], *shared)

        members = (carried, fixed)
        return lax.map(one, members) if mode == "map" else jax.vmap(one)(members)

    batched.__name__ = name
    return jax.jit(batched, donate_argnums=0)


class Compiled(NamedTuple):
    """A program's jitted functions over the members, one of each per observable."""

    start: Any
    memory: Mapping[str, Any]
    measure: Mapping[str, Any]
    chunk: Any


TRAINING_PROGRAM = "train_chunk"


def compiled(program: Program) -> Compiled:
    """Jit the program's functions (nothing compiles before the first call)."""
    mode = program.mode
    return Compiled(
        start=_over_members(partial(member.start, program), mode, "start"),
        memory={
            name: _over_members(partial(member.memory, program, name), mode, f"init_{name}")
            for name in program.observables
        },
        measure={
            name: _over_members(partial(member.measure, program, name), mode, f"measure_{name}")
            for name in program.observables
        },
        chunk=_over_members(partial(member.chunk, program), mode, TRAINING_PROGRAM),
    )


def state_shapes(
    program: Program, inputs: Inputs, data: Data, feed: Feed
) -> tuple[Carry, dict[str, Memory]]:
    """Shapes of the members' state and memories; ``feed`` is any step's, [M, …]."""
    run = compiled(program)
    carry = jax.eval_shape(run.start, (), (inputs, None))
    memories = {
        name: jax.eval_shape(f, (), (inputs, carry, feed), data) for name, f in run.memory.items()
    }
    return carry, memories


def lowerings(
    program: Program,
    inputs: Inputs,
    data: Data,
    feed: Feed,
    shapes: tuple[Carry, dict[str, Memory]],
) -> dict[str, Callable[[], Any]]:
    """By name, what lowers each of the program's functions; ``shapes`` are ``state_shapes``."""
    run, (carry, memories) = compiled(program), shapes
    inside = {name: memory for name, memory in memories.items() if program.every[name] == 1}
    seen = (inputs, carry, feed)

    def chunk(a: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(a), program.capacity, *a.shape[1:]), a.dtype)

    steps = (inputs, jax.tree.map(chunk, feed))
    return {
        "start": partial(run.start.lower, (), (inputs, None)),
        TRAINING_PROGRAM: partial(run.chunk.lower, (carry, inside), steps, 1, data),
        **{f"init_{n}": partial(f.lower, (), seen, data) for n, f in run.memory.items()},
        **{
            f"measure_{n}": partial(f.lower, (memories[n],), seen, True, data)
            for n, f in run.measure.items()
        },
    }


def marks(every: Mapping[str, int], horizon: int, capacity: int) -> list[int]:
    """Steps at which a chunk starts: every measurement's, and never more than capacity apart."""
    steps = {0, horizon}
    for cadence in every.values():
        if cadence > 1:
            steps |= set(range(0, horizon, cadence))
    ordered = sorted(steps)
    filled = [t for a, b in pairwise(ordered) for t in range(a, b, capacity)]
    return [*filled, horizon]


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
    saved: Saved | None = None,
    save: Callable[[], bool] = lambda: False,
) -> Iterator[Record | Saved | End]:
    """Train the members to their horizons; yields records as they arrive, then the end.

    ``rates(steps [S])`` gives the learning rates [M, S], ``batches(steps)`` the examples' indices
    [M, S, B] (None: full batch), ``params`` the members' initial parameters if they are not to be
    drawn. A record arrives one chunk late, while the next chunk runs. The first value recorded
    for a column and step is the one to keep.

    Where ``save()`` says so between two chunks, all records up to there are yielded, then the
    state. Going on from it as ``saved`` yields what was still to come, bit for bit.
    """
    run = compiled(program)
    horizon = int(np.max(inputs.horizon))
    inputs, data = jax.device_put((inputs, data))

    def feeds(start: int, count: int) -> Feed:
        steps = np.minimum(np.arange(start, start + count), horizon - 1)
        return Feed(rates(steps), None if batches is None else batches(steps))

    def first(feeds: Feed) -> Feed:
        return jax.tree.map(lambda array: array[:, 0], feeds)

    if saved is None:
        carry = run.start((), (inputs, params))
        now = first(feeds(0, 1))
        memories = {name: f((), (inputs, carry, now), data) for name, f in run.memory.items()}
    else:
        carry, memories = jax.device_put((saved.carry, saved.memories))
    begun = 0 if saved is None else saved.step
    inside = {name for name, cadence in program.every.items() if cadence == 1}
    pending: list[Fetch] = []

    def measure(names: Iterable[str], feed: Feed, last: bool) -> None:
        nonlocal carry
        for name in names:
            carried, fixed = (memories[name],), (inputs, carry, feed)
            memories[name], values, measured, at, ended, over = run.measure[name](
                carried, fixed, last, data
            )
            carry = carry._replace(ended=ended)
            pending.append(partial(_fetch_measured, values, measured, at, over))

    steps = marks(program.every, horizon, program.capacity)
    for start, stop in pairwise([begun, *(step for step in steps if step > begun)]):
        arrived, pending = pending, []
        if start > begun and save():
            yield from (fetch() for fetch in arrived)
            yield Saved(start, *jax.device_get((carry, memories)))
            arrived = []
        upcoming = feeds(start, program.capacity)
        due = (n for n in memories if n not in inside and start % program.every[n] == 0)
        measure(due, first(upcoming), last=False)
        carried, fixed = (carry, {n: memories[n] for n in inside}), (inputs, upcoming)
        carry, updated, columns, rows, over = run.chunk(carried, fixed, stop - start, data)
        memories |= updated
        pending.append(partial(_fetch_chunk, columns, rows, over, start))
        records = [fetch() for fetch in arrived]
        yield from records
        if records and not records[-1].running:
            break
    measure(memories, first(feeds(horizon, 1)), last=True)
    yield from (fetch() for fetch in pending)
    yield End(*jax.device_get((carry.params, carry.step, carry.finite)))


Fetch = Callable[[], Record]


def _fetch_chunk(columns: Values, rows: Any, over: Any, start: int) -> Record:
    host, count, ended = jax.device_get((columns, rows, over))
    size = int(count.max(initial=0))
    offsets = np.broadcast_to(np.arange(size), (len(count), size))
    trimmed = {name: value[:, :size] for name, value in host.items()}
    return Record(start + offsets, offsets < count[:, None], trimmed, not ended.all())


def _fetch_measured(values: Values, measured: Any, at: Any, over: Any) -> Record:
    host, valid, steps, ended = jax.device_get((values, measured, at, over))
    columns = {name: value[:, None] for name, value in host.items()}
    return Record(steps[:, None], valid[:, None], columns, not ended.all())
