"""Curvature along training's directions, against dense algebra and quadratics."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import column, job, measured, state, train

from lmech import building
from lmech.datasets import take
from lmech.observables import gradient, matrices, next_update
from lmech.observables.directions import (
    batch_sharpness,
    critical_learning_rate,
    directional_sharpness,
    gradient_alignment,
    sharpening_rate,
)
from lmech.problem import loss_and_gradient, total_loss

pytestmark = pytest.mark.usefixtures("x64")
LINEAR = ("model.depth=0", "model.bias=false")


@cache
def small(*overrides):
    return state("precision=float64", "model.width=4", *overrides)


def dense(at):
    def matrix(params):
        operator = matrices.operator(at._replace(params=params))
        return operator(jnp.eye(matrices.flat(params).size))

    return np.asarray(jax.jit(matrix)(at.params))


def flat(tree):
    return np.asarray(matrices.flat(tree))


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
def test_directional_sharpness_is_the_rayleigh_quotient_of_the_update(optimizer):
    at = small(f"optimizer={optimizer}")
    update, g, matrix = flat(next_update(at)[0]), flat(gradient(at)), dense(at)
    found = measured(directional_sharpness(microbatch=7), at)
    np.testing.assert_allclose(found[""], update @ matrix @ update / (update @ update), rtol=1e-9)
    np.testing.assert_allclose(found["gradient"], g @ matrix @ g / (g @ g), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_gradient_alignment_is_that_of_the_dense_hessian(loss):
    at = small(f"loss={loss}")
    g, (values, vectors) = flat(gradient(at)), np.linalg.eigh(dense(at))
    found = measured(gradient_alignment(), at, times=30)
    quotient = g @ vectors @ np.diag(values) @ vectors.T @ g / (g @ g)
    np.testing.assert_allclose(found[""], quotient / np.abs(values).max(), rtol=1e-7)
    shares = np.cumsum((vectors.T @ g)[::-1][:4] ** 2) / (g @ g)
    np.testing.assert_allclose(found["overlap"], shares, rtol=1e-5)


@pytest.mark.slow
def test_the_sharpening_rate_is_the_slope_of_the_sharpness_along_gradient_flow():
    at = small("dataset.train_size=40")
    g = gradient(at)

    def sharpness(t):
        moved = jax.tree.map(lambda w, d: w - t * d, at.params, g)
        return np.linalg.eigvalsh(dense(at._replace(params=moved)))[-1]

    step = 1e-4
    slope = (sharpness(step) - sharpness(-step)) / (2 * step)
    for microbatch in (None, 9):
        found = measured(sharpening_rate(microbatch=microbatch), at, times=30)
        np.testing.assert_allclose(found[""], slope, rtol=1e-5)
    np.testing.assert_allclose(found["sharpness"], sharpness(0), rtol=1e-9)


def test_a_quadratic_sharpens_nowhere():
    at = small(*LINEAR)
    assert abs(measured(sharpening_rate(), at)[""]) < 1e-12


def test_batch_sharpness_takes_gradient_and_hessian_of_the_same_minibatch():
    at = small()
    found = measured(batch_sharpness(batch_size=15, batches=4), at)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 3), 0)  # the stream "probes"
    order = np.argsort(jax.random.uniform(key, (60,), "float32"), stable=True).reshape(4, 15)
    curves, squares = [], []
    for rows in order:
        batch = take(at.data.train, rows)
        here = at._replace(data=at.data._replace(train=batch))
        g = flat(loss_and_gradient(at.problem, at.params, batch, None)[1])
        curves.append(g @ dense(here) @ g)
        squares.append(g @ g)
    np.testing.assert_allclose(found[""], np.mean(curves) / np.mean(squares), rtol=1e-9)
    ratios = np.asarray(curves) / np.asarray(squares)
    np.testing.assert_allclose(found["mean_ratio"], ratios.mean(), rtol=1e-9)


def test_with_a_full_batch_batch_sharpness_is_the_sharpness_along_the_gradient():
    at = small()
    found = measured(batch_sharpness(), at)
    along = measured(directional_sharpness(), at)["gradient"]
    np.testing.assert_allclose([found[""], found["mean_ratio"]], [along, along], rtol=1e-9)


def test_more_minibatches_than_there_are_examples_is_a_clear_error():
    config = job("observables=[loss,batch_sharpness]", "batch_size=16")
    with pytest.raises(ValueError, match=r"16 disjoint minibatches of 16 .* lower batches to 3"):
        building.check(building.build([config]))


@pytest.mark.parametrize("rate", [1e-3, 0.05, 5.0])
def test_on_a_quadratic_the_critical_rate_is_twice_the_inverse_curvature(rate):
    at = small(*LINEAR, f"optimizer.learning_rate={rate}")
    g, matrix = flat(gradient(at)), dense(at)
    found = measured(critical_learning_rate(bisections=30), at)
    np.testing.assert_allclose(found[""], 2 * (g @ g) / (g @ matrix @ g), rtol=1e-6)
    np.testing.assert_allclose(found["ratio"], found[""] / rate, rtol=1e-12)


def test_past_the_critical_rate_the_loss_rises_and_before_it_does_not():
    at = small()
    total = total_loss(at.problem)
    found = measured(critical_learning_rate(), at)[""]
    g = gradient(at)

    def loss(rate):
        return total(jax.tree.map(lambda w, d: w - rate * d, at.params, g), at.data.train)

    assert loss(found * 0.99) < loss(0.0) < loss(found * 1.01)


def test_without_an_update_there_is_no_critical_rate():
    at = small("optimizer.learning_rate=0")
    assert np.isnan(measured(critical_learning_rate(), at)[""])


@pytest.mark.slow
def test_the_effective_sharpness_of_a_scheduled_run_uses_the_steps_own_rate():
    config = job(
        *("observables=[loss,effective_sharpness]", "schedule=cosine", "steps=20"),
        *("observables.effective_sharpness.every=10", "precision=float64"),
    )
    recorder, _ = train([config])
    threshold = column(recorder, 0, "effective_sharpness_threshold")
    schedule = building.learning_rates([config])(np.asarray([0, 10, 19]))[0]
    np.testing.assert_allclose([threshold[t] for t in (0, 10, 20)], 2 / schedule, rtol=1e-12)
