"""Neural collapse: the closed form of free features, and what is measured of runs."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import column, train
from scipy.optimize import minimize

from experiments import neural_collapse
from experiments.neural_collapse import theory
from lmech import claims, reproducing
from lmech.collecting import Run
from lmech.config import compose, resolve
from lmech.numerics import features


def objective(sizes, readout_decay, feature_decay, width=5):
    """The penalised loss and its gradient, of W and H in one vector."""
    y = np.repeat(np.eye(len(sizes)), sizes, axis=0)  # [N, K]
    split = width * len(sizes)

    def value(vector):
        W, H = vector[:split].reshape(width, -1), vector[split:].reshape(-1, width)
        error = H @ W - y
        loss = np.square(error).sum() / (2 * len(y))
        loss += readout_decay / 2 * np.square(W).sum() + feature_decay / 2 * np.square(H).sum()
        gradients = H.T @ error / len(y) + readout_decay * W, error @ W.T / len(y)
        gradients = gradients[0], gradients[1] + feature_decay * H
        return loss, np.concatenate([part.ravel() for part in gradients])

    return value, split, len(y)


@pytest.mark.parametrize(
    ("sizes", "decays", "collapsed"),
    [
        ([8, 8, 8], (0.01, 0.02), 0),
        ([12, 5, 2], (0.03, 0.004), 0),
        ([12, 5, 2], (0.2, 0.05), 1),
        ([12, 5, 2], (0.1, 0.2), 2),
    ],
)
def test_the_closed_form_is_where_a_numerical_minimisation_ends(sizes, decays, collapsed):
    value, split, examples = objective(sizes, *decays)
    start = np.random.default_rng(0).normal(size=split + 5 * examples) / 2
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-10}
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=options)
    W, H = found.x[:split].reshape(5, -1), found.x[split:].reshape(-1, 5)
    ends = np.cumsum(sizes)
    means = np.stack([H[end - n : end].mean(axis=0) for n, end in zip(sizes, ends, strict=True)])
    expected = theory.lengths(np.asarray(sizes, float), *decays)
    np.testing.assert_allclose(np.linalg.norm(W, axis=0), expected.readout, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), expected.means, atol=1e-5)
    assert (expected.means == 0).sum() == collapsed
    gram = means @ means.T
    np.testing.assert_allclose(gram, np.diag(expected.means**2), atol=1e-5)
    np.testing.assert_allclose(H, np.repeat(means, sizes, axis=0), atol=1e-5)


def test_a_class_collapses_where_the_decays_product_reaches_its_size_over_n_squared():
    sizes = np.array([60.0, 25, 12, 3])
    thresholds = sizes / sizes.sum() ** 2
    for k, threshold in enumerate(thresholds):
        for decays in ((0.5, 2 * threshold), (threshold, 1.0)):  # whatever the ratio
            below, above = (
                theory.lengths(sizes, decays[0] * part, decays[1]) for part in (0.999, 1.001)
            )
            assert below.means[k] > 0
            assert below.readout[k] > 0
            assert above.means[k] == above.readout[k] == 0
    output = np.prod(theory.lengths(sizes, 0.01, 0.002), axis=0)
    np.testing.assert_allclose(output, theory.shares(sizes, 0.01, 0.002))


FREE = (
    *("precision=float64", "dataset=one_hot", "dataset.sizes=[9,4,1]", "model=deep_linear"),
    *("model.depth=1", "model.width=4", "optimizer=l2_momentum", "optimizer.momentum=0.0"),
    *("optimizer.learning_rate=2.0", "optimizer.weight_decay=0.1", "steps=1500"),
    "parametrization.decays={input: 0.5, hidden: 1.0, output: 2.0, vector: 1.0}",
    *("observables=[class_geometry]", "observables.class_geometry.every=1500"),
)


@pytest.mark.usefixtures("x64")
def test_gradient_descent_on_free_features_ends_at_the_closed_form():
    config = resolve(compose([*FREE]))
    recorder, _ = train([config])
    columns = [f"class_geometry_{name}" for name in ("means", "readout", "cross", "within")]
    ended = {name: [np.ravel(column(recorder, 0, name)[1500]).tolist()] for name in columns}
    (row,) = neural_collapse.measure([run(config, {"step": [1500], **ended})]).to_dict("records")
    assert row["arm"] == "imbalanced"
    assert row["collapsed"] == 1  # 0.1 is beyond √1/14 and below √4/14
    for name in ("length_error", "collapsed_length", "cosine", "misaligned", "scatter"):
        assert row[name] < 1e-8, name
    assert row["miscounted"] == 0
    assert row["equal_error"] > 0.05
    assert row["inequality"] > 0.05


def run(config, metrics, status="done"):
    steps = config["steps"]
    return Run("0", {}, config, {"status": status, "steps": steps}, pd.DataFrame(metrics))


def free(sizes, decay, readout, means):
    """A run whose class means are orthogonal, of these lengths, and its readout parallel."""
    factors = {"input": 1.0, "output": 4.0}
    config = {
        "dataset": {"sizes": sizes},
        "optimizer": {"weight_decay": decay},
        "parametrization": {"decays": factors},
        "seed": 0,
        "steps": 7,
    }
    matrices = {"means": means**2, "readout": readout**2, "cross": readout * means}
    grams = {f"class_geometry_{k}": [np.diag(v).ravel().tolist()] for k, v in matrices.items()}
    within = {"class_geometry_within": [[0.0] * len(sizes)]}
    return run(config, {"step": [7], **grams, **within})


def test_lengths_are_compared_with_the_closed_form_class_by_class():
    sizes, decay = [60, 25, 12, 3], 0.01  # √(λ_W λ_H) = 0.02 collapses the last class
    exact = theory.lengths(np.asarray(sizes, float), 4 * decay, decay)
    full = theory.uncollapsed(np.asarray(sizes, float), 4 * decay, decay)
    row = neural_collapse.measure([free(sizes, decay, *exact)]).iloc[0]
    assert row["length_error"] == 0
    assert (row["collapsed"], row["miscounted"], row["collapsed_length"]) == (1, 0, 0)
    assert row["cosine"] == 0
    assert row["misaligned"] < 1e-15
    off = exact.means + np.array([0, 0.1, 0, 0.2]) * full.means
    row = neural_collapse.measure([free(sizes, decay, exact.readout, off)]).iloc[0]
    np.testing.assert_allclose([row["length_error"], row["collapsed_length"]], 0.2)
    assert row["miscounted"] == 1
    broken = free(sizes, decay, *exact)._replace(result={"status": "diverged", "steps": 3})
    assert np.isnan(neural_collapse.measure([broken]).iloc[0]["length_error"])


def net(dataset, noise=0.0, decay=1e-3):
    config = {"dataset": dataset, "label_noise": noise, "optimizer": {"weight_decay": decay}}
    columns = ("nc1", "nc2_equiangularity", "nc2_equinorm", "nc3", "nc4")
    observed = {f"neural_collapse_{name}": [9.0, 1.0, 0.25] for name in columns}
    accuracies = {"train_accuracy": [0.5, 1.0, 1.0], "test_accuracy": [0.2, None, 0.75]}
    metrics = {"step": [0, 10, 20], **observed, **accuracies}
    return run({**config, "seed": 0, "steps": 20}, metrics)


CLUSTERS = {"_target_": "lmech.datasets.clusters.gaussian_clusters", "clusters": 3}


def test_a_net_is_measured_at_the_end_and_where_it_first_fits_every_label():
    row = neural_collapse.measure([net(CLUSTERS)]).iloc[0]
    assert (row["arm"], row["first_step"], row["test_accuracy"]) == ("clusters", 10, 0.75)
    assert (row["nc1"], row["first_nc1"], row["nc1_ratio"]) == (0.25, 1, 0.25)
    assert (row["duality"], row["first_duality"], row["duality_ratio"]) == (0.5, 1, 0.5)
    never = net(CLUSTERS)
    never.metrics["train_accuracy"] = 0.99
    row = neural_collapse.measure([never]).iloc[0]
    assert row["nc1"] == 0.25
    assert np.isnan(row["first_nc1"])
    assert np.isnan(row["nc1_ratio"])


def test_the_arms_are_told_apart_by_their_configs():
    digits = {"_target_": "lmech.datasets.digits.digits"}
    runs = [net(CLUSTERS), net(CLUSTERS, noise=0.8), net(CLUSTERS, decay=0.0), net(digits)]
    expected = ["clusters", "random labels", "no decay", "digits"]
    assert [neural_collapse.arm(run) for run in runs] == expected
    assert set(expected) < set(neural_collapse.STYLES)


@pytest.mark.usefixtures("x64")
def test_duality_is_the_distance_of_readout_and_class_means():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 4)
    h, W = rng.normal(size=(12, 5)), rng.normal(size=(5, 3))
    means = np.stack([h[y == k].mean(axis=0) for k in range(3)])
    M = means - means.mean(axis=0)
    found = features.neural_collapse(*map(jnp.asarray, (h, y, h @ W, W)))
    name, power = neural_collapse.QUANTITIES["duality"]
    expected = np.linalg.norm(W.T / np.linalg.norm(W) - M / np.linalg.norm(M))
    np.testing.assert_allclose(found[name] ** power, expected)


def test_figures_are_drawn_of_all_arms_and_of_one():
    exact = theory.lengths(np.array([3.0, 1.0]), 0.04, 0.01)
    runs = [net(CLUSTERS), free([3, 1], 0.01, *exact)]
    for some in (runs, runs[:1], runs[1:]):
        drawn = neural_collapse.figure(some, pd.DataFrame())
        assert len(drawn.axes) == 6
        assert len(drawn.axes[0].lines) == (4 if runs[1] in some else 0)  # a line, dots, a class


def test_every_claim_selects_what_is_swept(monkeypatch):
    for name in ("_data_checksum", "load_data"):
        monkeypatch.setattr(reproducing.planning, name, lambda _: "any")
    experiment = reproducing.load("neural_collapse", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    swept = {neural_collapse.arm(run(job.config, {})) for job in jobs}
    assert swept == {*neural_collapse.STYLES, "balanced", "imbalanced"} - {"cifar10"}
    exact = theory.lengths(np.array([3.0, 1.0]), 0.04, 0.01)
    frame = neural_collapse.measure([net(CLUSTERS), free([3, 1], 0.01, *exact)])
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        arms = claim.where["arm"]
        assert set(arms if isinstance(arms, list) else [arms]) <= swept
        assert claim.quantity in frame
    paper = reproducing.load("neural_collapse", "paper", [])
    (one,) = reproducing.planning.expand(paper.overrides, paper.sweep)
    assert neural_collapse.arm(run(one.config, {})) == "cifar10"
