"""Omnigrok's measurements on runs whose crossings are known."""

import numpy as np
import pandas as pd
import pytest

from experiments import grokking_omnigrok as omnigrok
from lmech import claims, reproducing
from lmech.collecting import Run

DECAYED = {"scale": 8.0, "decay": 0.1}


def run(test_at, train_at=20, scale=1.0, decay=0.1, norm=None, seed=0, norm_at=12.0):
    """75 % of the test images at one step (None: never), where the run ends, norm_at there."""
    end = 400 if test_at is None else test_at
    step = np.arange(0, end + 1, 20)
    metrics = pd.DataFrame(
        {
            "step": step,
            "train_accuracy": np.where(step >= train_at, 1.0, 0.1),
            "test_accuracy": np.where(step == test_at, 0.75, 0.2),
            "weight_norm": np.where(step == end, norm_at, 99.0),
        }
    )
    own = {"weight_decay": decay} if norm is None else {"weight_decay": 0.0, "norm": norm}
    config = {"optimizer": own, "parametrization": {"init_scale": scale}, "seed": seed}
    name = f"{scale} {decay} {norm} {seed}"
    return Run(name, {}, config, {"status": "done", "steps": int(end)}, metrics)


def arms(seed=0, times=1):
    return [
        run(20, seed=seed),
        run(400 * times, **DECAYED, seed=seed, norm_at=36.0),
        run(200 * times, scale=8.0, decay=0.2, seed=seed, norm_at=40.0),
        run(100, scale=8.0, norm=12.16, seed=seed),
        run(None, scale=8.0, norm=93.8, seed=seed),
    ]


def row(table, **where):
    for key, value in where.items():
        table = table[table[key] == value]
    (found,) = table.to_dict("records")
    return found


def test_each_arm_is_compared_with_the_others_of_its_seed():
    table = omnigrok.measure([*arms(), *arms(seed=1, times=2)])
    assert table["arm"].tolist() == ["small", "large", "large", "held", "held"] * 2
    for seed, times in ((0, 1), (1, 2)):
        large = row(table, arm="large", decay=0.1, seed=seed)
        assert large["test_at"] == 400 * times
        assert large["delay"] == 20 * times
        assert (large["over_small"], large["over_held"]) == (20 * times, 4 * times)
        assert (large["over_double"], large["norm_over_double"]) == (2, 0.9)
    held = row(table, norm=12.16, seed=0)
    assert (held["over_small"], held["norm_at"]) == (5, 12)
    assert row(table, arm="small", seed=0)["over_small"] == 1


def test_a_run_that_never_gets_there_is_infinitely_late_and_has_no_norm_there():
    table = omnigrok.measure(arms())
    never = row(table, norm=93.8)
    assert (never["test_at"], never["over_small"], never["delay"]) == (np.inf, np.inf, np.inf)
    assert np.isnan(never["norm_at"])


def test_ratios_are_unknown_without_the_other_arm():
    (alone,) = omnigrok.measure([run(400, **DECAYED)]).to_dict("records")
    names = ["over_small", "over_held", "over_double", "norm_over_double"]
    assert np.isnan([alone[name] for name in names]).all()


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_every_claim_selects_arms_that_are_swept(scale):
    experiment = reproducing.load("grokking_omnigrok", scale, [])
    measured = omnigrok.measure(arms())
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        assert claim.quantity in measured
        assert len(claims.judge(claim, measured)["values"]) >= 1


def test_the_norm_that_is_held_is_one_program_with_others_and_the_rest_another(monkeypatch):
    monkeypatch.setattr(reproducing.planning, "_data_checksum", lambda _: "any")
    monkeypatch.setattr(reproducing.planning, "load_data", lambda _: None)
    experiment = reproducing.load("grokking_omnigrok", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(jobs) == 5 * 3
    assert len(reproducing.planning.group(jobs)) == 2
    seeds = {job.config["seed"] for job in jobs}
    assert not seeds & {100, 101}  # the pilot's, on which the intervals were fixed
