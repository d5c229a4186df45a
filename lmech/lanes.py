"""A batch in its lanes: the members' state on the device, and the metrics still to be fetched."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from lmech.datasets import Data
from lmech.inputs import Inputs
from lmech.member import Carry, Feed, Program
from lmech.numerics import trees
from lmech.observables import Memory, Values
from lmech.problem import Params
from lmech.programs import AXIS, compiled, on_one, placement


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


class Lanes:
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
        self._traced = compiled(on_one(program)).memory
        self.carry: Carry
        self.memories: dict[str, Memory] = {}
        self._place, self._rates, self._batches = placement(program, AXIS), rates, batches
        self._horizon = int(np.max(inputs.horizon))
        self._data = jax.device_put(data, placement(program))
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
        """Step 0, with the unit of learning rates and the observables' memories."""
        self.carry, first = (
            self.run.start((), (self._inputs, self._of_lanes(params))),
            self.first(0),
        )
        if self.run.rate_unit:
            unit = self.run.rate_unit((), (self._inputs, self.carry, first), self._data)
            self.carry = self.carry._replace(unit=unit)
        fixed = (self._inputs, self.carry, first)
        self.memories = {name: self._memory(name, fixed) for name in self.run.memory}

    def _memory(self, name: str, fixed: tuple) -> Memory:
        """An observable's memory; nothing is compiled for one that has none."""
        shapes = jax.eval_shape(self._traced[name], (), fixed, self._data)
        return self.run.memory[name]((), fixed, self._data) if jax.tree.leaves(shapes) else shapes

    def go_on(self, saved: Saved) -> None:
        """From where it was."""
        self.carry, self.memories = self._placed((saved.carry, saved.memories))

    def _feeds(self, start: int, count: int) -> Feed:
        steps = np.minimum(np.arange(start, start + count), self._horizon)
        return Feed(self._rates(steps), None if self._batches is None else self._batches(steps))

    def feeds(self, start: int, count: int) -> Feed:
        """What so many steps are given."""
        return self._of_lanes(self._feeds(start, count))

    def first(self, step: int) -> Feed:
        """What one step is given."""
        return self._of_lanes(jax.tree.map(lambda array: array[:, 0], self._feeds(step, 1)))

    def measure(self, names: Iterable[str], step: int, due: bool, last: bool) -> None:
        """Dispatch observables between chunks: of those that go on, of those that have ended."""
        names = list(names)
        feed = self.first(step) if names else None
        for name in names:
            carried, fixed = (self.memories[name],), (self._inputs, self.carry, feed)
            self.memories[name], values, measured, at, stops, over = self.run.measure[name](
                carried, fixed, due, last, self._data
            )
            self.carry = self.carry._replace(last=stops)
            self._pending.append(partial(_fetch_measured, self.members, values, measured, at, over))

    def chunk(self, start: int, stop: int) -> None:
        """Dispatch the rows from ``start`` to before ``stop``."""
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
        """At weights that were kept, at a time in the rates' unit.

        Where an optimizer has a state, it is not a number there.
        """
        kept = {"params": self._of_lanes(params)}
        if step > 0:
            kept["optimizer"] = jax.tree.map(_unknown, self.carry.optimizer)
        at, unit = jax.numpy.full_like(self.carry.step, step), self.carry.unit
        passed = self._of_lanes(time) if unit is None else self._of_lanes(time) * unit
        self.carry = self.carry._replace(**kept, step=at, time=passed)

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


def _unknown(leaf: jax.Array) -> jax.Array:
    floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    return jax.numpy.full_like(leaf, np.nan) if floating else leaf


def _where(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """By lane, ``mask`` [L]."""
    return jax.numpy.where(mask.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


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
