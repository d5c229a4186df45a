"""Gradient flow beside the run, and midpoints."""

import numpy as np
import pytest
from problems import column, job, state, train

from lmech.observables import Observable, processes
from lmech.observables.matrices import flat

pytestmark = pytest.mark.usefixtures("x64")
COLUMNS = ("relative", "loss", "accuracy", "sharpness", "time")
LINEAR = ("model.depth=0", "model.bias=false", "precision=float64")


def flow_run(*overrides):
    config = job(
        *("observables=[loss,gradient_flow]", "observables.gradient_flow.every=10", "steps=40"),
        *overrides,
    )
    return train([config])


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_on_a_quadratic_the_flow_is_the_matrix_exponential(tolerance):
    """w(t) − w* = exp(−Ht)(w₀ − w*): each step's error is at most the tolerance of the path."""
    recorder, end = flow_run(*LINEAR, f"observables.gradient_flow.tolerance={tolerance}")
    at = state(*LINEAR)
    x, y = (np.asarray(a) for a in at.data.train[:2])
    covariance, target = x.T @ x / len(x), np.eye(10)[y]
    values, vectors = np.linalg.eigh(covariance)
    w, pull = np.asarray(at.params["readout"]["kernel"]), x.T @ target / len(x)
    time = 40 * 0.1
    decay = np.exp(-values * time)
    integral = np.where(values > 1e-12, (1 - decay) / np.where(values > 1e-12, values, 1), time)
    exact = vectors @ (decay[:, None] * (vectors.T @ w) + integral[:, None] * (vectors.T @ pull))
    found = np.asarray(end.params["readout"]["kernel"][0])
    steps = sum(column(recorder, 0, "gradient_flow_steps").values())
    allowed = steps * tolerance * np.linalg.norm(exact - w)
    measured = {name: column(recorder, 0, f"gradient_flow_{name}")[40] for name in COLUMNS}
    distance = column(recorder, 0, "gradient_flow")[40]
    assert abs(distance - np.linalg.norm(found - exact)) <= allowed
    assert measured["relative"] == pytest.approx(
        distance / np.linalg.norm(exact - w), rel=2 * steps * tolerance
    )
    assert measured["time"] == pytest.approx(time)
    residual = x @ exact - target
    loss = 0.5 * np.mean(np.sum(residual**2, axis=1))
    slope = np.linalg.norm(x.T @ residual) / len(x)
    assert abs(measured["loss"] - loss) <= allowed * slope + values[-1] / 2 * allowed**2
    np.testing.assert_allclose(measured["sharpness"], values[-1], rtol=1e-9)
    if tolerance == 1e-6:  # well within the margins of the outputs
        assert measured["accuracy"] == np.mean(np.argmax(x @ exact, axis=1) == y)


@pytest.mark.slow
def test_a_run_at_a_small_rate_stays_with_the_flow():
    """Euler's method is first order: a tenth of the rate, a tenth of the distance."""
    distances = []
    for rate, steps in ((0.1, 20), (0.01, 200)):
        recorder, _ = flow_run(
            f"optimizer.learning_rate={rate}",
            f"steps={steps}",
            "precision=float64",
            "observables.gradient_flow.tolerance=1e-6",
        )
        distances.append(column(recorder, 0, "gradient_flow")[steps])
    np.testing.assert_allclose(distances[0] / distances[1], 10, rtol=0.15)


@pytest.mark.slow
def test_a_flow_that_does_not_keep_up_is_not_a_number_from_there_on():
    recorder, _ = flow_run(
        "observables.gradient_flow.most_steps=1", "observables.gradient_flow.tolerance=1e-9"
    )
    found = column(recorder, 0, "gradient_flow")
    assert found[0] == 0
    assert all(np.isnan(found[t]) for t in (10, 20, 30, 40))


def test_the_midpoint_is_the_weighted_mean_of_three_iterates():
    config = job("observables=[loss]", "steps=6", "precision=float64")
    recorder, _ = train(
        [config],
        observables={"weights": SPY, "middle": processes.at_midpoints(SPY)},
        every={"weights": 1, "middle": 1},
    )
    weights, middle = (column(recorder, 0, name) for name in ("weights", "middle"))
    assert np.isnan(middle[0]).all()
    assert np.isnan(middle[1]).all()
    for t in range(2, 6):
        expected = (weights[t - 2] + 2 * weights[t - 1] + weights[t]) / 4
        np.testing.assert_allclose(middle[t], expected, rtol=1e-12)


SPY = Observable(lambda _: (), lambda state, memory: (memory, {"": flat(state.params)}))


def test_the_midpoint_is_the_same_beside_what_looks_further_back():
    further = SPY._replace(past=3)
    recorder, _ = train(
        [job("observables=[loss]", "steps=5", "precision=float64")],
        observables={"weights": SPY, "middle": processes.at_midpoints(SPY), "far": further},
        every={"weights": 1, "middle": 1, "far": 1},
    )
    weights, middle = (column(recorder, 0, name) for name in ("weights", "middle"))
    expected = (weights[2] + 2 * weights[3] + weights[4]) / 4
    np.testing.assert_allclose(middle[4], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="no past weights"):
        processes.at_midpoints(further)


@pytest.mark.slow
def test_midpoints_between_chunks_and_inside_them_are_the_same():
    def run(every):
        config = job(
            *("observables=[loss,midpoints]", "steps=12", "precision=float64"),
            *(f"observables.midpoint_{name}.every={every}" for name in ("loss", "sharpness")),
            "observables.midpoint_sharpness.of.tolerance=1e-10",
        )
        return train([config])[0]

    inside, between = run(1), run(4)
    for name in ("midpoint_loss", "midpoint_sharpness"):
        a, b = column(inside, 0, name), column(between, 0, name)
        np.testing.assert_allclose([a[4], a[8]], [b[4], b[8]], rtol=1e-9)


def test_at_the_edge_the_iterates_bounce_and_their_midpoints_do_not():
    """ηλ₁ = 1.99: the error along v₁ is multiplied by ρ = −0.99 a step; (1 + ρ)²/4ρ² stays."""
    x = np.asarray(state(*LINEAR).data.train.x)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    config = job(*LINEAR, "steps=60", f"optimizer.learning_rate={1.99 / values[-1]}")
    recorder, _ = train(
        [config],
        observables={"weights": SPY, "middle": processes.at_midpoints(SPY)},
        every={"weights": 1, "middle": 1},
    )

    def last_move(name):
        found = column(recorder, 0, name)
        return vectors[:, -1] @ (found[59] - found[58]).reshape(64, 10)

    bounce, drift = last_move("weights"), last_move("middle")
    assert np.linalg.norm(bounce) > 0.1
    np.testing.assert_allclose(drift, bounce * 0.01**2 / (4 * 0.99**2), rtol=1e-6)
