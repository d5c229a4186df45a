"""Neural collapse: a simplex by hand, formulas written out, and the observable on models."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from problems import measured
from problems import state as new_state

from lmech.datasets import Examples
from lmech.numerics import features
from lmech.observables.collapse import class_geometry, neural_collapse

pytestmark = pytest.mark.usefixtures("x64")

MEASURES = ("nc1", "nc2_equinorm", "nc2_equiangularity", "nc3", "nc4")
CNN = ("precision=float64", "model=cnn", "dataset.flatten=false", "model.depth=2")

state = cache(new_state)


def collapsed(classes=5, dimension=8, size=3.0, shift=2.0):
    """Features that sit on their class means, a simplex in general position, and its classifier."""
    rng = np.random.default_rng(0)
    simplex = np.eye(classes) - 1 / classes
    basis = np.linalg.qr(rng.normal(size=(dimension, classes)))[0]
    means = size * simplex @ basis.T
    labels = np.repeat(np.arange(classes), 4)
    classifier = 0.1 * means.T
    outputs = means[labels] @ classifier
    return tuple(map(jnp.asarray, (means[labels] + shift, labels, outputs, classifier)))


def random(n=60, classes=5, dimension=8):
    """Features, labels (of unequal number), outputs and classifier that know nothing of them."""
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.arange(classes), rng.integers(classes - 1, size=n - classes)])
    arrays = (rng.normal(size=(n, dimension)) + 1, labels, rng.normal(size=(n, classes)))
    return tuple(map(jnp.asarray, (*arrays, rng.normal(size=(dimension, classes)))))


def test_a_simplex_with_its_own_classifier_is_fully_collapsed():
    values = features.neural_collapse(*collapsed())
    assert tuple(values) == MEASURES
    for name, value in values.items():
        np.testing.assert_allclose(value, 0, atol=1e-12, err_msg=name)


def test_random_features_are_not_collapsed():
    for name, value in features.neural_collapse(*random()).items():
        assert value > 0.1, name


def test_the_measures_are_the_formulas_of_the_paper():
    h, y, f, W = map(np.asarray, random())
    C = f.shape[1]
    means = np.stack([h[y == c].mean(axis=0) for c in range(C)])
    M = means - means.mean(axis=0)
    within = np.mean([np.outer(d, d) for d in h - means[y]], axis=0)
    between = np.mean([np.outer(m, m) for m in M], axis=0)
    norms = np.linalg.norm(M, axis=1)
    cosines = [M[a] @ M[b] / norms[a] / norms[b] for a in range(C) for b in range(C) if a != b]
    nearest = np.argmin(np.linalg.norm(h[:, None] - means[None], axis=2), axis=1)
    expected = {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / C,
        "nc2_equinorm": np.std(norms) / np.mean(norms),
        "nc2_equiangularity": np.mean(np.abs(np.asarray(cosines) + 1 / (C - 1))),
        "nc3": np.sum((W.T / np.linalg.norm(W) - M / np.linalg.norm(M)) ** 2),
        "nc4": np.mean(nearest != np.argmax(f, axis=1)),
    }
    found = features.neural_collapse(*random())
    for name in MEASURES:
        np.testing.assert_allclose(found[name], expected[name], err_msg=name)


def test_a_rotation_a_shift_and_a_scale_of_the_features_change_nothing():
    h, y, f, W = random()
    rotation = jnp.asarray(np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0])
    before = features.neural_collapse(h, y, f, W)
    after = features.neural_collapse(5 * h @ rotation - 3, y, f, 2 * rotation.T @ W)
    for name in MEASURES:
        np.testing.assert_allclose(after[name], before[name], err_msg=name)


def test_only_variability_within_the_span_of_the_class_means_counts():
    h, y, f, W = collapsed(shift=0.0)
    noise = np.random.default_rng(3).normal(size=(5, 4, 8))
    noise = jnp.asarray((noise - noise.mean(axis=1, keepdims=True)).reshape(20, 8))
    outside = jnp.linalg.svd(h)[2][4:]  # 5 centred means span 4 dimensions; these are the others
    across = noise @ outside.T @ outside
    np.testing.assert_allclose(features.neural_collapse(h + across, y, f, W)["nc1"], 0, atol=1e-12)
    # Here Σ_B has 4 equal eigenvalues, 3²/5, so nc1 is the mean ‖·‖² over them and over C.
    expected = jnp.square(noise - across).sum(axis=1).mean() / (9 / 5) / 5
    found = features.neural_collapse(h + noise, y, f, W)["nc1"]
    np.testing.assert_allclose(found, expected)


def test_nc4_counts_the_examples_on_which_classifier_and_nearest_center_disagree():
    h, y, f, W = collapsed()
    f = f.at[:3].set(-f[:3])
    np.testing.assert_allclose(features.neural_collapse(h, y, f, W)["nc4"], 3 / 20)


def test_fewer_features_than_classes_have_finite_measures():
    values = features.neural_collapse(*random(classes=9, dimension=3))
    assert all(np.isfinite(value) for value in values.values())


def test_float32_is_enough_far_from_the_origin():
    h, y, f, W = random()
    exact = features.neural_collapse(h, y, f, W)
    single = [jnp.asarray(array, jnp.float32) for array in (h + 50, f, W)]
    found = features.neural_collapse(single[0], y, *single[1:])
    for name in MEASURES:
        assert found[name].dtype == jnp.float32
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-3, err_msg=name)


def test_a_class_without_examples_is_not_a_number():
    h, _, f, W = random()
    values = features.neural_collapse(h, jnp.zeros(len(h), int), f, W)
    assert np.isnan(values["nc1"])


def test_the_gram_matrices_are_those_of_class_means_and_classifier():
    h, y, f, W = map(np.asarray, random())
    classes = range(f.shape[1])
    means = np.stack([h[y == c].mean(axis=0) for c in classes])
    spread = [np.square(h[y == c] - means[c]).sum(axis=1).mean() for c in classes]
    counts = np.ones(len(y))
    for weight in (None, jnp.asarray(counts)):
        found = features.class_geometry(*map(jnp.asarray, (h, y, W)), weight)
        np.testing.assert_allclose(found["means"], means @ means.T)
        np.testing.assert_allclose(found["readout"], W.T @ W)
        np.testing.assert_allclose(found["cross"], W.T @ means.T)
        np.testing.assert_allclose(found["within"], spread, atol=1e-12)
    # Examples without weight do not count, whatever they are.
    more = np.concatenate([h, h + 100]), np.concatenate([y, y]), W
    weight = jnp.asarray(np.concatenate([counts, 0 * counts]))
    fewer = features.class_geometry(*map(jnp.asarray, more), weight)
    for name, value in found.items():
        np.testing.assert_allclose(fewer[name], value, atol=1e-12, err_msg=name)


def test_neural_collapse_follows_from_the_gram_matrices():
    h, y, f, W = random()
    found, expected = features.class_geometry(h, y, W), features.neural_collapse(h, y, f, W)
    C = f.shape[1]
    centre = np.eye(C) - 1 / C
    gram, cross = centre @ found["means"] @ centre, found["cross"] @ centre
    norms = np.sqrt(np.diag(gram))
    np.testing.assert_allclose(norms.std() / norms.mean(), expected["nc2_equinorm"])
    duality = 2 - 2 * np.trace(cross) / np.sqrt(np.trace(found["readout"]) * np.trace(gram))
    np.testing.assert_allclose(duality, expected["nc3"])


@pytest.mark.parametrize(
    ("model", "layer"), [(("precision=float64",), "activation_2"), (CNN, "features")]
)
def test_the_features_are_what_the_readout_sees(model, layer):
    here = state(*model)
    train = here.data.train
    outputs = here.problem.apply(here.params, train.x)
    h = here.problem.activations(here.params, train.x)[layer]
    readout = here.params["readout"]
    np.testing.assert_allclose(h @ readout["kernel"] + readout["bias"][None], outputs, atol=1e-12)
    expected = features.neural_collapse(h, train.y, outputs, readout["kernel"])
    for observable in (neural_collapse(), neural_collapse(layer=layer)):
        found = measured(observable, here)
        for name in MEASURES:
            np.testing.assert_allclose(found[name], expected[name], err_msg=name)
    found = measured(class_geometry(), here)
    for name, value in features.class_geometry(h, train.y, readout["kernel"]).items():
        np.testing.assert_allclose(found[name], value, err_msg=name)


def test_images_of_features_are_averaged_over_their_positions():
    here = state(*CNN)
    assert "features" not in here.params
    found = measured(neural_collapse(layer="activation_2"), here)
    h = here.problem.activations(here.params, here.data.train.x)["activation_2"].mean(axis=(1, 2))
    outputs = here.problem.apply(here.params, here.data.train.x)
    expected = features.neural_collapse(
        h, here.data.train.y, outputs, here.params["readout"]["kernel"]
    )
    for name in MEASURES:
        np.testing.assert_allclose(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("overrides", "arguments", "line"),
    [
        (("dataset=chebyshev", "dataset.train_size=20"), {}, "needs class labels"),
        (("model.depth=0",), {}, "no layer before the outputs.*layers are readout"),
        ((), {"layer": "hidden_9"}, "no layer 'hidden_9'.*hidden_1, activation_1, hidden_2"),
        ((), {"readout": "head/kernel"}, "no tensor 'head/kernel'.*readout to one of.*hidden_1/b"),
        ((), {"layer": "readout"}, r"features \[10\] and 10 outputs with readout/kernel \[8, 10\]"),
    ],
)
def test_what_cannot_be_measured_is_a_clear_error(overrides, arguments, line):
    with pytest.raises(ValueError, match=line):
        measured(neural_collapse(**arguments), state(*overrides))
    with pytest.raises(ValueError, match=line):
        measured(class_geometry(**arguments), state(*overrides))


def test_one_class_is_a_clear_error():
    here = state()
    x = here.data.train.x
    problem = here.problem._replace(
        apply=lambda _, x: x[:, :1], activations=lambda _, x: {"h": x, "f": x[:, :1]}
    )
    lonely = here._replace(
        problem=problem, data=here.data._replace(train=Examples(x, jnp.zeros(60, jnp.int32)))
    )
    with pytest.raises(ValueError, match="needs two classes"):
        measured(neural_collapse(), lonely)
