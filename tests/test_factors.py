"""Gradients that stay outer products: of which parameters, and that they are jax's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmech.models.cnn import cnn
from lmech.models.mlp import mlp
from lmech.models.transformer import transformer
from lmech.numerics import factors, kernels, trees
from lmech.numerics.factors import Factored

pytestmark = pytest.mark.usefixtures("x64")

DRAWS = np.random.default_rng(0)
X = DRAWS.normal(size=(5, 4))


def tree(**shapes):
    return {name: np.asarray(DRAWS.normal(size=shape)) for name, shape in shapes.items()}


W = tree(w=(4, 3), v=(3, 4), s=(), b=(3,), u=(4, 3), c=(3,), d=(3,))
FUNCTIONS = {
    "a product": (lambda p, x: x @ p["w"], "w"),
    "with a bias": (lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]), "w"),
    "two, one after the other": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], "wv"),
    "transposed": (lambda p, x: jnp.tanh(x @ p["v"].T) @ p["w"].T, "wv"),
    "the weight on the left": (lambda p, x: (p["v"] @ x.T).T, "v"),
    "times a number": (lambda p, x: x @ (0.5 * p["w"]), "w"),
    "times a trained scalar": (lambda p, x: x @ (p["s"] * p["w"] * p["s"]), "w"),
    "in a jitted function": (lambda p, x: jax.jit(lambda w, x: jnp.tanh(x @ w))(p["w"], x), "w"),
    "in another shape": (lambda p, x: x @ p["w"].reshape(2, 6).reshape(4, 3), "w"),
    "beside a rule for derivatives": (lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], "wv"),
    "beside a loop": (
        lambda p, x: jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h), x @ p["w"]),
        "w",
    ),
    "two axes summed over": (
        lambda p, x: jnp.einsum("nij,ijk->nk", x.reshape(-1, 2, 2), p["w"].reshape(2, 2, 3)),
        "w",
    ),
    "over a number": (lambda p, x: x @ (-p["w"] / 3.0), "w"),
    "over a trained scalar": (lambda p, x: x @ (p["w"] / p["s"]), "w"),
    "a number over it": (lambda p, x: x @ (3.0 / p["w"]), ""),
    "less another": (lambda p, x: x @ (p["u"] - p["w"]), "uw"),
    "plus a number": (lambda p, x: x @ (1.0 + p["w"]), "w"),
    "with a parameter": (lambda p, x: x[:, :1] * (p["c"] @ p["d"]), "cd"),
    "two matrices with each other": (
        lambda p, x: x * jnp.vdot(p["s"] * p["w"], p["u"] * 2.0),
        "uw",
    ),
    "a matrix product of two": (lambda p, x: x @ (p["w"] @ p["v"]), ""),
    "with a scalar in a product": (
        lambda p, x: x @ jax.lax.dot_general(p["w"], p["s"], (((), ()), ((), ()))),
        "",
    ),
    "a linearization": (
        lambda p, x: jax.jvp(
            lambda w: jnp.tanh(x @ w["w"]) @ w["v"],
            (jax.tree.map(lambda leaf: 0.3 * jnp.ones_like(leaf), p),),
            (jax.tree.map(lambda leaf: leaf - 0.3, p),),
        )[1],
        "wv",
    ),
    "in a checkpoint": (lambda p, x: jax.checkpoint(lambda w: jnp.tanh(x @ w))(p["w"]), ""),
    "used twice": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, ""),
    "squared": (lambda p, x: x @ (p["w"] * p["w"]), ""),
    "through a nonlinearity": (lambda p, x: x @ jnp.tanh(p["w"]), ""),
    "at several positions": (
        lambda p, x: jnp.tanh(x.reshape(-1, 2, 2) @ p["w"][:2]).sum(axis=1),
        "",
    ),
    "in a loop": (
        lambda p, x: jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ p["w"] @ p["v"]), x),
        "",
    ),
    "stopped": (lambda p, x: x @ jax.lax.stop_gradient(p["w"]), ""),
    "used otherwise too": (lambda p, x: x @ p["w"] + p["w"][:1], ""),
    "mapped": (lambda p, x: jax.vmap(lambda row: row @ p["w"])(x), "w"),
}


def outputs(f):
    """f [N, C] as ``full`` takes it: [N, C, 1]."""
    return lambda params, x: kernels.REDUCTIONS["full"](f(params, x))


def jacobian(f, params, x):
    return kernels.jacobian(factors.derivative(outputs(f), params, x[:1]), params, x)


def explicit(f, params, x):
    """J [N·C, P] by jax."""
    J = jax.jacobian(lambda p: f(p, x).reshape(-1))(params)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(J)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def factored(f, params=W, x=X):
    """The parameters whose gradients are outer products, by path."""
    found = jax.eval_shape(partial(jacobian, f), params, x)
    leaves = jax.tree.leaves(found, is_leaf=lambda leaf: isinstance(leaf, Factored))
    names = trees.named_leaves(params)
    return [name for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Factored)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_weight_that_meets_one_vector_is_factored_and_no_other(name):
    f, weights = FUNCTIONS[name]
    assert sorted(factored(f)) == sorted(weights)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_kernel_is_that_of_jaxs_jacobian(name):
    f, _ = FUNCTIONS[name]
    J, found = explicit(f, W, X), kernels.empirical_ntk(f, W, X, "full")
    np.testing.assert_allclose(found, J @ J.T, rtol=1e-12, atol=1e-12)


def test_an_outer_product_has_the_entries_of_the_gradient():
    f, _ = FUNCTIONS["two, one after the other"]
    found = jacobian(f, W, X)["w"]
    J = np.asarray(jax.jacobian(lambda p: f(p, X))(W)["w"])  # [N, C, 4, 3]
    slopes = np.asarray(found.slopes).reshape(5, 4, 3)
    np.testing.assert_allclose(np.einsum("ni,nco->ncio", found.inputs, slopes), J, atol=1e-14)


def test_multipliers_of_a_parametrization_and_frozen_layers():
    x = DRAWS.normal(size=(3, 4))
    model = mlp(2, width=5, depth=2, frozen_readout=True)
    params = model.init(jax.random.key(0), x)["params"]
    scales = jax.tree.map(lambda leaf: jnp.asarray(float(leaf.size)), params)

    def f(params, x):
        return model.apply({"params": jax.tree.map(jnp.multiply, params, scales)}, x)

    assert factored(f, params, x) == ["hidden_1/kernel", "hidden_2/kernel"]
    J, found = explicit(f, params, x), kernels.empirical_ntk(f, params, x, "full")
    np.testing.assert_allclose(found, J @ J.T, rtol=1e-12)


def test_members_side_by_side_with_multipliers_of_their_own():
    """As a sweep's are: parameters and scales are traced, and mapped over."""
    f, scales = FUNCTIONS["two, one after the other"][0], jnp.asarray([0.5, 1.0, 2.0])
    members = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 1, leaf - 1]), W)

    def kernel(params, scale):
        def scaled(params, x):
            return f(jax.tree.map(lambda leaf: scale * leaf, params), x)

        return kernels.empirical_ntk(scaled, params, X, "trace")

    found = jax.jit(jax.vmap(kernel))(members, scales)
    for m, scale in enumerate(scales):
        own = jax.tree.map(lambda leaf, m=m: leaf[m], members)
        np.testing.assert_allclose(found[m], kernel(own, scale), rtol=1e-12)


def test_outputs_at_several_positions_of_what_one_vector_decides():
    """[N, T, C]: each position counts as an example."""

    def f(params, x):
        return jnp.tanh(x @ params["w"])[:, None, :] * jnp.asarray([1.0, 2.0])[None, :, None]

    J, found = explicit(f, W, X), kernels.empirical_ntk(f, W, X, "full")
    assert factored(f) == ["w"]
    np.testing.assert_allclose(found, J @ J.T, rtol=1e-12)


def test_float32_stays_float32():
    params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (W, X))
    for f, _ in FUNCTIONS.values():
        kernel = jax.eval_shape(partial(kernels.empirical_ntk, f), params, x)
        assert kernel.dtype == jnp.float32


def test_of_convolutions_and_sequences_only_what_meets_one_vector():
    nets = (
        (cnn(2, width=2, depth=1), DRAWS.normal(size=(2, 4, 4, 1))),
        (transformer(3, width=4, depth=1, head_width=4), DRAWS.integers(0, 3, (2, 5))),
    )
    for (net, x), expected in zip(nets, (["readout/kernel"], []), strict=True):
        params = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
        assert factored(lambda p, x, net=net: net.apply({"params": p}, x), params, x) == expected


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_inner_products_of_outer_products(data):
    """Rows of two sets of sizes of their own, each the sum over S functions."""
    number = st.integers(1, 4)
    n, m, rows, other, summed, i, o = (data.draw(number) for _ in range(7))
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def drawn(n, rows):
        own = draws.normal(size=(n, i)), draws.normal(size=(n * rows, summed * o))
        return Factored(*map(jnp.asarray, own))

    def whole(a, rows):  # [N·R, S·i·o]
        slopes = np.asarray(a.slopes).reshape(-1, rows, summed, o)
        return np.einsum("ni,nrso->nrsio", a.inputs, slopes).reshape(len(a.slopes), -1)

    a, b = drawn(n, rows), drawn(m, other)
    found, expected = factors.inner_products(a, b), whole(a, rows) @ whole(b, other).T
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_all_outputs_of_a_wide_net_take_neither_their_gradients_memory_nor_time():
    """Explicit gradients [N·C, P] would be 5 GB, and their products (N·C)² P multiplications."""
    model, n, parameters = mlp(10, width=200, depth=2), 200, 656_810
    x = jax.ShapeDtypeStruct((n, 3072), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3072), x.dtype))["params"]

    def kernel(params, x):
        return kernels.empirical_ntk(lambda p, x: model.apply({"params": p}, x), params, x)

    lowered = jax.jit(kernel).lower(params, x)
    assert "stablehlo.while" not in lowered.as_text()  # its flops would be counted once
    made = lowered.compile()
    assert made.memory_analysis().temp_size_in_bytes < 2**30
    assert made.cost_analysis()["flops"] < 2 * (10 * n) ** 2 * parameters / 500


def test_many_layers_and_rows_take_few_products_at_a_time():
    """8,000 rows in float64: one product of two blocks of all of them would be half a gigabyte."""
    model, n = mlp(10, width=8, depth=8), 800
    x = jax.ShapeDtypeStruct((n, 16), "float64")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16), x.dtype))["params"]

    def kernel(params, x):
        return kernels.empirical_ntk(lambda p, x: model.apply({"params": p}, x), params, x)

    made = jax.jit(kernel).lower(params, x).compile().memory_analysis()
    assert made.temp_size_in_bytes < 2 * kernels.BLOCK_BYTES + made.output_size_in_bytes


@pytest.mark.parametrize("reduction", sorted(kernels.REDUCTIONS))
@pytest.mark.parametrize("room", [2**9, 2**11, 2**13, 2**15])
def test_the_kernel_is_the_same_in_any_room(monkeypatch, room, reduction):
    """From one example at a time, over blocks of gradients that are held, to all at once."""
    x = DRAWS.normal(size=(23, 4))
    f, _ = FUNCTIONS["two, one after the other"]
    expected = kernels.empirical_ntk(f, W, x, reduction)
    monkeypatch.setattr(kernels, "BLOCK_BYTES", room)
    found = kernels.empirical_ntk(f, W, x, reduction)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
