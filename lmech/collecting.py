"""Results as data frames. No JAX here."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml


def read_jobs(sweep: Path) -> pd.DataFrame:
    """One row a job of a sweep folder: ``job``, the swept keys, ``status``, ``ended_at``."""
    rows = []
    for line in (sweep / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        result = sweep / entry["id"] / "result.json"
        ended = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
        rows.append(
            {
                "job": entry["id"],
                **entry["overrides"],
                "status": ended.get("status", "missing"),
                "ended_at": ended.get("steps"),
            }
        )
    return pd.DataFrame(rows)


class Run(NamedTuple):
    """One finished job, as read from the disk."""

    job: str
    overrides: dict[str, Any]
    """The swept keys and their values."""
    config: dict[str, Any]
    """Resolved."""
    result: dict[str, Any]
    """result.json"""
    metrics: pd.DataFrame
    """``step`` and the observables; NaN where not measured."""

    def column(self, name: str) -> pd.Series:
        """An observable where it was measured, by step. Raises KeyError if it never was."""
        return self.metrics.set_index("step")[name].dropna()


def read_runs(sweep: Path) -> list[Run]:
    """The jobs of a sweep that have a result and have not failed, in the manifest's order."""
    lines = (sweep / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    runs = [
        _read_run(sweep / entry["id"], entry["overrides"])
        for entry in entries
        if (sweep / entry["id"] / "metrics.parquet").is_file()
    ]
    return [run for run in runs if run.result["status"] != "failed"]


def _read_run(folder: Path, overrides: dict[str, Any]) -> Run:
    return Run(
        folder.name,
        overrides,
        yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        json.loads((folder / "result.json").read_text(encoding="utf-8")),
        pd.read_parquet(folder / "metrics.parquet"),
    )


def sweeps(path: Path) -> list[Path]:
    """Sweep folders at or below ``path``. Raises FileNotFoundError if there is none."""
    found = sorted(file.parent for file in path.rglob("manifest.jsonl"))
    if not found:
        raise FileNotFoundError(f"no results at {path}: a sweep's folder holds a manifest.jsonl")
    return found


def collect(path: str | Path) -> pd.DataFrame:
    """Every recorded number of the sweeps at or below ``path``.

    One row a job and step: ``sweep``, ``job``, the swept keys, ``step``, then the observables
    (NaN where not measured, lists where vectors). Raises FileNotFoundError if nothing is there.
    """
    frames: list[pd.DataFrame] = []
    for sweep in sweeps(Path(path)):
        for row in read_jobs(sweep).to_dict("records"):
            metrics = sweep / str(row["job"]) / "metrics.parquet"
            if metrics.is_file():
                frames.append(_one(sweep, {str(k): v for k, v in row.items()}, metrics))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _one(sweep: Path, row: dict[str, Any], metrics: Path) -> pd.DataFrame:
    frame = pd.read_parquet(metrics)
    labels = {k: v for k, v in row.items() if k not in ("status", "ended_at")}
    labels = {"sweep": sweep.name, **labels}
    index = pd.RangeIndex(len(frame))
    head = pd.DataFrame({key: [value] * len(frame) for key, value in labels.items()}, index=index)
    return pd.concat([head, frame], axis=1)
