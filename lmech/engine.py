"""The one training loop.

A batch of members (jobs that share a program) trains in lanes, and in chunks of steps. A chunk is
one compiled loop of fixed capacity whose number of steps is an input; it returns its metrics as
arrays. The next chunk is dispatched before the last one's metrics are fetched. What a member does
in it is ``member``'s.

Run this inside ``numerics.precision.numerics()``.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmech import member
from lmech.datasets import Data
from lmech.member import Carry, Feed, Inputs, Program
from lmech.numerics import trees
from lmech.observables import Memory, Values
from lmech.problem import Params

REVIEW = 8
"""Chunks between two looks at how many lanes are alive."""


class Record(NamedTuple):
    """What one call returned, on the host: L lanes, up to S rows each."""

    members: np.ndarray
    """[L]: the member in each lane, −1 for none."""
    steps: np.ndarray
    """[L, S]: the step of each row; row t is about w_t."""
    valid: np.ndarray
    """[L, S]: rows that the member lived to see."""
    columns: dict[str, np.ndarray]
    """[L, S, …] each."""
    running: bool
    """Whether any member goes on."""


class Saved(NamedTuple):
    """A batch between two chunks, on the host: all that it takes to go on from there."""

    step: int
    """Where the next chunk starts."""
    members: np.ndarray
    """[L]: the member in each lane, −1 for none."""
    carry: Carry
    memories: dict[str, Memory]


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


Event = Record | Saved | Snapshot | End
AXIS = "members"


def _mesh(program: Program) -> Mesh | None:
    """The devices that share the lanes; None for one."""
    if program.devices == 1:
        return None
    return Mesh(np.asarray(jax.devices()[: program.devices]), (AXIS,))


def _over_members(f: Callable[..., Any], program: Program, name: str) -> Any:
    """Jit ``f(*carried, *fixed, *shared)`` over a leading member axis of ``carried`` and ``fixed``.

    ``carried`` is donated. ``map`` takes one member after another and gives each, bit for bit,
    what it would get alone (CPU); ``vmap`` takes them side by side; ``loop`` calls a program of one
    member for each, to debug. On several devices each has its share of the lanes. ``name`` is the
    program's name in profiles and in the count of compilations.
    """
    mesh = _mesh(program)

    def one(carried: tuple, fixed: tuple, *shared: Any) -> Any:
        return f(*carried, *fixed, *shared)

    def batched(carried: tuple, fixed: tuple, *shared: Any) -> Any:
        if program.mode == "vmap":
            return jax.vmap(one, in_axes=(0, 0, *(None for _ in shared)))(carried, fixed, *shared)
        return lax.map(lambda lane: one(*lane, *shared), (carried, fixed))

    def sharded(carried: tuple, fixed: tuple, *shared: Any) -> Any:
        own = PartitionSpec(AXIS)
        specs = (own, own, *(PartitionSpec() for _ in shared))
        share = jax.shard_map(batched, mesh=mesh, in_specs=specs, out_specs=own, check_vma=False)
        return share(carried, fixed, *shared)

    function = one if program.mode == "loop" else batched if mesh is None else sharded
    function.__name__ = name
    jitted = jax.jit(function, donate_argnums=0)
    return partial(_one_by_one, jitted) if program.mode == "loop" else jitted


def _one_by_one(f: Callable[..., Any], carried: tuple, fixed: tuple, *shared: Any) -> Any:
    count = jax.tree.leaves((carried, fixed))[0].shape[0]
    lanes = [f(*trees.take((carried, fixed), lane), *shared) for lane in range(count)]
    return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *lanes)


class Compiled(NamedTuple):
    """A program's jitted functions over the members, one of each per observable."""

    start: Any
    memory: Mapping[str, Any]
    measure: Mapping[str, Any]
    chunk: Any


TRAINING_PROGRAM = "train_chunk"


@lru_cache(maxsize=32)
def compiled(program: Program) -> Compiled:
    """Jit the program's functions, once a program (nothing compiles before the first call)."""

    def over(f: Callable[..., Any], name: str) -> Callable[..., Any]:
        return _over_members(f, program, name)

    return Compiled(
        start=over(partial(member.start, program), "start"),
        memory={
            name: over(partial(member.memory, program, name), f"init_{name}")
            for name in program.observables
        },
        measure={
            name: over(partial(member.measure, program, name), f"measure_{name}")
            for name in program.observables
        },
        chunk=over(partial(member.chunk, program), TRAINING_PROGRAM),
    )


@lru_cache(maxsize=32)
def on_one(program: Program) -> Program:
    """The program as one function on one device, to be looked at rather than run."""
    if program.mode != "loop" and program.devices == 1:
        return program
    return replace(program, mode="vmap" if program.mode == "vmap" else "map", devices=1)


def state_shapes(
    program: Program, inputs: Inputs, data: Data, feed: Feed
) -> tuple[Carry, dict[str, Memory]]:
    """Shapes of the members' state and memories; ``feed`` is any step's, [M, …]."""
    run = compiled(on_one(program))
    carry = jax.eval_shape(run.start, (), (inputs, None))
    memories = {
        name: jax.eval_shape(f, (), (inputs, carry, feed), data) for name, f in run.memory.items()
    }
    return carry, memories


def argument_shapes(
    program: Program,
    inputs: Inputs,
    data: Data,
    feed: Feed,
    shapes: tuple[Carry, dict[str, Memory]],
) -> dict[str, tuple[Any, ...]]:
    """Shapes of the arguments of the program's functions, by name; ``shapes``: ``state_shapes``'s.

    ``feed`` is any step's, [M, …].
    """
    carry, memories = shapes
    inside = {name: memory for name, memory in memories.items() if program.every[name] == 1}
    seen = (inputs, carry, feed)

    def chunk(a: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(a), program.capacity, *a.shape[1:]), a.dtype)

    steps = (inputs, jax.tree.map(chunk, feed))
    return {
        "start": ((), (inputs, None)),
        TRAINING_PROGRAM: ((carry, inside), steps, 1, data),
        **{f"init_{n}": ((), seen, data) for n in memories},
        **{f"measure_{n}": ((m,), seen, True, True, data) for n, m in memories.items()},
    }


def lowerings(program: Program, arguments: Mapping[str, tuple]) -> dict[str, Callable[[], Any]]:
    """By name, what lowers each of the program's functions at ``argument_shapes``."""
    run = compiled(on_one(program))
    functions = {
        "start": run.start,
        TRAINING_PROGRAM: run.chunk,
        **{f"init_{n}": f for n, f in run.memory.items()},
        **{f"measure_{n}": f for n, f in run.measure.items()},
    }
    return {name: partial(f.lower, *arguments[name]) for name, f in functions.items()}


def initial_weights(program: Program, inputs: Inputs) -> Params:
    """The members' own draws [M, …], on the host."""
    run = compiled(on_one(program))
    return jax.device_get(run.start((), (inputs, None)).params)


def marks(
    every: Mapping[str, int], horizon: int, capacity: int, snapshots: Iterable[int] = ()
) -> list[int]:
    """Steps at which a chunk starts: measurements, snapshots, never more than capacity apart."""
    steps = {0, horizon, *(step for step in snapshots if step < horizon)}
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


def in_lanes(members: int, lanes: int | None, devices: int) -> np.ndarray:
    """[L]: members 0, 1, … in the lanes, −1 where one is left over; L a multiple of ``devices``."""
    count = -(-max(members, lanes or 0) // devices) * devices
    return np.concatenate([np.arange(members), np.full(count - members, -1)])


def survivors(members: np.ndarray, ended: np.ndarray, devices: int = 1) -> np.ndarray | None:
    """The lanes to go on with, [L / 2ᵏ], when under half of them are alive; None: all.

    Those that are alive come first; the rest of the room is filled with lanes that have ended.
    """
    alive, size = np.flatnonzero(~ended), len(members)
    if len(alive) == 0 or 2 * len(alive) >= size:
        return None
    while size % (2 * devices) == 0 and size // 2 >= len(alive):
        size //= 2
    return np.concatenate([alive, np.flatnonzero(ended)])[:size] if size < len(members) else None


class _Lanes:
    """A batch in its lanes: the members' state, and what is still to be fetched of its metrics."""

    def __init__(
        self,
        program: Program,
        inputs: Inputs,
        data: Data,
        rates: Callable[[np.ndarray], Any],
        batches: Callable[[np.ndarray], Any] | None,
        members: np.ndarray,
    ) -> None:
        """Nobody has started."""
        self.program, self.members, self.run = program, members, compiled(program)
        self.carry: Carry
        self.memories: dict[str, Memory] = {}
        self._place, self._rates, self._batches = _placement(program, AXIS), rates, batches
        self._horizon = int(np.max(inputs.horizon))
        self._data = jax.device_put(data, _placement(program))
        self._all, self._inputs = inputs, self._of_lanes(inputs)
        self._pending: list[Callable[[], Record]] = []

    def _placed(self, tree: Any) -> Any:
        return jax.device_put(tree, self._place)

    def _of_lanes(self, tree: Any) -> Any:
        """What each lane has of a tree with a leading axis of members; an empty lane never runs."""
        own = trees.take(tree, np.maximum(self.members, 0))
        if isinstance(own, Inputs):
            own = own._replace(horizon=np.where(self.members < 0, 0, own.horizon))
        return self._placed(own)

    def start(self, params: Params | None) -> None:
        """Step 0, with the observables' memories."""
        self.carry = self.run.start((), (self._inputs, self._of_lanes(params)))
        fixed = (self._inputs, self.carry, self.first(0))
        self.memories = {name: f((), fixed, self._data) for name, f in self.run.memory.items()}

    def go_on(self, saved: Saved) -> None:
        """From where it was."""
        self.carry, self.memories = self._placed((saved.carry, saved.memories))

    def feeds(self, start: int, count: int) -> Feed:
        """What so many steps are given."""
        steps = np.minimum(np.arange(start, start + count), self._horizon - 1)
        batches = None if self._batches is None else self._batches(steps)
        return self._of_lanes(Feed(self._rates(steps), batches))

    def first(self, step: int) -> Feed:
        """What one step is given."""
        return jax.tree.map(lambda array: array[:, 0], self.feeds(step, 1))

    def measure(self, names: Iterable[str], step: int, due: bool, last: bool) -> None:
        """Dispatch observables between chunks: of those that go on, of those that have ended."""
        feed = self.first(step)
        for name in names:
            carried, fixed = (self.memories[name],), (self._inputs, self.carry, feed)
            self.memories[name], values, measured, at, ended, over = self.run.measure[name](
                carried, fixed, due, last, self._data
            )
            self.carry = self.carry._replace(ended=ended)
            self._pending.append(partial(_fetch_measured, self.members, values, measured, at, over))

    def chunk(self, start: int, stop: int) -> None:
        """Dispatch the steps from ``start`` to ``stop``."""
        inside = {n: m for n, m in self.memories.items() if self.program.every[n] == 1}
        fixed = (self._inputs, self.feeds(start, self.program.capacity))
        self.carry, updated, columns, rows, over = self.run.chunk(
            (self.carry, inside), fixed, stop - start, self._data
        )
        self.memories |= updated
        self._pending.append(partial(_fetch_chunk, self.members, columns, rows, over, start))

    def pending(self) -> list[Callable[[], Record]]:
        """What has been dispatched, to be fetched; the next call gives what came after."""
        pending, self._pending = self._pending, []
        return pending

    def state(self) -> tuple[Carry, dict[str, Memory]]:
        """On the host."""
        return jax.device_get((self.carry, self.memories))

    def place(self, step: int, params: Params, time: np.ndarray) -> None:
        """At weights that were kept; where an optimizer has a state, it is not a number there."""
        kept = {"params": self._of_lanes(params)}
        if step > 0:
            kept["optimizer"] = jax.tree.map(_unknown, self.carry.optimizer)
        at = jax.numpy.full_like(self.carry.step, step)
        self.carry = self.carry._replace(**kept, step=at, time=self._of_lanes(time))

    def visit(self, name: str, step: int, due: np.ndarray, anew: np.ndarray) -> None:
        """Dispatch an observable of some lanes [L]; those of ``anew`` get another memory first."""
        if anew.any():
            fixed = (self._inputs, self.carry, self.first(step))
            fresh = self.run.memory[name]((), fixed, self._data)
            chosen = partial(_where, self._placed(anew))
            self.memories[name] = jax.tree.map(chosen, fresh, self.memories[name])
        self.carry = self.carry._replace(ended=self._placed(~due))
        self.measure([name], step, due=True, last=False)

    def shrink(self, lanes: np.ndarray) -> None:
        """Go on with these lanes alone."""
        state = self.state()
        self.members = np.where(state[0].ended, -1, self.members)[lanes]
        self.carry, self.memories = self._placed(trees.take(state, lanes))
        self._inputs = self._of_lanes(self._all)


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
    batch = _Lanes(program, inputs, data, rates, batches, members)
    if saved is None:
        batch.start(params)
    else:
        batch.go_on(saved)
    begun = 0 if saved is None else saved.step
    horizon = int(np.max(inputs.horizon))
    steps = marks(program.every, horizon, program.capacity, snapshots)
    for number, (start, stop) in enumerate(pairwise(steps)):
        if start < begun:
            continue
        if start > begun and save():
            yield from _told(batch)
            yield Saved(start, batch.members, *batch.state())
        if start in snapshots:
            yield _snapshot(start, batch)
        if program.mode == "vmap" and number % REVIEW == REVIEW - 1:
            yield from _review(batch, start)
        records = _told(batch)  # fetched below, while the next chunk runs
        batch.measure(_due(program, start), start, due=True, last=False)
        batch.chunk(start, stop)
        running = True
        for record in records:
            running = record.running
            yield record
        if not running:
            break
    batch.measure(program.every, horizon, due=True, last=True)
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
    the records, bit for bit (``map``; to rounding where a cadence of 1 measures inside the loop).
    Memories are made at step 0. One that is only a warm start is made anew where the last
    measurement is further off than the cadence.
    """
    members = in_lanes(len(inputs.horizon), lanes, program.devices)
    batch = _Lanes(program, inputs, data, rates, batches, members)
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


def _unknown(leaf: jax.Array) -> jax.Array:
    floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    return jax.numpy.full_like(leaf, np.nan) if floating else leaf


def _where(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """By lane, ``mask`` [L]."""
    return jax.numpy.where(mask.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def _due(program: Program, step: int) -> list[str]:
    """The observables that are measured between chunks at this step."""
    return [name for name, every in program.every.items() if every > 1 and step % every == 0]


def _told(batch: _Lanes) -> Iterator[Record]:
    """What has been dispatched up to now, each fetched when it is asked for."""
    return (fetch() for fetch in batch.pending())


def _review(batch: _Lanes, step: int) -> Iterator[Event]:
    """Move the members that are left into fewer lanes, if there are few; tell the others' end."""
    ended = jax.device_get(batch.carry.ended)
    kept = survivors(batch.members, ended, batch.program.devices)
    if kept is None:
        return
    batch.measure(batch.program.every, step, due=False, last=True)
    yield from _told(batch)
    yield _end(batch, ended)
    batch.shrink(kept)


def _placement(program: Program, *axes: str) -> Any:
    """Where arrays go whose leading axes are spread over the devices; None: as usual."""
    mesh = _mesh(program)
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(*axes))


def _end(batch: _Lanes, ended: np.ndarray) -> End:
    carry = jax.device_get(batch.carry)
    through = np.flatnonzero(ended & (batch.members >= 0))
    own = trees.take((carry.params, carry.step, carry.finite), through)
    return End(batch.members[through], *own)


def _snapshot(step: int, batch: _Lanes) -> Snapshot:
    params, at = jax.device_get((batch.carry.params, batch.carry.step))
    there = np.flatnonzero((at == step) & (batch.members >= 0))
    return Snapshot(step, batch.members[there], trees.take(params, there))


def _fetch_chunk(members: np.ndarray, columns: Values, rows: Any, over: Any, start: int) -> Record:
    host, count, ended = jax.device_get((columns, rows, over))
    size = int(count.max(initial=0))
    offsets = np.broadcast_to(np.arange(size), (len(count), size))
    trimmed = {name: value[:, :size] for name, value in host.items()}
    return Record(members, start + offsets, offsets < count[:, None], trimmed, not ended.all())


def _fetch_measured(
    members: np.ndarray, values: Values, measured: Any, at: Any, over: Any
) -> Record:
    host, valid, steps, ended = jax.device_get((values, measured, at, over))
    columns = {name: value[:, None] for name, value in host.items()}
    return Record(members, steps[:, None], valid[:, None], columns, not ended.all())
