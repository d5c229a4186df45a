"""What is measured later is what a run would have recorded."""

import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from problems import column, job, train
from test_observables import TOGETHER, words

from lmech import building, compiling, config, engine, measuring
from lmech.cli import main
from lmech.engine import Snapshot, Visit
from lmech.observables import memoryless

# What weights alone do not tell.
OPTIMIZER = {
    *("effective_sharpness", "directional_sharpness", "critical_learning_rate", "update_norm"),
}
PATH = {"gradient_flow", "midpoint_sharpness", "midpoint_loss"}
RUN = [
    *("dataset=digits", "dataset.train_size=60", "model.width=8", "steps=12", "logger=none"),
    *("observables=[loss]", "observables.train_loss.every=4", "observables.test_loss.every=4"),
]


def table(folder):
    return pq.read_table(folder / "metrics.parquet")


def cells(folder, name):
    """A column by step, where it is not null; bytes, as not a number is not equal to itself."""
    rows = table(folder).select(["step", name]).to_pylist()
    return {row["step"]: np.asarray(row[name]).tobytes() for row in rows if row[name] is not None}


def results(folder, output="outputs"):
    """Job → folder, of all jobs in an output folder."""
    return {path.parent.name: path.parent for path in folder.glob(f"{output}/*/*/*/result.json")}


def result(folder):
    return json.loads((folder / "result.json").read_text())


def columns_of(folder, names):
    return [
        column
        for column in table(folder).column_names
        if any(column == name or column.startswith(f"{name}_") for name in names)
    ]


def assert_measured_as_recorded(elsewhere, presets, setting, refused):
    """The same training twice: watched by these presets, and measured by them afterwards."""
    presets = [preset for preset in presets if preset != "loss"]
    chosen = [text.replace("observables=[", "observables=[loss,") for text in words(presets)]
    asked = [text for text in words(presets) if text.startswith("observables")]
    rest = [text for text in words(presets) if not text.startswith("observables")]
    rest += [*setting, "logger=none", "observables.train_loss.every=3"]
    assert main([*chosen, *rest, "output=watched"]) == 0
    assert main([*rest, "observables=[loss]", "snapshots=[0,3]", "output=bare"]) == 0
    names = set(config.compose([f"observables=[{','.join(presets)}]"]).observables)
    code = main(["measure", "bare", *asked])
    assert code == int(bool(names & refused))
    (watched,), (bare,) = (results(elsewhere, name).values() for name in ("watched", "bare"))
    answered = names - refused
    assert set(result(bare).get("measured", {})) == answered
    found = columns_of(watched, answered)
    assert len(found) >= len(answered)
    for name in found:
        assert cells(bare, name) == cells(watched, name), name
        assert list(cells(bare, name)) == [0, 3, 6], name
    assert not set(columns_of(bare, names & refused)) - set(found)
    assert {**result(watched)["final"], **result(bare)["final"]} == result(watched)["final"]
    assert {name: result(bare)["observables"][name] for name in answered} == {
        name: result(watched)["observables"][name] for name in answered
    }


@pytest.mark.slow
@TOGETHER
def test_every_preset_measures_what_a_run_recorded_or_says_why_not(elsewhere, presets):
    """Bit for bit, with a stateful optimizer, minibatches and a schedule."""
    setting = ("optimizer=adam", "batch_size=20", "schedule=cosine", "loss=mse")
    assert_measured_as_recorded(elsewhere, presets, setting, OPTIMIZER | PATH)


@pytest.mark.slow
def test_an_optimizer_without_a_state_leaves_nothing_unknown(elsewhere):
    """The update of the step's own minibatch, at its own rate."""
    presets = ["weights", *sorted(OPTIMIZER - {"update_norm"})]
    setting = ("optimizer=gd", "batch_size=20", "schedule=cosine", "optimizer.learning_rate=0.3")
    assert_measured_as_recorded(elsewhere, presets, setting, set())


@pytest.mark.slow
def test_one_jobs_fraction_is_measured_in_the_room_that_it_was_trained_in(elsewhere):
    """Its sums are over as many zeros, so the bits are those that a run records."""
    own = [word for word in RUN if not word.startswith("observables")]
    sweep = ["-m", *own, "data_fraction=0.3,0.9", "execution.mode=map", "snapshots=[4]"]
    asked = ["observables=[loss]", "observables.train_loss.every=4"]
    assert main([*sweep, *asked, "output=watched"]) == 0
    assert main([*sweep, "observables=[accuracy]", "output=bare"]) == 0
    few, many = sorted(
        results(elsewhere, "bare").values(),
        key=lambda folder: "data_fraction: 0.9" in (folder / "config.yaml").read_text(),
    )
    (many / "result.json").unlink()  # as if it had not been trained
    assert main(["measure", "bare", *asked]) == 0
    same = results(elsewhere, "watched")[few.name]
    for step, value in cells(few, "train_loss").items():
        assert cells(same, "train_loss")[step] == value


def test_nothing_is_trained_and_a_new_column_leaves_the_old_ones(elsewhere, capsys):
    assert main(["-m", *RUN, "snapshots=[5]", "seed=0,1"]) == 0
    before = {name: table(folder) for name, folder in results(elsewhere).items()}
    compiled = []

    def listen(event, _, **labels):
        if event == compiling.COMPILE_EVENT:
            compiled.append(labels["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.clear_caches()
    try:
        assert main(["measure", "outputs", "observables=[trace]"]) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert "jit(measure_trace)" in compiled
    assert not [name for name in compiled if "train_chunk" in name or "loss" in name]
    told = capsys.readouterr().out
    assert "columns:   2, of trace\njobs:      2 measured\nsnapshots: 5, 12\n" in told
    for name, folder in results(elsewhere).items():
        now = table(folder)
        assert list(cells(folder, "trace")) == list(cells(folder, "trace_error")) == [5, 12]
        assert now.select(before[name].column_names).equals(before[name])
        assert result(folder)["final"]["trace"] == now["trace"][-1].as_py()
        assert result(folder)["measured"]["trace"]["steps"] == [5, 12]
    files = {path: path.read_bytes() for path in elsewhere.rglob("*.*") if path.is_file()}
    assert main(["measure", "outputs", "observables=[trace]"]) == 0
    assert "2 with nothing left to measure" in capsys.readouterr().out
    assert files == {path: path.read_bytes() for path in elsewhere.rglob("*.*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "trains"), [("0:13:6", False), ("0,6", True), ("0:13:3", True)])
def test_only_what_was_measured_as_a_run_does_need_not_be_trained_for(
    elsewhere, capsys, steps, trains
):
    """At the steps of the cadence: no fewer, and no more, as an observable may look back."""
    run = [*RUN, "snapshots=[0,3,6,9]"]
    assert main(run) == 0
    asked = ["observables.cka.every=6", "observables.cka.examples=20"]
    assert main(["measure", "outputs", "observables=[cka]", *asked, "--steps", steps]) == 0
    (folder,) = results(elsewhere).values()
    assert ("cka" in result(folder)["observables"]) == (not trains)
    capsys.readouterr()
    again = [text.replace("[loss]", "[loss,cka]") for text in run]
    assert main([*again, *asked]) == 0
    assert ("1 done" if trains else "1 skipped") in capsys.readouterr().out
    assert list(cells(folder, "cka")) == [0, 6, 12]


def test_a_finished_run_that_is_asked_for_another_snapshot_runs_again(elsewhere, capsys):
    assert main(RUN) == 0
    for snapshots, told in (("[3,12]", "1 done"), ("[3]", "1 skipped")):
        capsys.readouterr()
        assert main([*RUN, f"snapshots={snapshots}"]) == 0
        assert told in capsys.readouterr().out
    assert len(list(elsewhere.glob("outputs/*/*/*/weights/*.npz"))) == 2


@pytest.mark.slow
def test_what_has_no_answer_is_one_line_each_and_exit_code_1(elsewhere, capsys):
    words = [*RUN, "snapshots=[6]", "optimizer=momentum"]
    assert main(["-m", *words, "seed=0,1"]) == 0
    assert main(["-m", *words, "seed=2,3", "name=other"]) == 0
    (path,) = elsewhere.glob("outputs/other/*/manifest.jsonl")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    entries[1]["config"]["steps"] = 13
    broken = path.parent / entries[0]["id"] / "weights" / "6.npz"
    broken.write_bytes(broken.read_bytes()[:100])
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    capsys.readouterr()
    asked = ["observables=[loss,midpoints,gradient_flow,directional_sharpness,sharpness,logits]"]
    asked += ["observables.train_loss.every=4", "observables.sharpness.k=5000"]
    assert main(["measure", "outputs", *asked, "--steps", "6,7,12"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no answer")]
    told = "\n".join(lines)
    assert "midpoint_loss, midpoint_sharpness: it looks at past iterates" in told
    assert "gradient_flow: it follows the path" in told
    assert "directional_sharpness: it looks at the optimizer's state" in told
    assert "no snapshot at 7; there are 6, 12 (3 jobs)" in told
    assert "test_loss: its columns are there, with other settings (3 jobs)" in told
    assert "train_loss: it is recorded every 4 steps; nothing is added at 6, 7 (3 jobs)" in told
    assert "sharpness: observables.sharpness: k=5000 eigenpairs are asked of" in told
    assert (
        f"the job's config changed since its manifest was written (job {entries[1]['id']}" in told
    )
    assert f"logits: {broken.relative_to(elsewhere)} cannot be read" in told
    assert len(lines) == 9
    for folder in results(elsewhere).values():
        measured = result(folder).get("measured", {"logits": {"steps": []}})["logits"]["steps"]
        steps = {entries[0]["id"]: [12], entries[1]["id"]: []}.get(folder.name, [6, 12])
        assert measured == steps


@pytest.mark.slow
def test_each_job_is_measured_at_its_own_last_weights(elsewhere):
    """Of one program with different horizons, one of them stopped early; the update is of the
    minibatch that came last."""
    words = ["-m", *RUN[:-3], "execution.lanes=3", "batch_size=20"]
    words += ["steps=5,12", "optimizer.learning_rate=0.1,0.3"]
    loss = ["observables.train_loss.every=1", "stop.train_loss=0.049", "snapshots=[3]"]
    assert main([*words, *loss, "observables=[loss,weights]", "output=watched"]) == 0
    assert main([*words, *loss, "observables=[loss]"]) == 0
    assert main(["measure", "outputs", "observables=[weights]", "--steps", "last"]) == 0
    watched, bare = results(elsewhere, "watched"), results(elsewhere)
    ends = sorted(result(folder)["steps"] for folder in bare.values())
    assert ends[:2] == [5, 5]
    for name, folder in bare.items():
        end = result(folder)["steps"]
        for norm in ("weight_norm", "weight_distance", "gradient_norm", "update_norm"):
            assert cells(folder, norm) == {end: cells(watched[name], norm)[end]}, norm


def test_a_run_from_a_snapshot_is_measured_from_its_own_start(elsewhere):
    assert main([*RUN, "name=source"]) == 0
    ((source, first),) = results(elsewhere).items()
    assert main([*RUN, f"init_from={source}@12"]) == 0
    assert main(["measure", "outputs/run", "observables=[weights]", "--steps", "0,12"]) == 0
    folder = next(folder for job, folder in results(elsewhere).items() if job != source)
    frame = pd.read_parquet(folder / "metrics.parquet").set_index("step")
    with np.load(first / "weights" / "12.npz") as leaves:
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in leaves.values()))
    np.testing.assert_allclose(frame["weight_norm"][0], norm, rtol=1e-6)
    assert frame["weight_distance"][0] == 0 < frame["weight_distance"][12]


def revisited(configs, steps, **observables):
    """The columns of observables at snapshots of the jobs' training: name → [steps, M, …]."""
    batch = building.build(configs)
    shots = [e for e in engine.train(*batch, snapshots=steps) if isinstance(e, Snapshot)]
    program = dataclasses.replace(
        batch.program, observables=observables, every=dict.fromkeys(observables, 50)
    )
    everybody = dict.fromkeys(observables, np.ones(len(configs), bool))
    visits = [Visit(shot.step, shot.params, everybody) for shot in shots]
    records = list(engine.revisit(*batch._replace(program=program), visits))
    return {
        name: np.stack([r.columns[name][:, 0] for r in records if name in r.columns])
        for record in records
        for name in record.columns
    }


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_tracker_starts_anew_far_from_its_last_measurement():
    """Its block of step 0 would give an eigenvalue that is one per cent too low."""
    config = job("steps=800", "dataset.train_size=100", "model.width=16", "execution.chunk=800")
    of = building.build([job("observables=[sharpness]")]).program.observables["sharpness"]
    exact = building.build(
        [job("observables=[sharpness]", "observables.sharpness.tolerance=1e-7")]
    ).program.observables["sharpness"]
    found = revisited([config], [799], anew=of, stale=of._replace(warm=False), exact=exact)
    anew, stale, exact = (found[name].item() for name in ("anew", "stale", "exact"))
    assert abs(anew / exact - 1) < 1e-5
    assert stale / exact - 1 < -1e-3


@pytest.mark.usefixtures("x64")
def test_what_a_run_measures_inside_its_loop_is_measured_later_to_rounding():
    config = job("observables=[loss]")
    loss = building.build([config]).program.observables["train_loss"]
    recorded = column(train([config])[0], 0, "train_loss")
    found = revisited([config], [0, 5, 11], loss=loss)["loss"][:, 0]
    np.testing.assert_allclose(found, [recorded[step] for step in (0, 5, 11)], rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_a_snapshot_has_the_time_of_its_step_and_no_state_of_the_optimizer():
    """Who reads the state all the same gets no number, rather than a wrong one."""
    time = memoryless(lambda state: {"": state.time})
    moment = memoryless(lambda state: {"": jax.tree.leaves(state.optimizer_state)[-1].max()})
    rate = memoryless(lambda state: {"": state.hyperparameters["learning_rate"]})
    configs = [
        job("optimizer=adam", "schedule=cosine", f"optimizer.learning_rate={r}") for r in (0.1, 0.7)
    ]
    found = revisited(configs, [0, 5, 11], time=time, moment=moment, rate=rate)
    rates = building.build(configs).rates(np.arange(12))
    np.testing.assert_array_equal(found["rate"].T, rates[:, [0, 5, 11]])
    sums = np.cumsum(rates, axis=1, dtype=rates.dtype)
    np.testing.assert_array_equal(found["time"].T[:, 1:], sums[:, [4, 10]])
    assert not found["time"][0].any()
    np.testing.assert_array_equal(np.isnan(found["moment"]), [[False] * 2, [True] * 2, [True] * 2])


def test_merging_tables_keeps_every_old_value_and_adds_rows_and_columns():
    old = pa.table({"step": [0, 2], "a": [1.0, None], "v": [[1.0, 2.0], None]})
    new = pa.table({"step": [1, 2], "a": [5.0, 6.0], "b": [7, None], "v": [[3.0], [float("nan")]]})
    whole = measuring.merged(old, new)
    assert whole.column_names == ["step", "a", "b", "v"]
    assert whole["step"].to_pylist() == [0, 1, 2]
    assert whole["a"].to_pylist() == [1.0, 5.0, 6.0]
    assert whole["b"].to_pylist() == [None, 7, None]
    assert whole["v"].to_pylist()[:2] == [[1.0, 2.0], [3.0]]
    assert np.isnan(whole["v"].to_pylist()[2][0])
    assert measuring.merged(whole, whole.slice(0, 1)).column("b").to_pylist() == [None, 7, None]
