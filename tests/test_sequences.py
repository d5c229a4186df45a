"""Sequences: labels [N, T] and outputs [N, T, C], through losses, observables and the command."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax.flatten_util import ravel_pytree
from problems import job, measured
from problems import state as new_state

from lmech import building, config, planning, sampling
from lmech.cli import main
from lmech.datasets import Examples, take
from lmech.losses import cross_entropy, mse
from lmech.numerics import kernels
from lmech.numerics.precision import numerics
from lmech.observables import features, gradients, matrices
from lmech.observables.kernel import ntk, ntk_top
from lmech.problem import evaluate

pytestmark = pytest.mark.usefixtures("x64")

MODEL = ("model._target_=language.embedding", "model.width=3")
TOKENS = (*MODEL, "dataset._target_=language.words", "dataset.train_size=6")
N, T, C = 6, 4, 5
LOSSES = {
    "mse": ("loss=mse",),
    "cross-entropy": ("loss=cross_entropy",),
    "z-loss": ("loss=cross_entropy", "loss.z_loss=0.3"),
}


@cache
def state(loss="cross-entropy"):
    with numerics():
        return new_state("precision=float64", *TOKENS, *LOSSES[loss])


def outputs_of(at):
    """The outputs as a function of the flat weights, and these."""
    w, unravel = ravel_pytree(at.params)
    return (lambda w: at.problem.apply(unravel(w), at.data.train.x)), w


# losses

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(N, T, C))
LABELS = RNG.integers(0, C, (N, T)).astype(np.int32)
REAL = RNG.normal(size=(N, T, C))


@pytest.mark.parametrize("y", [LABELS, REAL], ids=["labels", "real"])
@pytest.mark.parametrize("loss", [mse(), cross_entropy(), cross_entropy(0.1)])
def test_the_loss_of_a_sequence_is_the_mean_over_its_positions(loss, y):
    found = loss(jnp.asarray(OUTPUTS), jnp.asarray(y))
    flat = loss(jnp.asarray(OUTPUTS.reshape(-1, C)), jnp.asarray(y.reshape(N * T, *y.shape[2:])))
    np.testing.assert_allclose(found, flat.reshape(N, T).mean(axis=1), rtol=1e-14)


def test_the_mean_loss_is_the_loss_of_a_token_and_the_accuracy_the_share_of_tokens():
    at = state()
    here = at.problem._replace(apply=lambda _, x: jnp.asarray(OUTPUTS)[: len(x)])
    found = evaluate(here, at.params, Examples(at.data.train.x, jnp.asarray(LABELS)), None)
    log_p = OUTPUTS - np.log(np.exp(OUTPUTS).sum(axis=-1, keepdims=True))
    tokens = np.take_along_axis(log_p, LABELS[..., None], axis=-1)
    np.testing.assert_allclose(found.loss, -tokens.mean(), rtol=1e-14)
    np.testing.assert_allclose(found.accuracy, (OUTPUTS.argmax(axis=-1) == LABELS).mean())


@pytest.mark.parametrize("y", [np.zeros((N, C), np.int32), np.zeros(N, np.int32), REAL[..., :1]])
def test_targets_of_another_shape_than_the_outputs_are_one_clear_line(y):
    with pytest.raises(ValueError, match=r"outputs are \[6, 4, 5\] and the targets") as error:
        mse()(jnp.asarray(OUTPUTS), jnp.asarray(y))
    assert "\n" not in str(error.value)


# the examples


def test_the_weights_of_a_model_that_is_shown_tokens_are_in_the_runs_precision():
    for dtype in ("float32", "float64"):
        leaves = jax.tree.leaves(new_state(f"precision={dtype}", *TOKENS).params)
        assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype)}
        assert sum(leaf.size for leaf in leaves) == 5 * 3 + 3 * 5 + 5  # a word that never occurs


def test_a_vocabulary_of_another_size_is_another_training():
    ids = {planning.job_id(job(*TOKENS, f"dataset.vocabulary={size}")) for size in (4, 5)}
    assert len(ids) == 2


def test_a_fraction_of_the_sequences_is_those_sequences_alone():
    at = state()
    chosen = np.array([0, 2, 5])
    part = at.data.train._replace(weight=jnp.asarray(np.isin(np.arange(N), chosen), float))
    found = evaluate(at.problem, at.params, part, 4)
    expected = evaluate(at.problem, at.params, take(at.data.train, chosen), None)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_label_noise_takes_each_position_as_it_takes_an_example():
    y = RNG.integers(0, 7, (300, 10))
    noisy = partial(sampling.noisy, 3, level=0.3, classes=7)
    np.testing.assert_array_equal(noisy(y=y), noisy(y=y.ravel()).reshape(y.shape))
    assert abs((noisy(y=y) != y).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / y.size)


# curvature, kernels, gradients


def curve(loss, p, log_z):
    """∂²ℓ/∂f² of one position, from its softmax and its log partition function."""
    outer = np.outer(p, p)
    fisher = np.diag(p) - outer
    return {
        "mse": np.eye(C),
        "cross-entropy": fisher,
        "z-loss": fisher + 2 * 0.3 * (outer + log_z * fisher),
    }[loss]


@cache
def by_definition(loss):
    """The four matrices from dense derivatives, G from what each position's loss curves."""
    at = state(loss)
    outputs, w = outputs_of(at)
    losses = lambda w: at.problem.loss(outputs(w), at.data.train.y)  # noqa: E731

    def derivatives(w):
        hessian = jax.hessian(lambda w: losses(w).mean())(w)
        return outputs(w), jax.jacrev(outputs)(w), jax.jacrev(losses)(w), hessian

    with numerics():
        f, J, g, hessian = (np.asarray(a) for a in jax.jit(derivatives)(w))
    total = np.exp(f).sum(axis=-1, keepdims=True)
    rows = zip((np.exp(f) / total).reshape(-1, C), np.log(total).ravel(), strict=True)
    curves = np.stack([curve(loss, p, log_z) for p, log_z in rows])
    J = J.reshape(N * T, C, -1)
    gauss_newton = np.einsum("icp,icd,idq->pq", J, curves, J) / (N * T)
    return {
        "hessian": hessian,
        "gauss_newton": gauss_newton,
        "empirical_fisher": g.T @ g / N,
        "residual": hessian - gauss_newton,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "microbatch"), [("mse", None), ("cross-entropy", 4), ("z-loss", None)]
)
def test_the_curvature_of_sequences_is_that_of_dense_derivatives(loss, microbatch):
    at, expected = state(loss), by_definition(loss)

    def dense(params):
        here = at._replace(params=params)
        every = np.eye(35)
        return {k: matrices.operator(here, k, None, microbatch)(every) for k in expected}

    found = jax.jit(dense)(at.params)
    for kind, matrix in expected.items():
        np.testing.assert_allclose(found[kind], matrix, atol=1e-12, err_msg=kind)


@cache
def jacobian(loss="cross-entropy"):
    """J [N·T, C, P]."""
    outputs, w = outputs_of(state(loss))
    return np.asarray(jax.jit(jax.jacrev(outputs))(w)).reshape(N * T, C, -1)


def test_each_position_of_a_sequence_counts_as_an_example_of_the_kernel():
    at = state()
    J = jacobian()
    summed = J.sum(axis=1)
    expected = {
        "full": J.reshape(N * T * C, -1) @ J.reshape(N * T * C, -1).T,
        "trace": np.einsum("icp,jcp->ij", J, J) / C,
        "sum_logits": summed @ summed.T,
    }
    for reduction, block in (("full", None), ("trace", 4), ("sum_logits", 4)):
        ours = partial(kernels.empirical_ntk, at.problem.apply, reduction=reduction, block=block)
        found = jax.jit(ours)(at.params, at.data.train.x)
        np.testing.assert_allclose(found, expected[reduction], atol=1e-12, err_msg=reduction)


@pytest.mark.parametrize("microbatch", [None, 4])
def test_products_with_the_kernel_of_sequences_are_the_dense_ones(microbatch):
    at = state()
    J = jacobian().reshape(N * T * C, -1)
    U = np.random.default_rng(3).normal(size=(3, len(J)))
    x = at.data.train.x
    product = kernels.ntk_products(at.problem.apply, at.params, x, None, microbatch)
    np.testing.assert_allclose(jax.jit(product)(jnp.asarray(U)), U @ J @ J.T, atol=1e-12)


def test_under_squared_error_the_kernels_eigenvalues_are_the_gauss_newton_matrixs():
    at = state("mse")
    expected = np.linalg.eigvalsh(by_definition("mse")["gauss_newton"])[::-1][:3]
    formed = measured(ntk(examples=None, reduction="full", k=3), at)
    np.testing.assert_allclose(formed["eigenvalues"], expected, rtol=1e-10)
    np.testing.assert_allclose(formed["trace"], np.sum(jacobian("mse") ** 2) / (N * T), rtol=1e-10)
    for train in (at.data.train, at.data.train._replace(weight=jnp.ones(N))):
        weighted = at._replace(data=at.data._replace(train=train))
        followed = measured(ntk_top(k=3, extensions=20), weighted, times=3)
        np.testing.assert_allclose(followed["eigenvalues"], expected, rtol=1e-8)


def test_the_alignment_is_with_the_labels_of_all_positions():
    at = state("mse")
    J, Y = jacobian("mse"), np.eye(C)[np.asarray(at.data.train.y).ravel()]
    kernel, target = np.einsum("icp,jcp->ij", J, J) / C, Y @ Y.T
    expected = np.sum(kernel * target) / np.linalg.norm(kernel) / np.linalg.norm(target)
    found = measured(ntk(examples=None, k=1), at)
    np.testing.assert_allclose(found["alignment"], expected, rtol=1e-10)


def test_the_gradient_noise_is_over_sequences():
    at = state()
    outputs, w = outputs_of(at)
    losses = lambda w: at.problem.loss(outputs(w), at.data.train.y)  # noqa: E731
    rows = np.asarray(jax.jit(jax.jacrev(losses))(w))
    mean = rows.mean(axis=0)
    values = measured(gradients.gradient_noise(), at)
    np.testing.assert_allclose(values["signal"], mean @ mean)
    np.testing.assert_allclose(values["trace"], np.mean(np.sum((rows - mean) ** 2, axis=1)))


@pytest.mark.parametrize("microbatch", [None, 4])
def test_the_logits_of_sequences_are_those_of_all_positions(microbatch):
    at, labels = state(), jnp.asarray(LABELS)
    problem = at.problem._replace(apply=lambda _, x: x.astype(float))
    train = Examples(jnp.asarray(OUTPUTS), labels)
    sequences = at._replace(problem=problem, data=at.data._replace(train=train))
    flat = Examples(train.x.reshape(-1, C), labels.ravel())
    tokens = at._replace(problem=problem, data=at.data._replace(train=flat))
    found = measured(features.logits(microbatch=microbatch), sequences)
    expected = measured(features.logits(), tokens)
    assert found.keys() == {"norm", "max", "gap", "margin", "log_partition"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-14, err_msg=name)


REFUSED = {
    "progress_measures": "progress_measures take pairs of tokens",
    "tasks": "it tells tasks apart, and this run has none",
    "neural_collapse": "neural_collapse needs one class an example",
    "class_geometry": "class_geometry needs one class an example",
    "outlier_overlap": "outlier_overlap needs one class label an example",
    "input_jacobian": "input_jacobian differentiates in the inputs",
    "attention_logits": "attention_logits looks at layers whose path ends in 'attention/logits'",
    "dead_units": "dead_units looks at the layers whose name starts with 'activation'",
    "kernel_descent": "kernel_descent takes outputs",
    "distinct_units": "distinct_units looks at the layers whose name starts with 'activation'",
}


def preset(name):
    """The words for one preset, small enough for six sequences."""
    chosen = f"observables=[{name}]"
    nodes = config.compose([chosen]).observables
    probes = [key for key, node in nodes.items() if node.get("examples") is not None]
    extra = ["observables.batch_sharpness.batches=1"] if name == "batch_sharpness" else []
    return [chosen, *extra, *(f"observables.{key}.examples=5" for key in probes)]


@pytest.mark.parametrize("name", [n for n in config.groups()["observables"] if n not in REFUSED])
def test_an_observable_traces_on_sequences(name):
    """Shapes and types alone: nothing compiles."""
    building.check(building.build([job(*TOKENS, "loss=cross_entropy", *preset(name))]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_sequences_do_not_have_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match=REFUSED[name]) as error:
        building.check(building.build([job(*TOKENS, *preset(name))]))
    assert "\n" not in str(error.value)


# the whole path


@pytest.fixture
def play(elsewhere, monkeypatch):
    """A folder of data with a small text under the name of the large one."""
    monkeypatch.setenv("LMECH_DATA", str(elsewhere))
    planning._load.cache_clear()
    planning._data_checksum.cache_clear()
    (elsewhere / "tinyshakespeare").mkdir()
    (elsewhere / "tinyshakespeare/input.txt").write_text("to be, or not to be\n" * 30)
    yield elsewhere
    planning._load.cache_clear()
    planning._data_checksum.cache_clear()


RUN = ("dataset=tinyshakespeare", "dataset.context=8", "loss=cross_entropy", "logger=none")


@pytest.mark.filterwarnings("ignore:.*is not the published file")
def test_three_steps_on_a_text_lower_the_loss_of_its_letters(play):
    words = [*RUN, *MODEL, "steps=3", "observables=[loss,accuracy,logits]", "seed=0,1"]
    setting = ["optimizer.learning_rate=0.5", "batch_size=16", "label_noise=0.1"]
    assert main(["-m", *words, *setting, "data_fraction=0.9"]) == 0
    tables = [pd.read_parquet(file) for file in play.glob("outputs/run/*/*/metrics.parquet")]
    assert len(tables) == 2
    for table in tables:
        loss = table["train_loss"].to_numpy()
        assert abs(loss[0] - np.log(9)) < 1  # nine letters, commas and spaces
        assert loss[3] < loss[0]
        assert 0 <= table["test_accuracy"].iloc[-1] <= 1
        assert table["logits_max"].iloc[0] > 0


@pytest.mark.filterwarnings("ignore:.*is not the published file")
@pytest.mark.usefixtures("play")
def test_a_net_that_takes_no_tokens_says_so_in_one_line(capsys):
    assert main([*RUN, "model=mlp", "model.width=4"]) == 2
    error = capsys.readouterr().err
    assert "this model takes real inputs, and the dataset's are tokens (int32)" in error
    assert error.count("\n") == 1
