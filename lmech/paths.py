"""Where the package keeps its own files."""

import importlib
import os
from pathlib import Path


def conf() -> Path:
    """Folder of the package's configs (beside the package in a checkout, inside it in a wheel)."""
    return Path(next(iter(importlib.import_module("lmech.conf").__path__)))


def package() -> Path:
    """Folder of the package itself."""
    return Path(__file__).parent


def cache() -> Path:
    """The user's folder for what can be made anew: ``$LMECH_CACHE``, else the system's place."""
    own = os.environ.get("LMECH_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmech"


def private(folder: Path) -> Path | None:
    """The folder, made if need be; None if it cannot be, or others could write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    owned = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return folder if owned and not status.st_mode & 0o022 else None
