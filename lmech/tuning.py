"""How a group runs best here: in turn or side by side, on how many devices, how many at once."""

import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from lmech import building, compiling, engine, paths, programs, provenance
from lmech.building import Setup
from lmech.disk import atomically
from lmech.lanes import Record
from lmech.member import Program
from lmech.values import ConfigError

SHARE = 0.5
"""Of the memory that is free, for what grows with the number of members."""
TIMED = 4
"""Chunks that are timed, after one that compiles: the quickest counts, as others can only delay."""
CHUNK = 16
"""Most steps of each."""
SMALL = 480
"""A chunk is at most one of so many parts of the run: three ways are timed in at most a 26th."""
WORTH = 10
"""Another way is tried where the usual one runs for longer than so many of its compilations."""
WAITS = re.compile(r'custom_call @(?!lapack_.*num_batch_dims = "0")|stablehlo\.fft')
"""In a program's text, what may wait for the CPU's threads."""
CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def bytes_of(tree: Any) -> int:
    """Bytes of the arrays (or shapes) of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def free_memory() -> int:
    """Bytes that are free: the device's; on a CPU the machine's, or what its limit leaves."""
    stats = jax.devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return min([psutil.virtual_memory().available, *_left_by_limits()])


def _left_by_limits() -> Iterable[int]:
    """What each limit leaves that this process's control group is under (version 2), bytes."""
    lines = OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.exists() else []
    own = next((line[len("0::/") :] for line in lines if line.startswith("0::/")), "")
    own = "" if own.startswith("..") else own  # of another namespace
    for folder in (CGROUP / own, *(CGROUP / part for part in Path(own).parents if own)):
        with suppress(OSError, ValueError, KeyError):  # none that limits
            most, now, parts = (
                (folder / name).read_text()
                for name in ("memory.max", "memory.current", "memory.stat")
            )
            cached = dict(line.split() for line in parts.splitlines())["inactive_file"]
            yield int(most) - int(now) + int(cached)  # files in the cache make room


def lanes(setup: Setup, free: int) -> int:
    """Most members at once in ``free`` bytes: their states (twice: one is being replaced), metrics.

    Side by side each also has a step's intermediate values, at most all that it computes; in turn
    those of a device share that room. A CPU's devices have their copies of the data there too.
    """
    members = len(setup.inputs.horizon)
    run = programs.compiled(programs.on_one(setup.program))
    arguments = setup.argument_shapes()[programs.TRAINING_PROGRAM]
    traced = run.chunk.trace(*arguments)
    each = 2 * bytes_of(arguments[0]) + bytes_of(traced.out_info)
    each += bytes_of((setup.inputs.targets, setup.inputs.rows))
    own, values = bytes_of(setup.data), intermediates(traced.jaxpr.jaxpr)
    if setup.program.mode == "vmap":
        each += values
    else:
        own += values  # of one member: a loop's body counts once
    if jax.default_backend() == "cpu":
        free -= (setup.program.devices - 1) * own
    fit = int(SHARE * free * members / each)
    return members if fit >= members else max(1, fit - fit % setup.program.devices)


def check_room(setup: Setup, asked: int | None, free: int) -> None:
    """Raise ConfigError if the states of the members asked for together do not fit in ``free``.

    They are the least that a batch takes; who asks for no number of lanes gets as many as fit.
    """
    members = len(setup.inputs.horizon)
    lanes = min(asked or 1, members)
    needed = bytes_of(setup.state_shapes()) * lanes // members
    if needed > free:
        told = "a run" if lanes == 1 else f"{lanes} runs together"
        cure = "a smaller model" if lanes == 1 else "a smaller execution.lanes"
        sizes = [f"{size / 2**30:.3g} GiB" for size in (needed, free)]
        raise ConfigError(
            f"the state of {told} takes {sizes[0]} of memory, and {sizes[1]} are free: take {cure}"
        )


def intermediates(jaxpr: Any) -> int:
    """Bytes of all values that a program computes, those of a loop's body once."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [p for value in equation.params.values() for p in _programs(value)]
        total += sum(map(intermediates, inner))
        if not inner:
            total += bytes_of([variable.aval for variable in equation.outvars])
    return total


def _programs(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        return [program for item in value for program in _programs(item)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


def memo_file(group: str, members: int, devices: int) -> Path | None:
    """Where a group's fastest way is remembered: so many members, devices and cores of a kind."""
    folder = paths.private_cache("modes", compiling.compiler())
    return folder and folder / f"{group}-{members}-{devices}-{provenance.threads()}"


def fastest(setup: Setup, most: int = 1, memo: Path | None = None) -> Program:
    """The batch's program run the fastest way: the usual one, unless another is faster.

    The others are the other mode, where all members fit in that too, and the better of the two on
    as many devices as members can share (``most``), where each has room for the data; none in which
    a call may wait for ever (``ends``). They are timed over short chunks, where the run is long
    enough to repay another compilation, and once: the ``memo`` keeps what was found, so the same
    again runs the same way. What raises here is left to the run itself, which knows whose fault it
    is.
    """
    members, horizon = len(setup.inputs.horizon), int(setup.inputs.horizon.max())
    usual = replace(setup.program, mode=building.usual_mode() if members > 1 else "map")
    size = min(CHUNK, horizon // SMALL)
    if members == 1 or size == 0 or usual.spread > 1:
        return usual
    other = replace(usual, mode="vmap" if usual.mode == "map" else "map")
    devices = _shared_by(setup, min(most, members))
    apart = {way: replace(way, devices=devices) for way in (usual, other)}
    ways = {_told(way): way for way in (*apart, *apart.values())}
    best = usual
    try:
        known = memo.read_text() if memo and memo.exists() else None
        if known in ways:
            return ways[known]
        first, step = _seconds(setup, usual, size)
        if step * horizon < WORTH * first:
            return usual
        steps = {usual: step}
        fits = _fits(setup, other)
        if fits and ends(setup, other):
            steps[other] = _seconds(setup, other, size)[1]
        best = min(steps, key=steps.__getitem__)
        if devices > best.devices and (best is other or ends(setup, best)):
            steps[apart[best]] = _seconds(setup, apart[best], size)[1]
            best = min(steps, key=steps.__getitem__)
        roomy = fits and devices == max(usual.devices, min(most, members))
        if memo and roomy:  # another time there may be room
            with suppress(OSError):  # no room: it is timed again the next time
                atomically(memo, lambda temporary: temporary.write_text(_told(best)))
    except Exception:
        return best
    return best


def ends(setup: Setup, program: Program) -> bool:
    """Whether no call in the program can wait for threads that wait for it.

    On a CPU those of a program are few, and all its devices' too. LAPACK's calls hand them the
    matrices of a batch, Fourier transforms their rows, and wait (``numerics.lapack``); what others
    do is not known.
    """
    if jax.default_backend() != "cpu":
        return True
    arguments = setup._replace(program=program).argument_shapes()
    lowered = programs.lowerings(program, arguments).values()
    return not any(WAITS.search(lower().as_text()) for lower in lowered)


def most_devices(program: Program, execution: Mapping[str, Any]) -> int:
    """On how many devices it may run: its own, or a CPU's where nobody has said how many."""
    asked = execution["devices"] or execution.get("share", "members") != "members"
    return program.devices if asked or jax.default_backend() != "cpu" else jax.device_count()


def on_one_device(program: Program) -> Program:
    """The program on one device, if its devices have one memory, as a CPU's do; else itself."""
    shared = program.devices > 1 and jax.default_backend() == "cpu"
    return replace(program, devices=1) if shared else program


def _told(way: Program) -> str:
    return f"{way.mode} {way.devices}"


def _fits(setup: Setup, way: Program) -> bool:
    """Whether free memory has room for all members run that way: too little kills the process."""
    return lanes(setup._replace(program=way), free_memory()) == len(setup.inputs.horizon)


def _shared_by(setup: Setup, devices: int) -> int:
    """So many devices, if free memory has room for the copies of the data that they take."""
    own = setup.program.devices
    copies = (devices - own) * bytes_of(setup.data)
    return devices if devices > own and copies <= SHARE * free_memory() else own


def _seconds(setup: Setup, program: Program, size: int) -> tuple[float, float]:
    """Until one chunk of ``size`` steps is through, compiling too; a step of the quickest chunk.

    An observable's cadence may cut a chunk short.
    """
    started = time.perf_counter()
    arrivals: list[float] = []
    steps: list[int] = []
    stops = range(0, (TIMED + 2) * size, size)
    for event in engine.train(*setup._replace(program=program), snapshots=stops):
        if isinstance(event, Record) and "batch_loss" in event.columns:
            arrivals.append(time.perf_counter() - started)
            steps.append(max(1, event.steps.shape[1]))
        if len(arrivals) > TIMED:
            break
    return arrivals[0], min((np.diff(arrivals) / steps[1:]).tolist(), default=0.0)
