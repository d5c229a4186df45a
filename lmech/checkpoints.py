"""What a running batch keeps on disk, to go on from after a kill: parts and one state file.

A part holds the records since the last one, the state file the batch's state and how many parts are
valid. Each is written whole; the state file last, so a part that it does not count is as good as
not there.
"""

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmech.disk import atomically
from lmech.engine import Record, Saved

STATE = "state.npz"


class DamageError(ValueError):
    """A state that cannot be read: one line that names its folder."""


class Checkpoint(NamedTuple):
    """What a batch folder holds."""

    saved: Saved
    records: list[Record]
    parts: int
    execution: dict[str, Any]
    """What the last bits depend on beside the jobs, as it was when this was written."""


def of_members(checkpoint: Checkpoint, members: slice) -> Checkpoint:
    """The same of some of the members."""

    def chosen(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[members], tree)

    saved = checkpoint.saved
    records = [
        record._replace(
            steps=record.steps[members],
            valid=record.valid[members],
            columns=chosen(record.columns),
        )
        for record in checkpoint.records
    ]
    cut = Saved(saved.step, chosen(saved.carry), chosen(saved.memories))
    return Checkpoint(cut, records, 0, checkpoint.execution)


def merged(records: Sequence[Record]) -> list[Record]:
    """The same rows in as few records as there are sets of columns."""
    sets: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        sets.setdefault(tuple(record.columns), []).append(record)
    return [
        Record(
            np.concatenate([record.steps for record in alike], axis=1),
            np.concatenate([record.valid for record in alike], axis=1),
            {n: np.concatenate([record.columns[n] for record in alike], axis=1) for n in names},
            alike[-1].running,
        )
        for names, alike in sets.items()
    ]


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    atomically(path, write)


def _read(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.npz"


def write(
    folder: Path, saved: Saved, records: Sequence[Record], parts: int, execution: dict[str, Any]
) -> int:
    """Keep the state, and the records since the last one; the number of parts there are now."""
    arrays: dict[str, np.ndarray] = {}
    for number, record in enumerate(merged(records)):
        arrays |= {f"{number}/steps": record.steps, f"{number}/valid": record.valid}
        arrays |= {f"{number}/column/{name}": a for name, a in record.columns.items()}
    _write(_part(folder, parts), arrays)
    leaves = jax.tree.leaves((saved.carry, saved.memories))
    head = json.dumps(
        {"step": saved.step, "parts": parts + 1, "leaves": len(leaves), "execution": execution}
    )
    _write(
        folder / STATE,
        {"head": np.asarray(head), **{str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}},
    )
    return parts + 1


def read(folder: Path, like: tuple[Any, Any]) -> Checkpoint:
    """What the folder holds; ``like`` is a carry and memories of the same shapes.

    Raises DamageError, which names the file, for one that cannot be read or does not fit.
    """
    path = folder / STATE
    try:
        arrays = _read(path)
        head = json.loads(arrays["head"].item())
        leaves = [arrays[str(i)] for i in range(head["leaves"])]
        records = [r for number in range(head["parts"]) for r in _records(_part(folder, number))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DamageError(
            f"{folder}: its state cannot be read ({error}); delete the folder to start over"
        ) from error
    shapes = jax.tree.leaves(like)
    if [(a.shape, a.dtype) for a in leaves] != [(s.shape, s.dtype) for s in shapes]:
        raise DamageError(f"{path} is of another program; delete {folder} to start over")
    carry, memories = jax.tree.unflatten(jax.tree.structure(like), leaves)
    saved = Saved(head["step"], carry, memories)
    return Checkpoint(saved, records, head["parts"], head["execution"])


def _records(path: Path) -> list[Record]:
    arrays = _read(path)
    numbers = sorted({int(name.partition("/")[0]) for name in arrays})
    return [_record(arrays, f"{number}/") for number in numbers]


def _record(arrays: dict[str, np.ndarray], prefix: str) -> Record:
    column = f"{prefix}column/"
    columns = {n.removeprefix(column): a for n, a in arrays.items() if n.startswith(column)}
    return Record(arrays[f"{prefix}steps"], arrays[f"{prefix}valid"], columns, running=True)


def clear(folder: Path) -> None:
    """Remove what is no longer needed: the batch has its results."""
    shutil.rmtree(folder, ignore_errors=True)
