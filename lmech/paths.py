"""Where the package keeps its own files, and what it may keep of the user's."""

import importlib
import os
from pathlib import Path


def conf() -> Path:
    """Folder of the package's configs (beside the package in a checkout, inside it in a wheel)."""
    return Path(next(iter(importlib.import_module("lmech.conf").__path__)))


def package() -> Path:
    """Folder of the package itself."""
    return Path(__file__).parent


def cache() -> Path | None:
    """The user's cache folder: ``$LMECH_CACHE``, ``$XDG_CACHE_HOME/lmech`` or ``~/.cache/lmech``.

    None unless it is there (or can be made), the user's own and writable by nobody else.
    """
    own, shared = os.environ.get("LMECH_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        parent = Path(shared) if shared else Path.home() / ".cache"
        folder = Path(own).expanduser() if own else parent / "lmech"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: no home
        return None
    others = found.st_mode & 0o022 or found.st_uid != os.getuid()
    return None if others else folder.absolute()
