"""What a bench was asked for, and what it says when something that it needs is not there."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """The command line, as the tables' modules see it."""

    repetitions: int = 5
    threads: int | None = None
    """Of both sides; None: all cores."""
    quick: bool = False
    """Tiny sizes, to see that it runs: the numbers mean nothing."""
    peers: Path = Path("peers")
    """Where sources and environments of peers lie that no ``pip install`` puts beside lmech."""
    keep: Path | None = None
    """A folder for weights and references that take long (``tracker``, ``curvature_peers``)."""
    out: Path = Path("bench-results")

    def size(self, full: Any, quick: Any) -> Any:
        """The one or the other."""
        return quick if self.quick else full


class Missing(Exception):  # noqa: N818 - nothing failed
    """Something is not installed; its text says what to do."""


def need(name: str, install: str) -> ModuleType:
    """The module. Raises Missing, which says what to install, if it cannot be imported."""
    try:
        return import_module(name)
    except ImportError as error:
        raise Missing(f"pip install {install} ({error})") from error


def wanted(name: str) -> ModuleType | None:
    """The module, or None."""
    try:
        return import_module(name)
    except ImportError:
        return None
