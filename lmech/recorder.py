"""Records become one table a member, and tables become files."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmech.engine import Record


class Recorder:
    """Collects records; the first value recorded for a member, column and step stays."""

    def __init__(self, members: int) -> None:
        """Nothing recorded yet, for so many members."""
        self._pieces: list[dict[str, list[Piece]]] = [defaultdict(list) for _ in range(members)]
        self.last: list[dict[str, Any]] = [{} for _ in range(members)]

    def add(self, record: Record) -> None:
        """File the record's valid rows."""
        for member, (steps, valid) in enumerate(zip(record.steps, record.valid, strict=True)):
            if not valid.any():
                continue
            for name, values in record.columns.items():
                rows = values[member][valid]
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


def atomically(path: Path, write: Any) -> None:
    """``write(temporary path)``, then rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; what is not finite becomes null, as JSON has no word for it."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def finite(value: Any) -> Any:
    """Plain Python data with None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def write_table(path: Path, table: pa.Table) -> None:
    """Parquet in a canonical layout, so that equal tables are equal bytes."""
    atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def write_weights(path: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Parameters by name, ``hidden_1/kernel``, as an npz."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **leaves)

    atomically(path, write)
