"""The edge of stochastic stability: what is measured of a run, and of a seed's batch sizes."""

import numpy as np
import pandas as pd
import pytest

from experiments import edge_of_stability_sgd as experiment
from lmech import claims, planning, reproducing
from lmech.collecting import Run

STEPS = 100


def run(size, batch, full, seed=0, rate=0.5, momentum=0.0, nonfinite_at=None):
    """In units of 2/η, from step 0 to the end; batch sharpness every 10 steps, λ₁ every 20."""
    at = np.arange(STEPS + 1)
    config = {
        "seed": seed,
        "steps": STEPS,
        "batch_size": size,
        "optimizer": {"learning_rate": rate, "momentum": momentum},
    }
    scale = 2 / rate
    metrics = pd.DataFrame({"step": at})
    metrics["batch_sharpness"] = np.where(at % 10 == 0, scale * batch(at), np.nan)
    metrics["sharpness"] = np.where(at % 20 == 0, scale * full(at), np.nan)
    name = f"{size}-{seed}-{rate}-{momentum}"
    return Run(name, {}, config, {"nonfinite_at": nonfinite_at}, metrics)


def constant(value):
    return lambda at: value + 0.0 * at


def test_quantities_of_a_run_are_in_units_of_the_edge():
    rising = run(8, lambda at: np.minimum(at / 40, 1.0), constant(0.5))
    (row,) = experiment.measure([rising]).query("row == 'run'").to_dict("records")
    assert (row["batch_size"], row["initial"]) == (8, 0)
    np.testing.assert_allclose([row["second_half"], row["full"]], [1.0, 0.5])


def test_with_momentum_both_limits_are_units():
    moving = run(8, constant(0.3), constant(0.5), momentum=0.5)
    (row,) = experiment.measure([moving]).to_dict("records")
    assert row["small_limit"] == pytest.approx(0.6)
    assert row["large_limit"] == pytest.approx(0.2)


def test_the_sharpness_of_a_seed_is_compared_from_the_smallest_batch_to_the_full_one():
    sizes = {None: 1.2, 32: 0.8, 8: 0.4, 100: 1.0}
    runs = [run(size, constant(1.0), constant(full)) for size, full in sizes.items()]
    runs.append(run(32, constant(0.1), constant(0.1), rate=0.02))  # a rate that not all have
    (row,) = experiment.measure(runs).query("row == 'seed'").to_dict("records")
    assert row["rate"] == 0.5
    assert row["least"] == pytest.approx(1.25)
    assert row["full_over_largest"] == pytest.approx(1.2)
    assert row["spread"] == pytest.approx(3)
    assert len(row["jobs"]) == 4


def test_a_run_that_is_not_finite_has_no_number():
    lost = run(8, constant(1.0), constant(1.0), nonfinite_at=90)
    (row,) = experiment.measure([lost]).query("row == 'run'").to_dict("records")
    assert np.isnan(row["second_half"])
    assert np.isnan(row["full"])


@pytest.fixture
def jobs(monkeypatch):
    """The experiment and its jobs, planned without a look at the data."""
    for name in ("_data_checksum", "load_data"):
        monkeypatch.setattr(planning, name, lambda _: "any")
    loaded = reproducing.load("edge_of_stability_sgd", "default", [])
    return loaded, planning.expand(loaded.overrides, loaded.sweep)


def written(one):
    """A run of the job's config, at the edge all along."""
    config = one.config
    at = np.arange(0, config["steps"] + 1, 25)
    edge = 2 / config["optimizer"]["learning_rate"]
    metrics = pd.DataFrame({"step": at, "batch_sharpness": edge, "sharpness": edge})
    return Run(one.id, dict(one.overrides), config, {"nonfinite_at": None}, metrics)


def test_every_claim_selects_rows_and_a_batch_size_is_a_program(jobs):
    loaded, planned = jobs
    assert len(planning.group(planned)) == 4
    frame = experiment.measure([written(one) for one in planned])
    assert sorted(frame.query("row == 'seed'")["seed"]) == [0, 1, 2]
    for claim in loaded.claims:
        chosen = claims._selected(frame, claim.where)
        assert set(chosen["seed"]) == {0, 1, 2}, claim.claim
        assert len(chosen) == len(chosen.drop_duplicates(["seed", "row", "batch_size"]))
        assert chosen[claim.quantity].notna().all()
    assert {claim.expected for claim in loaded.claims} == {"holds", "fails", "open"}


def test_minibatches_of_a_measurement_fit_in_the_training_set(jobs):
    for one in jobs[1]:
        size = one.config["batch_size"] or one.config["dataset"]["train_size"]
        drawn = size * one.config["observables"]["batch_sharpness"]["batches"]
        assert drawn <= one.config["dataset"]["train_size"]


def test_the_figure_shows_the_edge_and_every_batch_size(jobs):
    runs = [written(one) for one in jobs[1]]
    drawn = experiment.figure(runs, experiment.measure(runs))
    for axis in drawn.axes:
        dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert [set(line.get_ydata()) for line in dashed] == [{1}]
    names = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
    assert names == ["8", "32", "100", "all"]
