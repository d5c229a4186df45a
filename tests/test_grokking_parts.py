"""What grokking is studied with: datasets, the one-layer transformer, losses, progress measures."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import job, measured, train

from lmech import building, config, losses, member
from lmech.datasets.clusters import xor_clusters
from lmech.datasets.modular import modular
from lmech.datasets.parity import sparse_parity
from lmech.datasets.polynomials import multi_index
from lmech.datasets.teachers import teacher_student
from lmech.models.grokking import one_layer_transformer
from lmech.numerics import trees
from lmech.observables.grokking import (
    fourier_concentration,
    gini,
    key_part,
    progress_measures,
    waves,
)
from lmech.optimizers import orthogonal_adamw

pytestmark = pytest.mark.usefixtures("x64")

ADDITION = ("dataset=modular", "dataset.p=7", "model=one_layer_transformer", "model.width=8")


def addition(*overrides):
    """A job that adds modulo 7."""
    own = [*ADDITION, "model.heads=2", "loss=cross_entropy", "data_fraction=0.4", *overrides]
    return config.resolve(config.compose(["steps=12", "observables=[loss]", *own]))


# datasets


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        ("add", lambda a, b: a + b),
        ("subtract", lambda a, b: a - b),
        ("multiply", lambda a, b: a * b),
        ("divide", lambda a, b: a * b**9),  # b^(p − 2) is 1/b
        ("sum_of_squares", lambda a, b: a**2 + b**2),
        ("quadratic_form", lambda a, b: a**2 + a * b + b**2),
    ],
)
def test_labels_are_the_operation_of_each_pair_once(operation, rule):
    x, y, _ = modular(p=11, operation=operation).train
    a, b = x[:, 0].astype(int), x[:, 1].astype(int)
    np.testing.assert_array_equal(y, rule(a, b) % 11)
    pairs = 11 * (10 if operation == "divide" else 11)
    assert len({*zip(a, b, strict=True)}) == len(x) == pairs
    assert (x[:, 2] == 11).all()


def test_a_division_needs_inverses():
    with pytest.raises(ValueError, match="prime"):
        modular(p=12, operation="divide")


def test_the_table_of_s5_is_a_group():
    data = modular(operation="s5")
    table = data.train.y.reshape(120, 120)
    assert data.outputs == 120
    for line in (table, table.T):
        np.testing.assert_array_equal(np.sort(line, axis=1), np.tile(np.arange(120), (120, 1)))
    np.testing.assert_array_equal(table[0], np.arange(120))  # the first is the identity
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(120, size=(3, 50))
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    assert (table != table.T).any()


def test_one_hot_pairs_are_the_tokens():
    tokens, vectors = (modular(p=5, encoding=e).train.x for e in ("tokens", "one_hot"))
    np.testing.assert_array_equal(vectors.reshape(25, 2, 5).argmax(axis=2), tokens[:, :2])
    np.testing.assert_array_equal(vectors.sum(axis=1), 2)


def test_the_clusters_label_by_axis_and_so_many_training_labels_are_wrong():
    data = xor_clusters(train_size=200, test_size=50, dimension=20, separation=50.0, flips=0.1)
    for split, wrong in ((data.train, 20), (data.test, 0)):
        truth = np.abs(split.x[:, :2]).argmax(axis=1)
        assert (truth != split.y).sum() == wrong
    mean = data.train.x[:, 2:].mean()
    assert abs(mean) < 5 / np.sqrt(200 * 18)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_a_parity_flips_with_each_of_its_bits_and_with_no_other(degree, seed):
    x, y, _ = sparse_parity(50, 1, dimension=6, degree=degree, data_seed=seed).train
    np.testing.assert_array_equal(y, (np.prod(x[:, :degree], axis=1) + 1) / 2)


def test_a_parity_of_more_bits_than_there_are_is_refused():
    with pytest.raises(ValueError, match="degree=5"):
        sparse_parity(dimension=4, degree=5)


def test_polynomial_targets_have_mean_0_and_variance_1():
    y = multi_index(train_size=200_000, test_size=1, dimension=4, degrees=[1, 2, 3]).train.y
    assert y.mean() == pytest.approx(0, abs=0.02)
    assert y.var() == pytest.approx(1, abs=0.05)


def test_noise_is_in_the_training_targets_alone():
    for factory in (multi_index, teacher_student):
        clean, noisy = (factory(train_size=4000, test_size=9, noise=n) for n in (0.0, 0.5))
        spread = (noisy.train.y - clean.train.y).std()
        assert spread == pytest.approx(0.5, rel=0.05)
    assert np.isfinite(teacher_student(activation="tanh").test.y).all()


# losses and optimizers


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=5))
def test_stablemax_is_its_definition(logits):
    f = np.asarray(logits)
    s = np.where(f >= 0, 1 + np.abs(f), 1 / (1 + np.abs(f)))
    np.testing.assert_allclose(np.exp(losses.log_stablemax(jnp.asarray(f))), s / s.sum(), rtol=1e-9)


def test_float64_keeps_the_gradient_that_float32_rounds_to_0():
    f, y = jnp.asarray([[20.0, 0.0, 0.0]], jnp.float32), jnp.zeros(1, jnp.int32)

    def slope(precision):
        loss = losses.cross_entropy(precision=precision)
        return jax.grad(lambda f: loss(f, y).sum())(f)

    assert slope(None)[0, 0] == 0
    wide = slope("float64")
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide[0, 0], -2 * np.exp(-20.0), rtol=1e-6)


ADAMW = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.0}


def test_the_orthogonal_gradient_does_not_see_what_lies_along_the_weights():
    rng = np.random.default_rng(0)
    w = {"a": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.zeros(2)}
    g = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), w)
    along = jax.tree.map(lambda g, w: g + 3.0 * w, g, w)
    ours = orthogonal_adamw(**ADAMW)
    steps = [ours.update(gradient, ours.init(w), w)[0] for gradient in (g, along)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *steps)
    plain = optax.adamw(**ADAMW)
    np.testing.assert_allclose(steps[0]["b"], plain.update(g, plain.init(w), w)[0]["b"])


def test_the_norm_of_all_weights_stays_where_it_is_fixed():
    _, end = train(
        [
            job("optimizer=fixed_norm_adamw", f"optimizer.norm={n}", "precision=float64")
            for n in (2, 5)
        ]
    )
    norms = [trees.squared_norm(jax.tree.map(lambda w, i=i: w[i], end.params)) for i in (0, 1)]
    np.testing.assert_allclose(np.sqrt(norms), [2, 5], rtol=1e-12)


# the model


def plain_transformer(params, x):
    """All positions, written out; logits at the last."""
    h = params["embedding"][x] + params["position"][None]
    q, k, v = (np.einsum("ntd,dhe->nthe", h, params[name]) for name in ("query", "key", "value"))
    scores = np.einsum("nthe,nshe->nhts", q, k) / np.sqrt(q.shape[-1])
    causal = np.tril(np.ones(scores.shape[-2:], bool))
    weights = np.asarray(jax.nn.softmax(np.where(causal, scores, -np.inf), axis=-1))
    read = np.einsum("nhts,nshe->nthe", weights, v)
    h = h + np.einsum("nthe,hed->ntd", read, params["out"])
    inside = np.maximum(h @ params["mlp_in"] + params["mlp_in_bias"], 0)
    h = h + inside @ params["mlp_out"] + params["mlp_out_bias"]
    return (h @ params["readout"])[:, -1]


def test_the_one_layer_transformer_is_the_plain_one_read_at_the_last_position():
    model = one_layer_transformer(outputs=7, width=8, heads=2)
    x = modular(p=7).train.x
    params = model.init(jax.random.key(0), jnp.asarray(x))["params"]
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), params)
    ours = model.apply({"params": params}, jnp.asarray(x))
    theirs = plain_transformer(jax.tree.map(np.asarray, params), x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    assert isinstance(model, nn.Module)


def test_its_tensors_start_at_the_published_spreads():
    model = one_layer_transformer(outputs=113, width=128)
    params = model.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    spreads = {name: float(np.std(leaf)) for name, leaf in trees.named_leaves(params).items()}
    for name in ("embedding", "position", "query", "out", "mlp_in", "mlp_out"):
        assert spreads[name] == pytest.approx(128**-0.5, rel=0.1), name
    assert spreads["readout"] == pytest.approx(113**-0.5, rel=0.05)
    assert spreads["mlp_in_bias"] == spreads["mlp_out_bias"] == 0


def test_heads_must_share_the_width_and_inputs_be_tokens():
    with pytest.raises(ValueError, match="no multiple"):
        one_layer_transformer(outputs=3, width=10, heads=4)
    with pytest.raises(ValueError, match="integer tokens"):
        one_layer_transformer(outputs=3).init(jax.random.key(0), jnp.zeros((1, 3)))


# progress measures


def test_the_waves_are_an_orthonormal_basis():
    rows = waves(9).reshape(10, 9)[[0, *range(2, 10)]]
    np.testing.assert_allclose(rows @ rows.T, np.eye(9), atol=1e-12)
    with pytest.raises(ValueError, match="odd"):
        waves(8)


def test_gini_of_equal_values_is_0_and_of_a_single_one_nearly_1():
    assert gini(jnp.ones(8)) == pytest.approx(0)
    assert gini(jnp.eye(8)[3]) == pytest.approx(7 / 8)
    v = np.random.default_rng(0).random(9)
    direct = np.abs(v[:, None] - v[None]).sum() / (2 * 9 * v.sum())
    assert gini(jnp.asarray(v)) == pytest.approx(direct)


def at_addition(logits):
    """The state of a job that adds mod 7 whose model puts out what ``logits(a, b)`` is, [N, 7]."""
    batch = building.build([addition()])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.inputs)
    state = member.initial_state(batch.program, inputs, jax.device_put(batch.data))
    problem = state.problem._replace(apply=lambda _, x: logits(x[:, :1], x[:, 1:2]))
    return state._replace(problem=problem)


def cosine(k, a, b):
    c = jnp.arange(7)[None]
    return jnp.cos(2 * jnp.pi * k * (a + b - c) / 7)


def test_the_key_part_is_the_frequencies_asked_for_or_the_strongest():
    s = jnp.arange(7)[:, None]
    waves_of = {k: cosine(k, s, 0 * s) for k in (1, 2, 3)}
    mixed = 3 * waves_of[2] + 2 * waves_of[1] + waves_of[3] + 5
    for chosen, most, expected in (
        (None, 1, 3 * waves_of[2]),
        (None, 2, 3 * waves_of[2] + 2 * waves_of[1]),
        ([3], 1, waves_of[3]),
    ):
        np.testing.assert_allclose(key_part(mixed, chosen, most), expected, atol=1e-10)


def test_logits_of_key_waves_alone_lose_nothing_restricted_and_all_excluded():
    at = at_addition(lambda a, b: 4 * cosine(2, a, b) + 0.0)
    values = measured(progress_measures(most=1), at)
    uniform = np.log(7)
    assert values["excluded_loss"] == pytest.approx(uniform)
    assert values["key_share"] == pytest.approx(1)
    own = at.data.train
    loss = at.problem.loss(at.problem.apply(None, own.x), own.y)
    assert values["restricted_loss"] == pytest.approx(float(loss[0]))  # the same for every pair


def test_what_is_memorised_by_pair_is_excluded_loss_alone():
    """Logits that depend on a alone know nothing of a + b but by chance."""
    at = at_addition(lambda a, b: jnp.cos(2 * jnp.pi * 3 * (a - jnp.arange(7)[None]) / 7) + 0.0 * b)
    values = measured(progress_measures(most=3), at)
    assert values["restricted_loss"] == pytest.approx(np.log(7))
    assert values["key_share"] == pytest.approx(0, abs=1e-12)


def test_an_embedding_of_one_frequency_is_concentrated():
    at = at_addition(lambda a, b: cosine(1, a, b))
    table = jnp.cos(2 * jnp.pi * 2 * jnp.arange(8)[:, None] / 7) * jnp.ones((1, 4))
    values = measured(fourier_concentration(), at._replace(params={"embedding": table}))
    assert values[""] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no tensor rows"):
        fourier_concentration("rows").measure(at, ())


@pytest.mark.slow
def test_a_run_of_additions_records_its_progress():
    recorder, _ = train([addition("observables=[loss,accuracy,progress_measures]", "steps=4",
        "observables.progress.every=2", "observables.progress.most=2",
        "observables.fourier_concentration.every=2")])  # fmt: skip
    names = recorder.table(0).column_names
    assert {"progress_restricted_loss", "progress_excluded_loss", "fourier_concentration"} < {
        *names
    }
