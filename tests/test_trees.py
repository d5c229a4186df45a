"""Pytree helpers, against the same done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmech.datasets import Examples
from lmech.numerics import trees
from lmech.numerics.precision import numerics


def examples(n):
    """Whole numbers, so that sums are exact in any order."""
    rng = np.random.default_rng(n)
    return Examples(
        jnp.asarray(rng.integers(-9, 9, (n, 3)), jnp.float64), jnp.asarray(rng.integers(0, 9, n))
    )


def sums(batch):
    x, y = batch.x, batch.y
    return {"x": x.sum(axis=0), "gram": x.T @ x, "labels": y.sum(), "count": jnp.float32(len(x))}


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 12), size=st.one_of(st.none(), st.integers(1, 14)))
def test_accumulate_is_the_sum_for_every_microbatch_size(n, size):
    with numerics():
        whole, parts = sums(examples(n)), trees.accumulate(sums, examples(n), size)
    assert set(parts) == set(whole)
    for name, expected in whole.items():
        assert parts[name].dtype == expected.dtype
        np.testing.assert_array_equal(parts[name], expected)


@pytest.mark.parametrize(
    ("size", "seen"), [(None, {7}), (7, {7}), (8, {7}), (3, {3, 1}), (2, {2, 1}), (1, {1})]
)
def test_accumulate_shows_no_more_than_a_microbatch_at_a_time(size, seen):
    lengths = set()

    def f(batch):
        lengths.add(len(batch.x))
        return sums(batch)

    with numerics():
        trees.accumulate(f, examples(7), size)
    assert lengths == seen


def test_accumulate_is_the_sum_under_jit_and_grad():
    def total(w, size):
        def f(batch):
            return jnp.square(batch.x @ w - batch.y).sum()

        return trees.accumulate(f, examples(7), size)

    with numerics():
        w = jnp.array([1.0, -2.0, 3.0])
        whole, parts = (jax.jit(jax.grad(lambda w, s=s: total(w, s)))(w) for s in (None, 3))
    np.testing.assert_array_equal(parts, whole)


def test_leaves_are_named_by_their_path_in_tree_order():
    tree = {"hidden_1": {"kernel": 2, "bias": 1}, "out": [3, (4,)], "a": 0}
    named = trees.named_leaves(tree)
    assert list(named.items()) == [
        ("a", 0),
        ("hidden_1/bias", 1),
        ("hidden_1/kernel", 2),
        ("out/0", 3),
        ("out/1/0", 4),
    ]
    assert list(named.values()) == jax.tree.leaves(tree)


def test_the_fields_of_a_named_tuple_are_named():
    assert trees.named_leaves(Examples(x=1, y=2)) == {"x": 1, "y": 2}


@pytest.mark.parametrize("keep", [True, False])
def test_select_takes_the_new_tree_or_the_old_even_beside_a_nan(keep):
    new = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3)}
    old = {"a": jnp.array([np.nan, 5.0]), "b": jnp.array(6)}
    chosen = trees.select(jnp.asarray(keep), new, old)
    for name, expected in (new if keep else old).items():
        np.testing.assert_array_equal(chosen[name], expected)


def test_add_multiply_and_divide_go_leaf_by_leaf():
    a = {"w": jnp.array([1.0, 2.0], jnp.float32), "b": jnp.float32(3)}
    total = trees.add(a, a)
    scaled = trees.multiply({"w": jnp.float32(10), "b": jnp.float32(2)}, a)
    with numerics():
        half = trees.divide(a, np.float64(2))
    np.testing.assert_array_equal(total["w"], [2, 4])
    np.testing.assert_array_equal(scaled["w"], [10, 20])
    assert scaled["b"] == 6
    np.testing.assert_array_equal(half["w"], [0.5, 1])
    assert half["w"].dtype == jnp.float32


def test_the_squared_norm_is_the_sum_of_squares_over_all_leaves():
    assert trees.squared_norm({"w": jnp.array([[1.0, 2.0]]), "b": jnp.array(3.0)}) == 14
