"""Large learning rates: the setting is a plain SGD, and the measurements are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import column, train

from experiments import large_learning_rate
from lmech import building, claims, config, member, reproducing
from lmech.collecting import Run
from lmech.sampling import minibatches

SMALL = ("experiment=large_learning_rate", "model.width=5", "dataset.train_size=6", "steps=24",
         "dataset.test_size=7", "optimizer.learning_rate=0.3", "precision=float64",
         "execution.mode=map", "observables.train_loss.every=6")  # fmt: skip


def small(*overrides):
    return config.resolve(config.compose([*SMALL, *overrides]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("repeats", [1, 4])
def test_the_setting_is_sgd_on_single_examples_written_out(repeats):
    """By hand: f = a·relu(wx + b) + c, a step −η (f − y) ∇f, a twentieth of η from 70 % on."""
    job = small(f"batch_repeats={repeats}")
    batch = building.build([job])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.inputs)
    start = member.start(batch.program, inputs, None).params
    w, b = (np.array(start["hidden_1"][name]).reshape(-1) for name in ("kernel", "bias"))
    a, c = (np.array(start["readout"][name]).reshape(-1) for name in ("kernel", "bias"))
    x, y = batch.data.train.x[:, 0], batch.data.train.y[:, 0]
    np.testing.assert_allclose(y, 2 * np.clip(x, -0.4, 0.4), atol=1e-12)
    for step, row in enumerate(minibatches(0, np.arange(24) // repeats, 6, 1)[:, 0]):
        h = np.maximum(w * x[row] + b, 0)
        pull = (0.3 if step < 17 else 0.015) * (h @ a + c - y[row])
        on = a * (h > 0)
        a, c = a - pull * h, c - pull
        w, b = w - pull * on * x[row], b - pull * on
    recorder, end = train([job])
    np.testing.assert_allclose(end.params["hidden_1"]["kernel"][0, 0], w, rtol=1e-10)
    np.testing.assert_allclose(end.params["hidden_1"]["bias"][0], b, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(end.params["readout"]["kernel"][0, :, 0], a, rtol=1e-10)
    error = np.maximum(np.outer(x, w) + b, 0) @ a + c - y
    found = column(recorder, 0, "train_loss")[24]
    assert found == pytest.approx(np.square(error).mean() / 2, rel=1e-9)


@pytest.mark.usefixtures("x64")
def test_the_rate_that_overshoots_is_two_over_the_gradients_mean_square_at_the_start():
    width = 40_000  # a start's own is off by 1/√width
    batch = building.build([small(f"model.width={width}")])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.inputs)
    start = member.start(batch.program, inputs, None).params
    for x in (-1.0, 0.0, 0.5):
        gradient = jax.grad(lambda p, x=x: batch.program.problem.apply(p, jnp.array([[x]]))[0, 0])
        squared = float(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient(start))))
        assert large_learning_rate.overshooting(width, x) == pytest.approx(2 / squared, rel=0.02)


def run(rate, units, seed=0, *, repeats=1, warmup=0, plateau=1e-6, train=1e-6, test=1e-5,
        early=9.0, nonfinite=None):  # fmt: skip
    """A run of 10,000 minibatches; errors are mean squares."""
    steps = np.arange(0, 10_001, 500) * repeats
    end = steps[-1]
    metrics = pd.DataFrame({"step": steps, "distinct_units": float(units)})
    metrics.loc[metrics["step"] == 1000 * repeats, "distinct_units"] = early
    metrics["correlated_units"] = units / 2
    metrics["train_loss"] = np.where(steps < 0.7 * end, plateau, train) / 2
    metrics["test_loss"] = test / 2
    settings = {
        "batch_repeats": repeats,
        "model": {"width": 60},
        "optimizer": {"learning_rate": rate / repeats},
        "schedule": {"warmup": warmup},
        "seed": seed,
        "steps": int(end),
    }
    name = f"{rate} {seed} {repeats} {warmup}"
    return Run(
        name,
        {},
        settings,
        {"status": "done" if nonfinite is None else "diverged", "nonfinite_at": nonfinite},
        metrics,
    )


SMALLEST = [run(0.01, 12, test=4e-5), run(0.01, 8, seed=1, test=2e-5)]


def rows(table, kind, **where):
    chosen = (table[list(where)] == pd.Series(where)).all(axis=1) & (table["row"] == kind)
    return table[chosen].to_dict("records")


def test_numbers_of_units_are_compared_with_those_at_the_smallest_rate():
    large = [run(0.25, 4, early=3), run(0.25, 1, seed=1, early=2, train=2e-4)]
    table = large_learning_rate.measure([*SMALLEST, run(0.1, 10, plateau=2e-6), *large])
    (found,) = rows(table, "setting", arm="plain", rate=0.25)
    assert found["distinct_ratio"] == pytest.approx(0.25)
    assert found["early_ratio"] == pytest.approx(0.25)
    assert found["correlated_ratio"] == pytest.approx(0.25)
    assert found["distinct_fitted_ratio"] == pytest.approx(0.4)  # the second did not fit
    assert found["fitted"] == 0.5
    assert found["test_ratio"] == pytest.approx(1 / 3)
    assert found["plateau_ratio"] == pytest.approx(0.5)
    assert sorted(found["seeds"]) == [0, 0, 1, 1]
    assert np.isnan(found["recovered"])  # none stabilised
    assert np.isnan(found["over_repeated"])  # that arm is not there


def test_arms_are_told_apart_and_share_the_rate_of_a_minibatch():
    own = [run(0.25, 9, repeats=8, test=2e-5), run(0.25, 9, warmup=2000), run(0.25, 5, test=1e-5)]
    table = large_learning_rate.measure([*SMALLEST, *own])
    arms = {(row["arm"], row["rate"]) for row in rows(table, "run")}
    assert arms == {("plain", 0.01), ("plain", 0.25), ("repeated", 0.25), ("warmed", 0.25)}
    (plain,) = rows(table, "setting", arm="plain", rate=0.25)
    assert plain["over_repeated"] == pytest.approx(0.5)
    (repeated,) = rows(table, "setting", arm="repeated", rate=0.25)
    assert repeated["distinct_ratio"] == pytest.approx(0.9)
    assert repeated["early_ratio"] == pytest.approx(0.9)  # after 1,000 minibatches, 8,000 steps


def test_a_run_that_stabilised_has_recovered_if_it_fitted_after_the_drop():
    own = [
        run(0.4, 3, plateau=0.1, train=1e-5),
        run(0.4, 1, seed=1, plateau=0.2, train=0.1),
        run(0.4, 3, seed=2, plateau=1e-5, train=1e-5),
        run(0.4, 9, seed=3, nonfinite=900),
    ]
    table = large_learning_rate.measure([*SMALLEST, run(0.1, 10, plateau=1e-5), *own])
    (found,) = rows(table, "setting", arm="plain", rate=0.4)
    assert found["recovered"] == 0.5
    assert found["fitted"] == 0.5
    assert found["median_plateau_ratio"] == pytest.approx(1.5e4)
    assert found["plateau_ratio"] == np.inf
    assert found["distinct_ratio"] == pytest.approx(7 / 4 / 10)  # the fourth has no units
    lost = rows(table, "run", seed=3)[0]
    assert lost["train"] == lost["test"] == np.inf


def test_a_run_whose_error_rose_is_measured_as_it_is():
    risen = run(0.4, 0, train=0.5, plateau=0.5)
    risen = risen._replace(result={"status": "diverged", "nonfinite_at": None})
    (found,) = rows(large_learning_rate.measure([*SMALLEST, risen]), "run", rate=0.4)
    assert (found["train"], found["plateau"], found["fitted"]) == (0.5, 0.5, 0)


def test_the_figure_shows_every_arm(tmp_path):
    own = [run(0.25, 9, repeats=8), run(0.25, 9, warmup=2000), run(0.25, 5, train=0.1)]
    runs = [*SMALLEST, *own, run(0.25, 5, seed=1, nonfinite=900)]
    drawn = large_learning_rate.figure(runs, large_learning_rate.measure(runs))
    drawn.savefig(tmp_path / "figure.png")
    legend = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
    assert legend == ["0.01", "0.25", "0.25, in small steps", "0.25, warm-up"]


def test_every_claim_selects_what_is_swept(monkeypatch):
    for name in ("_data_checksum", "load_data"):
        monkeypatch.setattr(reproducing.planning, name, lambda _: "any")
    experiment = reproducing.load("large_learning_rate", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(jobs) == 9 * 16
    assert len(reproducing.planning.group(jobs)) == 1
    swept = {large_learning_rate.arm(Run("", {}, job.config, {}, pd.DataFrame())) for job in jobs}
    measured = set(large_learning_rate.measure(SMALLEST))
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        rates = claim.where["rate"]
        for rate in rates if isinstance(rates, list) else [rates]:
            assert (claim.where["arm"], rate) in swept
        assert claim.quantity in measured
    for job in jobs:
        unchanged = job.config["optimizer"]["learning_rate"] == large_learning_rate.SMALLEST
        assert job.config["schedule"]["factor"] == (1.0 if unchanged else 0.05)
