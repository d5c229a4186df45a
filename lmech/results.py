"""What a job leaves on disk: config, metrics, weights, result; or its traceback."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lmech import planning
from lmech.disk import write_json, write_table, write_text, write_weights, write_yaml
from lmech.engine import End
from lmech.numerics import trees
from lmech.planning import Job


def write_failure(folder: Path, job: Job, machine: Mapping[str, Any]) -> None:
    """The traceback of the exception that is being handled; a result from before stays."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "error.txt", traceback.format_exc())
    if not (folder / "result.json").is_file():
        write_yaml(folder / "config.yaml", job.config)
        result = {"id": job.id, "observables": {}, "status": "failed"}
        write_json(folder / "result.json", {**result, "provenance": machine})


def _final(table: pa.Table) -> dict[str, Any]:
    """The last recorded value of each column."""
    columns = {name: table.column(name).drop_null() for name in table.column_names}
    return {name: column[-1].as_py() for name, column in columns.items() if name != "step"}


def write_job(
    job_folder: Path,
    job: Job,
    table: pa.Table,
    end: End,
    record: dict[str, Any],
) -> str:
    """The job's files; the result last, since it says that the others are whole."""
    write_yaml(job_folder / "config.yaml", job.config)
    write_table(job_folder / "metrics.parquet", table)
    step = int(end.step)
    write_weights(job_folder / "weights" / f"{step}.npz", trees.named_leaves(end.params))
    (job_folder / "error.txt").unlink(missing_ok=True)
    final = _final(table)
    loss = "train_loss" if "train_loss" in final else "batch_loss"
    finite = bool(end.finite) and bool(np.isfinite(final.get(loss, 0.0)))
    rose = job.config["batch_size"] is None or loss == "train_loss"
    rose = rose and loss in final and final[loss] > table.column(loss).drop_null()[0].as_py()
    status = "diverged" if rose or not finite else "done"
    write_json(
        job_folder / "result.json",
        {
            "id": job.id,
            "observables": planning.observable_ids(job.config),
            "status": status,
            "steps": step,
            "nonfinite_at": None if finite else step,
            "final": final,
            "provenance": record,
        },
    )
    return status
