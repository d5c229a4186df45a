"""Results as data frames. No JAX here."""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import infer_dtype

from lmech.disk import (
    atomically,
    damaged,
    finite,
    read_json,
    read_json_lines,
    read_yaml,
    reading,
)


def read_jobs(sweep: Path) -> pd.DataFrame:
    """One row a job of a sweep folder: ``job``, the swept keys, ``status``, ``ended_at``."""
    return pd.DataFrame(_jobs(sweep))


def _manifest(sweep: Path) -> list[dict[str, Any]]:
    """The lines, of whatever version. Raises DamagedFileError for one that names no job."""
    path = sweep / "manifest.jsonl"
    entries = read_json_lines(path)
    named = [isinstance(entry.get("id"), str) for entry in entries]
    if not all(named) or not all(isinstance(entry.get("overrides"), dict) for entry in entries):
        raise damaged(path, "a line without id or overrides")
    if not entries:
        raise damaged(path, "no line")
    return entries


def _result(path: Path) -> dict[str, Any]:
    """A job's result.json. Raises DamagedFileError for one that does not say how it ended."""
    result: dict[str, Any] = read_json(path)
    if not isinstance(result.get("status"), str):
        raise damaged(path, "no status")
    return result


def _jobs(sweep: Path) -> list[dict[str, Any]]:
    rows = []
    for entry in _manifest(sweep):
        result = sweep / entry["id"] / "result.json"
        ended = _result(result) if result.is_file() else {}
        rows.append(
            {
                "job": entry["id"],
                **entry["overrides"],
                "status": ended.get("status", "missing"),
                "ended_at": ended.get("steps"),
            }
        )
    return rows


class Run(NamedTuple):
    """One finished job, as read from the disk.

    - ``job``: its id.
    - ``overrides``: the swept keys and their values, ``{"model.width": 64, "seed": 0}``.
    - ``config``: all keys, resolved: ``config["optimizer"]["learning_rate"]``.
    - ``result``: result.json: ``status`` (done, diverged), ``steps``, ``final`` values, ….
    - ``metrics``: a frame with ``step`` and a column for each observable, NaN where not measured;
      ``column(name)`` has those of one by step.
    - ``pairs``: of each of the experiment's comparisons, by name, a frame with a row for each pair
      of which this run is the first in the manifest's order: ``other``, that run's id, ``step`` and
      ``other_step``, then what was measured (lists where vectors).
    """

    job: str
    overrides: dict[str, Any]
    config: dict[str, Any]
    result: dict[str, Any]
    metrics: pd.DataFrame
    pairs: Mapping[str, pd.DataFrame] = MappingProxyType({})

    def column(self, name: str) -> pd.Series:
        """An observable where it was measured, by step. Raises KeyError if it never was."""
        return self.metrics.set_index("step")[name].dropna()


def read_runs(sweep: Path) -> list[Run]:
    """The jobs of a sweep that have a result and have not failed, in the manifest's order."""
    compared = {
        path.stem: _frame(path, "job") for path in sorted((sweep / "comparisons").glob("*.parquet"))
    }
    runs = [
        _read_run(sweep / entry["id"], entry["overrides"], compared)
        for entry in _manifest(sweep)
        if (sweep / entry["id"] / "result.json").is_file()  # written last
        and (sweep / entry["id"] / "metrics.parquet").is_file()
    ]
    return [run for run in runs if run.result["status"] != "failed"]


def _read_run(folder: Path, overrides: dict[str, Any], compared: Mapping[str, pd.DataFrame]) -> Run:
    pairs = {name: table[table["job"] == folder.name] for name, table in compared.items()}
    with reading(folder / "config.yaml"):
        config = dict(read_yaml(folder / "config.yaml"))
    return Run(
        folder.name,
        overrides,
        config,
        _result(folder / "result.json"),
        _frame(folder / "metrics.parquet", "step"),
        {name: own.drop(columns="job").reset_index(drop=True) for name, own in pairs.items()},
    )


def _frame(path: Path, column: str) -> pd.DataFrame:
    """A table of ours, which has that column. Raises DamagedFileError."""
    with reading(path):
        frame = pd.read_parquet(path)
        frame[column]
    return frame


def sweeps(path: Path) -> list[Path]:
    """Sweep folders at or below ``path``. Raises FileNotFoundError if there is none."""
    found = sorted(file.parent for file in path.rglob("manifest.jsonl"))
    if not found:
        raise FileNotFoundError(f"no results at {path}: a sweep's folder holds a manifest.jsonl")
    return found


Steps = int | Iterable[int] | slice
Keep = Callable[[pa.Table], pa.Table]


def collect(
    path: str | Path, columns: Sequence[str] | None = None, steps: Steps | str | None = None
) -> pd.DataFrame:
    """Every recorded number of the sweeps at or below ``path``, or some of them.

    One row a job and step: ``sweep``, ``job``, the swept keys, ``status`` (done or diverged; a job
    without numbers has no row), ``step``, then the observables (NaN where not measured, lists where
    vectors). What stands left of ``step`` is about the job. A job of two sweeps is there twice.

    ``columns``: the observables to read; the others cost nothing. ``steps``: the rows to keep: a
    step, several (a list, a range), a slice of steps (``slice(1000, None, 10)``, its end left out)
    or ``"last"``, each job's last row, with NaN for what was not measured in it.

    Raises FileNotFoundError if nothing is at ``path``, DamagedFileError, which names it, for a file
    that cannot be read, ConfigError for columns that nobody recorded and for steps that are none
    of these.
    """
    keep = _kept(steps)
    found = [(sweep, row) for sweep in sweeps(Path(path)) for row in _jobs(sweep)]
    places = [sweep / row["job"] / "metrics.parquet" for sweep, row in found]
    there = [index for index, place in enumerate(places) if place.is_file()]
    jobs = _labels([{"sweep": sweep.name, **row} for sweep, row in found])
    with ThreadPoolExecutor() as pool:
        read = pool.map(partial(_read, columns, keep), (places[index] for index in there))
        tables, names = [list(part) for part in zip(*read, strict=True)] or [[], []]
    _check(columns, [*jobs, *(name for known in names for name in known)])
    metrics = _joined(tables).to_pandas()
    wanted = dict.fromkeys(metrics if columns is None else columns)
    order = [name for name in wanted if name in metrics and name != "step"]
    rows = jobs.take(np.repeat(np.asarray(there, int), [len(table) for table in tables]))
    return pd.concat([rows.reset_index(drop=True), metrics[["step", *order]]], axis=1)


def _labels(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """What stands left of ``step``: the status last, however many keys each sweep has."""
    jobs = pd.DataFrame(rows).drop(columns="ended_at")
    return jobs[[name for name in jobs if name != "status"] + ["status"]]


def _read(columns: Sequence[str] | None, keep: Keep, file: Path) -> tuple[pa.Table, list[str]]:
    """``step`` and the asked columns that the file has, at the asked steps; and all that it has."""
    with reading(file), pq.ParquetFile(file) as parquet:
        known = parquet.schema_arrow.names
        wanted = [name for name in known if columns is None or name == "step" or name in columns]
        table = parquet.read(columns=wanted, use_threads=False)
        table["step"]
    return keep(table.select(wanted)), known  # `read` takes "a" for every "a.b" too


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """One table with all columns: null where a job has none, the wider of two number types."""
    empty = pa.table({"step": pa.array([], pa.int64())})
    try:
        return pa.concat_tables([empty, *tables], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        first = str(error).splitlines()[0]
        raise _mistake(f"{first}: collect these sweeps one by one, or name columns") from None


def _check(columns: Sequence[str] | None, known: Sequence[str]) -> None:
    if isinstance(columns, str):
        raise _mistake(f"columns={columns!r}: write a list, columns=[{columns!r}]")
    for name in columns or []:
        if name not in ("step", *known):
            raise _mistake(f"no column '{name}'", name, dict.fromkeys(known))


def _mistake(text: str, word: str = "", choices: Iterable[str] = ()) -> ValueError:
    """A ConfigError, with the choice that is nearest to ``word`` and all of them."""
    from lmech.hints import nearest  # noqa: PLC0415
    from lmech.values import ConfigError  # noqa: PLC0415 Hydra; `import lmech` is light

    listed = f" (there are {', '.join(choices)})" if choices else ""
    return ConfigError(text + nearest(word, choices) + listed)


def _kept(steps: Steps | str | None) -> Keep:
    """The rows of a table that ``steps`` asks for."""
    if steps is None:
        return lambda table: table
    mask = _mask(steps)
    return lambda table: table.filter(pa.array(mask(table["step"].to_numpy())))


def _mask(steps: Steps | str) -> Callable[[np.ndarray], np.ndarray]:
    if isinstance(steps, str) and steps == "last":
        return lambda at: at == at.max(initial=-1)
    if isinstance(steps, slice):
        first, stop, stride = steps.start or 0, steps.stop, steps.step or 1
        if min(first, stop or 0) >= 0 and stride > 0:
            last = np.inf if stop is None else stop
            return lambda at: (at >= first) & (at < last) & ((at - first) % stride == 0)
    elif isinstance(steps, Iterable) and not isinstance(steps, str):
        several = list(steps)
        if all(isinstance(step, int | np.integer) for step in several):
            return lambda at: np.isin(at, np.asarray(several, int))
    elif isinstance(steps, int | np.integer):
        return lambda at: at == steps
    raise _mistake(
        f"steps={steps!r}: write a step, several ([0, 100] or a range), a slice of steps from 0 up "
        "(slice(0, 1000, 10)) or 'last'"
    )


def _json_cells(frame: pd.DataFrame, names: Iterable[Hashable]) -> pd.DataFrame:
    """The frame with JSON text in those of the columns that hold lists, or things of two types."""
    mixed = [name for name in names if infer_dtype(frame[name]).startswith("mixed")]
    texts = {
        name: frame[name].map(lambda cell: json.dumps(finite(cell)), na_action="ignore")
        for name in mixed
    }
    return frame.assign(**{str(name): text for name, text in texts.items()})


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """A collected frame as CSV; lists are JSON text."""
    flat = _json_cells(frame, frame)
    atomically(path, lambda temporary: flat.to_csv(temporary, index=False))


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """A collected frame as Parquet; swept keys with lists or two types of values are JSON text."""
    flat = _json_cells(frame, frame.loc[:, :"step"])
    atomically(path, lambda temporary: flat.to_parquet(temporary, index=False))
