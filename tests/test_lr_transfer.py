"""Learning-rate transfer's measurements on bowls whose bottoms are known."""

import numpy as np
import pandas as pd
import pytest

from experiments import lr_transfer
from lmech import claims, reproducing
from lmech.collecting import Run

RATES = 2.0 ** np.arange(-8, 1)


def run(loss, parametrization="mup", width=64, rate=0.1, seed=0, status="done", **keys):
    steps = keys.get("steps", 10)
    config = {
        "model": {"width": width, "depth": 2},
        "optimizer": {"learning_rate": rate},
        "steps": steps,
        "batch_size": keys.get("batch_size", 8),
        "seed": seed,
    }
    half = np.arange(steps) >= steps / 2
    metrics = pd.DataFrame({"step": np.arange(steps), "batch_loss": np.where(half, loss, 99.0)})
    name = f"{parametrization} {width} {rate} {seed} {keys}"
    overrides = {"parametrization": parametrization}
    return Run(name, overrides, config, {"status": status, "steps": steps}, metrics)


def bowls(slope, parametrization="mup", widths=(32, 64, 128), **keys):
    """log loss = (log2 η − slope · log2 width/32 + 4)², deeper as the net gets wider."""
    return [
        run(
            np.exp((np.log2(rate) + 4 - slope * np.log2(width / 32)) ** 2) / width,
            parametrization,
            width,
            rate,
            seed,
            **keys,
        )
        for width in widths
        for rate in RATES
        for seed in (0, 1)
    ]


def test_the_loss_is_that_of_the_second_half():
    assert lr_transfer.losses([run(0.25)])["loss"].tolist() == [0.25]


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.25])
def test_the_drift_is_that_of_the_bowls(slope):
    (row,) = lr_transfer.measure(bowls(slope)).to_dict("records")
    assert (row["parametrization"], row["along"], row["edges"]) == ("mup", "width", 0)
    assert row["drift"] == pytest.approx(slope)
    assert row["octaves"] == pytest.approx(2 * slope)
    assert row["worst_step"] < 1
    assert row["seeds"] == [0, 1]
    assert len(row["jobs"]) == 3 * len(RATES) * 2


def test_the_worst_step_is_the_largest_ratio_of_successive_widths():
    (row,) = lr_transfer.measure(bowls(0.0, widths=(32, 64, 256))).to_dict("records")
    assert row["worst_step"] == pytest.approx(0.5)


def test_regret_is_what_the_widest_loses_at_the_narrowests_best_rate():
    (still,) = lr_transfer.measure(bowls(0.0)).to_dict("records")
    (moving,) = lr_transfer.measure(bowls(-1.0)).to_dict("records")
    assert still["regret"] == 0
    assert moving["regret"] == pytest.approx((np.exp(2.0**2) - 1) / 128)


def test_an_optimum_at_the_edge_leaves_claims_undetermined():
    (row,) = lr_transfer.measure(bowls(-3.0)).to_dict("records")
    assert row["edges"] == 1
    assert np.isnan([row["drift"], row["octaves"], row["regret"]]).all()


def test_other_horizons_and_batches_are_rows_of_their_own():
    """Only runs that differ in one key from the usual are compared."""
    runs = [
        *bowls(0.0),
        *bowls(0.0, widths=(64,), steps=20),
        *bowls(0.0, widths=(64,), batch_size=32),
    ]
    found = lr_transfer.measure(runs)
    assert found["along"].tolist() == ["width", "steps", "batch_size"]
    assert [len(jobs) for jobs in found["jobs"]] == [54, 36, 36]


@pytest.mark.parametrize("scale", ["default", "mup", "transformer", "transformer_paper", "depth"])
def test_every_claim_selects_what_its_scale_sweeps(scale):
    experiment = reproducing.load("lr_transfer", scale, [])
    swept = {name for block in experiment.sweep for name in block.grid.get("parametrization", [])}
    measured = set(lr_transfer.measure(bowls(0.0)))
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        assert claim.where["parametrization"] in swept
        assert claim.quantity in measured


@pytest.mark.parametrize(("scale", "programs"), [("default", 7), ("mup", 4), ("depth", 4)])
def test_a_scale_compiles_as_many_programs_as_it_has_shapes(scale, programs, monkeypatch):
    """SP and μP share them, and so do all rates and seeds."""
    monkeypatch.setattr(reproducing.planning, "_data_checksum", lambda _: "any")
    monkeypatch.setattr(reproducing.planning, "load_data", lambda _: None)
    experiment = reproducing.load("lr_transfer", scale, [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(reproducing.planning.group(jobs)) == programs
