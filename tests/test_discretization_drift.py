"""One step of gradient descent beside three flows."""

import numpy as np
import pandas as pd
import pytest
from problems import measured, state

from experiments import discretization_drift
from lmech import claims, reproducing
from lmech.collecting import Run
from lmech.observables.drift import discretization_drift as drift

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


@pytest.mark.parametrize("setting", [("optimizer=adam",), ("batch_size=5",)])
def test_what_is_no_full_batch_descent_is_refused(setting):
    with pytest.raises(ValueError, match="of full-batch gradient descent"):
        measured(drift(), state(*SMALL, *setting))


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
