"""The one training loop.

A batch of members (jobs that share a program) trains in chunks. A chunk is one compiled loop of
fixed capacity whose number of steps is an input; it returns its metrics as arrays. The next chunk
is dispatched before the last one's metrics are fetched. Observables with a cadence of 1 are
measured inside the loop, the others between chunks, each in a program of its own, so that
switching one on cannot change a bit of the training.

Run this inside ``numerics.precision.numerics()``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lmech import seeds
from lmech.datasets import Data, Examples
from lmech.numerics import trees
from lmech.numerics.control import when
from lmech.observables import Memory, Observable, State, Values
from lmech.optimizers import Hyperparameters, Optimizer
from lmech.parametrization import Scales, descend, parametrize
from lmech.problem import Evaluation, Params, Problem, loss_and_gradient

Mode = Literal["map", "vmap"]


class Stop(NamedTuple):
    """Thresholds that end a member: loss at most, accuracy at least (∓∞: never)."""

    train_loss: Any
    train_accuracy: Any


class Inputs(NamedTuple):
    """What may differ between the members of one program; arrays with a leading member axis."""

    seeds: Mapping[str, Any]
    hyperparameters: Hyperparameters
    scales: Scales
    horizon: Any
    stop: Stop


class Program(NamedTuple):
    """What is the same for all members, and so a constant of the compiled program."""

    problem: Problem
    optimizer: Optimizer
    observables: Mapping[str, Observable]
    every: Mapping[str, int]
    batch_size: int | None
    microbatch: int | None
    capacity: int
    mode: Mode


class Feed(NamedTuple):
    """What the host gives a step: its learning rate, and its examples' indices (None: all)."""

    rate: Any
    batch: Any


class Carry(NamedTuple):
    """A member's state: it is at w_step, and stays there once ``ended``."""

    params: Params
    past: tuple[Params, ...]
    optimizer: Any
    step: jax.Array
    rate: jax.Array
    """The last step's."""
    time: jax.Array
    """Sum of the rates of the steps taken."""
    ended: jax.Array
    finite: jax.Array


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


def _column(name: str, part: str) -> str:
    return f"{name}_{part}" if part else name


def _named(name: str, values: Values) -> Values:
    return {_column(name, part): value for part, value in values.items()}


def _met(stop: Stop, values: Values) -> jax.Array:
    """Whether a threshold is met by what was just recorded."""
    loss = values.get("train_loss")
    accuracy = values.get("train_accuracy")
    met = jnp.asarray(False)
    if loss is not None:
        met |= loss <= stop.train_loss
    if accuracy is not None:
        met |= accuracy >= stop.train_accuracy
    return met


def _examples(data: Data, feed: Feed) -> Examples:
    """The examples of one step."""
    if feed.batch is None:
        return data.train
    return Examples(*(array[feed.batch] for array in data.train))


def _state(
    program: Program,
    inputs: Inputs,
    carry: Carry,
    feed: Feed,
    data: Data,
    evaluation: Evaluation | None = None,
    gradient: Params | None = None,
) -> State:
    return State(
        problem=parametrize(program.problem, inputs.scales),
        data=data,
        params=carry.params,
        past=carry.past,
        step=carry.step,
        time=carry.time,
        seeds=inputs.seeds,
        microbatch=program.microbatch,
        batch_size=program.batch_size,
        batch=_examples(data, feed),
        evaluation=evaluation,
        gradient=gradient,
        optimizer=program.optimizer,
        hyperparameters={**inputs.hyperparameters, "learning_rate": feed.rate},
        optimizer_state=carry.optimizer,
        scales=inputs.scales,
    )


def _unknown(dtype: Any) -> jax.Array:
    return jnp.asarray(jnp.nan if jnp.issubdtype(dtype, jnp.floating) else 0, dtype)


def _observe(observable: Observable, state: State, memory: Memory) -> tuple[Memory, Values]:
    """A measurement; not a number while the run has fewer past iterates than it looks at."""
    memory, values = observable.measure(state, memory)
    if observable.past:
        known = state.step >= observable.past
        values = {name: jnp.where(known, v, _unknown(v.dtype)) for name, v in values.items()}
    return memory, values


def _start(program: Program, inputs: Inputs, params: Params | None) -> Carry:
    """A member at step 0; ``params`` replaces the model's own draw."""
    if params is None:
        problem = parametrize(program.problem, inputs.scales)
        params = problem.init(seeds.key(inputs.seeds, "init"))
    past = max((observable.past for observable in program.observables.values()), default=0)
    ended = inputs.horizon <= 0
    rate = inputs.hyperparameters["learning_rate"]
    return Carry(
        params=params,
        past=(params,) * past,
        optimizer=program.optimizer.transformation(inputs.hyperparameters).init(params),
        step=jnp.int32(0),
        rate=rate,
        time=jnp.zeros_like(rate),
        ended=ended,
        finite=jnp.ones_like(ended),
    )


def _update(
    program: Program, inputs: Inputs, carry: Carry, rate: jax.Array, gradient: Params
) -> Carry:
    """One optimizer step at the given learning rate."""
    hyperparameters = {**inputs.hyperparameters, "learning_rate": rate}
    updates, optimizer = descend(
        program.optimizer, hyperparameters, inputs.scales, gradient, carry.optimizer, carry.params
    )
    return carry._replace(
        params=trees.add(carry.params, updates),
        past=(carry.params, *carry.past)[: len(carry.past)],
        optimizer=optimizer,
        step=carry.step + 1,
        time=carry.time + rate,
    )


def _chunk(
    program: Program,
    carry: Carry,
    memories: dict[str, Memory],
    inputs: Inputs,
    feeds: Feed,
    count: jax.Array,
    data: Data,
) -> tuple[Carry, dict[str, Memory], Values, jax.Array, jax.Array]:
    """Up to ``count`` steps of one member: metrics [capacity], rows written, whether it ended."""
    problem = parametrize(program.problem, inputs.scales)
    inside = {name: program.observables[name] for name in memories}

    def measure(
        state: State, memories: dict[str, Memory], loss: jax.Array
    ) -> tuple[dict[str, Memory], Values]:
        updated, values = {}, {"batch_loss": loss}
        for name, observable in inside.items():
            updated[name], new = _observe(observable, state, memories[name])
            values |= _named(name, new)
        return updated, values

    def step(carry: Carry, memories: Any, i: jax.Array) -> tuple[Carry, Any, Values]:
        feed = jax.tree.map(lambda array: array[i], feeds)
        examples = _examples(data, feed)
        evaluation, gradient = loss_and_gradient(
            problem, carry.params, examples, program.microbatch
        )
        state = _state(program, inputs, carry, feed, data, evaluation, gradient)
        memories, values = measure(state, memories, evaluation.loss)
        finite = jnp.isfinite(evaluation.loss)
        ended = ~finite | _met(inputs.stop, values)
        carry = carry._replace(rate=feed.rate)
        stepped = _update(program, inputs, carry, feed.rate, gradient)
        carry = trees.select(ended, carry, stepped)
        ended |= carry.step >= inputs.horizon
        return carry._replace(ended=ended, finite=finite), memories, values

    def body(loop: Any) -> Any:
        i, carry, memories, columns = loop
        carry, memories, values = step(carry, memories, i)
        columns = {name: columns[name].at[i].set(value) for name, value in values.items()}
        return i + 1, carry, memories, columns

    def goes_on(loop: Any) -> jax.Array:
        return (loop[0] < count) & ~loop[1].ended

    shapes = jax.eval_shape(step, carry, memories, jnp.int32(0))[2]
    columns = {k: jnp.zeros((program.capacity, *s.shape), s.dtype) for k, s in shapes.items()}
    rows, carry, memories, columns = lax.while_loop(
        goes_on, body, (jnp.int32(0), carry, memories, columns)
    )
    return carry, memories, columns, rows, _copy(carry.ended)


def _memory(
    program: Program, name: str, inputs: Inputs, carry: Carry, feed: Feed, data: Data
) -> Memory:
    """An observable's memory for one member."""
    return program.observables[name].init(_state(program, inputs, carry, feed, data))


def _measure(
    program: Program,
    name: str,
    memory: Memory,
    inputs: Inputs,
    carry: Carry,
    feed: Feed,
    last: jax.Array,
    data: Data,
) -> tuple[Memory, Values, jax.Array, jax.Array, jax.Array, jax.Array]:
    """One observable of one member between chunks; whether it was measured; whether it has ended.

    A member that has ended is measured once more, at the ``last`` call, and its memory rests until
    then: what is recorded of it does not depend on how long the others go on. The step and a second
    copy of ``ended`` are for the host. ``feed`` is that of the step that comes next; who takes none
    is measured at the rate of its last one.
    """
    feed = feed._replace(rate=jnp.where(carry.ended, carry.rate, feed.rate))
    state = _state(program, inputs, carry, feed, data)

    def measure(memory: Memory) -> tuple[Memory, Values]:
        return _observe(program.observables[name], state, memory)

    shapes = jax.eval_shape(measure, memory)[1]
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    measured = last | ~carry.ended
    memory, values = when(measured, lambda loop: measure(loop[0]), (memory, nothing))
    values = _named(name, values)
    ended = carry.ended | (measured & _met(inputs.stop, values))
    return memory, values, measured, _copy(carry.step), ended, _copy(ended)


def _first_feed(program: Program, inputs: Inputs) -> Feed:
    indices = None if program.batch_size is None else jnp.arange(program.batch_size)
    return Feed(inputs.hyperparameters["learning_rate"], indices)


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


def initial_state(program: Program, inputs: Inputs, data: Data) -> State:
    """What an observable sees of one member at step 0 (``inputs`` without a member axis)."""
    carry = _start(program, inputs, None)
    return _state(program, inputs, carry, _first_feed(program, inputs), data)


def first_measurements(program: Program, inputs: Inputs, data: Data) -> dict[str, Values]:
    """Start one member, take a step and measure every observable once: to trace, not to run.

    A ValueError of an observable is raised with its name.
    """
    state = initial_state(program, inputs, data)
    feed = _first_feed(program, inputs)
    _, gradient = loss_and_gradient(state.problem, state.params, state.batch, program.microbatch)
    carry = _update(program, inputs, _start(program, inputs, None), feed.rate, gradient)
    state = _state(program, inputs, carry, feed, data)
    values = {}
    for name, observable in program.observables.items():
        try:
            _, values[name] = _observe(observable, state, observable.init(state))
        except ValueError as error:
            raise ValueError(f"observables.{name}: {error}") from error
    return values


def _copy(flag: jax.Array) -> jax.Array:
    """A buffer of its own, to be fetched after the carry has been donated to the next chunk."""
    return lax.optimization_barrier(flag)


def _over_members(f: Callable[..., Any], mode: Mode, name: str) -> Callable[..., Any]:
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

    start: Callable[..., Any]
    memory: Mapping[str, Callable[..., Any]]
    measure: Mapping[str, Callable[..., Any]]
    chunk: Any
    """A jitted function too, and the one that is lowered on its own."""


TRAINING_PROGRAM = "train_chunk"


def compiled(program: Program) -> Compiled:
    """Jit the program's functions (nothing compiles before the first call)."""
    mode = program.mode
    return Compiled(
        start=_over_members(partial(_start, program), mode, "start"),
        memory={
            name: _over_members(partial(_memory, program, name), mode, f"init_{name}")
            for name in program.observables
        },
        measure={
            name: _over_members(partial(_measure, program, name), mode, f"measure_{name}")
            for name in program.observables
        },
        chunk=_over_members(partial(_chunk, program), mode, TRAINING_PROGRAM),
    )


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
