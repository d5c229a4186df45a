"""Observables: what is measured along a run.

An observable is two pure functions. ``init(state)`` makes its memory (a warm block, the kernel at
step 0), ``measure(state, memory)`` returns the new memory and named arrays. The name "" is the
observable's own column; any other name is a column of its own, ``<observable>_<name>``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from lmech.datasets import Data
from lmech.problem import Evaluation, Params, Problem

Memory = Any
Values = dict[str, jax.Array]


class State(NamedTuple):
    """All that an observable may look at: one member, at one step."""

    problem: Problem
    """With the member's parametrization in place."""
    data: Data
    params: Params
    step: jax.Array
    seeds: Mapping[str, jax.Array]
    """Draw from the stream "probes" alone (``seeds.key(state.seeds, "probes")``)."""
    microbatch: int | None
    evaluation: Evaluation | None
    """The training step's own full-batch evaluation, where it has one: free to read."""


class Observable(NamedTuple):
    """``init(state) → memory`` and ``measure(state, memory) → (memory, values)``."""

    init: Callable[[State], Memory]
    measure: Callable[[State, Memory], tuple[Memory, Values]]


def memoryless(measure: Callable[[State], Values]) -> Observable:
    """An observable that needs no memory."""
    return Observable(lambda _: (), lambda state, memory: (memory, measure(state)))
