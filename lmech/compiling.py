"""XLA compilations: kept on disk between processes, and counted."""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib

from lmech import paths
from lmech.programs import TRAINING_PROGRAM
from lmech.provenance import threads

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
HIT_EVENT = "/jax/compilation_cache/cache_hits"


def keep() -> None:
    """Keep compiled programs in the user's cache folder, however short their compilation.

    One folder for each jaxlib and kind of device (on a CPU: its model, as code for one may not run
    on another), which nobody else may enter. A cache that the user has set up stays theirs.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = paths.private_cache("xla", compiler())
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def compiler() -> str:
    """A name for this jaxlib and this kind of device."""
    device = jax.devices()[0]
    kind = f"{device.platform} {device.device_kind} {_processor()}"
    return f"{jaxlib.__version__}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


def _processor() -> str:
    """Model and features of the CPU, where the system tells."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.is_file():
        return platform.processor()
    lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
    told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join(sorted(told))


class Compilations(NamedTuple):
    """Programs compiled since counting began; what the cache on disk had is told apart."""

    training: list[str]
    """Names of the training programs that were compiled."""
    hits: list[str]
    """Names of those that came from the cache."""
    seconds: list[float]
    """Of every program, whether it came from the cache or not."""


@contextmanager
def counted() -> Iterator[Compilations]:
    """Count XLA compilations inside the block, by JAX's own monitoring events."""
    count, hit = Compilations([], [], []), [False]

    def cached(event: str, **_: Any) -> None:
        hit[0] |= event == HIT_EVENT

    def compiled(event: str, duration_secs: float, **labels: Any) -> None:
        if event != COMPILE_EVENT:
            return
        count.seconds.append(duration_secs)
        name = labels.get("fun_name", "").removeprefix("jit(").rstrip(")")
        if name == TRAINING_PROGRAM:
            (count.hits if hit[0] else count.training).append(name)
        hit[0] = False  # the event of a hit comes before that of the compilation it saved

    jax.monitoring.register_event_listener(cached)
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_listener(cached)
        jax.monitoring.unregister_event_duration_listener(compiled)


def host_devices(count: int) -> None:
    """Ask for so many devices on the CPU; too late once JAX has looked at its devices."""
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def device_a_core() -> None:
    """Ask for a device for each core of the CPU, unless the user has set how many there are."""
    flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] < 0 and not flag:
        host_devices(threads())
