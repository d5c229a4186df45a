"""Hessian operator, eigenvalue tracker and kernels against dense algebra and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import column, job, train

from lmech import building, engine
from lmech.config import ConfigError
from lmech.numerics import curvature, kernels, krylov
from lmech.problem import total_loss

pytestmark = pytest.mark.usefixtures("x64")


def problem_and_params(*overrides):
    batch = building.build([job("precision=float64", *overrides)])
    member = jax.tree.map(lambda leaf: leaf[0], batch.inputs)
    params = engine._start(batch.program, member, None).params
    return batch.program.problem, params, batch.data.train


def dense(problem, params, examples, microbatch=None):
    w, _ = ravel_pytree(params)
    return curvature.hessian(total_loss(problem), params, examples, microbatch)(jnp.eye(w.size))


def test_the_hessian_of_linear_regression_is_the_covariance():
    problem, params, examples = problem_and_params("model.depth=0", "model.bias=false")
    x = examples.x
    expected = np.kron(x.T @ x / len(x), np.eye(10))
    np.testing.assert_allclose(dense(problem, params, examples), expected, atol=1e-12)


def test_the_hessian_of_softmax_regression_is_the_written_out_one():
    problem, params, examples = problem_and_params(
        "model.depth=0", "model.bias=false", "loss=cross_entropy", "dataset.train_size=20"
    )
    p = jax.nn.softmax(problem.apply(params, examples.x))
    blocks = [
        np.kron(np.outer(x, x), np.diag(q) - np.outer(q, q))
        for x, q in zip(examples.x, p, strict=True)
    ]
    expected = np.mean(blocks, axis=0)
    np.testing.assert_allclose(dense(problem, params, examples), expected, atol=1e-12)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_hessian_operator_is_jaxs_dense_hessian(loss, activation):
    problem, params, examples = problem_and_params(
        f"loss={loss}", f"model.activation={activation}", "model.width=4"
    )
    w, unravel = ravel_pytree(params)
    mean = lambda w: total_loss(problem)(unravel(w), examples) / len(examples.x)  # noqa: E731
    np.testing.assert_allclose(dense(problem, params, examples), jax.hessian(mean)(w), atol=1e-10)


@pytest.mark.parametrize("size", [1, 7, 30, 59, 60, 100])
def test_microbatches_change_only_the_rounding_of_the_hessian(size):
    problem, params, examples = problem_and_params("model.width=3")
    whole, parts = dense(problem, params, examples), dense(problem, params, examples, size)
    np.testing.assert_allclose(parts, whole, atol=1e-12)


def test_the_tracker_converges_to_dense_eigenvalues_and_says_how_far_it_is():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(80, 80))
    matrix = jnp.asarray(matrix + matrix.T)
    exact = np.linalg.eigvalsh(matrix)[::-1]
    block = jnp.asarray(rng.normal(size=(80, 4)))
    for _ in range(300):
        ritz = krylov.top_eigenpairs(lambda v: matrix @ v, block, 1)
        assert ritz.values[0] <= exact[0] + 1e-10
        for value, residual in zip(ritz.values, ritz.residuals, strict=True):
            assert np.abs(exact - value).min() <= residual + 1e-10
        block = ritz.vectors
    np.testing.assert_allclose(ritz.values, exact[:4], rtol=1e-9)


def test_a_krylov_space_that_is_the_whole_space_is_exact():
    matrix = jnp.diag(jnp.asarray([5.0, 3.0, 1.0, -2.0, -9.0, 0.5]))
    block = jnp.asarray(np.random.default_rng(1).normal(size=(6, 2)))
    ritz = krylov.top_eigenpairs(lambda v: matrix @ v, block, 2)
    np.testing.assert_allclose(ritz.values, [5.0, 3.0], atol=1e-10)


def sharpness_run(precision, rate, steps=40):
    config = job(
        *("model.width=4", f"steps={steps}", "observables=[loss,sharpness]"),
        *("observables.sharpness.every=10", f"optimizer.learning_rate={rate}"),
        f"precision={precision}",
    )
    recorder, end = train([config])
    problem, _, examples = problem_and_params("model.width=4")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0], jnp.float64), end.params)
    return recorder, np.linalg.eigvalsh(np.asarray(dense(problem, params, examples)))[::-1]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float64", 2e-6)])
def test_where_the_weights_stand_still_the_sharpness_is_the_dense_eigenvalue(precision, tolerance):
    recorder, exact = sharpness_run(precision, rate=0, steps=100)
    assert column(recorder, 0, "sharpness_eigenvalues")[100].shape == (4,)
    np.testing.assert_allclose(column(recorder, 0, "sharpness")[100], exact[0], rtol=tolerance)


def test_where_the_weights_move_the_sharpness_is_a_lower_bound_within_its_residual():
    recorder, exact = sharpness_run("float64", rate=0.3)
    found = column(recorder, 0, "sharpness")
    residual = column(recorder, 0, "sharpness_residual")[40]
    assert sorted(found) == [0, 10, 20, 30, 40]
    assert found[40] <= exact[0] + 1e-12
    assert np.abs(exact - found[40]).min() <= residual
    np.testing.assert_allclose(found[40], exact[0], rtol=5e-3)
    eigenvalues = column(recorder, 0, "sharpness_eigenvalues")[40]
    assert column(recorder, 0, "sharpness_gap")[40] == eigenvalues[0] - eigenvalues[1]
    assert column(recorder, 0, "sharpness_products")[40] == 8


def test_more_eigenpairs_than_parameters_is_a_clear_error():
    config = job(
        *("dataset=chebyshev", "dataset.train_size=20", "model.width=1", "model.depth=0"),
        "observables=[loss,sharpness]",
    )
    with pytest.raises(
        ValueError, match=r"8 dimensions.*2 parameters: lower observables.sharpness.k"
    ):
        building.check(building.build([config]))


def test_accuracy_of_real_targets_is_a_clear_error():
    config = job("dataset=chebyshev", "dataset.train_size=20", "observables=[loss,accuracy]")
    with pytest.raises((ValueError, ConfigError), match="needs class labels"):
        building.check(building.build([config]))


def test_the_ntk_of_a_linear_model_is_the_gram_matrix():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)))
    kernel = kernels.empirical_ntk(lambda w, x: x @ w, jnp.ones((3, 1)), x)
    np.testing.assert_allclose(kernel, x @ x.T, atol=1e-12)


def test_alignment_is_one_for_the_target_kernel_and_zero_across_it():
    y = jnp.asarray([1.0, -1.0, 2.0])
    z = jnp.asarray([1.0, 1.0, 0.0])
    np.testing.assert_allclose(kernels.alignment(jnp.outer(y, y), y), 1.0)
    np.testing.assert_allclose(kernels.alignment(jnp.outer(z, z), y), 0.0, atol=1e-15)
    shifted = kernels.centered_alignment(jnp.outer(y + 5, y + 5), y)
    np.testing.assert_allclose(shifted, 1.0)
