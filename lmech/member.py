"""One member of a batch: its state, its step, its chunk of steps, its measurements.

Pure functions of (program, inputs, state); the engine runs them over the member axis. Observables
with a cadence of 1 are measured inside the chunk's loop, whose last row is about the weights from
which no step is taken; the others by a program of their own, so that switching one on cannot change
a bit of the training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lmech import mistakes, seeds
from lmech.datasets import Data, Examples, take, take_of_tasks
from lmech.inputs import NEVER, Inputs, Room, Stop, own_data
from lmech.numerics import sharing, trees
from lmech.numerics.control import when
from lmech.observables import Memory, Observable, State, Values, next_update
from lmech.optimizers import Optimizer
from lmech.parametrization import Scales, coordinates, of_one_tensor, parametrize, restricted
from lmech.problem import Params, Problem, loss_and_gradient

Mode = Literal["map", "vmap", "loop"]


@dataclass(frozen=True, eq=False)
class Program:
    """What is the same for all members, and so a constant of the compiled program."""

    problem: Problem
    optimizer: Optimizer
    observables: Mapping[str, Observable]
    every: Mapping[str, int]
    batch_size: int | None
    microbatch: int | None
    capacity: int
    """Most rows in a chunk."""
    mode: Mode
    devices: int = 1
    """That share the lanes."""
    spread: int = 1
    """Devices that share the examples of each member instead."""
    room: Room | None = None
    """For the training examples that count, where not all do."""
    centred: bool = False
    """Whether outputs are what a member's function has changed by since its start."""
    linearized: bool = False
    """Whether a member's function is its first-order expansion in the weights at its start."""
    subspace: int | None = None
    """How many coordinates are trained, of a random affine subspace (None: the weights)."""
    rate_unit: Observable | None = None
    """Learning rates are in units of one over what this measures at step 0 (None: absolute)."""

    @property
    def relative(self) -> bool:
        """Whether a member's function depends on the weights that it started at."""
        return self.centred or self.linearized or self.subspace is not None


class Feed(NamedTuple):
    """What the host gives a step: its learning rate, and its examples.

    These are indices into the training set (None: all of it), or ``Examples`` drawn anew.
    """

    rate: Any
    batch: Any


class Carry(NamedTuple):
    """A member's state: it is at w_step, and stays there once that row is recorded (``ended``)."""

    params: Params
    origin: Params | None
    """The weights at its start, where its function is relative to them (``Program.relative``)."""
    past: tuple[Params, ...]
    optimizer: Any
    step: jax.Array
    rate: jax.Array
    """The last step's, in the member's unit."""
    unit: jax.Array | None
    """Of its learning rates, where they are not absolute."""
    time: jax.Array
    """Sum of the rates of the steps taken."""
    last: jax.Array
    """Whether the next row is its last: a threshold was met between two chunks."""
    ended: jax.Array
    finite: jax.Array


def _column(name: str, part: str) -> str:
    """An observable's column: its own, or one that begins with its name."""
    return f"{name}_{part}" if part else name


def _named(name: str, values: Values) -> Values:
    """By column."""
    return {_column(name, part): value for part, value in values.items()}


def _met(stop: Stop, values: Values) -> jax.Array:
    """Whether a threshold is met by what was just recorded."""
    met = jnp.asarray(False)
    for column, threshold, never in zip(Stop._fields, stop, NEVER, strict=True):
        if column in values:
            value = values[column]
            met |= value <= threshold if never < 0 else value >= threshold
    return met


def _examples(data: Data, feed: Feed) -> Examples:
    """The examples of one step; a minibatch is drawn among the first of the member's own.

    Where there are tasks, among those of all of them; of a stream they come with the feed.
    """
    if feed.batch is None:
        return data.train
    if isinstance(feed.batch, Examples):
        return feed.batch
    draw = partial(take, data.train) if data.tasks is None else partial(take_of_tasks, data)
    return draw(feed.batch)


def _state(program: Program, inputs: Inputs, carry: Carry, feed: Feed, own: Data) -> State:
    """What is there to see of a member, before its gradient; ``own`` is the dataset as it has it.

    The update and the observables are made of this alone.
    """
    rate = feed.rate if carry.unit is None else feed.rate * carry.unit
    problem, scales = _function(program, inputs, carry)
    return State(
        problem=problem,
        data=own._replace(train=sharing.over_examples(own.train, program.spread)),
        subset=None if program.room is None else program.room.fewest,
        params=carry.params,
        past=carry.past,
        step=carry.step,
        time=carry.time,
        seeds=inputs.seeds,
        microbatch=program.microbatch,
        batch_size=program.batch_size,
        batch=sharing.over_examples(_examples(own, feed), program.spread),
        evaluation=None,
        gradient=None,
        optimizer=program.optimizer,
        hyperparameters={**inputs.hyperparameters, "learning_rate": rate},
        optimizer_state=carry.optimizer,
        scales=scales,
    )


def _function(program: Program, inputs: Inputs, carry: Carry) -> tuple[Problem, Scales]:
    """The member's problem in what it trains, and how its tensors' updates scale."""
    problem = parametrize(
        program.problem, inputs.scales, carry.origin, program.centred, program.linearized
    )
    if program.subspace is None:
        return problem, inputs.scales
    drawn = jax.random.fold_in(seeds.key(inputs.seeds, "init"), SUBSPACE)
    return restricted(problem, carry.origin, drawn), of_one_tensor(inputs.scales)


SUBSPACE = 1
"""Folded into the stream that draws the initial weights, for the directions."""


def _unknown(dtype: Any) -> jax.Array:
    return jnp.asarray(jnp.nan if jnp.issubdtype(dtype, jnp.floating) else 0, dtype)


def _observe(program: Program, name: str, state: State, memory: Memory) -> tuple[Memory, Values]:
    """A measurement; not a number while the run has fewer past iterates than it looks at.

    Raises ValueError, with the observable's name, for what it raises and for what is none.
    """
    observable = program.observables[name]
    with mistakes.of(f"observables.{name}"):
        answer = observable.measure(state, memory)
        _check_measurement(name, memory, answer)
    memory, values = answer
    if observable.past:
        known = state.step >= observable.past
        values = {name: jnp.where(known, v, _unknown(v.dtype)) for name, v in values.items()}
    return memory, values


def start(program: Program, inputs: Inputs, params: Params | None) -> Carry:
    """A member at step 0; ``params`` (whole weights) replaces the model's own draw."""
    if params is None:
        problem = parametrize(program.problem, inputs.scales)
        params = problem.init(seeds.key(inputs.seeds, "init"))
    origin = params if program.relative else None
    if program.subspace is not None:
        params = coordinates(params, program.subspace)
    past = max((observable.past for observable in program.observables.values()), default=0)
    ended = inputs.horizon <= 0
    rate = inputs.hyperparameters["learning_rate"]
    return Carry(
        params=params,
        origin=origin,
        past=(params,) * past,
        optimizer=program.optimizer.transformation(inputs.hyperparameters).init(params),
        step=jnp.int32(0),
        rate=rate,
        unit=None,
        time=jnp.zeros_like(rate),
        last=jnp.zeros_like(ended),
        ended=ended,
        finite=jnp.ones_like(ended),
    )


def rate_unit(
    program: Program, unit: Observable, inputs: Inputs, carry: Carry, feed: Feed, data: Data
) -> jax.Array:
    """The unit of a member's learning rates, from its state at step 0.

    One over what ``unit`` measures there, at a learning rate of 1. Raises
    ValueError for what that raises, and where its own column is not a single number.
    """
    at_one = feed._replace(rate=jnp.ones_like(feed.rate))
    state = _state(program, inputs, carry, at_one, own_data(data, inputs, carry.step))
    with mistakes.of("rate_unit"):
        _, values = unit.measure(state, unit.init(state))
        if "" not in values or jnp.shape(values[""]) != ():
            raise ValueError("its own column has to be a single number")
    return (1 / values[""]).astype(carry.rate.dtype)


def _updated(carry: Carry, state: State) -> Carry:
    """One optimizer step on, at the state's learning rate. Raises ValueError for what it raises."""
    with mistakes.of("optimizer"):
        updates, optimizer = next_update(state)
        params = trees.add(carry.params, updates)
    return carry._replace(
        params=params,
        past=(carry.params, *carry.past)[: len(carry.past)],
        optimizer=optimizer,
        step=carry.step + 1,
        time=carry.time + state.hyperparameters["learning_rate"],
    )


def chunk(
    program: Program,
    carry: Carry,
    memories: dict[str, Memory],
    inputs: Inputs,
    feeds: Feed,
    count: jax.Array,
    data: Data,
) -> tuple[Carry, dict[str, Memory], Values, jax.Array, jax.Array]:
    """Up to ``count`` rows of one member: metrics [capacity], rows written, whether it ended.

    A step follows each row but its last one, at its horizon or where a threshold is met.
    """
    own = own_data(data, inputs, carry.step)

    def measured(state: State, memories: dict[str, Memory]) -> tuple[dict[str, Memory], Values]:
        updated: dict[str, Memory] = {}
        values: Values = {}
        for name, own_memory in memories.items():
            updated[name], new = _observe(program, name, state, own_memory)
            values |= _named(name, new)
        return updated, values

    def step(carry: Carry, memories: Any, i: jax.Array) -> tuple[Carry, Any, Values]:
        feed = jax.tree.map(lambda array: array[i], feeds)
        state = _state(program, inputs, carry, feed, own)
        evaluation, gradient = loss_and_gradient(
            state.problem, state.params, state.batch, state.microbatch
        )
        state = state._replace(evaluation=evaluation, gradient=gradient)
        memories, values = measured(state, memories)
        finite = jnp.isfinite(evaluation.loss)
        ended = ~finite | carry.last | (carry.step >= inputs.horizon) | _met(inputs.stop, values)
        carry = carry._replace(rate=feed.rate)
        carry = trees.select(ended, carry, _updated(carry, state))
        values = {"batch_loss": evaluation.loss, **values}
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


def memory(
    program: Program, name: str, inputs: Inputs, carry: Carry, feed: Feed, data: Data
) -> Memory:
    """An observable's memory for one member."""
    state = _state(program, inputs, carry, feed, own_data(data, inputs, carry.step))
    return program.observables[name].init(state)


def measure(
    program: Program,
    name: str,
    memory: Memory,
    inputs: Inputs,
    carry: Carry,
    feed: Feed,
    due: jax.Array,
    last: jax.Array,
    data: Data,
) -> tuple[Memory, Values, jax.Array, jax.Array, jax.Array, jax.Array]:
    """One observable of one member between chunks; whether it was measured; if its next row is its
    last.

    A member that goes on is measured if it is ``due``. One that has ended is measured once more, at
    the ``last`` call, and its memory rests until then: what is recorded of it does not depend on
    how long the others go on. The step and a copy of ``ended`` are for the host. ``feed`` is
    that of the step that comes next; who takes none is measured at the rate of its last one.
    """
    feed = feed._replace(rate=jnp.where(carry.ended, carry.rate, feed.rate))
    state = _state(program, inputs, carry, feed, own_data(data, inputs, carry.step))

    def observed(memory: Memory) -> tuple[Memory, Values]:
        return _observe(program, name, state, memory)

    shapes = jax.eval_shape(observed, memory)[1]
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    measured = jnp.where(carry.ended, last & (inputs.horizon > 0), due)  # an empty lane has none
    memory, values = when(measured, lambda loop: observed(loop[0]), (memory, nothing))
    values = _named(name, values)
    stops = carry.last | (measured & _met(inputs.stop, values))
    return memory, values, measured, _copy(carry.step), stops, _copy(carry.ended)


def _first_feed(program: Program, inputs: Inputs) -> Feed:
    indices = None if program.batch_size is None else jnp.arange(program.batch_size)
    return Feed(inputs.hyperparameters["learning_rate"], indices)


def initial_state(program: Program, inputs: Inputs, data: Data) -> State:
    """What an observable sees of one member at step 0 (``inputs`` without a member axis)."""
    carry = start(program, inputs, None)
    return _state(
        program, inputs, carry, _first_feed(program, inputs), own_data(data, inputs, carry.step)
    )


def visited(
    program: Program,
    inputs: Inputs,
    start_at: Params,
    params: Params,
    step: jax.Array,
    time: jax.Array,
    feed: Feed,
    data: Data,
) -> State:
    """What there is to see of a member that started at ``start_at`` and is at kept ``params``.

    ``time`` is the sum of the rates that led there. The optimizer's state is not kept: None.
    """
    carry = start(program, inputs, start_at)._replace(params=params, step=step, time=time)
    return _state(program, inputs, carry, feed, own_data(data, inputs, carry.step))._replace(
        optimizer_state=None
    )


def first_measurements(program: Program, inputs: Inputs, data: Data) -> dict[str, Values]:
    """Start one member, take a step and measure every observable once: to trace, not to run.

    Raises ValueError, with the part's name, for what the optimizer or an observable raises, and
    for what is no measurement.
    """
    carry = start(program, inputs, None)
    first = _first_feed(program, inputs)
    if program.rate_unit is not None:
        carry = carry._replace(
            unit=rate_unit(program, program.rate_unit, inputs, carry, first, data)
        )
    state = _state(program, inputs, carry, first, own_data(data, inputs, carry.step))
    evaluation, gradient = loss_and_gradient(
        state.problem, state.params, state.batch, state.microbatch
    )
    seen = state._replace(evaluation=evaluation, gradient=gradient)
    state = _state(program, inputs, _updated(carry, seen), first, state.data)
    inside = state._replace(evaluation=evaluation, gradient=gradient)
    values = {}
    for name, observable in program.observables.items():
        with mistakes.of(f"observables.{name}"):
            memory = observable.init(state)
        own = inside if program.every[name] == 1 else state
        _, values[name] = _observe(program, name, own, memory)
    return values


def _check_measurement(name: str, memory: Memory, answer: Any) -> None:
    """Raise ValueError unless it is ``(memory, values)``, the memory of the shapes that it had."""
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        raise ValueError(
            "measure returns something else than (memory, {name: array}): a pair, names as texts"
        )
    before, after = (jax.tree.map(jnp.shape, memory) for memory in (memory, answer[0]))
    if before != after:
        raise ValueError(
            f"its memory is {before} after init and {after} after measure: shapes may not change"
        )
    for part, value in answer[1].items():
        column = _column(name, part)
        if not isinstance(part, str) or not jax.tree_util.all_leaves([value]):
            raise ValueError(f"the value of {part!r} has to be an array, by a name that is a text")
        if column in Stop._fields and jnp.shape(value) != ():
            raise ValueError(f"{column} has to be a single number: runs may be stopped by it")


def _copy(flag: jax.Array) -> jax.Array:
    """A buffer of its own, to be fetched after the carry has been donated to the next chunk."""
    return lax.optimization_barrier(flag)
