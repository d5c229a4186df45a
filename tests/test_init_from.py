"""Runs that start at another run's weights."""

import json

import numpy as np
import pytest

from lmech.cli import main

RUN = [
    *("dataset=digits", "dataset.train_size=60", "model.width=8", "observables=[loss]"),
    *("logger=none", "execution.compile_cache=false"),
]


@pytest.fixture
def source(elsewhere):
    """The id of a run of 20 steps of gradient descent with snapshots at 0 and 10."""
    assert main([*RUN, "steps=20", "snapshots=[0,10]", "name=source"]) == 0
    (folder,) = elsewhere.glob("outputs/source/*/*/weights")
    return folder.parent.name


def jobs(folder):
    """The jobs of the one sweep called run: swept value → folder."""
    (manifest,) = folder.glob("outputs/run/*/manifest.jsonl")
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    return {e["overrides"].get("init_from"): manifest.parent / e["id"] for e in entries}


def weights(job, step):
    with np.load(job / "weights" / f"{step}.npz") as arrays:
        return dict(arrays)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_ten_steps_and_ten_more_are_twenty_bit_for_bit_in_one_batch(elsewhere, source, capsys):
    """A run that starts anew shares the batch; 0 is the draw of the same seed."""
    assert main(["-m", *RUN, "steps=10", f"init_from=null,{source}@10,{source}@0"]) == 0
    found = jobs(elsewhere)
    (whole,) = elsewhere.glob("outputs/source/*/*/weights/20.npz")
    assert_same(weights(found[f"{source}@10"], 10), weights(whole.parents[1], 20))
    assert_same(weights(found[None], 10), weights(whole.parents[1], 10))
    assert_same(weights(found[f"{source}@0"], 10), weights(whole.parents[1], 10))
    assert len({job.name for job in found.values()}) == 3
    summary = json.loads((found[None].parent / "summary.json").read_text())
    assert summary["compilations"] + summary["cached_compilations"] == 1
    capsys.readouterr()
    assert main(["-m", *RUN, "steps=10", f"init_from=null,{source}@10,{source}@0"]) == 0
    assert "3 skipped" in capsys.readouterr().out


def test_the_id_is_that_of_the_bytes(elsewhere, source, capsys):
    words = [*RUN, "steps=3", f"init_from={source}@last"]
    assert main(words) == 0
    (before,) = jobs(elsewhere).values()
    (file,) = elsewhere.glob("outputs/source/*/*/weights/20.npz")
    np.savez(file, **{name: 2 * leaf for name, leaf in weights(file.parents[1], 20).items()})
    capsys.readouterr()
    assert main(["resume", str(before.parent)]) == 2
    assert "its starting weights changed" in capsys.readouterr().err
    assert main(words) == 0
    assert len(list(elsewhere.glob("outputs/run/*/*/metrics.parquet"))) == 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("init_from={source}", "write <job>@<step> or <job>@last"),
        ("init_from=123@5", "no job 123 in outputs has weights"),
        ("init_from={source}@7", "has no weights of step 7; there are 0, 10, 20"),
        ("model.width=9", "hidden_1/bias is [8] in outputs/source"),
        ("model.depth=1", "hidden_2/bias is [8] in outputs/source"),
        ("model.depth=3", "hidden_3/bias is no such tensor in outputs/source"),
    ],
)
def test_a_wrong_start_is_one_line_before_anything_is_written(
    elsewhere, source, capsys, override, told
):
    start = [] if "init_from" in override else [f"init_from={source}@10"]
    capsys.readouterr()
    assert main([*RUN, "steps=3", override.format(source=source), *start]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not list(elsewhere.glob("outputs/run"))
