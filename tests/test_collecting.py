"""Reading a sweep's folder back, made here by hand."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import lmech
from lmech.cli import main
from lmech.collecting import read_jobs, read_runs, sweeps
from lmech.values import ConfigError

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
    labels = ["sweep", "job", "optimizer.learning_rate", "status"]
    assert list(frame) == [*labels, "step", "loss", "sharpness", "top"]
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


def test_collect_says_which_runs_diverged(tmp_path):
    folder = make(tmp_path / "rates")
    (folder / "b2" / "result.json").write_text(json.dumps({"status": "diverged", "steps": 2}))
    assert lmech.collect(folder)["status"].tolist() == ["done"] * 3 + ["diverged"] * 3


def test_collect_reads_the_columns_that_are_asked_for_in_that_order(tmp_path):
    folder = make(tmp_path / "rates")
    labels = ["sweep", "job", "optimizer.learning_rate", "status", "step"]
    for asked in (["sharpness", "loss"], ["loss"], ["step"], []):
        frame = lmech.collect(folder, columns=asked)
        assert list(frame) == labels + [name for name in asked if name != "step"]
        pd.testing.assert_frame_equal(frame, lmech.collect(folder)[list(frame)])
    assert list(lmech.collect(folder, columns=["status", "top", "top"])) == [*labels, "top"]


def test_a_column_is_not_taken_for_another_whose_name_begins_like_it(tmp_path):
    folder = make(tmp_path / "rates")
    table = metrics(0.1).assign(**{"loss.test": 9.0})
    table.to_parquet(folder / "a1" / "metrics.parquet")
    assert "loss.test" not in lmech.collect(folder, columns=["loss"])


def test_collect_takes_a_column_that_only_some_jobs_have(tmp_path):
    folder = make(tmp_path / "rates")
    metrics(0.2).assign(extra=np.float32(1)).to_parquet(folder / "b2" / "metrics.parquet")
    frame = lmech.collect(folder, columns=["extra"])
    assert frame["extra"].isna().tolist() == [True] * 3 + [False] * 3
    assert frame["extra"].dtype == np.float32
    assert frame["step"].dtype == np.int64


def test_collect_takes_the_wider_of_two_precisions(tmp_path):
    folder = make(tmp_path / "rates")
    single = metrics(0.2).astype({"loss": np.float32, "sharpness": np.float32})
    single.to_parquet(folder / "b2" / "metrics.parquet")
    assert lmech.collect(folder)["loss"].dtype == np.float64


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (1, [1]),
        ([2, 0], [0, 2]),
        (range(0, 3, 2), [0, 2]),
        (np.arange(1, 9), [1, 2]),
        (slice(None, 2), [0, 1]),
        (slice(1, None), [1, 2]),
        (slice(0, 1000, 2), [0, 2]),
        ([], []),
        (7, []),
        ("last", [2]),
    ],
)
def test_collect_keeps_the_steps_that_are_asked_for(tmp_path, asked, found):
    folder = make(tmp_path / "rates")
    frame = lmech.collect(folder, steps=asked)
    assert frame["step"].tolist() == found * 2
    every = lmech.collect(folder)
    kept = every[every["step"].isin(found)].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, kept, check_dtype=len(found) > 0)


def test_the_last_row_is_each_jobs_own_and_null_where_nothing_was_measured(tmp_path):
    folder = make(tmp_path / "rates")
    metrics(0.2).head(2).to_parquet(folder / "b2" / "metrics.parquet")
    frame = lmech.collect(folder, steps="last")
    assert frame["step"].tolist() == [2, 1]
    assert frame["sharpness"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            {"columns": ["lss"]},
            r"no column 'lss'; did you mean 'loss'\? \(there are sweep, .*top\)",
        ),
        ({"columns": "loss"}, r"write a list, columns=\['loss'\]"),
        ({"steps": "lst"}, "steps='lst': write a step, several"),
        ({"steps": 0.5}, "steps=0.5: write"),
        ({"steps": [0.5]}, r"steps=\[0.5\]: write"),
        ({"steps": slice(-3, None)}, "a slice of steps from 0 up"),
    ],
)
def test_what_cannot_be_collected_is_an_error_in_one_line(tmp_path, asked, told):
    with pytest.raises(ConfigError, match=told) as error:
        lmech.collect(make(tmp_path / "rates"), **asked)
    assert "\n" not in str(error.value)


def test_a_name_for_a_number_here_and_a_list_there_is_an_error_in_one_line(tmp_path):
    folder = make(tmp_path / "rates")
    metrics(0.2).assign(loss=[[1.0]] * 3).to_parquet(folder / "b2" / "metrics.parquet")
    with pytest.raises(ConfigError, match=r"loss.*one by one, or name columns") as error:
        lmech.collect(folder)
    assert "\n" not in str(error.value)
    assert len(lmech.collect(folder, columns=["sharpness"])) == 6


def test_collecting_reads_no_config(tmp_path):
    folder = make(tmp_path / "rates")
    before = lmech.collect(folder)
    for path in folder.glob("*/config.yaml"):
        path.write_text("][")
    pd.testing.assert_frame_equal(lmech.collect(folder), before)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_written_table_has_lists_as_json_text_where_the_format_has_none(tmp_path, suffix):
    folder = make(tmp_path / "rates")
    lines = [{"id": "a1", "overrides": {"w": [8, 16]}}, {"id": "b2", "overrides": {"w": 32}}]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = tmp_path / f"all{suffix}"
    assert main(["collect", str(folder), "--to", str(file)]) == 0
    back = pd.read_csv(file) if suffix == ".csv" else pd.read_parquet(file)
    assert back["w"].map(json.loads).tolist() == [[8, 16]] * 3 + [32] * 3
    top = back["top"].map(json.loads, na_action="ignore") if suffix == ".csv" else back["top"]
    assert list(top[2]) == [7, 6]
    assert back["top"].isna().tolist() == [False, True, False] * 2


def test_the_command_line_names_columns_and_steps(tmp_path, capsys):
    folder = str(make(tmp_path / "rates"))
    file = tmp_path / "all.csv"
    for text, steps in (("last", [2]), ("0,2", [0, 2]), ("0:1000:2", [0, 2]), ("1:", [1, 2])):
        words = ["--columns", "loss,sharpness", "--steps", text, "--to", str(file)]
        assert main(["collect", folder, *words]) == 0
        frame = pd.read_csv(file)
        assert frame["step"].tolist() == steps * 2
        assert list(frame)[-3:] == ["step", "loss", "sharpness"]
    for words, told in (
        (["--steps", "a:b"], "--steps a:b: write last, 0,100 or 0:1000:10"),
        (["--steps", "1:2:3:4"], "write last"),
        (["--columns", "lss"], "did you mean 'loss'?"),
        (["--to", "all.txt"], "ends in .parquet or .csv"),
    ):
        capsys.readouterr()
        assert main(["collect", folder, *words]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


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
