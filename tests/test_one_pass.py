"""The mean risk of one-pass SGD: against a dense operator, a simulation, and gradient descent."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmech.numerics import one_pass

pytestmark = pytest.mark.usefixtures("x64")
D = 3


def problem(seed=0):
    """K [d, d], θ* − θ₀ [d] and the noise's variance, as (K, E φr, E r²), and themselves."""
    generator = np.random.default_rng(seed)
    root = generator.standard_normal((D, D + 1)) / 2
    second, error, noise = root @ root.T, generator.standard_normal(D), 0.3
    cross = second @ error
    return (second, cross, error @ cross + noise), error, noise


def dense(second, error, noise, rate, batch, steps):
    """P_t from S [d, d] by the moments of φ ⊗ φ ⊗ φ ⊗ φ, entry by entry (Isserlis)."""
    K = second
    fourth = np.einsum("ij,kl->ijkl", K, K) + np.einsum("ik,jl->ijkl", K, K)
    fourth += np.einsum("il,jk->ijkl", K, K)
    eye = np.eye(D)
    mean = np.kron(eye, eye) - rate * (np.kron(K, eye) + np.kron(eye, K))
    # E (mean of φφᵀ) S (mean of φφᵀ): pairs of one example, and of two.
    alone = fourth.transpose(0, 3, 1, 2).reshape(D * D, D * D)
    mean += rate**2 * (alone / batch + (1 - 1 / batch) * np.kron(K, K))
    S, risks = np.outer(error, error).ravel(), []
    for _ in range(steps):
        risks.append(K.ravel() @ S + noise)
        S = mean @ S + rate**2 / batch * noise * K.ravel()
    return np.array(risks)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("rate", [0.05, 0.3, 2.0])  # the last diverges
def test_the_curve_is_that_of_the_dense_operator_on_second_moments(batch, rate):
    given, error, noise = problem()
    of = one_pass.moments(*map(jnp.asarray, given))
    found = one_pass.at(one_pass.sgd(of, rate, batch), jnp.arange(60))
    expected = dense(given[0], error, noise, rate, batch, 60)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert (expected[-1] > expected[0]) == (rate == 2.0)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_curve_is_the_mean_of_simulated_runs(batch):
    """20,000 runs by the definition; within 4 standard errors at each of 15 steps."""
    given, error, noise = problem(1)
    rate, runs, generator = 0.15, 20_000, np.random.default_rng(2)
    root = np.linalg.cholesky(given[0])
    delta, risks = np.tile(-error, (runs, 1)), []
    for _ in range(15):
        risks.append(np.einsum("ni,ij,nj->n", delta, given[0], delta) + noise)
        phi = generator.standard_normal((runs, batch, D)) @ root.T
        xi = noise**0.5 * generator.standard_normal((runs, batch))
        off = np.einsum("nbi,ni->nb", phi, delta) - xi
        delta = delta - rate * np.einsum("nbi,nb->ni", phi, off) / batch
    means, errors = np.mean(risks, axis=1), np.std(risks, axis=1) / runs**0.5
    of = one_pass.moments(*map(jnp.asarray, given))
    found = np.asarray(one_pass.at(one_pass.sgd(of, rate, batch), jnp.arange(15)))
    assert (np.abs(found - means) <= 4 * errors + 1e-12).all()
    noiseless = np.asarray(one_pass.at(one_pass.gradient_descent(of, rate), jnp.arange(15)))
    assert (np.abs(noiseless - means) > 4 * errors)[5:].all()


def test_gradient_descent_is_the_limit_of_large_batches_and_the_iteration_itself():
    given, error, noise = problem(2)
    of = one_pass.moments(*map(jnp.asarray, given))
    found = one_pass.at(one_pass.gradient_descent(of, 0.4), jnp.arange(30))
    large = one_pass.at(one_pass.sgd(of, 0.4, 10**12), jnp.arange(30))
    np.testing.assert_allclose(found, large, rtol=1e-9)
    delta = error
    for t in range(30):
        assert found[t] == pytest.approx(delta @ given[0] @ delta + noise, rel=1e-10)
        delta = delta - 0.4 * given[0] @ delta


def test_a_feature_that_does_not_vary_changes_nothing():
    given, _, _ = problem(3)
    padded = (np.pad(given[0], (0, 1)), np.pad(given[1], (0, 1)), given[2])
    curves = [
        one_pass.at(one_pass.sgd(one_pass.moments(*map(jnp.asarray, one)), 0.2), jnp.arange(20))
        for one in (given, padded)
    ]
    np.testing.assert_allclose(*curves, rtol=1e-10)


def test_the_last_risk_is_the_fixed_point_of_the_recursion():
    """P_∞ = Eξ² / (1 − Σ γλ_i / (2 − γλ_i(1 + 1/B)) / B)."""
    given, _, noise = problem(4)
    of = one_pass.moments(*map(jnp.asarray, given))
    x = 0.1 * np.asarray(of.eigenvalues)
    for batch in (1, 5):
        expected = noise / (1 - (x / (2 - x * (1 + 1 / batch))).sum() / batch)
        assert one_pass.sgd(of, 0.1, batch).limit == pytest.approx(expected, rel=1e-10)
