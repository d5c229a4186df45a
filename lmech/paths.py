"""Where the package keeps its own files."""

import importlib
import os
from pathlib import Path

OURS = ("lmech", "optax", "flax", "jax")
"""The packages whose code is ours or a library's, rather than the user's."""


def conf() -> Path:
    """Folder of the package's configs (beside the package in a checkout, inside it in a wheel)."""
    return Path(next(iter(importlib.import_module("lmech.conf").__path__)))


def package() -> Path:
    """Folder of the package itself."""
    return Path(__file__).parent


def private_cache(*parts: str) -> Path | None:
    """The user's folder for what can be made anew; None if it cannot be, or others could write.

    Under ``$LMECH_CACHE``, else ``$XDG_CACHE_HOME/lmech``, else ``~/.cache/lmech``; there each
    folder has to be the user's own, so that nobody else can put another in its place.
    """
    try:
        own = os.environ.get("LMECH_CACHE")
        system = os.environ.get("XDG_CACHE_HOME")
        base = Path(own) if own else (Path(system) if system else Path.home() / ".cache") / "lmech"
        folder = base
        for part in ("", *parts):  # each of its own: `parents` would be made as the umask has it
            folder /= part
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
            owned = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if not owned or status.st_mode & 0o022:
                return None
    except (OSError, RuntimeError):  # no room, no rights, no home
        return None
    return folder
