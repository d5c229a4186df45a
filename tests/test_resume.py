"""A batch that is cut off goes on from its last state as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from problems import job

from lmech import building, checkpoints, engine, running
from lmech.checkpoints import merged
from lmech.cli import main
from lmech.lanes import Record, Saved
from lmech.recorder import Recorder
from lmech.stopping import Due, StoppedError

WORDS = [
    *("-m", "dataset=digits", "dataset.train_size=60", "model.width=8", "steps=40"),
    *("optimizer=adam", "batch_size=20", "observables=[loss,sharpness]", "logger=none"),
    *("observables.sharpness.every=10", "execution.chunk=7", "seed=0,1"),
]


def events(batch, **options):
    return list(engine.train(*batch, **options))


def tables(found, members):
    """Each member's table as bytes: not a number is equal to itself."""
    recorder = Recorder(members)
    for event in found:
        if isinstance(event, Record):
            recorder.add(event)
    return [serialized(recorder.table(member)) for member in range(members)]


def serialized(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_from_every_saved_state_the_rest_is_bit_for_bit_the_same(mode):
    """Adam, minibatches, a tracker's memory, past iterates, a member that diverges."""
    overrides = [
        *("optimizer=adam", "batch_size=20", "observables=[loss,sharpness,midpoints]"),
        *("observables.sharpness.every=5", "observables.midpoint_sharpness.every=5"),
        *("observables.midpoint_loss.every=1", "execution.chunk=4", f"execution.mode={mode}"),
    ]
    batch = building.build([job(*overrides, f"optimizer.learning_rate={r}") for r in (0.01, 1e30)])
    whole = events(batch)
    saving = events(batch, save=lambda: True)
    assert tables(whole, 2) == tables(saving, 2)
    states = [i for i, event in enumerate(saving) if isinstance(event, Saved)]
    assert len(states) >= 3
    for i in states:
        rest = events(batch, saved=saving[i])
        assert tables(saving[:i] + rest, 2) == tables(whole, 2)
        for a, b in zip(jax.tree.leaves(rest[-1]), jax.tree.leaves(whole[-1]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("x64")
def test_merged_records_have_the_same_rows():
    batch = building.build([job("observables=[loss,sharpness]", "execution.chunk=3")])
    records = [event for event in events(batch) if isinstance(event, Record)]
    assert len(merged(records)) < len(records)
    assert tables(merged(records), 1) == tables(records, 1)


class Cut(BaseException):
    """Stands for a kill."""


def cut_after(monkeypatch, saves):
    """The run ends without another word after so many saved states."""
    write, left = checkpoints.write, [saves]

    def last(*arguments):
        parts = write(*arguments)
        left[0] -= 1
        if left[0] == 0:
            raise Cut
        return parts

    monkeypatch.setattr(checkpoints, "write", last)


def files(folder):
    """What a sweep leaves, but for what states times."""
    kept = ("metrics.parquet", "result.json", "config.yaml", ".npz")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(kept)
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(WORDS) == 0
    return files(folder)


def test_a_run_that_was_cut_off_leaves_the_same_bytes(elsewhere, monkeypatch, uninterrupted):
    words = [*WORDS, "execution.save_every=0"]
    for saves in (2, 1):
        with monkeypatch.context() as patch:
            cut_after(patch, saves)
            with pytest.raises(Cut):
                main(words)
        assert list(elsewhere.glob("outputs/*/*/batches/*/state.npz"))
        assert not list(elsewhere.glob("outputs/*/*/*/result.json"))
    assert main(words) == 0
    found = files(elsewhere)
    assert found.keys() == uninterrupted.keys()
    for name, content in found.items():
        if name.endswith("config.yaml"):
            assert content.replace(b"save_every: 0.0", b"save_every: 30.0") == uninterrupted[name]
        else:
            assert content == uninterrupted[name], name
    assert not list(elsewhere.glob("outputs/*/*/batches/*"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated state", "truncated part", "missing part", "other"])
def test_a_state_that_cannot_be_read_fails_its_batch_with_one_line_and_stays(
    elsewhere, monkeypatch, capsys, damage
):
    words = [*WORDS, "execution.save_every=0"]
    with monkeypatch.context() as patch:
        cut_after(patch, 2)
        with pytest.raises(Cut):
            main(words)
    (state,) = elsewhere.glob("outputs/*/*/batches/*/state.npz")
    part = state.with_name("part-00000.npz")
    broken = part if "part" in damage else state
    content = broken.read_bytes()
    if damage == "missing part":
        part.unlink()
    elif damage == "other":
        np.savez(state, head=np.asarray(json.dumps({"step": 7, "parts": 0, "leaves": 0})))
    else:
        broken.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert main(words) == 1
    told = capsys.readouterr().out
    assert str(state.parent.relative_to(elsewhere)) in told
    assert "to start over" in told
    assert state.is_file()
    shutil.rmtree(state.parent)
    assert main(words) == 0


def test_going_on_under_another_execution_record_is_said(elsewhere, monkeypatch, capsys):
    words = [*WORDS, "execution.save_every=0"]
    with monkeypatch.context() as patch:
        cut_after(patch, 1)
        with pytest.raises(Cut):
            main(words)
    record = running.provenance()
    monkeypatch.setattr(running, "provenance", lambda: {**record, "threads": 999})
    assert main(words) == 0
    assert "goes on from step 7 with another threads" in capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in elsewhere.glob("outputs/*/*/*/result.json")]
    assert [result["provenance"]["resumed"]["step"] for result in results] == [7, 7]


@pytest.mark.parametrize(
    "when", ["after two states", pytest.param("at once", marks=pytest.mark.slow)]
)
def test_a_guilty_job_ends_up_alone_and_the_others_have_what_they_would_have_had(
    elsewhere, monkeypatch, capsys, when
):
    """Three of four jobs go on from the last state of the batch that failed."""
    train, resumed = engine.train, []

    def fails(program, inputs, *rest, saved=None, **more):
        resumed.append(None if saved is None else saved.step)
        guilty = 7 in np.asarray(inputs.seeds["init"]) or len(inputs.horizon) > 2
        left = 2 if when == "after two states" and len(resumed) == 1 else 0
        for event in train(program, inputs, *rest, saved=saved, **more):
            if guilty and left == 0:
                raise RuntimeError("the lamp is broken")
            yield event
            left -= guilty and isinstance(event, Saved)

    monkeypatch.setattr(engine, "train", fails)
    words = [*WORDS[:-1], "seeds.init=0,1,7,2", "seeds.batches=0", "execution.save_every=0"]
    assert main(words) == 1
    assert "3 done, 1 failed" in capsys.readouterr().out
    (trace,) = elsewhere.glob("outputs/*/*/*/error.txt")
    assert "the lamp is broken" in trace.read_text()
    results = {
        path.parent.name: json.loads(path.read_text())["status"]
        for path in elsewhere.glob("outputs/*/*/*/result.json")
    }
    assert results.pop(trace.parent.name) == "failed"
    assert set(results.values()) == {"done"}
    assert [step is not None for step in resumed[1:3]] == [when == "after two states"] * 2
    monkeypatch.setattr(engine, "train", train)
    found = files(elsewhere)
    assert main([*words, "output=alone"]) == 0
    alone = files(elsewhere / "alone")
    for name, content in alone.items():
        if name.endswith(("parquet", "npz")) and trace.parent.name not in name:
            assert found[f"outputs/{name}"] == content, name
    assert not list(elsewhere.glob("outputs/*/*/batches/*"))


def start(folder, *more):
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "lmech", *WORDS, "execution.save_every=0", *more]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_state(folder, process):
    while process.poll() is None and not list(folder.glob("outputs/*/*/batches/*/state.npz")):
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_on_one_sweep_share_its_batches(elsewhere, uninterrupted):
    """Two programs, so two batches; whoever is done first waits for the other."""
    words = ("model.width=8,9",)
    pair = [start(elsewhere, *words) for _ in range(2)]
    for process in pair:
        process.communicate(timeout=300)
        assert process.returncode == 0
    found = files(elsewhere)
    assert len([name for name in found if name.endswith("metrics.parquet")]) == 4
    parquet = sorted(content for name, content in found.items() if name.endswith("parquet"))
    assert {c for name, c in uninterrupted.items() if name.endswith("parquet")} <= set(parquet)
    assert not list(elsewhere.glob("outputs/*/*/batches/*"))


def test_a_signal_after_it_was_decided_to_go_on_waits_for_the_next_state():
    due = Due(0)
    assert due()
    due.stop(signal.SIGUSR1)
    assert not due.last()
    due.saved(3)
    assert due()
    assert due.last()
    with pytest.raises(StoppedError, match="stopped by SIGUSR1 at step 4"):
        due.saved(4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_exits_with_75(elsewhere, name):
    process = start(elsewhere, "steps=100000")
    wait_for_state(elsewhere, process)
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75
    assert f"stopped by {name} at step" in error
    assert list(elsewhere.glob("outputs/*/*/batches/*/state.npz"))


@pytest.mark.slow
def test_killed_at_random_moments_it_leaves_the_same_bytes(elsewhere, uninterrupted):
    """kill −9 twenty times, anywhere from the start of the process to its end, then once through.

    It may die often enough in a row to be given up, which ``rerun=failed`` takes back.
    """
    moments, kills = random.Random(0), 0
    process = start(elsewhere / "timed")
    started = time.monotonic()
    process.communicate(timeout=300)
    assert process.returncode == 0
    whole = time.monotonic() - started
    for _ in range(100):
        process = start(elsewhere, "rerun=failed")
        try:
            process.communicate(timeout=moments.uniform(0, whole) if kills < 20 else 300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        if process.returncode == 0 and kills < 20:  # it got through: again from the start
            shutil.rmtree(elsewhere / "outputs")
        elif process.returncode == 0:
            break
    assert kills == 20
    found = files(elsewhere / "outputs")
    expected = {name.removeprefix("outputs/"): content for name, content in uninterrupted.items()}
    assert found.keys() == expected.keys()
    for name, content in found.items():
        if not name.endswith("config.yaml"):
            assert content == expected[name], name
