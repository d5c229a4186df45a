"""Losses: their formulas, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmech.losses import cross_entropy, mse
from lmech.numerics.precision import numerics

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(5, 3))
REAL = RNG.normal(size=(5, 3))
LABELS = np.array([0, 2, 1, 1, 0], np.int32)
ONE_HOT = np.eye(3)[LABELS]
TARGETS = pytest.mark.parametrize(
    ("y", "vectors"), [(LABELS, ONE_HOT), (REAL, REAL)], ids=["labels", "real"]
)


@TARGETS
def test_mse_is_half_the_squared_error_of_each_example(y, vectors):
    with numerics():
        values = mse()(jnp.asarray(OUTPUTS), jnp.asarray(y))
    expected = [0.5 * sum((OUTPUTS[i, c] - vectors[i, c]) ** 2 for c in range(3)) for i in range(5)]
    np.testing.assert_allclose(values, expected, rtol=1e-14)


@TARGETS
def test_the_gradient_of_mse_is_output_minus_target(y, vectors):
    with numerics():
        gradient = jax.grad(lambda f: mse()(f, jnp.asarray(y)).sum())(jnp.asarray(OUTPUTS))
    np.testing.assert_allclose(gradient, OUTPUTS - vectors, rtol=1e-14)


def test_cross_entropy_is_minus_the_log_of_the_labels_softmax():
    with numerics():
        values = cross_entropy()(jnp.asarray(OUTPUTS), jnp.asarray(LABELS))
    softmax = np.exp(OUTPUTS) / np.exp(OUTPUTS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(values, -np.log(softmax[np.arange(5), LABELS]), rtol=1e-12)


def test_cross_entropy_with_soft_targets_is_their_weighted_sum():
    soft = np.exp(REAL) / np.exp(REAL).sum(axis=1, keepdims=True)
    with numerics():
        values = cross_entropy()(jnp.asarray(OUTPUTS), jnp.asarray(soft))
    softmax = np.exp(OUTPUTS) / np.exp(OUTPUTS).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(values, -(soft * np.log(softmax)).sum(axis=1), rtol=1e-12)


def test_cross_entropy_of_huge_outputs_is_finite():
    with numerics():
        values = cross_entropy()(jnp.array([[1e4, 0.0]]), jnp.array([1], jnp.int32))
    np.testing.assert_allclose(values, [1e4])


@pytest.mark.parametrize("loss", [mse(), cross_entropy()], ids=["mse", "cross_entropy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_leave_the_outputs_dtype_as_it_is(loss, dtype):
    with numerics():
        values = loss(jnp.asarray(OUTPUTS, dtype), jnp.asarray(LABELS))
    assert values.dtype == dtype


def test_the_z_loss_adds_the_square_of_the_log_partition_and_pulls_it_to_zero():
    log_z = np.log(np.exp(OUTPUTS).sum(axis=1))
    softmax = np.exp(OUTPUTS - log_z[:, None])
    with numerics():
        f, y = jnp.asarray(OUTPUTS), jnp.asarray(LABELS)
        plain, values = cross_entropy()(f, y), cross_entropy(0.1)(f, y)
        gradient = jax.grad(lambda f: cross_entropy(0.1)(f, y).sum())(f)
    np.testing.assert_allclose(values - plain, 0.1 * log_z**2, rtol=1e-12)
    expected = softmax - ONE_HOT + 0.2 * log_z[:, None] * softmax
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)
