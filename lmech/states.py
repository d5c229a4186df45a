"""What a running batch keeps on disk, by names of files and arrays; read without JAX.

``checkpoints`` writes it and says when; ``watching`` and ``loggers.replay`` look from outside.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STATE = "state.npz"
ROWS = ("members", "steps", "valid")
BROKEN = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile)
"""What reading a damaged state raises."""


class DamageError(ValueError):
    """A state that cannot be read: one line that names its folder."""


def damaged(folder: Path, error: Exception) -> DamageError:
    """What to raise for a folder whose state cannot be read."""
    return DamageError(
        f"{folder}: its state cannot be read ({error}); delete the folder to start over"
    )


class Rows(NamedTuple):
    """A record as it lies on disk: rows of some members, the columns that they share."""

    members: np.ndarray
    """Which members, [L]; -1 is none."""
    steps: np.ndarray
    """[L, S]."""
    valid: np.ndarray
    """Which of the rows count, [L, S]."""
    columns: dict[str, np.ndarray]
    """[L, S, …] by name."""


def place(folder: Path, number: int) -> Path:
    """A part's file."""
    return folder / f"part-{number:05}.npz"


def packed(number: int, record: Any) -> dict[str, np.ndarray]:
    """The arrays of a record (it has the fields of ``Rows``), the so-manieth of its part."""
    arrays = {f"{number}/{name}": getattr(record, name) for name in ROWS}
    return arrays | {f"{number}/column/{name}": a for name, a in record.columns.items()}


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file by name. Raises as NumPy does where that is none."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        return dict(found)


def head(folder: Path) -> dict[str, Any]:
    """Of a batch's state: its ``step``, the range of valid ``parts``, the members' ``ids``, …"""
    with (folder / STATE).open("rb") as file, np.load(file, allow_pickle=False) as found:
        told: dict[str, Any] = json.loads(found["head"].item())
    return told


def holds(folder: Path) -> tuple[int, list[str]]:
    """The step of the folder's state and the identities of its members, without reading it all.

    Raises DamageError.
    """
    try:
        told = head(folder)
        return int(told["step"]), list(told["ids"])
    except BROKEN as error:
        raise damaged(folder, error) from error


def read(path: Path) -> list[Rows]:
    """The records of a part, in their order."""
    found = arrays(path)
    numbers = sorted({int(name.partition("/")[0]) for name in found})
    return [_rows(found, f"{number}/") for number in numbers]


def _rows(found: Mapping[str, np.ndarray], prefix: str) -> Rows:
    column = f"{prefix}column/"
    columns = {n.removeprefix(column): a for n, a in found.items() if n.startswith(column)}
    members, steps, valid = (found[f"{prefix}{name}"] for name in ROWS)
    return Rows(members, steps, valid, columns)
