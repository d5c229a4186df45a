"""The catapult's map against training by autodiff, its first order, and what is measured."""

import numpy as np
import pandas as pd
import pytest
from lmech.experiments.catapult.parts import data
from problems import column, train

from experiments import catapult
from lmech import config, reproducing
from lmech.collecting import Run

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.6, 1.4])
def test_the_map_is_what_training_does(rate):
    overrides = (
        *("experiment=catapult", "model.width=40", "steps=30", "stop.train_loss=null"),
        f"optimizer.learning_rate={rate}",
    )
    recorder, end = train([config.resolve(config.compose(overrides))])
    loss, kernel = (column(recorder, 0, name) for name in ("train_loss", "ntk_top"))
    first = float(np.sqrt(2 * loss[0])), float(kernel[0])
    f, predicted = catapult.trajectory(*first, rate, 40, 30)
    found = np.sqrt(2 * np.array([loss[step] for step in range(31)]))
    np.testing.assert_allclose(found, np.abs(f), rtol=1e-12, atol=1e-14)  # f's terms are of order 1
    np.testing.assert_allclose([kernel[step] for step in range(31)], predicted, rtol=1e-12)
    weights = [end.params[name]["kernel"][0] for name in ("hidden_1", "readout")]
    norm = sum(float((w**2).sum()) for w in weights)
    assert norm / 40 == pytest.approx(predicted[-1], rel=1e-12)


def test_the_first_order_drop_is_the_maps_at_large_width():
    for c in (0.5, 1.5):
        _, kernel = catapult.trajectory(1.3, 2.0, c / 2, 1e6, 500)
        drop = 1 - kernel[-1] / 2
        assert drop == pytest.approx(catapult.lazy_drop(c, 1.3, 2.0, 1e6), rel=1e-4)


def test_beyond_four_the_map_grows_without_end_and_below_it_converges():
    f, kernel = catapult.trajectory(1.0, 2.0, 4.1 / 2, 500, 60)
    assert not np.isfinite(f[-1])
    f, kernel = catapult.trajectory(1.0, 2.0, 2.5 / 2, 500, 300)
    assert abs(f[-1]) < 1e-9
    assert 0 < kernel[-1] < 2 / (2.5 / 2)


def test_images_are_divided_by_the_root_of_their_pixels_and_a_point_is_one():
    images, point = data("digits", 20), data()
    assert np.square(images.train.x).sum(1).mean() == pytest.approx(1, rel=0.3)
    assert (point.train.x.tolist(), point.train.y.tolist()) == ([[1]], [[0]])


def run(kernel, loss, rate, kind="point", status="done", seed=0):
    job = {
        "model": {"activation": "linear", "width": 100},
        "dataset": {"kind": kind},
        "optimizer": {"learning_rate": rate},
        "seed": seed,
    }
    metrics = pd.DataFrame({"step": range(3), "ntk_top": kernel, "train_loss": loss})
    return Run(f"{rate}", {}, job, {"status": status, "steps": 2}, metrics)


def test_bands_deviations_and_boundaries():
    f, kernel = catapult.trajectory(1.0, 2.0, 1.25, 100, 2)
    found = catapult.measure(
        [
            run(kernel * [1, 1.01, 1], f**2 / 2, 1.25),
            run([2.0, 2, 2], [1, 0.5, 0.1], 0.5),
            run([2.0, 9, 99], [1, 1e3, 1e7], 2.5),
        ]
    )
    first, lazy, lost, boundary = found.to_dict("records")
    assert first["deviation"] == pytest.approx(0.01 * kernel[1] / 2)
    assert (first["band"], lazy["band"], lost["band"]) == ("catapult", "lazy", "divergent")
    assert (lazy["peak"], lazy["end"], lazy["drop_ratio"]) == (1, 0.1, 0)
    assert lost["diverged"] == 1
    assert np.isnan(lost["ratio"])
    assert boundary["boundary"] == pytest.approx(np.sqrt(2.5 * 5))
    assert boundary["jobs"] == ["1.25", "2.5"]


def test_every_claim_selects_what_is_swept():
    experiment = reproducing.load("catapult", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    swept = {(j.config["dataset"]["kind"], j.config["model"]["activation"]) for j in jobs}
    assert swept == {("point", "linear"), *(("digits", a) for a in ("linear", "relu", "tanh"))}
    known = set(catapult.measure([run([2.0, 2, 2], [1, 0.5, 0.1], 0.5)]))
    for claim in experiment.claims:
        assert {claim.quantity, *claim.where} <= known
        assert claim.where.get("band", "lazy") in catapult.BANDS
        kinds = {kind for kind, name in swept if claim.where.get("activation", name) == name}
        assert claim.where["data"] in kinds
