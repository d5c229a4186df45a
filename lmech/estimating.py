"""What a sweep will cost, before anything runs: from shapes and from the lowered program."""

import time
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmech import building, checking, programs, tuning
from lmech.planning import Job
from lmech.programs import TRAINING_PROGRAM
from lmech.tuning import bytes_of


class Estimate(NamedTuple):
    """Jobs that share a program."""

    lanes: int
    """Most of them at once, as memory is now."""

    operations: float
    """Floating-point operations of a training step of one member."""
    seconds: float
    """All steps of all members at the speed of a matrix product here; measurements between chunks
    and what is bound by memory come on top."""
    state: int
    """Bytes of a batch's weights, optimizer states, observables' memories and own targets."""
    data: int
    """Bytes of the dataset on the device."""
    scratch: int | None
    """Bytes of intermediate values, as the compiler allots them (None: not compiled)."""
    short: bool = False
    """Whether that is more memory than is free."""


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
    """Cost of a group; ``compile`` adds the scratch memory of its batches."""
    configs = [job.config for job in group]
    with checking.tracing(configs[0]):
        batch = building.build(configs)
        asked = configs[0]["execution"]["lanes"]
        lanes = min(asked or tuning.lanes(batch, tuning.free_memory()), len(group))
        batch = building.build(configs[:lanes], batch.program)
        lowered = programs.lowerings(batch.program, batch.argument_shapes())[TRAINING_PROGRAM]()
        state = bytes_of((batch.state_shapes(), batch.inputs.targets, batch.inputs.rows))
        operations = float((lowered.cost_analysis() or {}).get("flops", 0.0))
        steps = sum(config["steps"] for config in configs)
        scratch = None
        if compile:
            scratch = int(lowered.compile().memory_analysis().temp_size_in_bytes)
        rate = speed(configs[0]["precision"]["dtype"])
        short = state + bytes_of(batch.data) + (scratch or 0) > tuning.free_memory()
    seconds = operations * steps / rate
    return Estimate(lanes, operations, seconds, state, bytes_of(batch.data), scratch, short)
