"""Where the package keeps its own files."""

import importlib
from pathlib import Path


def conf() -> Path:
    """Folder of the package's configs (beside the package in a checkout, inside it in a wheel)."""
    return Path(next(iter(importlib.import_module("lmech.conf").__path__)))


def package() -> Path:
    """Folder of the package itself."""
    return Path(__file__).parent
