"""Records become one table a member."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa


class Record(Protocol):
    """Rows of some members: as the engine returns them, or as they lie on disk."""

    @property
    def members(self) -> np.ndarray:
        """Which members, [L]; -1 is none."""

    @property
    def steps(self) -> np.ndarray:
        """[L, S]."""

    @property
    def valid(self) -> np.ndarray:
        """Which of the rows count, [L, S]."""

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """[L, S, …] by name."""


class Recorder:
    """Collects records; the first value recorded for a member, column and step stays."""

    def __init__(self, members: int) -> None:
        """Nothing recorded yet, for so many members."""
        self._pieces: list[dict[str, list[Piece]]] = [defaultdict(list) for _ in range(members)]
        self.last: list[dict[str, Any]] = [{} for _ in range(members)]

    def add(self, record: Record) -> None:
        """File the record's valid rows."""
        for lane, member in enumerate(record.members):
            steps, valid = record.steps[lane], record.valid[lane]
            if member < 0 or not valid.any():
                continue
            for name, values in record.columns.items():
                rows = values[lane][valid]
                self._pieces[member][name].append((steps[valid], rows))
                self.last[member][name] = rows[-1]

    def table(self, member: int) -> pa.Table:
        """``step``, then the observables by name, null where one was not measured."""
        columns = {name: _joined(pieces) for name, pieces in self._pieces[member].items()}
        steps = np.unique(np.concatenate([at for at, _ in columns.values()]))
        arrays = {name: _spread(steps, *column) for name, column in sorted(columns.items())}
        return pa.table({"step": pa.array(steps, pa.int64()), **arrays})


Piece = tuple[np.ndarray, np.ndarray]  # steps [S], values [S, …]


def _joined(pieces: Sequence[Piece]) -> Piece:
    steps, values = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    unique, first = np.unique(steps, return_index=True)
    return unique, values[first]


def _spread(steps: np.ndarray, at: np.ndarray, values: np.ndarray) -> pa.Array:
    """Values [S] or [S, K] at some of the steps, as a column that is null at the others."""
    index = np.full(len(steps), -1)
    index[np.searchsorted(steps, at)] = np.arange(len(at))
    if values.ndim == 1:
        return pa.array(values[index], mask=index < 0)
    rows = values.reshape(len(values), -1)
    cells = [None if row < 0 else rows[row] for row in index]
    return pa.array(cells, pa.list_(pa.from_numpy_dtype(values.dtype)))
