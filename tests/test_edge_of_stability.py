"""The experiment: what it measures, and that its claims hold."""

import importlib
import json

import numpy as np
import pandas as pd
import pytest

from lmech import planning, reproducing
from lmech.cli import main
from lmech.collecting import Run

experiment = importlib.import_module("lmech.experiments.edge_of_stability")


def run(sharpness, loss, steps=400, rate=0.5):
    config = {"seed": 0, "steps": steps, "optimizer": {"learning_rate": rate}}
    at = np.arange(steps + 1)
    metrics = pd.DataFrame({"step": at, "train_loss": loss(at), "train_accuracy": at / steps})
    metrics["sharpness"] = np.where(at % 10 == 0, sharpness(at), np.nan)
    return Run("job", {}, config, {"status": "done"}, metrics)


def test_quantities_of_a_written_out_run():
    rising = run(lambda t: np.minimum(t / 25, 4.2), lambda t: np.exp(-t / 100) + 1e-3 * (-1.0) ** t)
    row = experiment.measure([rising]).iloc[0]
    assert row["initial"] == 0
    assert row["crossing"] == 100
    assert row["crossing_share"] == 0.25
    np.testing.assert_allclose([row["plateau"], row["lowest"], row["highest"]], 1.05)
    np.testing.assert_allclose(row["fall"], np.exp(-1), rtol=1e-2)
    assert 0.4 < row["rises"] < 0.6
    assert row["step_of_99"] == 396


def test_a_run_that_never_arrives_has_no_crossing():
    flat = run(lambda t: 0 * t + 2.0, lambda t: 1 / (1 + t))
    row = experiment.measure([flat]).iloc[0]
    assert row["crossing"] == np.inf
    assert row["plateau"] == 0.5
    assert row["rises"] == 0


def test_no_claim_holds_of_a_run_that_is_not_complete():
    good = run(lambda t: 0 * t + 4.2, lambda t: 1 / (1 + t))
    diverged = good._replace(result={"status": "diverged"})
    short = good._replace(config={**good.config, "steps": 500})
    for incomplete in (diverged, short):
        row = experiment.measure([incomplete]).iloc[0]
        assert row.drop(["job", "seed", "optimizer.learning_rate"]).isna().all()


def beside(run, sharpness, apart):
    """The run with columns of a gradient flow beside it, measured every 20 steps."""
    at = run.metrics["step"].to_numpy()
    columns = {
        "gradient_flow": apart(at),
        "gradient_flow_relative": np.where(at > 0, apart(at), np.nan),
        "gradient_flow_loss": np.exp(-at / 100),
        "gradient_flow_accuracy": np.minimum(at / 300, 1),
        "gradient_flow_sharpness": sharpness(at),
    }
    seen = {name: np.where(at % 20 == 0, values, np.nan) for name, values in columns.items()}
    return run._replace(metrics=run.metrics.assign(**seen))


def test_a_run_that_leaves_gradient_flow_at_the_edge():
    """λ₁ of the flow is t/25; the run crosses 2/η = 4 at step 100, stays at 4.2 from 105 on."""
    rising = run(lambda t: np.minimum(t / 25, 4.2), lambda t: np.exp(-t / 100) + 1e-3 * (-1.0) ** t)
    followed = beside(rising, lambda t: t / 25, lambda t: np.where(t <= 100, 1e-5 * t, 0.1))
    table = experiment.measure([followed])
    row = table.iloc[0]
    assert row["crossing"] == 100
    assert row["leaves"] == 20  # at 100 they are equal, at 120 the flow has 4.8
    assert row["flow_step_of_99"] == 300
    assert row["flow_sharpness_at_99"] == 12
    assert row["apart_before"] == pytest.approx(80e-5)
    assert row["apart_at_end"] == pytest.approx(0.1)
    assert len(experiment.figure([followed], table).axes) == 2
    held_back = beside(rising, lambda t: t / 50, lambda t: 0 * t)
    assert experiment.measure([held_back]).iloc[0]["leaves"] < 0
    alone = experiment.measure([rising])
    assert "leaves" not in alone
    assert len(experiment.figure([rising], alone).axes) == 2


def test_99_per_cent_that_float32_rounds_down_is_99_per_cent():
    """4,950/5,000 as a product with the reciprocal, which is how it is compiled."""
    rounded = np.float32(4950) * (np.float32(1) / np.float32(5000))
    assert rounded < np.float32(0.99)
    there = run(lambda t: 0 * t + 2.0, lambda t: 1 / (1 + t))
    accuracy = np.where(np.arange(401) < 200, np.float32(0.9898), rounded)
    there = there._replace(metrics=there.metrics.assign(train_accuracy=accuracy))
    assert experiment.measure([there]).iloc[0]["step_of_99"] == 200


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_every_claim_is_of_a_quantity_that_is_measured(scale):
    written = run(lambda t: 0 * t + 4.2, lambda t: 1 / (1 + t))
    written = written if scale == "default" else beside(written, lambda t: t, lambda t: t)
    claims = reproducing.load("edge_of_stability", scale, []).claims
    assert {claim.quantity for claim in claims} <= set(experiment.measure([written]))


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_each_scale_is_one_compiled_program(scale, monkeypatch):
    monkeypatch.setattr(planning, "_data_checksum", lambda _: "unread")
    monkeypatch.setattr(planning, "load_data", lambda _: None)
    loaded = reproducing.load("edge_of_stability", scale, [])
    jobs = planning.expand(loaded.overrides, loaded.sweep)
    assert len(planning.group(jobs)) == 1
    assert len(jobs) == (15 if scale == "default" else 1)
    assert all(claim.source for claim in loaded.claims)


def test_an_override_of_a_swept_key_replaces_its_values():
    loaded = reproducing.load("edge_of_stability", "default", ["seed=3,4", "model.width=9"])
    assert loaded.sweep[0].grid["seed"] == [3, 4]
    assert "model.width=9" in loaded.overrides
    single = reproducing.load("edge_of_stability", "default", ["seed=7"])
    assert single.sweep[0].grid["seed"] == [7]


@pytest.mark.slow
def test_side_by_side_the_verdicts_are_those_of_members_in_turn(elsewhere):
    """The last bits differ, and at the edge the paths in time: not what is claimed of them."""
    verdicts = []
    for mode in ("map", "vmap"):
        words = ["seed=10", f"execution.mode={mode}", f"output={mode}", "logger=none"]
        assert main(["reproduce", "edge_of_stability", *words]) == 0
        (claims,) = elsewhere.glob(f"{mode}/edge_of_stability/*/claims.json")
        judged = json.loads(claims.read_text())
        verdicts.append([c["verdict"] for c in judged if c["expected"] != "open"])
    assert verdicts[0] == verdicts[1]


@pytest.mark.slow
def test_the_claims_hold_for_five_seeds(elsewhere):
    words = ["seed=20,21,22,23,24", "execution.mode=map", "logger=none"]
    assert main(["reproduce", "edge_of_stability", *words]) == 0
    (sweep,) = elsewhere.glob("outputs/edge_of_stability/*")
    claims = json.loads((sweep / "claims.json").read_text())
    decided = [claim for claim in claims if claim["expected"] != "open"]
    assert [claim["claim"] for claim in decided if claim["verdict"] != claim["expected"]] == []
    assert any(claim["expected"] == "fails" for claim in decided)
    keys = {"claim", "measured", "predicted", "interval", "verdict", "expected", "unit", "seeds"}
    assert all(keys | {"source", "jobs"} <= claim.keys() for claim in claims)
    summary = json.loads((sweep / "summary.json").read_text())
    assert summary["compilations"] + summary["cached_compilations"] == 1
    assert summary["done"] == 25
