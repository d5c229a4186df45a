"""Reading a sweep's folder back, made here by hand."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import lmech
from lmech.collecting import read_jobs, read_runs, sweeps

RATES = {"a1": 0.1, "b2": 0.2, "c3": 0.3, "d4": 0.4}
FINISHED = ("a1", "b2")


def metrics(rate):
    return pd.DataFrame(
        {
            "step": [0, 1, 2],
            "loss": [1.0, 1 - rate, 1 - 2 * rate],
            "sharpness": [5.0, np.nan, 7.0],
            "top": [[5.0, 4.0], None, [7.0, 6.0]],
        }
    )


def make(folder):
    """Jobs a1 and b2 finished, c3 failed, d4 never ran."""
    folder.mkdir(parents=True)
    lines = [{"id": i, "overrides": {"optimizer.learning_rate": r}} for i, r in RATES.items()]
    manifest = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "manifest.jsonl").write_text(manifest, encoding="utf-8")
    for name in (*FINISHED, "c3"):
        job = folder / name
        job.mkdir()
        (job / "config.yaml").write_text(f"optimizer:\n  learning_rate: {RATES[name]}\n")
        result = (
            {"id": name, "status": "done", "steps": 3} if name != "c3" else {"status": "failed"}
        )
        (job / "result.json").write_text(json.dumps(result))
    for name in FINISHED:
        metrics(RATES[name]).to_parquet(folder / name / "metrics.parquet")
    return folder


def test_collect_has_a_row_for_each_finished_job_and_step(tmp_path):
    frame = lmech.collect(make(tmp_path / "rates"))
    columns = ["sweep", "job", "optimizer.learning_rate", "step", "loss", "sharpness", "top"]
    assert list(frame) == columns
    assert list(frame.index) == list(range(6))
    assert frame["sweep"].unique().tolist() == ["rates"]
    assert frame["job"].tolist() == ["a1"] * 3 + ["b2"] * 3
    assert frame["optimizer.learning_rate"].tolist() == [0.1] * 3 + [0.2] * 3
    assert frame["step"].tolist() == [0, 1, 2] * 2
    np.testing.assert_allclose(frame["loss"], [1, 0.9, 0.8, 1, 0.8, 0.6])


def test_collect_has_nan_where_nothing_was_measured_and_lists_for_vectors(tmp_path):
    frame = lmech.collect(str(make(tmp_path / "rates")))
    assert frame["sharpness"].isna().tolist() == [False, True, False] * 2
    assert list(frame["top"][0]) == [5, 4]
    assert frame["top"][1] is None


def test_collect_takes_every_sweep_below_a_path(tmp_path):
    for name in ("x", "deep/y"):
        make(tmp_path / name)
    frame = lmech.collect(tmp_path)
    assert frame.groupby("sweep").size().to_dict() == {"x": 6, "y": 6}
    assert sweeps(tmp_path) == [tmp_path / "deep/y", tmp_path / "x"]


def test_collect_takes_swept_values_that_are_null_or_lists(tmp_path):
    values = [None, 32, [8, 16]]
    lines = [{"id": f"j{i}", "overrides": {"model.width": v}} for i, v in enumerate(values)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        (tmp_path / line["id"]).mkdir()
        metrics(0.1).to_parquet(tmp_path / line["id"] / "metrics.parquet")
    frame = lmech.collect(tmp_path)
    assert frame["model.width"].isna().tolist() == [True] * 3 + [False] * 6
    assert frame["model.width"].tolist()[3:] == [32] * 3 + [[8, 16]] * 3


def test_collect_is_empty_where_no_job_has_metrics(tmp_path):
    line = json.dumps({"id": "a1", "overrides": {}})
    (tmp_path / "manifest.jsonl").write_text(line + "\n")
    assert lmech.collect(tmp_path).empty
    assert read_runs(tmp_path) == []


def test_jobs_have_their_status_and_are_missing_where_they_never_ran(tmp_path):
    jobs = read_jobs(make(tmp_path / "rates"))
    assert jobs["job"].tolist() == list(RATES)
    assert jobs["optimizer.learning_rate"].tolist() == list(RATES.values())
    assert jobs["status"].tolist() == ["done", "done", "failed", "missing"]
    assert jobs["ended_at"].tolist()[:2] == [3, 3]
    assert jobs["ended_at"].isna().tolist() == [False, False, True, True]


def test_runs_are_the_jobs_with_metrics_in_the_manifests_order(tmp_path):
    folder = make(tmp_path / "rates")
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    (folder / "manifest.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    runs = read_runs(folder)
    assert [run.job for run in runs] == ["b2", "a1"]
    assert runs[0].config == {"optimizer": {"learning_rate": 0.2}}
    assert runs[0].result == {"id": "b2", "status": "done", "steps": 3}
    np.testing.assert_allclose(runs[0].metrics["loss"], [1, 0.8, 0.6])


def test_a_runs_column_is_what_was_measured_by_step(tmp_path):
    run = read_runs(make(tmp_path / "rates"))[0]
    assert run.column("sharpness").to_dict() == {0: 5.0, 2: 7.0}
    with pytest.raises(KeyError, match="nothing"):
        run.column("nothing")


@pytest.mark.parametrize("folder", ["", "absent"])
def test_a_folder_without_results_is_an_error_that_names_it(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"no results at .*manifest\.jsonl") as error:
        lmech.collect(tmp_path / folder)
    assert str(tmp_path / folder) in str(error.value)


def test_collecting_imports_no_jax(tmp_path):
    make(tmp_path / "rates")
    code = "import sys, lmech; print(len(lmech.collect(sys.argv[1])), 'jax' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "6 False\n", done.stderr
