"""XOR clusters: the net is logistic regression's, and the measurements are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from lmech.experiments.grokking_xor.parts import net, neurons
from problems import measured, train

from experiments import grokking_xor
from lmech import building, claims, config, member, reproducing
from lmech.collecting import Run

pytestmark = pytest.mark.usefixtures("x64")

SMALL = ("experiment=grokking_xor", "dataset.dimension=12", "dataset.train_size=20",
         "dataset.test_size=10", "steps=5", "precision=float64")  # fmt: skip


def small(*overrides):
    return config.resolve(config.compose([*SMALL, *overrides]))


def state(*overrides):
    batch = building.build([small(*overrides)])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.inputs)
    return member.initial_state(batch.program, inputs, jax.device_put(batch.data))


def test_the_loss_is_the_logistic_loss_of_the_votes():
    at = state("model.width=6", "model.spread=0.1")
    w, a = at.params["hidden"], at.params["readout"]
    x, y = at.data.train.x, at.data.train.y
    np.testing.assert_allclose(np.abs(a), 6**-0.5)
    f = np.maximum(np.asarray(x) @ np.asarray(w), 0) @ np.asarray(a)
    expected = np.log1p(np.exp(-np.where(np.asarray(y) == 1, 1, -1) * f))
    np.testing.assert_allclose(at.problem.loss(at.problem.apply(at.params, x), y), expected)


@pytest.mark.parametrize("width", [1, 6])
def test_without_a_nonlinearity_it_trains_as_logistic_regression_at_every_width(width):
    own = [f"model.width={width}", "model.activation=linear", "model.spread=0.01", "steps=5"]
    start, (_, end) = state(*own), train([small(*own)])

    def vector(params):
        return np.asarray(params["hidden"] @ params["readout"])

    x, y = np.asarray(start.data.train.x), np.asarray(start.data.train.y)
    v, sign = vector(start.params), np.where(y == 1, 1.0, -1.0)
    for _ in range(5):
        v = v + 0.1 * x.T @ (sign / (1 + np.exp(sign * (x @ v)))) / len(x)
    ended = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), end.params)
    np.testing.assert_allclose(vector(ended), v, rtol=1e-9)


def test_the_readout_stays_at_its_signs_and_two_classes_are_needed():
    start, (_, end) = state("model.width=6"), train([small("model.width=6")])
    np.testing.assert_array_equal(end.params["readout"][0], start.params["readout"])
    assert (end.params["hidden"][0] != start.params["hidden"]).any()
    with pytest.raises(ValueError, match="two classes"):
        net(outputs=3)


def test_neurons_that_lie_along_their_own_class_count():
    at = state("model.width=4")
    w = np.zeros((12, 4))
    w[[0, 0, 1, 1], range(4)] = [3, -2, 5, -1]  # two along μ₁, two along μ₂
    w[5, 0] = 4
    params = {"hidden": jnp.asarray(w), "readout": jnp.asarray([-1.0, 1.0, 1.0, -1.0]) / 2}
    found = measured(neurons(), at._replace(params=params))
    assert found[""] == 0.5  # the first and the third
    np.testing.assert_allclose(found["along"], [[0.6, 0], [-1, 0], [0, 1], [0, -1]])
    np.testing.assert_array_equal(found["votes"], [0, 1, 1, 0])


def run(train, test, seed=0, separation=17.5):
    config = {
        "model": {"activation": "relu"},
        "dataset": {"separation": separation, "flips": 0.1},
        "steps": 3,
        "seed": seed,
    }
    along = [[0.0, 1.0, 0.5, 0.5]] * 4
    columns = {"train_accuracy": train, "test_accuracy": test, "train_loss": 0.1, "neurons": 0.7}
    metrics = pd.DataFrame({"step": range(4), **columns, "neurons_along": along})
    return Run(f"{seed}", {}, config, {"status": "done", "steps": 3}, metrics)


def test_errors_are_counted_against_the_flipped_labels():
    (row,) = grokking_xor.measure([run([0.5, 0.98, 1, 1], [0.4, 0.5, 0.8, 0.9])]).to_dict("records")
    assert (row["train_first"], row["train_last"]) == (0.98, 1)
    assert row["noisy_first"] == pytest.approx(0.8)  # 2 % of all, at most a fifth of the flipped
    assert row["noisy_last"] == 1
    assert (row["test_first"], row["test_last"]) == (0.5, 0.9)
    np.testing.assert_array_equal(
        grokking_xor.pointing(run([1] * 4, [1] * 4), 3), [[0, 1], [0.5, 0.5]]
    )


def test_every_claim_selects_what_is_swept(monkeypatch):
    for name in ("_data_checksum", "load_data"):
        monkeypatch.setattr(reproducing.planning, name, lambda _: "any")
    experiment = reproducing.load("grokking_xor", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(jobs) == 12
    swept = {
        (job.config["model"]["activation"], job.config["dataset"]["separation"]) for job in jobs
    }
    assert all(job.config["seed"] == job.config["dataset"]["data_seed"] for job in jobs)
    measured = set(grokking_xor.measure([run([1] * 4, [1] * 4)]))
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        separations = claim.where["separation"]
        for separation in separations if isinstance(separations, list) else [separations]:
            assert (claim.where["activation"], separation) in swept
        assert claim.quantity in measured
