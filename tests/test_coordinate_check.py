"""The coordinate check's measurements on runs with exponents that are known."""

import numpy as np
import pandas as pd
import pytest

from experiments import coordinate_check
from lmech import claims, reproducing
from lmech.collecting import Run

WIDTHS = (256, 512, 1024, 2048)


def run(exponent, width, seed, parametrization="mup", **changed):
    """mean |Δh| = width^exponent in every layer, and its own term the square root of that."""
    change = float(width) ** exponent
    columns = {f"activations_mean_change_{layer}": change for layer in coordinate_check.LAYERS}
    columns |= {f"layer_updates_{layer}_kernel": change**0.5 for layer in coordinate_check.LAYERS}
    own = {f"parametrization.table.{key}": value for key, value in changed.items()}
    overrides = {"parametrization": parametrization, "optimizer": "gd", **own}
    config = {"model": {"width": width}, "seed": seed}
    metrics = pd.DataFrame({"step": [0, 1], **{k: [0.0, v] for k, v in columns.items()}})
    return Run(f"{width}-{seed}", overrides, config, {"status": "done"}, metrics)


def runs(exponent, seeds=(0, 1), **more):
    return [run(exponent, width, seed, **more) for width in WIDTHS for seed in seeds]


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.5])
def test_a_power_law_has_its_exponent(exponent):
    found = coordinate_check.measure(runs(exponent))
    assert len(found) == 2 * len(coordinate_check.LAYERS)
    np.testing.assert_allclose(found["exponent"], exponent, atol=1e-12)
    np.testing.assert_allclose(found["exponent_update"], exponent / 2, atol=1e-12)
    np.testing.assert_allclose(found["steepening"], 0, atol=1e-12)


def test_a_replaced_rule_is_named_and_the_rest_is_not():
    own = dict(coordinate_check.RULES)
    plain, changed = run(0, 256, 0, **own), run(0, 256, 0, **{**own, "output.b": 0.5})
    assert coordinate_check.rule(plain) == "mup"
    assert coordinate_check.rule(changed) == "mup with output.b = 0.5"
    assert coordinate_check.rule(run(0, 256, 0, parametrization="sp")) == "sp"


def test_the_interval_is_students():
    mean, half = coordinate_check.interval([0.0, 1.0])
    assert (mean, half) == (0.5, pytest.approx(12.706 * 0.5, rel=1e-3))


def test_every_claim_is_about_a_measurement_that_the_sweep_makes():
    """Each selects one rule, optimizer and layer of those that the YAML sweeps over."""
    experiment = reproducing.load("coordinate_check", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(reproducing.planning.group(jobs)) == 8
    made = [Run(job.id, dict(job.overrides), job.config, {}, pd.DataFrame()) for job in jobs]
    known = {(coordinate_check.rule(one), one.overrides["optimizer"]) for one in made}
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        assert (claim.where["rule"], claim.where["optimizer"]) in known
        assert claim.where["layer"] in coordinate_check.LAYERS
