"""The experiment on SGD's stability: its theory, its parts and its measurements."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmech.experiments import sgd_stability
from lmech.experiments.sgd_stability import geometry, parts, recursion

from lmech import claims, reproducing
from lmech.collecting import Run

SIZES = {"replacement": (1, 2, 3, 7), "distinct": (1, 2, 3), "bernoulli": (1, 2, 3)}
EVERY = [(sampling, size) for sampling, sizes in SIZES.items() for size in sizes]


def random_gram(seed, n=4, d=3):
    x = np.random.default_rng(seed).standard_normal((n, d)) * np.arange(1, n + 1)[:, None]
    return x @ x.T


def batches(own, sampling, size):
    """Every H_B with its probability, in full."""
    g, n = own.gradients, own.gradients.shape[1]
    if sampling == "replacement":
        chosen = [(b, n**-size) for b in itertools.product(range(n), repeat=size)]
    elif sampling == "distinct":
        sets = list(itertools.combinations(range(n), size))
        chosen = [(b, 1 / len(sets)) for b in sets]
    else:
        kept, p = itertools.product((False, True), repeat=n), size / n
        chosen = [(np.flatnonzero(k), p ** sum(k) * (1 - p) ** (n - sum(k))) for k in kept]
    return [(g[:, list(b)] @ g[:, list(b)].T / size, share) for b, share in chosen]


# the recursion


@pytest.mark.parametrize(("sampling", "size"), EVERY)
def test_a_step_of_the_second_moment_is_the_mean_over_every_minibatch(sampling, size):
    if sampling == "replacement" and size == 7:
        size = 5  # 4⁵ minibatches
    own, rate = recursion.problem(random_gram(0)), 0.07
    root = np.random.default_rng(1).standard_normal((3, 3))
    moment = root @ root.T
    found = recursion.step(own, moment, rate, recursion.WEIGHTS[sampling](4, size))
    steps = [(np.eye(3) - rate * h, share) for h, share in batches(own, sampling, size)]
    wanted = sum(share * a @ moment @ a for a, share in steps)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), which=st.sampled_from(EVERY))
def test_at_the_boundary_the_spectral_radius_of_the_kronecker_product_is_1(seed, which):
    """E[(I − ηH_B) ⊗ (I − ηH_B)], formed from (a, b): below η* it contracts, above it does not."""
    own = recursion.problem(random_gram(seed))
    weights = recursion.WEIGHTS[which[0]](4, which[1])
    edge = recursion.boundary(own, weights)

    def radius(rate):
        units = np.eye(9).reshape(9, 3, 3)
        columns = [recursion.step(own, unit, rate, weights).ravel() for unit in units]
        return np.abs(np.linalg.eigvals(np.array(columns))).max()

    assert radius(edge) == pytest.approx(1, abs=1e-7)
    assert radius(0.95 * edge) < 1 < radius(1.05 * edge)


def test_the_formed_product_is_that_of_the_minibatches():
    own, rate = recursion.problem(random_gram(2)), 0.05
    steps = [(np.eye(3) - rate * h, share) for h, share in batches(own, "replacement", 2)]
    product = sum(share * np.kron(a, a) for a, share in steps)
    moment = np.diag([1.0, 2.0, 3.0])
    found = recursion.step(own, moment, rate, recursion.WEIGHTS["replacement"](4, 2))
    np.testing.assert_allclose(product @ moment.ravel(), found.ravel(), rtol=1e-10, atol=1e-12)


def test_second_moments_are_those_of_many_runs():
    kernel = geometry.gram(5, 0.3, 0.4)
    own, rate, size, count = recursion.problem(kernel), 0.8, 2, 100_000
    generator = np.random.default_rng(3)
    w = generator.standard_normal((count, 5)) / np.sqrt(5)
    for _ in range(6):
        g = own.gradients.T[generator.integers(5, size=(count, size))]
        slopes = np.einsum("rbd,rd->rb", g, w)
        w = w - rate / size * np.einsum("rb,rbd->rd", slopes, g)
    squares = np.square(w).sum(axis=1)
    found = recursion.moments(own, rate, recursion.WEIGHTS["replacement"](5, size), 6)
    error = squares.std() / np.sqrt(count)
    assert abs(squares.mean() - found[6]) < 5 * error
    assert error < 0.01 * found[6]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_orthogonal_inputs_of_one_norm_have_a_closed_form(size):
    """A coordinate's factor is 1 − ηm/B, m ~ Bin(B, 1/n): E(1 − ηm/B)² = 1 at η*."""
    n = 6
    own = recursion.problem(np.eye(n))
    found = recursion.boundary(own, recursion.WEIGHTS["replacement"](n, size))
    assert found == pytest.approx(2 / ((1 - 1 / n) / size + 1 / n), rel=1e-9)
    trace, squares = own.curvatures.sum(), np.square(own.curvatures).sum()
    assert found == pytest.approx(2 / recursion.necessary(trace, squares, size), rel=1e-9)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9])
def test_with_one_norm_and_batches_of_1_the_trace_alone_decides(cosine):
    own = recursion.problem(geometry.gram(7, cosine, 0.0))
    weights = recursion.WEIGHTS["replacement"](7, 1)
    assert recursion.boundary(own, weights) == pytest.approx(2, rel=1e-9)
    assert recursion.sufficient(own, weights) == pytest.approx(1, rel=1e-12)


def test_the_full_batch_asks_for_the_sharpness_alone():
    own = recursion.problem(random_gram(4))
    for sampling, size in (("replacement", np.inf), ("distinct", 4), ("bernoulli", 4)):
        found = recursion.boundary(own, recursion.WEIGHTS[sampling](4, size))
        assert found == pytest.approx(2 / own.curvatures.max(), rel=1e-9)


def test_one_example_alone_is_stable_up_to_2_over_its_curvature():
    own = recursion.problem(np.array([[3.0]]))
    assert recursion.boundary(own, recursion.WEIGHTS["replacement"](1, 1)) == pytest.approx(2 / 3)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([1, 2, 3, 8]))
def test_the_forms_enclose_the_boundary(seed, size):
    kernel = random_gram(seed)
    own, weights = recursion.problem(kernel), recursion.WEIGHTS["replacement"](4, size)
    trace, squares = own.curvatures.sum(), np.square(own.curvatures).sum()
    edge = recursion.boundary(own, weights)
    assert edge <= 2 / recursion.necessary(trace, squares, size) * (1 + 1e-9)
    assert edge >= 2 / recursion.sufficient(own, weights) * (1 - 1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([1, 2, 3]))
def test_beyond_the_coherence_bound_the_second_moment_grows(seed, size):
    kernel = random_gram(seed)
    own = recursion.problem(kernel)
    edge = recursion.boundary(own, recursion.WEIGHTS["bernoulli"](4, size))
    assert recursion.coherent(kernel, size) >= edge * (1 - 1e-9)


def test_coherence_is_1_for_orthogonal_gradients_and_n_for_equal_ones():
    assert recursion.coherence(np.diag([1.0, 2.0, 3.0])) == pytest.approx(1)
    assert recursion.coherence(np.full((5, 5), 2.0)) == pytest.approx(5)


# parts


def test_the_test_loss_is_half_the_excess_risk():
    data = parts.sparse_regression(train_size=5, dimension=6, nonzeros=2)
    beta = np.arange(6.0)[:, None]
    off = np.square(data.test.x @ beta - data.test.y).mean()
    assert off == pytest.approx(np.square(beta[:, 0] - [1, 1, 0, 0, 0, 0]).sum())


def test_the_inputs_of_the_linear_models_have_their_gram_matrix():
    data = parts.alike(examples=4, cosine=0.3, spread=0.5, copies=2)
    wanted = geometry.gram(4, 0.3, 0.5)
    np.testing.assert_allclose(data.train.x[4:] @ data.train.x[:4].T, wanted, atol=1e-12)
    assert np.trace(wanted) == pytest.approx(4)
    assert wanted[0, 0] / wanted[3, 3] == pytest.approx(1 / 3)
    assert wanted[0, 3] / np.sqrt(wanted[0, 0] * wanted[3, 3]) == pytest.approx(0.3)


@pytest.mark.usefixtures("x64")
def test_each_replica_descends_on_its_own_part_of_the_batch():
    model, rate = parts.replicas(3), 0.2
    x = np.random.default_rng(0).standard_normal((6, 2))
    params = model.init(jax.random.key(0), jnp.asarray(x[:1]))["params"]

    def loss(params):
        return jnp.square(model.apply({"params": params}, jnp.asarray(x))).mean() / 2

    w, slope = np.asarray(params["w"]), np.asarray(jax.grad(loss)(params)["w"])
    for r, own in enumerate(x.reshape(3, 2, 2)):
        alone = own.T @ (own @ w[r]) / 2
        np.testing.assert_allclose(rate * slope[r], rate * alone, rtol=1e-10)
    with pytest.raises(ValueError, match="5 examples cannot be shared out to 3"):
        model.apply({"params": params}, jnp.asarray(x[:5]))


# measurements


def frame(**columns):
    return pd.DataFrame({"step": range(len(next(iter(columns.values())))), **columns})


N = 2
KERNEL = np.array([[1.0, 0.2], [0.2, 2.0]])


def net_run(rate, size, excess=1.0, seed=0, loss=1e-13):
    values = np.r_[0.0, np.linalg.eigvalsh(KERNEL) / N]
    config = {
        "seed": seed,
        "batch_size": size,
        "stop": {"train_loss": 5e-13},
        "optimizer": {"learning_rate": rate},
        "model": {"_target_": "lmech.experiments.sgd_stability.parts.diagonal"},
    }
    metrics = frame(
        train_loss=[loss],
        test_loss=[excess / 2],
        stability_eigenvalues=[values],
        stability_gram=[KERNEL.ravel()],
    )
    return Run(f"n{rate}{size}{seed}", {}, config, {"status": "done"}, metrics)


def linear_run(rate, size, spread=0.0, seed=0, error=0.0):
    """One that follows the recursion, its growth a step off by a factor."""
    own = recursion.problem(geometry.gram(8, 0.5, spread))
    wanted = recursion.moments(own, rate, recursion.WEIGHTS["replacement"](8, size), 12)
    config = {
        "seed": seed,
        "steps": 12,
        "batch_size": 10 * size,
        "optimizer": {"learning_rate": rate},
        "model": {"_target_": "lmech.experiments.sgd_stability.parts.replicas", "replicas": 10},
        "dataset": {"examples": 8, "cosine": 0.5, "spread": spread},
    }
    found = wanted * (1 + error) ** np.arange(13)
    metrics = frame(stability_moment=found)
    return Run(f"l{rate}{size}{spread}{seed}", {}, config, {"status": "done"}, metrics)


def rows(measured, kind):
    return measured[measured["row"] == kind]


def test_a_minimums_numbers_are_those_of_its_hessian():
    measured = sgd_stability.measure([net_run(0.4, 1), net_run(0.4, None)])
    one, full = (row for _, row in rows(measured, "minimum").iterrows())
    values = np.linalg.eigvalsh(KERNEL) / 2
    assert one["trace"] == pytest.approx(0.4 * 1.5)
    assert one["necessary"] == pytest.approx(one["trace"])
    assert full["necessary"] == pytest.approx(0.4 * np.square(values).sum() / 1.5)
    assert full["exact"] == pytest.approx(0.4 * values.max() / 2)
    assert one["kernel_error"] == pytest.approx(0, abs=1e-12)
    assert one["excess"] == 1.0


def test_a_run_that_did_not_fit_its_examples_has_no_numbers():
    measured = sgd_stability.measure([net_run(0.1, 1, loss=1e-9), net_run(0.2, 1)])
    assert rows(measured, "minimum")["trace"].isna().tolist() == [True, False]
    assert rows(measured, "series")[["trace_most", "spearman"]].isna().all(axis=None)
    assert rows(measured, "share")["obey"].isna().all()


@pytest.mark.parametrize(("excess", "rank"), [([3, 2, 1], -1), ([1, 2, 3], 1), ([1, 3, 2], 0.5)])
def test_a_series_is_ordered_by_its_learning_rate(excess, rank):
    rates = [0.1, 0.2, 0.4]
    runs = [net_run(rate, 1, value) for rate, value in zip(rates, excess, strict=True)]
    (series,) = rows(sgd_stability.measure(runs[::-1]), "series").to_dict("records")
    assert series["spearman"] == pytest.approx(rank)
    assert series["excess_ratio"] == excess[-1] / excess[0]
    assert series["trace_most"] == pytest.approx(0.4 * 1.5)


def test_shares_count_the_minima_beyond_2():
    runs = [net_run(rate, 2) for rate in (0.1, 1.3, 1.4, 5.0)]
    (share,) = rows(sgd_stability.measure(runs), "share").to_dict("records")
    assert share["obey_trace"] == 0.5  # η tr(H) = 0.15, 1.95, 2.1, 7.5
    assert share["obey"] == 0.75


RATES = (1.1, 1.5, 1.9, 2.3, 2.7)


def test_runs_that_follow_the_recursion_cross_at_its_boundary():
    runs = [linear_run(rate, 1) for rate in RATES]
    measured = sgd_stability.measure(runs[::-1])
    (crossing,) = rows(measured, "crossing").to_dict("records")
    assert crossing["measured"] == pytest.approx(1)
    assert crossing["over_exact"] == pytest.approx(1, abs=0.02)  # interpolated
    assert rows(measured, "moments")["right"].tolist() == [1.0] * 5


def test_runs_that_grow_faster_cross_below_it():
    measured = sgd_stability.measure([linear_run(rate, 1, error=0.05) for rate in RATES])
    (crossing,) = rows(measured, "crossing").to_dict("records")
    assert crossing["measured"] < 0.95
    assert 0.0 in rows(measured, "moments")["right"].tolist()


def test_without_growth_there_is_no_crossing():
    measured = sgd_stability.measure([linear_run(rate, 1) for rate in RATES[:2]])
    assert rows(measured, "crossing")["measured"].isna().all()


def test_theory_rows_have_the_bounds_on_their_sides():
    measured = sgd_stability.measure([linear_run(1.1, size, 0.5) for size in (1, 2, 4, 8)])
    theory = rows(measured, "theory")
    assert (theory["form"] > 1).all()
    assert (theory["guarantee"] < 1).all()
    assert (theory["dexter"] >= 1 - 1e-9).all()


def every_kind():
    nets = [net_run(rate, size, 1 / rate) for size in (1, 2, 5, None) for rate in (0.1, 0.2)]
    return [*nets, *(linear_run(rate, b, s) for rate in RATES for b in (1, 2) for s in (0.0, 0.5))]


def test_the_figure_shows_every_kind():
    runs = every_kind()
    fig = sgd_stability.figure(runs, sgd_stability.measure(runs))
    assert len(fig.axes) == 6
    fig.draw_without_rendering()


def test_every_claim_selects_what_is_swept(monkeypatch):
    for name in ("_data_checksum", "load_data"):
        monkeypatch.setattr(reproducing.planning, name, lambda _: "any")
    experiment = reproducing.load("sgd_stability", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(jobs) == 4 * 8 * 3 + 2 * 4 * 8 * 3
    assert all(job.config["replacement"] for job in jobs)
    runs = [Run(job.id, {}, job.config, {}, pd.DataFrame()) for job in jobs]
    swept = {sgd_stability._labels(run)["batch"] for run in runs}
    measured = sgd_stability.measure(every_kind())
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        assert claim.quantity in rows(measured, claim.where["row"]).dropna(axis=1, how="all")
        wanted = claim.where.get("batch", [])
        assert set(wanted if isinstance(wanted, list) else [wanted]) <= swept
