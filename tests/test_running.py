"""A sweep on disk: what is run again, what never is, what a failure leaves, what is fixed."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from accidents import cut

from lmech import checkpoints, engine, journal, manifest, provenance, running, training, tuning
from lmech.cli import main
from lmech.lanes import Saved

RUN = [
    *("dataset=chebyshev", "observables=[loss]", "model.width=6", "steps=8"),
    *("execution.chunk=2", "execution.mode=map", "logger=none"),
]


def only(folder):
    (sweep,) = folder.glob("outputs/run/*")
    return sweep


def numbers(sweep):
    return {entry["id"]: entry["batch"] for entry in manifest.read(sweep)}


def results(sweep):
    return {path.parent.name: path.read_bytes() for path in sweep.glob("*/result.json")}


def parquet(sweep):
    return {path.parent.name: path.read_bytes() for path in sweep.glob("*/metrics.parquet")}


def programs(sweep):
    summary = json.loads((sweep / "summary.json").read_text())
    return summary["compilations"] + summary["cached_compilations"]


def test_what_is_done_again_overwrites_nothing_and_has_numbers_of_its_own(elsewhere):
    words = ["-m", *RUN, "seed=0,1"]
    assert main(words) == 0
    sweep = only(elsewhere)
    first = results(sweep)
    assert set(numbers(sweep).values()) == {0}
    for again in (1, 2):
        assert main([*words, "rerun=all"]) == 0
        assert set(numbers(sweep).values()) == {again}
        old = {path.parent.name for path in (sweep / "previous" / str(again)).glob("*/result.json")}
        assert old == first.keys()
    assert results(sweep / "previous" / "1") == first


def test_a_job_that_another_sweep_has_finished_is_taken_from_there(elsewhere, capsys):
    assert main(["-m", *RUN, "seed=0,1"]) == 0
    before = only(elsewhere)
    kept = results(before)
    capsys.readouterr()
    assert main(["plan", "-m", *RUN, "seed=0,1,2"]) == 0
    assert "3, of which 2 finished" in capsys.readouterr().out
    assert main(["-m", *RUN, "seed=0,1,2"]) == 0
    assert "1 done, 2 skipped" in capsys.readouterr().out
    (after,) = set(elsewhere.glob("outputs/run/*")) - {before}
    assert kept.items() <= results(after).items()
    assert len(manifest.read(after)) == 3
    assert main(["-m", *RUN, "seed=1,0", "name=other"]) == 0
    assert "2 skipped" in capsys.readouterr().out


def test_so_many_lanes_make_so_many_batches_of_one_program(elsewhere):
    assert main(["-m", *RUN, "seed=range(5)", "execution.lanes=2"]) == 0
    sweep = only(elsewhere)
    assert sorted(numbers(sweep).values()) == [0, 0, 1, 1, 2]
    assert programs(sweep) == 1
    assert {entry["execution"]["lanes"] for entry in manifest.read(sweep)} == {2}


def test_horizons_more_than_four_times_apart_share_a_program_and_no_batch(elsewhere):
    assert main(["-m", *RUN, "steps=2,8,9,40"]) == 0
    sweep = only(elsewhere)
    batches = {entry["overrides"]["steps"]: entry["batch"] for entry in manifest.read(sweep)}
    assert batches == {2: 0, 8: 0, 9: 1, 40: 2}
    assert programs(sweep) == 1


def failing(monkeypatch, guilty, error):
    """Training raises for batches with these seeds."""
    train = engine.train

    def fails(program, inputs, *rest, **more):
        if guilty & set(np.asarray(inputs.seeds["init"]).tolist()):
            raise error
        return train(program, inputs, *rest, **more)

    monkeypatch.setattr(engine, "train", fails)


def test_one_bad_job_of_many_leaves_the_others_done(elsewhere, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        failing(patch, {11}, RuntimeError("the lamp is broken"))
        assert main(["-m", *RUN, "seed=range(16)"]) == 1
    told = capsys.readouterr().out
    assert "15 done, 1 failed" in told
    assert told.count("the lamp is broken") == 1
    (trace,) = elsewhere.glob("outputs/run/*/*/error.txt")
    assert "Traceback" in trace.read_text()
    assert main(["-m", *RUN, "seed=range(16)"]) == 1
    assert main(["-m", *RUN, "seed=range(16)", "rerun=failed"]) == 0
    assert "1 done, 15 skipped" in capsys.readouterr().out


@pytest.mark.usefixtures("elsewhere")
def test_on_failure_stop_leaves_the_batches_that_are_not_begun(monkeypatch, capsys):
    words = ["-m", *RUN, "seed=range(4)", "execution.lanes=1"]
    with monkeypatch.context() as patch:
        failing(patch, {1}, RuntimeError("the lamp is broken"))
        assert main([*words, "on_failure=stop"]) == 1
    assert "1 done, 1 failed, 2 missing" in capsys.readouterr().out
    assert main([*words, "rerun=failed"]) == 0


@pytest.mark.usefixtures("elsewhere")
def test_short_memory_halves_the_lanes(monkeypatch):
    lanes, train = [], engine.train

    def exhausted(program, inputs, *rest, **more):
        lanes.append(more["lanes"])
        if more["lanes"] > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return train(program, inputs, *rest, **more)

    monkeypatch.setattr(engine, "train", exhausted)
    assert main(["-m", *RUN, "seed=range(6)"]) == 0
    assert lanes[:2] == [6, 3]
    assert max(lanes[2:]) == 3
    assert set(lanes) == {6, 3, 1}


def test_short_memory_gives_a_cpus_devices_back_before_it_halves(elsewhere, monkeypatch):
    tried, train = [], engine.train

    def exhausted(program, *rest, **more):
        tried.append((program.devices, more["lanes"]))
        if program.devices > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return train(program, *rest, **more)

    monkeypatch.setattr(engine, "train", exhausted)
    monkeypatch.setattr(tuning, "fastest", lambda setup, *_: replace(setup.program, devices=2))
    assert main(["-m", *RUN, "execution.mode=auto", "seed=range(6)"]) == 0
    assert tried == [(2, 6), (1, 6)]
    told = [json.loads(text) for text in results(only(elsewhere)).values()]
    assert {result["provenance"]["devices"] for result in told} == {1}


@pytest.mark.parametrize(
    ("execution", "asked"),
    [
        ({"mode": "auto"}, True),
        ({"mode": "map"}, False),
        ({"mode": "auto", "devices": 1}, False),
        ({"mode": "auto", "processes": 2}, False),
    ],
)
def test_mode_auto_asks_for_a_device_a_core_whatever_its_jobs(monkeypatch, execution, asked):
    """So that a task of one job decides for the others' batches as they would."""
    seen = []
    monkeypatch.setattr(running.compiling, "device_a_core", lambda: seen.append(True))
    running._prepare({"devices": None, "compile_cache": False, **execution})
    assert bool(seen) is asked


def test_a_batch_that_dies_again_and_again_is_given_up_with_its_log(elsewhere, capsys):
    words = ["-m", *RUN, "seed=0,1"]
    assert main([*words, "rerun=all"]) == 0
    sweep = only(elsewhere)
    for path in sweep.glob("*/result.json"):
        path.unlink()
    for _ in range(journal.DEATHS):
        journal.write(sweep / "batches" / "0", f"{journal.BEGINS} (host, process 1)")
    capsys.readouterr()
    assert main(words) == 1
    told = capsys.readouterr().out
    assert "2 failed" in told
    assert "died without an exception" in told
    for trace in sweep.glob("*/error.txt"):
        assert "(host, process 1)" in trace.read_text()
    assert main([*words, "rerun=failed"]) == 0


def test_deaths_count_only_in_a_row(tmp_path):
    for text in ("begins (a)", "begins (a)", "saved at step 3", "begins (a)", "begins (a)"):
        journal.write(tmp_path, text)
    journal.begin(tmp_path)
    with pytest.raises(journal.GivenUpError, match="3 times in a row"):
        journal.begin(tmp_path)


def test_a_crash_of_the_process_leaves_its_stack_in_the_log(tmp_path):
    code = (
        "import faulthandler, sys; from pathlib import Path; from lmech import journal\n"
        "with journal.crashes(Path(sys.argv[1])): faulthandler._sigsegv()"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode < 0
    assert "Segmentation fault" in (tmp_path / journal.LOG).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["write", "write_job"])
def test_a_full_disk_stops_with_one_line_and_the_same_command_goes_on(
    elsewhere, monkeypatch, capsys, what
):
    words = ["-m", *RUN, "seed=0,1", "execution.save_every=0"]
    assert main([*words, "output=whole"]) == 0
    with monkeypatch.context() as patch:
        module = checkpoints if what == "write" else running.results
        whole, calls = getattr(module, what), []

        def full(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device", "x")
            return whole(*arguments)

        patch.setattr(module, what, full)
        assert main(words) == 75
    error = capsys.readouterr().err
    assert "No space left on device: 'x': make room" in error
    assert error.count("\n") == 1
    assert main(words) == 0
    (whole,) = elsewhere.glob("whole/run/*")
    assert parquet(only(elsewhere)) == parquet(whole)


def test_resume_goes_on_from_the_folder_alone(elsewhere, monkeypatch, capsys):
    words = ["-m", *RUN, "seed=0,1", "execution.save_every=0"]
    assert main([*words, "output=whole"]) == 0
    with monkeypatch.context() as patch, pytest.raises(cut(patch)):
        main(words)
    sweep = only(elsewhere)
    assert main(["resume", str(sweep), "execution.save_every=9"]) == 0
    assert "2 done" in capsys.readouterr().out
    (whole,) = elsewhere.glob("whole/run/*")
    assert parquet(sweep) == parquet(whole)
    assert (sweep / "report.html").is_file()
    assert main(["resume", str(sweep)]) == 0
    assert "2 skipped" in capsys.readouterr().out
    assert main(["resume", str(sweep), "seed=5"]) == 2
    assert main(["resume", str(elsewhere)]) == 2


DATASET = """
import numpy as np
from lmech.datasets import Data, Examples

def mine():
    x = np.load("x.npy")
    return Data(Examples(x, x), Examples(x, x))
"""


@pytest.mark.parametrize("what", ["data", "source"])
def test_what_changed_since_the_manifest_is_said(elsewhere, capsys, what):
    name = f"dataset_{what}"
    (elsewhere / f"{name}.py").write_text(DATASET)
    np.save("x.npy", np.ones((5, 1)))
    words = [*RUN, f"dataset._target_={name}.mine"]
    assert main(words) == 0
    sweep = only(elsewhere)
    if what == "data":
        np.save("x.npy", np.zeros((5, 1)))
    else:
        (elsewhere / f"{name}.py").write_text(DATASET + "\n# another word\n")
    for room in (running.planning._load, running.planning._data_checksum):
        room.cache_clear()
    running.planning._source.cache_clear()
    capsys.readouterr()
    assert main(["resume", str(sweep)]) == 2
    error = capsys.readouterr().err
    assert f"its {'data' if what == 'data' else 'sources'} changed" in error
    assert main(words) == 0
    assert len(list(elsewhere.glob("outputs/run/*"))) == 2


def test_the_manifest_fixes_how_a_batch_runs(elsewhere, monkeypatch):
    """Whoever goes on uses the mode and lanes that were chosen at first, whatever is best now."""
    words = ["-m", *RUN[:-2], "logger=none", "seed=0,1,2", "execution.save_every=0"]
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "lanes", lambda *_: 2)
        patch.setattr(tuning, "fastest", lambda batch, *_: batch.program)
        with pytest.raises(cut(patch)):
            main(words)
    before = manifest.read(only(elsewhere))
    monkeypatch.setattr(tuning, "lanes", lambda *_: 1)
    assert main(words) == 0
    after = manifest.read(only(elsewhere))
    for old, new in zip(before, after, strict=True):
        assert (old["batch"], old["execution"]) == (new["batch"], new["execution"])
    assert [entry["batch"] for entry in after] == [0, 0, 1]


def begun(monkeypatch, words):
    """The command is cut off after its second state."""
    with monkeypatch.context() as patch:
        gone = cut(patch)
        with pytest.raises(gone):
            main(words)


def test_a_state_is_gone_on_from_under_other_snapshots(elsewhere, monkeypatch):
    """The chunks of the two runs end at different steps."""
    words = [*RUN, "steps=9", "execution.save_every=0"]
    assert main([*words, "output=whole"]) == 0
    begun(monkeypatch, [*words, "snapshots=[3]"])
    assert main([*words, "snapshots=[7]"]) == 0
    (whole,) = elsewhere.glob("whole/run/*")
    assert parquet(only(elsewhere)) == parquet(whole)
    (job,) = only(elsewhere).glob("*/weights")
    assert {path.stem for path in job.glob("*.npz")} >= {"7", "9"}


def test_each_job_keeps_the_snapshots_that_it_asked_for(elsewhere, capsys):
    assert main(["-m", *RUN, "snapshots=[3],[5]", "seed=0"]) == 2  # one training, asked for twice
    jobs = [*RUN, "execution.chunk=8"]
    for seed, step in ((0, 3), (1, 5)):
        assert main([*jobs, f"seed={seed}", f"snapshots=[{step}]"]) == 0
    kept = [
        {path.stem for path in folder.glob("*.npz")}
        for folder in elsewhere.glob("outputs/run/*/*/weights")
    ]
    assert sorted(map(sorted, kept)) == [["3", "8"], ["5", "8"]]
    capsys.readouterr()
    assert main([*jobs, "seed=1", "snapshots=[5]"]) == 0
    assert "1 skipped" in capsys.readouterr().out


def test_a_job_taken_over_can_be_asked_for_more(elsewhere):
    """Its line names no batch; another snapshot makes it one to do."""
    assert main(["-m", *RUN, "seed=0,1"]) == 0
    assert main(["-m", *RUN, "seed=0,1,2"]) == 0
    assert main(["-m", *RUN, "seed=0,1,2", "snapshots=[4]"]) == 0
    assert len(list(elsewhere.glob("outputs/run/*/*/weights/4.npz"))) == 3


@pytest.mark.slow
def test_taking_over_a_job_removes_no_result(elsewhere):
    """A sweep's own columns stay, though another has the job with the column asked for."""
    assert main([*RUN, "seed=0", "observables=[loss,weights]"]) == 0
    own = only(elsewhere)
    assert main(["-m", *RUN, "seed=0,1", "observables=[loss,trace]"]) == 0
    assert main([*RUN, "seed=0", "observables=[loss,trace]"]) == 0
    (table,) = own.glob("*/metrics.parquet")
    assert {"weight_norm", "trace"} <= set(pq.read_table(table).column_names)


@pytest.mark.slow
def test_a_rerun_for_a_column_goes_on_after_a_kill(elsewhere, monkeypatch):
    """The old columns are measured again beside the new one; whoever goes on knows."""
    assert main(["-m", *RUN, "seed=0,1", "observables=[loss,weights]"]) == 0
    words = ["-m", *RUN, "seed=0,1", "observables=[loss,trace]", "execution.save_every=0"]
    begun(monkeypatch, words)
    before = numbers(only(elsewhere))
    resumed = []
    train = engine.train
    monkeypatch.setattr(
        engine,
        "train",
        lambda *a, **more: (resumed.append(more["saved"] is not None), train(*a, **more))[1],
    )
    assert main(words) == 0
    assert numbers(only(elsewhere)) == before
    assert resumed == [True]


def test_resume_does_not_do_again_what_was_asked_for_again(elsewhere, capsys):
    assert main(["-m", *RUN, "seed=0,1"]) == 0
    assert main(["-m", *RUN, "seed=0,1", "rerun=all"]) == 0
    capsys.readouterr()
    assert main(["resume", str(only(elsewhere))]) == 0
    assert "2 skipped" in capsys.readouterr().out


def test_a_half_goes_on_from_its_own_state_after_a_kill(elsewhere, monkeypatch):
    """Of four jobs one is guilty; the kill comes while the last good one runs alone."""
    words = ["-m", *RUN, "seed=0,1,2,3", "execution.save_every=0"]
    steps, train = [], engine.train

    class Gone(BaseException):
        pass

    def fails(program, inputs, *rest, **more):
        own = np.asarray(inputs.seeds["init"]).tolist()
        saved = more["saved"]
        steps.append((own, None if saved is None else saved.step))
        for event in train(program, inputs, *rest, **more):
            if 3 in own and isinstance(event, Saved) and event.step >= 4:
                raise RuntimeError("the lamp is broken")
            yield event
            if alive and own == [2] and isinstance(event, Saved) and event.step == 6:
                raise Gone

    monkeypatch.setattr(engine, "train", fails)
    alive = True
    with pytest.raises(Gone):
        main(words)
    alive, steps[:] = False, []
    assert main(words) == 1
    began = {tuple(own): step for own, step in steps}
    assert began[(2,)] > began[(3,)]
    statuses = [json.loads(text)["status"] for text in results(only(elsewhere)).values()]
    assert sorted(statuses) == ["done", "done", "done", "failed"]
    assert not (only(elsewhere) / "batches").exists()


def test_a_job_asked_for_again_starts_beside_those_that_go_on(elsewhere, monkeypatch):
    """A state of the others is not thrown away because one job joins them."""
    words = ["-m", *RUN, "seed=0,1,2", "execution.save_every=0"]
    with monkeypatch.context() as patch:
        failing(patch, {2}, RuntimeError("the lamp is broken"))
        assert main(words) == 1
    sweep = only(elsewhere)
    for job in [
        job for job, text in results(sweep).items() if json.loads(text)["status"] == "done"
    ]:
        (sweep / job / "result.json").unlink()
    begun(monkeypatch, words)
    saved = []
    train = engine.train
    monkeypatch.setattr(
        engine,
        "train",
        lambda *a, **more: (
            saved.append((len(a[1].horizon), more["saved"] is not None)),
            train(*a, **more),
        )[1],
    )
    assert main([*words, "rerun=failed"]) == 0
    assert sorted(saved) == [(1, False), (2, True)]


def test_short_memory_gives_up_empty_lanes_before_it_fails_a_job(elsewhere, monkeypatch):
    lanes, train = [], engine.train

    def exhausted(program, inputs, *rest, **more):
        lanes.append((len(inputs.horizon), more["lanes"]))
        if more["lanes"] > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return train(program, inputs, *rest, **more)

    monkeypatch.setattr(engine, "train", exhausted)
    assert main(["-m", *RUN, "seed=range(5)", "execution.lanes=4"]) == 0
    assert (1, 4) in lanes
    assert len(results(only(elsewhere))) == 5


def test_another_machine_in_between_is_not_forgotten():
    record = {"threads": 4, "mode": "map"}
    first = training._resumption(checkpoint({"threads": 8, "mode": "map"}, 10), record)
    assert first == {"resumed": {"step": 10, "changed": {"threads": [8, 4]}}}
    again = training._resumption(checkpoint({**record, **first}, 20), record)
    assert again == first
    assert training._resumption(checkpoint(record, 20), record) == {}


def checkpoint(execution, step):
    return checkpoints.Checkpoint(Saved(step, None, None, {}), [], range(0), [], execution)


KILLED = """
import os, sys
from lmech import checkpoints, cli
write, written = checkpoints.write, []
def last(*given):
    done = write(*given)
    written.append(1)
    len(written) == 2 and os._exit(9)
    return done
checkpoints.write = last
"""
BOTH = """
from dataclasses import replace
from lmech import tuning
tuning.fastest = lambda setup, most, memo: replace(setup.program, mode="vmap", devices=most)
"""
COMMAND = """
import sys
from lmech import cli
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [False, True])
def test_on_two_devices_a_killed_sweep_goes_on(elsewhere, chosen):
    """Three jobs in four lanes; in processes of their own, since devices are asked for at first.

    Where they were chosen, whoever goes on has them by the manifest.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["-m", *RUN, "seed=0,1,2", "execution.save_every=0"]
    words += ["execution.mode=auto"] if chosen else ["execution.devices=2"]

    def run(code, *more):
        command = [sys.executable, "-c", code, *words, *more]
        return subprocess.run(command, cwd=elsewhere, env=environment, check=False).returncode

    first = BOTH if chosen else ""
    assert run(first + COMMAND, "output=whole") == 0
    assert run(first + KILLED + COMMAND) == 9
    assert run(COMMAND) == 0
    (whole,) = elsewhere.glob("whole/run/*")
    assert parquet(only(elsewhere)) == parquet(whole)
    devices = {entry["execution"]["devices"] for entry in manifest.read(only(elsewhere))}
    assert devices == {provenance.threads() if chosen else 2}


@pytest.mark.slow
def test_720_jobs_over_five_widths_are_five_training_programs(elsewhere):
    """Widths are shapes; parametrizations, learning rates and seeds are inputs."""
    (elsewhere / "table.py").write_text(
        "import jax\nfrom lmech.parametrization import Scales\n"
        "def of(c):\n"
        "    def scales(model):\n"
        "        one = jax.tree.map(lambda _: 1.0, model.shapes)\n"
        "        scaled = jax.tree.map(lambda _: c, model.shapes)\n"
        "        return Scales(scaled, one, scaled)\n"
        "    return scales\n"
        "def small():\n    return of(0.5)\n"
        "def one():\n    return of(1.0)\n"
        "def large():\n    return of(2.0)\n"
    )
    assert (
        main(
            [
                *("-m", *RUN, "steps=2", "model.width=2,3,4,5,6", "seed=range(4)"),
                "parametrization._target_=table.small,table.one,table.large",
                "optimizer.learning_rate=geomspace(2**-8, 1, 12)",
            ]
        )
        == 0
    )
    sweep = only(elsewhere)
    assert len(manifest.read(sweep)) == 720
    assert programs(sweep) == 5
    assert len(list(sweep.glob("*/metrics.parquet"))) == 720


@pytest.mark.slow
def test_compiled_programs_are_kept_between_processes_and_told_apart(elsewhere):
    """In a cache folder that nobody else can enter."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"LMECH_CACHE": str(elsewhere / "cache")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    counts = []
    for rerun in ("missing", "all"):
        command = [sys.executable, "-m", "lmech", *RUN, f"rerun={rerun}"]
        subprocess.run(command, cwd=elsewhere, env=environment, check=True)
        summary = json.loads((only(elsewhere) / "summary.json").read_text())
        counts.append((summary["compilations"], summary["cached_compilations"]))
    assert counts == [(1, 0), (0, 1)]
    folder = Path(environment["LMECH_CACHE"])
    assert folder.stat().st_mode & 0o077 == 0
