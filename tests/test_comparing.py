"""Two runs' weights are compared as they lie on disk: once, and by the numbers that NumPy gives."""

import json
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from lmech import (
    building,
    catalogue,
    collecting,
    comparing,
    manifest,
    member,
    pairs,
    planning,
    reproducing,
)
from lmech.cli import main
from lmech.comparisons.paths import layer_averages, linear_path, path_curvature
from lmech.disk import read_weights
from lmech.numerics.precision import numerics
from lmech.values import ConfigError

SWEEP = [
    *("dataset=digits", "dataset.train_size=60", "model.width=6", "steps=4", "snapshots=[0,2]"),
    *("loss=cross_entropy", "precision=float64", "logger=none", "observables=[loss]"),
    *("observables.train_loss.every=4", "observables.test_loss.every=4"),
]
LINE = {"_target_": "lmech.comparisons.paths.linear_path", "intervals": 2, "between": "seed"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two nets of three seeds each, trained once for all tests."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["-m", *SWEEP, "model.activation=tanh,relu", "seed=0,1,2"]) == 0
    (found,) = folder.glob("outputs/run/*/manifest.jsonl")
    return found.parent


@pytest.fixture
def sweep(trained, elsewhere):
    """A copy of theirs."""
    return shutil.copytree(trained, elsewhere / "outputs" / "run" / trained.name)


def compare(sweep, **comparisons):
    reproducing.compare(sweep, pairs.parse(comparisons))
    return collecting.read_runs(sweep)


def forward(weights, x, activation):
    h = x
    for layer in ("hidden_1", "hidden_2"):
        h = h @ weights[f"{layer}/kernel"] + weights[f"{layer}/bias"]
        h = np.tanh(h) if activation == "tanh" else np.maximum(h, 0)
    return h @ weights["readout/kernel"] + weights["readout/bias"]


def cross_entropy(weights, examples, activation):
    outputs = forward(weights, np.asarray(examples.x, float), activation)
    own = np.take_along_axis(outputs, examples.y[:, None], axis=1)[:, 0]
    return np.mean(np.log(np.exp(outputs).sum(axis=1)) - own)


def test_a_pair_is_two_runs_that_differ_in_the_key_and_stands_with_the_first(sweep):
    runs = compare(sweep, line=LINE)
    order = [run.job for run in runs]
    assert [len(run.pairs["line"]) for run in runs] == [2, 1, 0] * 2
    for run in runs:
        for other in run.pairs["line"]["other"]:
            differ = runs[order.index(other)].overrides
            assert order.index(other) > order.index(run.job)
            assert {k for k in differ if differ[k] != run.overrides[k]} == {"seed"}


def test_the_line_has_the_losses_of_numpy_and_its_ends_those_that_were_recorded(sweep):
    runs = {run.job: run for run in compare(sweep, line=LINE)}
    (run,) = [run for run in runs.values() if run.overrides["seed"] == 1][:1]
    (pair,) = run.pairs["line"].to_dict("records")
    data = building.load_data(run.config)
    a, b = (read_weights(sweep / job / "weights" / "4.npz") for job in (run.job, pair["other"]))
    middle = {name: (a[name] + b[name]) / 2 for name in a}
    for split in ("train", "test"):
        examples = data.splits[split]
        losses = [
            cross_entropy(w, examples, run.overrides["model.activation"]) for w in (a, middle, b)
        ]
        np.testing.assert_allclose(pair[f"{split}_loss"], losses, rtol=1e-12)
        ends = [runs[job].result["final"][f"{split}_loss"] for job in (run.job, pair["other"])]
        np.testing.assert_allclose([losses[0], losses[2]], ends, rtol=1e-12)
        above = losses[1] - (losses[0] + losses[2]) / 2
        assert pair[f"{split}_loss_midpoint"] == pytest.approx(above, rel=1e-9)
        assert pair[f"{split}_loss_barrier"] == pytest.approx(max(above, 0), rel=1e-9)
    assert (pair["step"], pair["other_step"], list(pair["position"])) == (4, 4, [0, 0.5, 1])


def test_an_aligned_net_is_the_same_function_and_no_further_away(sweep):
    (run, *_) = compare(
        sweep, naive=LINE, matched={**LINE, "align": "weights"}, random={**LINE, "align": "random"}
    )
    naive, matched, random = (run.pairs[name] for name in ("naive", "matched", "random"))
    for moved in (naive, matched, random):
        assert (moved["output_change"] <= 1e-12).all()
        for curve, other in zip(moved["test_loss"], naive["test_loss"], strict=True):
            np.testing.assert_allclose(curve[[0, -1]], other[[0, -1]], rtol=1e-12)
            assert moved is naive or abs(curve[1] / other[1] - 1) > 1e-6
    assert (matched["distance"] < naive["distance"]).all()


def test_what_is_on_disk_is_not_computed_again_and_new_runs_add_their_pairs(sweep, monkeypatch):
    asked = pairs.parse({"line": LINE})
    compared = []
    compare_all = comparing.compare

    def counting(folder, left):
        compared.append(sum(len(own) for _, own in left))
        compare_all(folder, left)

    monkeypatch.setattr(comparing, "compare", counting)
    lines = (sweep / manifest.NAME).read_text().splitlines()
    (sweep / manifest.NAME).write_text("\n".join([*lines[:2], *lines[3:5]]) + "\n")
    for _ in range(2):
        reproducing.compare(sweep, asked)
    (sweep / manifest.NAME).write_text("\n".join(lines) + "\n")
    for _ in range(2):
        reproducing.compare(sweep, asked)
    assert compared == [2, 4]
    table = pd.read_parquet(sweep / "comparisons" / "line.parquet")
    assert len(table) == len(table[["job", "other"]].drop_duplicates()) == 6
    reproducing.compare(sweep, pairs.parse({"line": {**LINE, "intervals": 4}}))  # another question
    table = pd.read_parquet(sweep / "comparisons" / "line.parquet")
    assert compared[-1] == 6
    assert {len(curve) for curve in table["position"]} == {5}


def test_a_pair_that_another_process_has_compared_meanwhile_is_there_once(sweep):
    entries = manifest.read(sweep)
    (line,) = pairs.parse({"line": LINE})
    left = [(line, pairs.left(sweep, entries, line))]
    for _ in range(2):  # two that found the same pairs left
        comparing.compare(sweep, left)
    table = pd.read_parquet(sweep / "comparisons" / "line.parquet")
    assert len(table) == len(table[["job", "other"]].drop_duplicates()) == 6
    assert pairs.left(sweep, entries, line) == []


def test_snapshots_are_compared_step_by_step(sweep):
    (run, *_) = compare(sweep, line={**LINE, "steps": [0, 2]})
    assert run.pairs["line"]["step"].tolist() == [0, 2, 0, 2]
    drawn = [curve[0] for curve in run.pairs["line"]["train_loss"][:2]]
    assert drawn[0] > drawn[1]


def test_children_of_a_snapshot_that_differ_in_their_minibatches_alone_are_pairs(sweep):
    job = manifest.read(sweep)[0]["id"]
    words = [*SWEEP, "batch_size=20", "name=children", "seeds.batches=1,2"]
    assert main(["-m", *words, f"init_from={job}@0,{job}@2"]) == 0
    (found,) = Path("outputs/children").iterdir()
    runs = compare(found, line={**LINE, "between": "seeds.batches"})
    rows = [(run, pair) for run in runs for pair in run.pairs["line"].to_dict("records")]
    assert [run.overrides["init_from"] for run, _ in rows] == [f"{job}@0", f"{job}@2"]
    assert all(pair["distance"] > 0 for _, pair in rows)


def test_a_run_that_diverged_has_no_partner(sweep):
    entries = manifest.read(sweep)
    result = sweep / entries[0]["id"] / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "status": "diverged"}))
    (line,) = pairs.parse({"line": LINE})
    assert len(pairs.wanted(sweep, entries, line)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"between": None}, "comparisons.line.between=None"),
        ({"between": "sed"}, "comparisons.line.between=sed: the sweep has no such key; did you"),
        ({"between": "model.activation"}, "model.activation makes another program"),
        ({"steps": "first"}, "comparisons.line.steps=first: write last, or a list of steps"),
        ({"steps": [3]}, "kept no weights at 3; there are"),
        ({"align": "wights"}, "comparisons.line.align=wights"),
        ({"intervals": 3}, "comparisons.line.intervals=3"),
        ({"points": 3}, "unknown key 'comparisons.line.points'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_comparison(sweep, change, message):
    with pytest.raises(ConfigError) as error:
        compare(sweep, line={**LINE, **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_whose_data_or_code_changed_is_not_compared(sweep):
    file = sweep / manifest.NAME
    file.write_text(file.read_text().replace('"train_size": 60', '"train_size": 61'))
    with pytest.raises(ConfigError, match="its data changed since its manifest was written"):
        compare(sweep, line=LINE)


def test_keys_that_make_no_pairs_are_told_before_anything_is_trained():
    jobs = planning.expand(SWEEP, {"model.activation": ["tanh", "relu"], "seed": [0, 1]})
    pairs.check(pairs.parse({"line": LINE}), jobs)
    for key, message in [("sed", "the sweep has no such key"), ("model.activation", "program")]:
        with pytest.raises(ConfigError, match=message):
            pairs.check(pairs.parse({"line": {**LINE, "between": key}}), jobs)


def test_a_model_without_units_that_may_change_places_says_so(elsewhere):
    assert main(["-m", *SWEEP, "model.depth=0", "seed=0,1"]) == 0
    (found,) = elsewhere.glob("outputs/run/*/manifest.jsonl")
    with pytest.raises(ConfigError, match=r"^comparisons\.line: no units of this model may change"):
        compare(found.parent, line={**LINE, "align": "weights"})


# From the command line


@pytest.mark.usefixtures("elsewhere")
def test_runs_in_subspaces_have_nothing_to_compare(capsys):
    words = [
        "dataset.train_size=40",
        "model.width=4",
        "steps=2",
        "observables=[loss]",
        "subspace=3",
    ]
    assert main(["-m", *words, "seed=0,1"]) == 0
    assert main(["compare", "outputs", "comparison=linear_path"]) == 2
    assert "coordinates of their own" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("preset", catalogue.groups()["comparison"])
def test_every_preset_is_asked_of_a_sweep_once(sweep, preset, capsys):
    for counts in ("6 pairs compared, 0 were", "0 pairs compared, 6 were"):
        capsys.readouterr()
        assert main(["compare", "outputs", f"comparison={preset}", "comparison.align=none"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"{sweep.relative_to(Path.cwd())}: {counts}; {last.rpartition(' ')[2]}"
    numbers = pd.read_parquet(last.rpartition(" ")[2]).drop(columns=list(pairs.LABELS))
    assert len(numbers) == 6
    assert all(np.isfinite(np.stack(numbers[name])).all() for name in numbers)


@pytest.mark.usefixtures("sweep")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "outputs", "comparison.align=none"], "comparison=NAME is missing, as in"),
        (["compare", "outputs", "comparison=line_path"], "did you mean 'linear_path'"),
        (["compare", "outputs", "comparison=linear_path", "comparison.algin=none"], "did you mean"),
        (["compare", "outputs", "comparison=linear_path", "comparison.align=no"], "align=no"),
        (["comparison=linear_path"], "comparison=linear_path goes with lmech compare"),
    ],
)
def test_a_wrong_word_is_one_line(words, message, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_where_no_two_runs_make_a_pair_the_exit_code_says_so(sweep):
    alone = (sweep / manifest.NAME).read_text().splitlines()[0]
    (sweep / manifest.NAME).write_text(alone + "\n")
    assert main(["compare", "outputs", "comparison=linear_path"]) == 1


# The comparisons themselves, on two draws of a net


def states(*overrides):
    """Two seeds of one program at step 0."""
    jobs = planning.expand([*SWEEP, *overrides], {"seed": [0, 1]})
    setup = building.build([{**job.config, "observables": {}} for job in jobs])
    rows = [jax.tree.map(lambda leaf, at=at: leaf[at], setup.inputs) for at in (0, 1)]
    return [member.initial_state(setup.program, inputs, setup.data) for inputs in rows]


def compared(comparison, *overrides):
    with numerics("highest"):
        a, b = states(*overrides)
        found = comparison.compare(a, b, b.params)
        return a, b, {name: float(value) for name, value in found.items() if value.ndim == 0}


def test_the_midpoints_deficit_is_the_curvature_along_the_path_of_a_smooth_net():
    *_, found = compared(path_curvature(nodes=12), "model.activation=tanh")
    assert abs(found["deficit"]) > 1e-3
    assert abs(found["kinks"]) < 1e-10


def test_of_a_parabola_it_is_an_eighth_of_its_second_derivative_with_a_single_node():
    a, b, found = compared(path_curvature(nodes=1), "model.depth=0", "loss=mse")
    x = np.asarray(a.data.train.x)
    moved = x @ np.asarray(b.params["readout"]["kernel"] - a.params["readout"]["kernel"])
    moved += np.asarray(b.params["readout"]["bias"] - a.params["readout"]["bias"])
    second = np.mean(np.sum(moved**2, axis=1))  # L″ of a loss ½|f − y|², f linear in t
    assert found["deficit"] == pytest.approx(second / 8, rel=1e-10)
    assert found["curvature"] == pytest.approx(second / 8, rel=1e-10)


def test_a_relu_net_has_kinks_along_the_path():
    *_, found = compared(path_curvature(nodes=64), "model.activation=relu")
    assert abs(found["kinks"]) > 0.01 * abs(found["deficit"])


def test_one_layer_is_averaged_and_the_others_are_the_first_nets():
    a, b, found = compared(layer_averages(), "model.activation=tanh")
    with numerics("highest"):
        line = linear_path(intervals=2).compare(a, b, b.params)
    own, middle = np.asarray(line["test_loss"])[:2]
    assert found["all_test_loss"] == pytest.approx(middle - own, rel=1e-9)
    flat = {f"{n}/{k}": np.asarray(v) for n, p in a.params.items() for k, v in p.items()}
    other = {f"{n}/{k}": np.asarray(v) for n, p in b.params.items() for k, v in p.items()}
    one = {
        name: (leaf + other[name]) / 2 if "hidden_2" in name else leaf
        for name, leaf in flat.items()
    }
    losses = partial(cross_entropy, examples=a.data.splits["test"], activation="tanh")
    assert found["hidden_2_test_loss"] == pytest.approx(losses(one) - losses(flat), rel=1e-9)
