"""The central flow, the complementarity problem in it, and optimizers as preconditioned descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import column, job, measured, state, train

from experiments import central_flow
from lmech import building, claims, optimizers, reproducing
from lmech.collecting import Run
from lmech.numerics import complementarity, curvature
from lmech.observables import central_flow as flows
from lmech.observables.matrices import flat, unravel
from lmech.problem import total_loss

pytestmark = pytest.mark.usefixtures("x64")
LINEAR = ("model.depth=0", "model.bias=false", "precision=float64")
NET = ("precision=float64", "model.width=6", "model.depth=1", "dataset.train_size=40")
FLOW = ("observables=[loss,central_flow]", "observables.central_flow.every=5")

solve = jax.jit(complementarity.solve)


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.sampled_from([-1, 1]))
def test_of_one_direction_the_solution_is_the_positive_part_of_the_ratio(push, size, sign):
    pull = sign * size
    found = float(solve(jnp.full((1, 1, 1, 1), push), jnp.full((1, 1), pull))[0, 0])
    assert found == pytest.approx(max(0.0, pull / push), rel=1e-9, abs=1e-9 * abs(pull / push))


def problem(k, seed, condition):
    """B with eigenvalues over so many decades, on symmetric matrices, and a symmetric A."""
    rng = np.random.default_rng(seed)
    terms = k * (k + 1) // 2
    g = rng.standard_normal((k, k, terms)) * np.logspace(0, -condition / 2, terms)
    g = (g + g.transpose(1, 0, 2)) / 2
    a = rng.standard_normal((k, k))
    return np.einsum("ijd,kld->ijkl", g, g), (a + a.T) / 2


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("condition", [0, 2])
def test_the_solution_is_complementary(k, condition):
    """X ⪰ 0, Z = B[X] − A ⪰ 0, ⟨X, Z⟩ = 0."""
    for seed in range(10):
        b, a = problem(k, seed, condition)
        x = np.asarray(solve(jnp.asarray(b), jnp.asarray(a)))
        z = np.einsum("ijkl,kl->ij", b, x) - a
        scale = np.abs(a).max()
        assert np.linalg.eigvalsh(x)[0] >= -1e-9 * np.abs(x).max()
        assert np.linalg.eigvalsh(z)[0] >= -1e-6 * scale
        assert abs((x * z).sum()) <= 1e-5 * scale**2 / np.abs(b).max()


def test_where_nothing_pulls_nothing_is_pushed():
    b, a = problem(3, 0, 0)
    a -= 2 * np.abs(a).sum() * np.eye(3)
    np.testing.assert_array_equal(solve(jnp.asarray(b), jnp.asarray(a)), np.zeros((3, 3)))


@pytest.mark.slow
def test_the_gradient_of_curvature_is_that_of_the_dense_hessian():
    at = state(*NET)
    w, train_set = flat(at.params), at.data.train
    u, v = jax.random.normal(jax.random.key(0), (2, w.size), w.dtype)
    found = curvature.gradient_of_curvature(
        total_loss(at.problem), at.params, train_set, u, v, microbatch=16
    )
    mean = lambda w: total_loss(at.problem)(unravel(at.params)(w), train_set) / 40  # noqa: E731
    expected = jax.grad(lambda w: u @ jax.hessian(mean)(w) @ v)(w)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("preset", ["gd", "rmsprop", "scalar_rmsprop"])
def test_the_preconditioning_is_the_optimizers_update(preset):
    """w ← w − P(ν)⁻¹g with ν after the step; and ν' − ν = rate · β · (pool(g²) − ν)."""
    batch = building.build([job(f"optimizer={preset}", "precision=float64")])
    optimizer = batch.program.optimizer
    arguments = {k: jnp.asarray(v[0]) for k, v in batch.inputs.hyperparameters.items()}
    arguments["learning_rate"] = jnp.asarray(0.37)
    transformation = optimizer.transformation(arguments)
    rng = np.random.default_rng(0)
    w = {"a": jnp.asarray(rng.normal(size=5)), "b": jnp.asarray(rng.normal(size=(2, 3)))}
    before = optax_state = transformation.init(w)
    for _ in range(3):
        g = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), w)
        before = optax_state
        update, optax_state = transformation.update(g, before, w)
    old, new = (optimizer.preconditioning(arguments, at, w) for at in (before, optax_state))
    np.testing.assert_allclose(-flat(g) / new.preconditioner(new.start), flat(update), rtol=1e-9)
    moved = arguments.get("decay", 1.0) * old.rate * (old.pool(flat(g) ** 2) - old.start)
    np.testing.assert_allclose(new.start - old.start, moved, rtol=1e-9, atol=1e-12)


def test_scalar_rmsprop_divides_by_the_norms_root_mean_square():
    optimizer = optimizers.scalar_rmsprop(0.1, 0.5, 1e-8)
    g = {"a": jnp.asarray([3.0, 4.0])}
    _, memory = optimizer.update(g, optimizer.init(g))
    update, memory = optimizer.update(jax.tree.map(lambda leaf: 2 * leaf, g), memory)
    np.testing.assert_allclose(memory.nu, 0.25 * 25 + 0.5 * 100)
    np.testing.assert_allclose(update["a"], -0.1 * np.asarray([6, 8]) / np.sqrt(56.25), rtol=1e-8)


@pytest.mark.slow
def test_below_the_edge_the_flow_on_a_quadratic_is_eulers():
    """Σ = 0, and w(t) − w* = Π(1 − ηλ/4)⁴ᵗ (w₀ − w*)."""
    recorder, _ = train([job(*LINEAR, *FLOW, "steps=10")])
    at = state(*LINEAR)
    x, y = (np.asarray(a) for a in at.data.train[:2])
    h, pull = x.T @ x / len(x), x.T @ np.eye(10)[y] / len(x)
    eta = job(*LINEAR)["optimizer"]["learning_rate"]
    w = np.asarray(at.params["readout"]["kernel"])
    for _ in range(40):
        w = w - eta / 4 * (h @ w - pull)
    loss = 0.5 * np.mean(np.sum((x @ w - np.eye(10)[y]) ** 2, axis=1))
    found = column(recorder, 0, "central_flow_loss")[10]
    np.testing.assert_allclose(found, loss, rtol=1e-10)
    np.testing.assert_allclose(column(recorder, 0, "central_flow_mean_loss")[10], loss, rtol=1e-10)
    assert column(recorder, 0, "central_flow_variance")[10] == 0
    eigenvalue = column(recorder, 0, "central_flow_eigenvalues")[10][0]
    np.testing.assert_allclose(eigenvalue, eta * np.linalg.eigvalsh(h)[-1] / 2, rtol=1e-8)


@pytest.mark.slow
def test_of_one_critical_direction_the_variance_is_the_closed_form():
    """σ² = max(0, −2⟨∇S, ∇L⟩/‖∇S‖²) at S = 2/η, S = λ₁(H) (Cohen et al. 2025)."""
    at = state(*NET, "dataset.train_size=20", "seed=1")
    w = flat(at.params)
    mean = lambda w: total_loss(at.problem)(unravel(at.params)(w), at.data.train) / 20  # noqa: E731
    sharpness = lambda w: jnp.linalg.eigvalsh(jax.hessian(mean)(w))[-1]  # noqa: E731
    slope, g = np.asarray(jax.grad(sharpness)(w)), np.asarray(jax.grad(mean)(w))
    expected = max(0.0, -2 * slope @ g / (slope @ slope))
    assert expected > 0  # it sharpens here
    eta = 2 / sharpness(w)
    at = at._replace(hyperparameters={"learning_rate": eta})
    observable = flows.central_flow(k=1, extensions=60)
    (flow, _) = observable.init(at)
    own = at.optimizer.preconditioning(at.hyperparameters, at.optimizer_state, at.params)
    moved = flows._euler(at, own, flow, jnp.asarray(0.25), None)
    found = eta * moved.spread[0, 0]  # UᵀPU = 1: Σ = X · ηvvᵀ
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    expected_w = w - 0.25 * eta * (g + 0.5 * expected * slope)
    np.testing.assert_allclose(moved.w, expected_w, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        ("optimizer.learning_rate=1.0",),
        ("optimizer=rmsprop", "optimizer.learning_rate=0.01", "optimizer.decay=0.99"),
        ("optimizer=scalar_rmsprop", "optimizer.learning_rate=0.3", "optimizer.decay=0.99"),
    ],
    ids=["gd", "rmsprop", "scalar rmsprop"],
)
def test_the_flow_rises_to_the_edge_and_never_passes_it(optimizer):
    recorder, _ = train(
        [
            job(*NET, *FLOW, *optimizer, "steps=400", "model.depth=2", "model.width=12")
            | {"observables": job(*NET, *FLOW, "observables.central_flow.start=20")["observables"]}
        ]
    )
    eigenvalues = column(recorder, 0, "central_flow_eigenvalues")
    top = np.asarray([eigenvalues[t][0] for t in sorted(eigenvalues) if t >= 40 and t < 400])
    assert top.max() == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_the_flow_leaves_the_run_where_it_is_told_to():
    start = "observables.central_flow.start=10"
    recorder, _ = train([job(*NET, *FLOW, start, "steps=20")])
    apart = column(recorder, 0, "central_flow")
    assert np.isnan(apart[0])
    assert np.isnan(apart[5])
    assert apart[10] == 0
    assert apart[15] > 0


@pytest.mark.slow
def test_a_flow_that_does_not_keep_up_is_not_a_number_from_there_on():
    recorder, _ = train([job(*NET, *FLOW, "observables.central_flow.most_steps=2", "steps=15")])
    found = column(recorder, 0, "central_flow")
    assert found[0] == 0
    assert all(np.isnan(found[t]) for t in (5, 10, 15))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (("optimizer=momentum",), "momentum makes it another process"),
        (("optimizer=adam",), "central_flow describes"),
        (("clip_norm=1.0",), "central_flow describes"),
        (("batch_size=10",), "batch_size=null"),
    ],
)
def test_where_it_does_not_apply_it_says_so(setting, told):
    with pytest.raises(ValueError, match=told):
        measured(flows.central_flow(), state(*NET, *setting))


def run(off, *, locks=True, target="optax.sgd", labels="random", seed=0):
    """A loss that oscillates around e^(-t/300), and a prediction that is ``off`` by that share."""
    step = np.arange(601)
    mean, now = np.exp(-step / 300), step % 10 == 0
    sharpness = np.where(step < 100, 0.5, 1.0 if locks else 1.2)
    metrics = pd.DataFrame(
        {
            "step": step,
            "batch_loss": mean * (1 + 0.2 * (-1.0) ** step),
            "gradient_norm": np.sqrt(mean),
            "effective_sharpness": sharpness,
            "midpoint_sharpness": sharpness,
            "central_flow": np.where(now, 1.0, np.nan),
            "central_flow_loss": np.where(now, 0.8 * mean, np.nan),
            "central_flow_mean_loss": np.where(now, (1 + off) * mean, np.nan),
            "central_flow_mean_squared_gradient": np.where(now, (1 + off) * mean, np.nan),
            "gradient_flow_loss": np.where(now, mean / 2, np.nan),
            "central_flow_eigenvalues": [[1.0, 0.9] if at else None for at in now],
        }
    )
    config = {"optimizer": {"_target_": target}, "dataset": {"labels": labels}, "seed": seed}
    return Run(f"{target} {labels} {seed}", {}, config, {"status": "done", "steps": 600}, metrics)


def test_errors_are_relative_to_the_average_in_time():
    table = central_flow.measure([run(0.03)])
    row = table.iloc[0]
    assert row["crossing"] == 100
    assert row["lock"] == 100
    # The bounce of two steps vanishes; 1e-3 is the line between every tenth step.
    np.testing.assert_allclose(
        row[["error", "worst", "error_locked"]].astype(float), 0.03, atol=1e-3
    )
    np.testing.assert_allclose(row["flow_error"], 0.5, atol=1e-3)
    np.testing.assert_allclose(row["squared_gradient_error"], 0.03, atol=1e-3)
    never = central_flow.measure([run(0.03, locks=False)]).iloc[0]
    assert never["lock"] == np.inf
    assert np.isnan(never["error_locked"])
    np.testing.assert_allclose(never["error"], 0.03, atol=1e-3)


def sweep():
    """Every arm, two seeds."""
    arms = (("optax.sgd", "random"), ("optax.sgd", "teacher"), ("optax.rmsprop", "random"))
    return [
        run(0.01, target=target, labels=labels, seed=seed)
        for target, labels in (*arms, ("lmech.optimizers.scalar_rmsprop", "random"))
        for seed in (0, 1)
    ]


def test_every_claim_selects_runs_that_are_swept():
    table = central_flow.measure(sweep())
    for claim in reproducing.load("central_flow", "default", []).claims:
        assert len(claims.judge(claim, table)["values"]) >= 1


def test_the_figure_has_a_column_an_arm():
    runs = sweep()
    assert len(central_flow.figure(runs, central_flow.measure(runs)).axes) == 12


def test_the_sweep_is_four_programs_of_new_seeds():
    experiment = reproducing.load("central_flow", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(jobs) == 12
    assert len(reproducing.planning.group(jobs)) == 4
    assert not {job.config["seed"] for job in jobs} & {100, 101}  # the pilot's
