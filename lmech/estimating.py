"""What a sweep will cost, before anything runs: from shapes and from the lowered program."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmech import building, engine
from lmech.numerics.precision import numerics
from lmech.planning import Job


class Estimate(NamedTuple):
    """One batch."""

    operations: float
    """Floating-point operations of a training step of one member."""
    seconds: float
    """All steps of all members at the speed of a matrix product here; measurements between chunks
    and what is bound by memory come on top."""
    state: int
    """Bytes of the members' weights, optimizer states, observables' memories and own targets."""
    data: int
    """Bytes of the dataset on the device."""
    scratch: int | None
    """Bytes of intermediate values, as the compiler allots them (None: not compiled)."""


def bytes_of(tree: Any) -> int:
    """Bytes of the arrays (or shapes) of a tree."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


@cache
def speed(dtype: str, size: int = 1024, repetitions: int = 5) -> float:
    """Floating-point operations a second of a square matrix product, at its best here."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        jax.block_until_ready(product(a))
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def estimate(group: Sequence[Job], compile: bool = False) -> Estimate:  # noqa: A002 as the option
    """Cost of a group that runs as one batch; ``compile`` adds the scratch memory."""
    configs = [job.config for job in group]
    with numerics(configs[0]["precision"]["matmul"]):
        batch = building.build(configs)
        lowered, state = _lowered(batch)
        operations = float((lowered.cost_analysis() or {}).get("flops", 0.0))
        steps = sum(config["steps"] for config in configs)
        scratch = None
        if compile:
            scratch = int(lowered.compile().memory_analysis().temp_size_in_bytes)
        rate = speed(configs[0]["precision"]["dtype"])
    return Estimate(operations, operations * steps / rate, state, bytes_of(batch.data), scratch)


def _lowered(batch: building.Batch) -> tuple[Any, int]:
    """The lowered chunk, in which a loop's body counts once: a step; and the state's bytes."""
    feed, inputs = batch.feed(0), batch.inputs
    shapes = engine.state_shapes(batch.program, inputs, batch.data, feed)
    lower = engine.lowerings(batch.program, inputs, batch.data, feed, shapes)
    return lower[engine.TRAINING_PROGRAM](), bytes_of((shapes, inputs.targets, inputs.weights))
