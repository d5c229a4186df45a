"""Where a number comes from: versions, commit, machine."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache, partial
from pathlib import Path
from typing import Any

from lmech import paths, project

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "hydra-core", "omegaconf")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def _commit(file: Path) -> dict[str, Any]:
    """Commit of the checkout that a file is of (None for one that no checkout tracks)."""
    git = partial(_git, file.parent)
    if not git("ls-files", file.name):
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def _of_project() -> dict[str, Any]:
    """Name and commit of the user's project, where there is one."""
    own = project.current()
    if own is None:
        return {}
    return {"project": {"name": own.root.name, **_commit(own.root / "pyproject.toml")}}


def threads() -> int:
    """Cores that this process may use: XLA's threads on a CPU."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def provenance() -> dict[str, Any]:
    """Versions, commit, device, threads, flags. Imports JAX."""
    import jax  # noqa: PLC0415 a look at the package alone needs no JAX

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {
        "lmech": importlib.metadata.version("lmech"),
        **_commit(paths.package() / "__init__.py"),
        **_of_project(),
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "threads": threads(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
