"""What a running batch keeps on disk, to go on from after a kill: parts and one state file.

A part holds the records since the last one, the state file the batch's state and how many parts are
valid. Each is written whole; the state file last, so a part that it does not count is as good as
not there.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmech import states
from lmech.disk import atomically
from lmech.lanes import Record, Saved
from lmech.numerics import trees
from lmech.states import BROKEN, STATE, DamageError, damaged


class Checkpoint(NamedTuple):
    """What a batch folder holds."""

    saved: Saved
    records: list[Record]
    parts: range
    """Numbers of the valid parts; none if the records are in no part of this folder."""
    ids: list[str]
    """Identities of the members."""
    execution: dict[str, Any]
    """What the last bits depend on beside the jobs, as it was when this was written."""


def of_members(
    checkpoint: Checkpoint, members: Sequence[int], lanes: int, devices: int = 1
) -> Checkpoint:
    """The same of some of the members, who become 0, 1, …, in so many lanes or a few more.

    A lane that is left over holds somebody who has ended; devices have as many lanes each.
    """
    saved = checkpoint.saved
    place = {member: lane for lane, member in enumerate(saved.members) if member >= 0}
    alive = [member for member in members if member in place]
    chosen = np.asarray([place[member] for member in alive], int)
    count = -(-max(lanes, len(chosen)) // devices) * devices
    chosen = np.concatenate([chosen, np.zeros(count - len(chosen), int)])
    own = np.full(len(chosen), -1)
    own[: len(alive)] = [members.index(member) for member in alive]
    ids = [checkpoint.ids[member] for member in members]
    carry, memories = trees.take((saved.carry, saved.memories), chosen)
    carry = carry._replace(ended=carry.ended | (own < 0))
    records = [_of_members(record, members) for record in checkpoint.records]
    cut = Saved(saved.step, own, carry, memories)
    none = range(checkpoint.parts.stop, checkpoint.parts.stop)
    return Checkpoint(cut, records, none, ids, checkpoint.execution)


def _of_members(record: Record, members: Sequence[int]) -> Record:
    lanes = [lane for lane, member in enumerate(record.members) if member in members]
    return record._replace(
        members=np.asarray([members.index(record.members[lane]) for lane in lanes], int),
        steps=record.steps[lanes],
        valid=record.valid[lanes],
        columns=trees.take(record.columns, lanes),
    )


def merged(records: Sequence[Record]) -> list[Record]:
    """The same rows in as few records as there are sets of columns and of members."""
    sets: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        sets.setdefault((*record.columns, *record.members.tolist()), []).append(record)
    return [
        Record(
            alike[-1].members,
            np.concatenate([record.steps for record in alike], axis=1),
            np.concatenate([record.valid for record in alike], axis=1),
            {
                name: np.concatenate([record.columns[name] for record in alike], axis=1)
                for name in alike[-1].columns
            },
            alike[-1].running,
        )
        for alike in sets.values()
    ]


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    atomically(path, write)


def write(
    folder: Path,
    saved: Saved,
    records: Sequence[Record],
    parts: range,
    ids: Sequence[str],
    execution: dict[str, Any],
) -> range:
    """Keep the state, and the records since the last one; the parts that there are now."""
    arrays: dict[str, np.ndarray] = {}
    for number, record in enumerate(merged(records)):
        arrays |= states.packed(number, record)
    _write(states.place(folder, parts.stop), arrays)
    parts = range(parts.start, parts.stop + 1)
    leaves = jax.tree.leaves((saved.carry, saved.memories))
    head = {"step": saved.step, "parts": [parts.start, parts.stop], "leaves": len(leaves)}
    text = json.dumps({**head, "ids": list(ids), "execution": execution})
    state = {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}
    _write(folder / STATE, {"head": np.asarray(text), "members": saved.members, **state})
    return parts


def read(folder: Path, like: tuple[Any, Any]) -> Checkpoint:
    """What the folder holds; ``like`` is a carry and memories of the same shapes but for the lanes.

    Raises DamageError, which names the file, for one that cannot be read or does not fit.
    """
    path = folder / STATE
    try:
        arrays = states.arrays(path)
        head = json.loads(arrays["head"].item())
        leaves = [arrays[str(i)] for i in range(head["leaves"])]
        parts = range(*head["parts"])
        records = [r for number in parts for r in _records(states.place(folder, number))]
        saved = (head["step"], arrays["members"])
        ids, execution = head["ids"], head["execution"]
    except BROKEN as error:
        raise damaged(folder, error) from error
    shapes = jax.tree.leaves(like)
    if [(a.shape[1:], a.dtype) for a in leaves] != [(s.shape[1:], s.dtype) for s in shapes]:
        raise DamageError(f"{path} is of another program; delete {folder} to start over")
    carry, memories = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Checkpoint(Saved(*saved, carry, memories), records, parts, ids, execution)


def _records(path: Path) -> list[Record]:
    return [Record(*rows, running=True) for rows in states.read(path)]


def clear(folder: Path) -> None:
    """Remove what is no longer needed: the batch has its results."""
    shutil.rmtree(folder, ignore_errors=True)
