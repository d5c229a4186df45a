"""One step of gradient descent beside three flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import measured, state

from experiments import discretization_drift
from lmech import claims, reproducing
from lmech.collecting import Run
from lmech.observables import gradient
from lmech.observables.drift import discretization_drift as drift
from lmech.observables.matrices import flat

pytestmark = pytest.mark.usefixtures("x64")
SMALL = ("dataset=gaussian", "dataset.train_size=20", "dataset.test_size=4", "dataset.dimension=4",
         "dataset.classes=2", "model.width=4", "model.depth=1", "precision=float64")  # fmt: skip


def test_on_a_quadratic_the_flows_errors_are_known():
    """Of an eigenvector with x = ηλ: |1 − x − e^−x|, |1 − x − e^(−x(1 + x/2))|, 0, times |g|/λ."""
    at = state(*SMALL, "model.depth=0", "model.bias=false", "optimizer.learning_rate=0.1")
    values = measured(drift(substeps=32), at)
    x, y = (np.asarray(a) for a in at.data.train[:2])
    curvature, vectors = np.linalg.eigh(x.T @ x / len(x))
    w = np.asarray(at.params["readout"]["kernel"])
    g = vectors.T @ (x.T @ (x @ w - np.eye(2)[y]) / len(x))
    z = 0.1 * curvature

    def apart(exponent):
        return np.linalg.norm(((1 - z - np.exp(-exponent)) / curvature)[:, None] * g)

    np.testing.assert_allclose(values["gradient_flow"], apart(z), rtol=1e-6)
    np.testing.assert_allclose(values["modified_loss"], apart(z * (1 + z / 2)), rtol=1e-4)
    assert values["principal_flow"] < 1e-9 * values["update"]
    np.testing.assert_allclose(values["update"], 0.1 * np.linalg.norm(g))
    assert values[""] == values["gradient_flow"]


def test_with_a_parametrization_they_are_the_flows_of_the_scaled_weights():
    """In u = C^-½ w a step is one of gradient descent on the Hessian S H S, S = C^½."""
    own = ("parametrization=mup", "parametrization.base_width=2", "model.width=8")
    at = state(*SMALL, *own, "optimizer.learning_rate=0.05")
    c = np.asarray(flat(jax.tree.map(jnp.full_like, at.params, at.scales.learning_rate)))
    assert len(set(c)) > 1

    @jax.jit
    def after_a_step(eta):
        here = at._replace(hyperparameters={"learning_rate": eta})
        return drift().measure(here, drift().init(here))[1]

    found = {eta: after_a_step(jnp.asarray(eta)) for eta in (0.05, 0.025)}
    g = np.asarray(flat(gradient(at)))
    np.testing.assert_allclose(found[0.05]["update"], 0.05 * np.linalg.norm(c * g))
    for flow, order in (("gradient_flow", 2), ("modified_loss", 3), ("principal_flow", 3)):
        slope = np.log2(found[0.05][flow] / found[0.025][flow])
        assert abs(slope - order) < 0.2, flow


@pytest.mark.parametrize("setting", ["optimizer=adam", "batch_size=5", "clip_norm=1.0"])
def test_what_is_no_full_batch_descent_is_refused(setting):
    with pytest.raises(ValueError, match="of full-batch gradient descent"):
        measured(drift(), state(*SMALL, setting))


def run(depth, rate, seed):
    metrics = pd.DataFrame(
        {
            "step": [0, 1],
            "discretization_drift_gradient_flow": [rate**2, np.nan],
            "discretization_drift_modified_loss": [rate**3, np.nan],
            "discretization_drift_principal_flow": [rate**3 if depth else 1e-12, np.nan],
            "discretization_drift_update": [rate, np.nan],
        }
    )
    config = {"model": {"depth": depth}, "seed": seed, "optimizer": {"learning_rate": rate}}
    return Run(f"{depth} {rate} {seed}", {}, config, {"status": "done", "steps": 1}, metrics)


def test_slopes_are_those_of_the_errors_and_every_claim_has_them():
    runs = [run(depth, 2.0**-e, seed) for depth in (1, 0) for e in range(3, 9) for seed in (0, 1)]
    table = discretization_drift.measure(runs)
    slopes = table[(table["kind"] == "slope") & (table["model"] == "net")]
    np.testing.assert_allclose(slopes["slope_gradient_flow"], 2)
    np.testing.assert_allclose(slopes["slope_modified_loss"], 3)
    for claim in reproducing.load("discretization_drift", "default", []).claims:
        assert claims.judge(claim, table)["verdict"] == claim.expected
    assert len(discretization_drift.figure(runs, table).axes[0].lines) == 9
