"""Grokking's measurements on losses whose crossings are known, and what its sweep compiles."""

import numpy as np
import pandas as pd
import pytest

from experiments import grokking
from lmech import claims, reproducing
from lmech.collecting import Run


def run(test_at, *, turned=None, fraction=0.6, decay=1.0, seed=0, norm=None, end=2000):
    """Training loss at 0.01 at step 200; the test loss at 1 and 0.01 at steps (None: never)."""
    step = np.arange(0, end + 1, 20)
    at = np.inf if test_at is None else test_at
    turned = at if turned is None else turned
    guess = np.log(31)
    metrics = pd.DataFrame(
        {
            "step": step,
            "train_loss": np.where(step >= 200, 0.01, guess),
            "test_loss": np.select([step >= at, step >= turned], [0.01, 1.0], guess),
            "train_accuracy": np.where(step >= 160, 1.0, 0.1),
            "test_accuracy": np.where(step >= at, 1.0, 0.1),
            "progress_restricted_loss": np.where(step >= 100, 0.1, guess),
            "progress_excluded_loss": np.where(step >= at, 6.0, 3.0),
            "fourier_concentration": np.where(step >= at, 0.6, 0.2),
            "weight_norm": np.where(step >= at, 20.0, 30.0),
        }
    )
    own = {"weight_decay": decay, **({} if norm is None else {"norm": norm})}
    config = {"optimizer": own, "dataset": {"p": 31}, "data_fraction": fraction, "seed": seed}
    name = f"{fraction} {decay} {norm} {seed}"
    return Run(name, {}, config, {"status": "done", "steps": end}, metrics)


def row(table, **where):
    for key, value in where.items():
        table = table[table[key] == value]
    (found,) = table.to_dict("records")
    return found


def sweep():
    """Censored at half of the pairs; delays ∝ 1/decay; seeds 0 and 1 apart."""
    seeds = [
        run(late * (1 + seed), turned=late * (1 + seed) / 2, fraction=f, decay=decay, seed=seed)
        for f, decay, late in ((0.6, 1.0, 800), (0.6, 2.0, 400), (0.8, 1.0, 400))
        for seed in (0, 1)
    ]
    never = [run(None, fraction=0.5, decay=1.0, seed=seed) for seed in (0, 1)]
    without = [run(None, fraction=f, decay=0.0, seed=s) for f in (0.5, 0.6, 0.8) for s in (0, 1)]
    held = [run(240, fraction=0.8, decay=0.0, norm=23.6, seed=seed) for seed in (0, 1)]
    return [*seeds, *never, *without, *held]


def test_a_run_is_known_by_when_its_losses_cross():
    found = row(grokking.measure([run(800, turned=400)]), kind="run")
    assert (found["memorised_at"], found["turned_at"], found["generalised_at"]) == (200, 400, 800)
    assert (found["ratio"], found["known_at"], found["known_ratio"]) == (4, 800, 5)
    assert found["restricted_lead"] == 4  # at most half a guess's loss: from 400, and from 100
    assert found["excluded_rise"] == 2
    assert found["gini_rise"] == pytest.approx(0.4)
    assert found["norm_fall"] == pytest.approx(2 / 3)


def test_a_run_that_never_generalises_is_infinitely_late_at_a_step_that_is_told():
    found = row(grokking.measure([run(None)]), kind="run")
    assert found["memorised_at"] == 200
    assert found["generalised_at"] == found["ratio"] == found["known_ratio"] == np.inf
    assert found["steps"] == 2000
    assert found["norm_fall"] == 1


def test_delays_are_compared_by_medians_where_the_norm_is_free():
    table = grokking.measure(sweep())
    fractions = row(table, kind="fractions", decay=1.0)
    assert fractions["falls"] == 0.5  # 1,200 to 600; from ∞ it is 0
    assert fractions["critical"] == 0.6
    assert fractions["seeds"] == [0, 1]
    without = row(table, kind="fractions", decay=0.0)
    assert (without["falls"], without["critical"]) == (1, np.inf)
    decays = row(table, kind="decays", fraction=0.6)
    assert decays["falls"] == 0.5
    assert decays["slope"] == pytest.approx(-1)
    assert np.isnan(row(table, kind="decays", fraction=0.8)["slope"])  # one decay alone


def test_a_loss_that_comes_back_was_not_low_for_good():
    losses = pd.Series([3.0, 0.5, 2.0, 0.5, 0.4], index=[0, 20, 40, 60, 80])
    assert grokking.for_good(losses, 1.0) == 60
    assert grokking.for_good(losses, 0.1) == np.inf


def test_every_claim_selects_runs_that_are_swept():
    experiment = reproducing.load("grokking", "default", [])
    table = grokking.measure(sweep())
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        assert len(claims.judge(claim, table)["values"]) >= 1
    other = {
        claim.claim: verdict
        for claim in experiment.claims
        if (verdict := claims.judge(claim, table)["verdict"]) != claim.expected
    }
    later, critical = other  # 4 and 8 times later here; whether there is one is open
    assert (later, other[later], other[critical]) == ("generalised much later", "fails", "holds")


def test_figures_are_drawn_of_all_of_it_and_of_one_run():
    for runs in (sweep(), [run(800)]):
        figure = grokking.figure(runs, grokking.measure(runs))
        assert len(figure.axes) == (6 if len(runs) > 1 else 2)


@pytest.mark.parametrize(("scale", "jobs", "programs"), [("default", 21, 2), ("paper", 6, 1)])
def test_fractions_decays_and_seeds_are_one_program(monkeypatch, scale, jobs, programs):
    monkeypatch.setattr(reproducing.planning, "_data_checksum", lambda _: "any")
    monkeypatch.setattr(reproducing.planning, "load_data", lambda _: None)
    experiment = reproducing.load("grokking", scale, [])
    found = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(found) == jobs
    assert len(reproducing.planning.group(found)) == programs
    assert not {job.config["seed"] for job in found} & {100, 101, 102}  # the pilot's
