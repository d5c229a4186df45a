"""Quadratic regression: the map against training by autodiff, and what is measured."""

import numpy as np
import pandas as pd
import pytest
from lmech.experiments.progressive_sharpening.parts import one_hot
from problems import column, train

from experiments import progressive_sharpening
from lmech import config, reproducing
from lmech.collecting import Run

pytestmark = pytest.mark.usefixtures("x64")


def test_the_map_is_what_training_does():
    overrides = (
        *("experiment=progressive_sharpening", "steps=40", "stop.train_loss=null"),
        *("model.eigenvalues=[1,-0.1]", "optimizer.learning_rate=0.8", "seed=5"),
    )
    recorder, end = train([config.resolve(config.compose(overrides))])
    z, t0, t1, loss = (
        np.array([float(column(recorder, 0, name)[step]) for step in range(41)])
        for name in ("moments_residual", "moments", "moments_first", "train_loss")
    )
    found, kernel = progressive_sharpening.trajectory(z[0], t0[0], t1[0], 0.1, 0.8, 40)
    np.testing.assert_allclose(z, found, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(t0, kernel, rtol=1e-12)
    np.testing.assert_allclose(z**2 / 2, loss, rtol=1e-12)
    params = {name: leaf[0] for name, leaf in end.params.items()}
    J = params["linear"][0, 0] + params["quadratic"][0, 0] @ params["parameters"]
    assert (J**2).sum() == pytest.approx(kernel[-1], rel=1e-12)
    assert J[0] ** 2 - 0.1 * J[1] ** 2 == pytest.approx(t1[-1], rel=1e-9)


def test_the_ntk_of_one_example_is_the_zeroth_moment():
    overrides = (
        *("experiment=progressive_sharpening", "steps=2", "observables.ntk_top.every=1"),
        "model.eigenvalues=[1,-0.1]",
    )
    recorder, _ = train([config.resolve(config.compose(overrides))])
    for step, value in column(recorder, 0, "moments").items():
        assert column(recorder, 0, "ntk_top")[step] == pytest.approx(float(value), rel=1e-10)


def test_examples_are_one_hot_and_their_targets_0():
    train, test = one_hot(3)[:2]
    np.testing.assert_array_equal(train.x, np.eye(3))
    np.testing.assert_array_equal(test.y, np.zeros((3, 1)))


def run(t0, loss, *, rate=1.0, eigenvalues=(1, -0.5), status="done", step=10):
    job = {
        "model": {"eigenvalues": eigenvalues and list(eigenvalues), "curvature": 1.0},
        "optimizer": {"learning_rate": rate},
        "stop": {"train_loss": 1e-3},
        "seed": 0,
    }
    columns = {"moments": t0, "ntk_top": t0, "train_loss": loss}
    columns |= {"moments_first": 0.0, "moments_residual": 0.0}
    metrics = pd.DataFrame({"step": np.arange(len(t0)) * step, **columns})
    return Run("a", {}, job, {"status": status, "steps": 2}, metrics)


def test_runs_are_sorted_by_what_they_did():
    found = progressive_sharpening.measure(
        [
            run([1.0, 2.5, 1.5], [1, 1, 1e-4]),
            run([1.0, 1.5, 1.5], [1, 1, 1], eigenvalues=None, rate=2.0),
            run([1.0, 1.5, 1.5], [1, 1, np.inf], status="diverged"),
        ]
    )
    slow, random, lost, group, trend = found.to_dict("records")
    # z = 0, so that the map stays at its start.
    assert (slow["peak"], slow["final"], slow["deviation"]) == (2.5, 1.5, 1.5)
    assert (slow["crossed"], slow["converged"], slow["slow"], slow["deficit"]) == (1, 1, 1, 1)
    assert (random["model"], random["first"], random["growth"]) == ("random", 2, 1.5)
    assert (lost["peak"], lost["converged"]) == (np.inf, 0)
    assert np.isnan(lost["final"])
    assert (group["epsilon"], group["final"], group["runs"]) == (0.5, 1.5, 1)
    assert (trend["epsilon"], trend["trend"]) == (0, 1)


def test_every_claim_selects_what_is_swept():
    experiment = reproducing.load("progressive_sharpening", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    models = [job.config["model"] for job in jobs]
    epsilons = {0.0, *(-m["eigenvalues"][1] for m in models if m["eigenvalues"])}
    rates = {job.config["optimizer"]["learning_rate"] for job in jobs}
    known = set(progressive_sharpening.measure([run([1.0, 2.5, 1.5], [1, 1, 1e-4])]))
    for claim in experiment.claims:
        assert {claim.quantity, *claim.where} <= known
        wanted = claim.where.get("epsilon", [])
        assert set(wanted if isinstance(wanted, list) else [wanted]) <= epsilons
        assert claim.where.get("rate", 1.0) in rates
