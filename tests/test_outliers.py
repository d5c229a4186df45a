"""Eigenvectors of the curvature against the span of the class means of logit gradients."""

from functools import cache

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import job, measured, state

from lmech import building
from lmech.observables.outliers import outlier_overlap
from lmech.observables.spectrum import spectral_density

pytestmark = pytest.mark.usefixtures("x64")

CLUSTERS = (
    *("dataset=gaussian_clusters", "dataset.classes=3", "dataset.dimension=4"),
    *("dataset.clusters=1", "dataset.train_size=30", "model.depth=1", "model.width=5"),
    *("loss=cross_entropy", "precision=float64"),
)
small = cache(state)


def by_definition(at):
    """Eigenvalues ↓, squared projections and the directions, in NumPy from jax's dense ones."""
    x, y = map(np.asarray, at.data.train[:2])
    w, unravel = ravel_pytree(at.params)

    def outputs(w):
        return at.problem.apply(unravel(w), x)

    hessian = jax.hessian(lambda w: at.problem.loss(outputs(w), y).mean())(w)
    values, vectors = np.linalg.eigh(np.asarray(hessian))
    jacobian = np.asarray(jax.jacfwd(outputs)(w))  # [N, C, P]
    means = np.concatenate([jacobian[y == k].mean(axis=0) for k in range(3)])
    solved, _, rank, _ = np.linalg.lstsq(means.T, vectors[:, ::-1])
    projected = means.T @ solved
    return values[::-1], np.sum(projected**2, axis=0), rank


@pytest.mark.slow
def test_the_overlaps_are_those_of_a_dense_computation():
    at = small(*CLUSTERS)
    found = measured(outlier_overlap(), at)
    values, overlaps, rank = by_definition(at)
    np.testing.assert_allclose(found["eigenvalues"], values, atol=1e-12)
    np.testing.assert_allclose(found["overlaps"].sum(), rank)
    # An eigenvalue that others nearly equal has no eigenvector of its own.
    apart = np.min(np.abs(np.diff(values))[:3])
    assert apart > 1e-4
    np.testing.assert_allclose(found["overlaps"][:3], overlaps[:3], atol=1e-10)
    np.testing.assert_allclose(found[""], overlaps[:3].mean(), atol=1e-10)
    np.testing.assert_allclose(found["directions"], rank)
    assert found["outliers"] == (found["overlaps"] > 0.5).sum()


def test_the_matrix_is_the_one_that_is_asked_for():
    at = small(*CLUSTERS)
    found = measured(outlier_overlap(matrix="gauss_newton"), at)
    other = measured(spectral_density(matrix="gauss_newton", samples=None), at)
    np.testing.assert_allclose(found["eigenvalues"], other["nodes"][::-1], atol=1e-12)


def test_of_a_linear_net_every_example_at_its_class_mean_the_classes_explain_all():
    at = small(*CLUSTERS, "model.depth=0", "model.bias=false")
    x, y = map(np.asarray, at.data.train[:2])
    centres = np.stack([x[y == k].mean(axis=0) for k in range(3)])
    collapsed = at._replace(
        data=at.data._replace(train=at.data.train._replace(x=jax.numpy.asarray(centres[y])))
    )
    found = measured(outlier_overlap(), collapsed)
    # H = mean of JᵀAJ, J of a class its three g: two dimensions a class, as A has the null space 1.
    there = found["eigenvalues"] > 1e-10
    assert there.sum() == 6
    assert np.isclose(found["directions"], 9)
    np.testing.assert_allclose(found["overlaps"][there], 1)


def test_examples_that_do_not_count_change_nothing():
    at = small(*CLUSTERS)
    train = at.data.train
    half = np.where(np.arange(30) < 20, 1.0, 0.0)
    weighted = at._replace(
        data=at.data._replace(train=train._replace(weight=jax.numpy.asarray(half)))
    )
    alone = at._replace(data=at.data._replace(train=jax.tree.map(lambda leaf: leaf[:20], train)))
    found, expected = (measured(outlier_overlap(), here) for here in (weighted, alone))
    np.testing.assert_allclose(found["eigenvalues"], expected["eigenvalues"], atol=1e-12)
    np.testing.assert_allclose(found[""], expected[""], atol=1e-10)


def test_a_class_without_examples_gives_no_direction():
    at = small(*CLUSTERS)
    y = jax.numpy.minimum(at.data.train.y, 1)
    two = at._replace(data=at.data._replace(train=at.data.train._replace(y=y)))
    found = measured(outlier_overlap(), two)
    np.testing.assert_allclose(found["directions"], 6)
    assert np.isfinite(found[""])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("dataset=chebyshev", "dataset.train_size=20"), "needs one class label an example"),
        (("model.width=200",), "at most 4000 parameters, and this one has"),
    ],
)
def test_what_it_does_not_take_is_a_clear_error(overrides, line):
    with pytest.raises(ValueError, match=line):
        building.check(building.build([job("observables=[outlier_overlap]", *overrides)]))
