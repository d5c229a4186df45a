"""The layers' product: every derivative is that of x W, and the tall layer's is formed as δᵀx."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmech.numerics.matmul import ROWS, TALL, matmul

pytestmark = pytest.mark.usefixtures("x64")
WIDE = {
    "tall": (ROWS, 2 * TALL, 2),
    "few rows": (ROWS - 1, 2 * TALL, 2),
    "square": (ROWS, 4, 4),
}


def draws(rows, fan_in, units, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(rows, fan_in), (fan_in, units), (rows, fan_in), (fan_in, units), (rows, units)]
    return [jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True)]


def loss(product):
    return lambda x, w, d: jnp.sum(jnp.tanh(product(x, w)) * d)


def derivatives(product, x, w, dx, dw, d):
    """The value, both gradients, the tangent, a Hessian product both ways round, a vmap of one."""
    f = loss(product)
    gradient = jax.grad(f, (0, 1))
    by_w = jax.grad(f, 1)
    yield product(x, w)
    yield gradient(x, w, d)
    yield jax.jvp(product, (x, w), (dx, dw))[1]
    yield jax.jvp(lambda x, w: gradient(x, w, d), (x, w), (dx, dw))[1]
    yield jax.grad(lambda w: jnp.vdot(by_w(x, w, d), dw))(w)
    yield jax.vmap(lambda v: jax.jvp(lambda w: by_w(x, w, d), (w,), (v,))[1])(jnp.stack([dw, w]))
    yield jax.jacfwd(lambda w: jax.linearize(lambda w: product(x[:3], w), w)[1](dw))(w[:, :1] * w)


@pytest.mark.parametrize("shape", WIDE.values(), ids=WIDE)
def test_every_derivative_is_that_of_the_plain_product(shape):
    given = draws(*shape)
    plain = derivatives(lambda x, w: x @ w, *given)
    for found, wanted in zip(derivatives(matmul, *given), plain, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, wanted)


@pytest.mark.skipif("jax.default_backend() != 'cpu'", reason="elsewhere all are alike")
@pytest.mark.parametrize(("name", "formed"), [("tall", True), ("few rows", False)])
def test_a_tall_layers_gradient_is_formed_the_other_way_round(name, formed):
    """XLA would simplify (δᵀx)ᵀ to xᵀδ, which is slow: here the product's result is [units, …]."""
    x, w, _, _, d = draws(*WIDE[name], jnp.float32)
    gradient = jax.jit(jax.grad(loss(matmul), 1))
    text = gradient.lower(x, w, d).compile().as_text()
    dots = [line.split("=")[1] for line in text.splitlines() if " dot(" in line]
    fan_in, units = w.shape
    assert any(f"f32[{units},{fan_in}]" in dot for dot in dots) == formed


def test_what_does_not_move_costs_no_product():
    """The images: their tangent is zero, and so is what a product of zeros would add."""
    x, w, dx, dw, _ = draws(*WIDE["tall"])
    along = [
        (lambda dw: jax.jvp(lambda w: matmul(x, w), (w,), (dw,)), dw, 2),
        (lambda dx: jax.jvp(lambda x: matmul(x, w), (x,), (dx,)), dx, 2),
    ]
    for tangent, given, products in along:
        assert str(jax.make_jaxpr(tangent)(given)).count("dot_general") == products


def test_several_axes_are_a_tensordot():
    x, w = jnp.ones((ROWS, 3, 4 * TALL)), jnp.ones((4 * TALL, 2, 2))
    assert matmul(x, w).shape == (ROWS, 3, 2, 2)
    assert "custom_jvp" not in str(jax.make_jaxpr(matmul)(x, w))
    flat = jnp.ones((ROWS, TALL))
    assert matmul(flat, flat, 2).shape == ()
