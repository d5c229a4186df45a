"""Several processes that are one run: the first decides and writes, the others compute with it.

Each is started with the same command, by ``srun --ntasks=N`` or another launcher that JAX knows, or
with ``JAX_COORDINATOR_ADDRESS`` (host:port), ``LMECH_PROCESSES`` and ``LMECH_PROCESS`` (0, 1, …) in
its environment. The first goes through the sweep as if it were alone. Before a batch it tells the
others what to train, before a state whether one is due; they run the same compiled programs, each
on its share of the examples, and write nothing.
"""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmech import building, engine
from lmech.engine import Event
from lmech.lanes import Saved
from lmech.numerics.precision import numerics
from lmech.stopping import FollowedError, StoppedError
from lmech.values import Config, ConfigError


class Task(NamedTuple):
    """What is trained next, as the first process tells the others."""

    configs: Sequence[Config]
    way: Mapping[str, Any]
    """The program's fields that are decided where it runs."""
    lanes: int | None
    saved: Saved | None
    snapshots: set[int]


WAY = ("mode", "capacity", "room")
PAGE = 4096
NO, YES, LAST = range(3)
"""Whether a state is due: no, yes, yes and then it stops."""


@contextmanager
def led(execution: Mapping[str, Any]) -> Iterator[None]:
    """The block is the first process's; any other follows it, and then raises FollowedError.

    Raises ConfigError where there are not as many processes as the config says. What is raised in
    the block, but for StoppedError, ends this process and with it the others.
    """
    if not execution.get("processes"):
        yield
        return
    _join(execution["processes"])
    if jax.process_index() > 0:
        with _ending_all():
            _follow()
        raise FollowedError
    try:
        with _ending_all():
            yield
    except StoppedError:
        _tell(None)
        raise
    _tell(None)


@contextmanager
def _ending_all() -> Iterator[None]:
    """What is raised in the block, an interrupt too but not StoppedError, ends all the processes.

    The others are in the midst of a batch, and end with this one. At once: by the usual way it
    would wait five minutes for them.
    """
    try:
        yield
    except StoppedError:
        raise
    except KeyboardInterrupt:
        print("\nlmech: interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _join(count: int) -> None:
    """Find the other processes, if this is the first time."""
    if not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(
                num_processes=_given("LMECH_PROCESSES"), process_id=_given("LMECH_PROCESS")
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"execution.processes={count}: start as many with the same command, by srun "
                f"--ntasks={count}, or set JAX_COORDINATOR_ADDRESS, LMECH_PROCESSES and "
                f"LMECH_PROCESS ({str(error).splitlines()[0]})"
            ) from error
        if jax.process_count() == count:
            # Now: the others wait 30 s for a first collective, ten minutes and more for later ones.
            multihost_utils.sync_global_devices("lmech")
    if jax.process_count() != count:
        raise ConfigError(f"execution.processes={count}, but {jax.process_count()} were started")


def _given(key: str) -> int | None:
    """A number in the environment. Raises ValueError for what is none."""
    text = os.environ.get(key)
    return None if text is None else int(text)


def several() -> bool:
    """Whether other processes compute with this one."""
    return jax.distributed.is_initialized()


def train(
    configs: Sequence[Config],
    setup: building.Setup,
    *,
    lanes: int | None,
    saved: Saved | None,
    save: Callable[[], bool],
    last: Callable[[], bool],
    snapshots: set[int],
) -> Iterator[Event]:
    """``engine.train``, by all processes if there are several.

    ``last`` says whether the state that ``save`` found due is the last thing that happens. The
    others are told, so what it said once holds: after any other state the first may not stop.
    """
    if not several():
        return engine.train(*setup, lanes=lanes, saved=saved, save=save, snapshots=snapshots)
    way = {name: getattr(setup.program, name) for name in WAY}
    _tell(Task(configs, way, lanes, saved, snapshots))

    def said() -> bool:
        return _agreed(save() * (LAST if last() else YES)) != NO

    return engine.train(*setup, lanes=lanes, saved=saved, save=said, snapshots=snapshots)


def _follow() -> None:
    """Compute what the first process says, until it says that it is over."""
    for name in ("SIGTERM", "SIGUSR1"):  # the first one saves, and then says so
        with suppress(AttributeError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    while (task := _told()) is not None:
        with numerics(task.configs[0]["precision"]["matmul"]):
            setup = building.build(task.configs)
            setup = setup._replace(program=replace(setup.program, **task.way))
            _compute(setup, task)


def _compute(setup: building.Setup, task: Task) -> None:
    last = False

    def said() -> bool:
        nonlocal last
        answer = _agreed(NO)
        last = answer == LAST
        return answer != NO

    events = engine.train(
        *setup, lanes=task.lanes, saved=task.saved, save=said, snapshots=task.snapshots
    )
    for event in events:
        if last and isinstance(event, Saved):
            return


def _agreed(answer: int) -> int:
    """The first process's answer, in all."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(answer)))


def _tell(task: Task | None) -> None:
    content = pickle.dumps(task)
    pages = -(-len(content) // PAGE)  # a state may have more bytes than an int32 can count
    _agreed(pages)
    padded = np.frombuffer(content.ljust(pages * PAGE, b"\0"), np.uint8)
    multihost_utils.broadcast_one_to_all(padded)  # what follows a pickle is not read


def _told() -> Task | None:
    content = multihost_utils.broadcast_one_to_all(np.zeros(_agreed(0) * PAGE, np.uint8))
    task: Task | None = pickle.loads(content.tobytes())  # noqa: S301 of our own first process
    return task
