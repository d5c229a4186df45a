"""Identities of the quadratic net in closed form, and the measurements on curves that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from lmech.experiments.grokking_lazy_to_rich import parts
from problems import measured, train

from experiments import grokking_lazy_to_rich as rich
from lmech import building, claims, config, member, reproducing
from lmech.collecting import Run
from lmech.numerics import kernels

pytestmark = pytest.mark.usefixtures("x64")

D, N, EPSILON = 5, 7, 0.4
SMALL = ("experiment=grokking_lazy_to_rich", f"dataset.dimension={D}", f"model.width={N}",
         "dataset.train_size=9", "dataset.test_size=20", "steps=30", "precision=float64",
         f"parametrization.epsilon={EPSILON}", "optimizer.learning_rate=3.0",
         "observables.kernel_alignment.examples=9")  # fmt: skip


def small(*overrides):
    return config.resolve(config.compose([*SMALL, *overrides]))


def state(*overrides):
    batch = building.build([small(*overrides)])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.inputs)
    return member.initial_state(batch.program, inputs, jax.device_put(batch.data))


def elsewhere(at, seed=0):
    """Other weights than those at the start."""
    w = np.random.default_rng(seed).normal(size=(D, N))
    return {**at.params, "hidden": jnp.asarray(w)}


def moments(params):
    """M = (1/N) Σ ww' and w̄ = (1/N) Σ w."""
    w = np.asarray(params["hidden"])
    return w @ w.T / N, w.mean(axis=1)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_centred_outputs_are_the_moments_less_those_at_the_start(alpha):
    """f = α (w̄ − w̄₀)·x + (αε/2) x'(M − M₀)x."""
    at = state(f"output_scale={alpha}")
    params, x = elsewhere(at), np.asarray(at.data.train.x)
    (M, mean), (M0, mean0) = moments(params), moments(at.params)
    quadratic = np.einsum("pd,de,pe->p", x, M - M0, x)
    f = alpha * x @ (mean - mean0) + alpha * EPSILON / 2 * quadratic
    np.testing.assert_allclose(at.problem.apply(params, at.data.train.x)[:, 0], f, rtol=1e-10)


def test_the_kernel_is_that_of_the_whole_moments():
    """K = (α²/N)(x·x')[1 + ε w̄·(x + x') + ε² x'Mx'], centred or not; the rates divide it by α²."""
    at = state("output_scale=3.0")
    params, x = elsewhere(at), np.asarray(at.data.train.x)
    M, mean = moments(params)
    along = x @ mean
    bracket = 1 + EPSILON * (along[:, None] + along[None]) + EPSILON**2 * x @ M @ x.T
    K = 9 / N * (x @ x.T) * bracket
    found = kernels.empirical_ntk(at.problem.apply, params, at.data.train.x)
    np.testing.assert_allclose(found, K, rtol=1e-10)
    rates = at.scales.learning_rate
    trained = kernels.empirical_ntk(at.problem.apply, params, at.data.train.x, rates=rates)
    np.testing.assert_allclose(trained, K / 9, rtol=1e-10)
    alignment = measured(parts.kernel_alignment(9), at._replace(params=params))[""]
    assert alignment == pytest.approx(float(kernels.alignment(found, at.data.train.y)))


def test_the_test_error_is_its_three_terms():
    """¼((|β|² − αε Tr M)/D)² + |αεM − ββ'|²/(2D²) + α²|w̄|²/D, less the start."""
    at = state("output_scale=2.0")
    params = elsewhere(at)
    found = measured(parts.population(), at._replace(params=params))
    (M, mean), (M0, mean0) = moments(params), moments(at.params)
    beta = np.sqrt(D) * np.eye(D)[0]
    B, a = 2 * EPSILON * (M - M0), 2 * (mean - mean0)
    assert found["variance"] == pytest.approx(((beta @ beta - np.trace(B)) / D) ** 2 / 4)
    off = B - np.outer(beta, beta)
    assert found["misalignment"] == pytest.approx(np.sum(off**2) / (2 * D**2))
    assert found["linear"] == pytest.approx(a @ a / D)
    x = np.random.default_rng(1).normal(size=(400_000, D)) / np.sqrt(D)
    square = (np.asarray(at.problem.apply(params, jnp.asarray(x)))[:, 0] - (x @ beta) ** 2 / 2) ** 2
    error = 5 * square.std() / np.sqrt(len(x))
    assert found[""] == pytest.approx(square.mean(), abs=error)


def test_the_start_knows_nothing_and_errors_are_shares_of_the_targets_power():
    at = state()
    found = measured(parts.population(), at)
    assert found[""] == pytest.approx(rich.POWER)
    y = parts.quadratic_target(200_000, 1, D).train.y
    assert np.square(y).mean() == pytest.approx(rich.POWER, rel=0.05)
    w = np.asarray(at.params["hidden"])
    assert found["norm"] == pytest.approx(np.sum(w**2))
    assert found["alignment"] == pytest.approx(np.sum(w[0] ** 2) / np.sum(w**2))


@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_the_linearized_run_is_kernel_regression_and_the_nets_own_is_not(alpha):
    own = [f"output_scale={alpha}", "observables.kernel_regression.every=10"]
    deviations = []
    for flag in ("true", "false"):
        recorder, _ = train([small(*own, f"linearized={flag}")])
        table = recorder.table(0).to_pandas().set_index("step")
        both = table[["population", "kernel_regression", "batch_loss"]].dropna(subset="population")
        kernel = table["kernel_regression"].dropna()
        deviations.append((both["population"][kernel.index] / kernel - 1).abs().max())
        fitted = table["kernel_regression_train"].dropna().drop(30)
        if flag == "true":
            np.testing.assert_allclose(2 * table["batch_loss"][fitted.index], fitted, rtol=1e-9)
    assert deviations[0] < 1e-9
    assert deviations[1] > 1e-3


def test_epsilon_and_alpha_are_inputs_and_epsilon_never_trains():
    jobs = reproducing.planning.each(
        [
            [*SMALL, f"output_scale={a}", f"parametrization.epsilon={e}"]
            for a, e in ((1.0, 0.1), (2.0, 0.5))
        ]
    )
    assert len(reproducing.planning.group(jobs)) == 1
    _, end = train([job.config for job in jobs])
    np.testing.assert_allclose(end.params["epsilon"], [0.1, 0.5])


def run(alpha, fitted, generalises, epsilon=0.3, seed=0, linearized=False, final=0.05, align=0.5):
    """A run whose training error is small from a step on, and its test error from another."""
    steps = np.arange(101)
    test = np.where(steps < generalises, 0.4, final)
    metrics = pd.DataFrame({"step": steps, "population": rich.POWER * test})
    metrics["batch_loss"] = np.where(steps < fitted, 0.5, 1e-3)
    metrics["kernel_regression"] = np.where(steps % 50 == 0, rich.POWER * 0.5, np.nan)
    metrics["kernel_regression_edge"] = np.where(steps % 50 == 0, 0.9, np.nan)
    metrics["kernel_alignment"] = np.minimum(steps, 50) / 100
    metrics["population_alignment"], metrics["population_norm"] = align, 1.0 + steps
    config = {
        "linearized": linearized,
        "output_scale": alpha,
        "parametrization": {"epsilon": epsilon},
        "seed": seed,
        "steps": 100,
    }
    name = f"{alpha} {epsilon} {seed} {linearized}"
    return Run(name, {}, config, {"status": "done", "steps": 100}, metrics)


def rows(table, kind, **where):
    chosen = (table[list(where)] == pd.Series(where)).all(axis=1) & (table["row"] == kind)
    return table[chosen].to_dict("records")


def test_a_runs_delay_plateau_and_late_alignment():
    table = rich.measure([run(2.0, 20, 60), run(2.0, 10, 200, seed=1)])
    first, second = rows(table, "run")
    assert (first["train_step"], first["test_step"], first["ratio"]) == (20, 60, 3)
    assert (first["delayed"], second["delayed"], second["ratio"]) == (0, 1, np.inf)
    assert first["plateau"] == pytest.approx(0.4)
    assert first["plateau_ratio"] == pytest.approx(0.8)
    assert first["kernel_deviation"] == pytest.approx(0.9)  # 0.05 beside 0.5 at the end
    assert first["alignment_late"] == pytest.approx(0.6)
    assert first["growth"] == 101
    assert (second["lowest"], second["final"]) == (pytest.approx(0.4), pytest.approx(0.4))


def test_trends_are_of_medians_along_alpha_epsilon_and_at_equal_products():
    delays = {(0.5, 0.3): 20, (2.0, 0.3): 40, (4.0, 0.3): 200, (1.0, 0.6): 44, (2.0, 0.1): 20}
    runs = [
        run(a, 20, t, e, seed, final=0.01 * a, align=0.5 / a)
        for (a, e), t in delays.items()
        for seed in (0, 1, 2)
    ]
    table = rich.measure([*runs, run(2.0, 20, 200, linearized=True)])
    (along,) = rows(table, "trend", along="alpha", epsilon=0.3)
    assert along["ratio_least"] == pytest.approx(2)
    assert along["ratio_most"] == np.inf
    assert along["final_least"] == pytest.approx(4)
    assert along["alignment_most"] == pytest.approx(0.5)
    (same,) = rows(table, "trend", along="none", product=0.6)
    assert same["ratio_spread"] == pytest.approx(1.1)
    assert len(same["jobs"]) == 6
    (curved,) = rows(table, "trend", along="epsilon", alpha=2.0)
    assert curved["ratio_most"] == pytest.approx(2)
    (rich_one,) = rows(table, "setting", alpha=2.0, epsilon=0.3, linearized=False)
    assert rich_one["over_rich"] == pytest.approx(2)
    assert rich_one["median_ratio"] == 2


def test_a_run_that_is_not_complete_measures_nothing():
    broken = run(2.0, 20, 60)._replace(result={"status": "diverged", "steps": 50})
    (found,) = rows(rich.measure([broken]), "run")
    assert np.isnan(found["ratio"])


def test_every_claim_selects_rows_of_its_kind(monkeypatch):
    for name in ("_data_checksum", "load_data"):
        monkeypatch.setattr(reproducing.planning, name, lambda _: "any")
    experiment = reproducing.load("grokking_lazy_to_rich", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(jobs) == 7 * 13
    assert len(reproducing.planning.group(jobs)) == 7 * 2  # each data set's, linearized or not
    settings = {
        (j.config["output_scale"], j.config["parametrization"]["epsilon"], j.config["linearized"])
        for j in jobs
    }
    table = rich.measure([run(a, 20, 60, e, s, li) for a, e, li in settings for s in range(7)])
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        where = {key: value for key, value in claim.where.items() if key != "row"}
        chosen = rows(table, claim.where["row"], **where)
        assert chosen, claim.claim
        judged = claims.judge(claim, table)
        assert len(judged["values"]) == len(chosen)
