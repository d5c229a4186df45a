"""Kernels of infinite nets against published values and quadrature; finite nets against them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmech import losses
from lmech.models.mlp import mlp
from lmech.numerics import kernels, trees
from lmech.numerics.infinite_width import DUALS, mlp_kernels
from lmech.parametrization import Scales, parametrize
from lmech.problem import Problem

pytestmark = pytest.mark.usefixtures("x64")

ACTIVATIONS = {"relu": lambda h: np.maximum(h, 0), "erf": jax.lax.erf, "linear": lambda h: h}


def on_the_circle(rho):
    """Inputs of |x|² = 2 = D: one, and those at cosines ``rho`` to it."""
    rho = np.asarray(rho)
    z = np.sqrt(2) * np.stack([rho, np.sqrt(1 - rho**2)], axis=1)
    return jnp.asarray([[np.sqrt(2), 0.0]]), jnp.asarray(z)


def test_the_relu_kernels_are_the_known_ones():
    found = mlp_kernels(*on_the_circle([1, 0.5, 0, -1]), "relu", (2, 2, 1))
    np.testing.assert_allclose(found.ntk[0], [3, 1.351480, 0.685709, 0.318310], atol=5e-7)
    np.testing.assert_allclose(found.nngp[0, 1], 0.683906, atol=5e-7)


@pytest.mark.parametrize("activation", sorted(DUALS))
def test_the_duals_are_gaussian_expectations(activation):
    k, a, b = 0.3, 1.2, 0.7
    t, w = np.polynomial.hermite_e.hermegauss(200)
    u, v = np.meshgrid(t, t)
    weights = np.outer(w, w) / (2 * np.pi)
    first, second = np.sqrt(a) * u, k / np.sqrt(a) * u + np.sqrt(b - k**2 / a) * v
    phi = ACTIVATIONS[activation]
    expected = np.sum(weights * np.asarray(phi(first)) * np.asarray(phi(second)))
    value, derivative = DUALS[activation](*map(jnp.asarray, (k, a, b)))
    # The kink of relu is what limits the quadrature.
    np.testing.assert_allclose(value, expected, rtol=2e-3 if activation == "relu" else 1e-12)
    # Price's theorem: E[φ'(u)φ'(v)] = ∂ E[φ(u)φ(v)] / ∂k.
    slope = jax.grad(lambda k: DUALS[activation](k, jnp.asarray(a), jnp.asarray(b))[0])(k)
    np.testing.assert_allclose(derivative, slope, rtol=1e-12)


def test_a_linear_nets_ntk_is_its_nngp_once_a_layer():
    x, z = np.random.default_rng(0).normal(size=(2, 3, 5))
    found = mlp_kernels(x, z, "linear", (2.0, 0.5, 3.0, 1.5))
    np.testing.assert_allclose(found.nngp, 2.0 * 0.5 * 3.0 * 1.5 * x @ z.T / 5, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, 4 * found.nngp, rtol=1e-12)


def test_biases_add_their_variance_and_the_kernels_of_what_is_below():
    x, z = np.random.default_rng(1).normal(size=(2, 3, 5))
    one = mlp_kernels(x, z, "linear", (2.0,), (0.3,))
    np.testing.assert_allclose(one.nngp, 2 * x @ z.T / 5 + 0.3, rtol=1e-12)
    np.testing.assert_allclose(one.ntk, one.nngp, rtol=1e-12)
    two = mlp_kernels(x, z, "linear", (2.0, 0.5), (0.3, 0.1))
    np.testing.assert_allclose(two.nngp, 0.5 * one.nngp + 0.1, rtol=1e-12)
    np.testing.assert_allclose(two.ntk, two.nngp + 0.5 * one.ntk, rtol=1e-12)


def test_one_hidden_layer_is_the_known_integral_and_its_derivative():
    """Θ = E φ(u)φ(v) + E φ'(u)φ'(v) x·z/D; erf: 2/π arcsin(…) and 4/π (…)^-½ (Williams 1997)."""
    x, z = np.random.default_rng(3).normal(size=(2, 4, 3))
    k, a, b = x @ z.T / 3, (x**2).sum(1)[:, None] / 3, (z**2).sum(1)[None] / 3
    value = 2 / np.pi * np.arcsin(2 * k / np.sqrt((1 + 2 * a) * (1 + 2 * b)))
    slope = 4 / np.pi / np.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * k**2)
    found = mlp_kernels(x, z, "erf", (1, 1))
    np.testing.assert_allclose(found.nngp, value, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, value + slope * k, rtol=1e-12)
    angle = np.arccos(k / np.sqrt(a * b))
    relu = np.sqrt(a * b) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    found = mlp_kernels(x, z, "relu", (1, 1))
    np.testing.assert_allclose(found.ntk, relu + (np.pi - angle) / (2 * np.pi) * k, rtol=1e-10)


@pytest.mark.parametrize("activation", sorted(DUALS))
def test_the_kernels_are_symmetric_and_their_own_diagonal_at_zero_inputs(activation):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4))).at[0].set(0.0)
    for kernel in mlp_kernels(x, x, activation, (2, 2, 1)):
        np.testing.assert_allclose(kernel, kernel.T, atol=1e-12)
        assert np.linalg.eigvalsh(kernel).min() > -1e-10
        np.testing.assert_allclose(kernel[0], 0, atol=1e-12)


def test_what_has_no_closed_form_or_no_layers_is_a_clear_error():
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match=r"'tanh': activation is one of \['relu', 'erf'"):
        mlp_kernels(x, x, "tanh", (2, 1))
    with pytest.raises(ValueError, match="2 weight variances and 1 bias variances"):
        mlp_kernels(x, x, "relu", (2, 1), (0.1,))
    with pytest.raises(ValueError, match="0 weight variances"):
        mlp_kernels(x, x, "relu", ())


def net(width, inputs, activation, mean_field=False):
    """Two hidden layers, no biases, W ~ N(0, 1): h = √2 W φ/√fan_in, readout W φ/√n.

    ``mean_field`` divides the readout by n instead and multiplies the learning rates by n, which
    for these layers is μP.
    """
    model = mlp(1, width, 2, activation, bias=False, init="normal_fan_in")
    problem = Problem(
        init=lambda key: model.init(key, inputs[:1])["params"],
        apply=lambda params, x: model.apply({"params": params}, x),
        loss=losses.mse(),
    )
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    init = jax.tree.map(lambda leaf: leaf.shape[0] ** 0.5, shapes)
    multiplier = jax.tree.map(lambda scale: 2**0.5 / scale, init)
    multiplier["readout"]["kernel"] = 1 / width if mean_field else width**-0.5
    rates = jax.tree.map(lambda _: float(width) if mean_field else 1.0, shapes)
    scales = Scales(init, multiplier, rates)
    return parametrize(problem, scales), scales


def over_seeds(f, width, seeds):
    return jax.jit(lambda keys: jax.lax.map(f, keys))(
        jax.random.split(jax.random.key(width), seeds)
    )


def slope(widths, values):
    return np.polyfit(np.log(widths), np.log(values), 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_a_finite_nets_ntk_is_the_infinite_one_to_one_over_the_root_of_the_width(activation):
    """Each entry is an average over n units of nearly independent terms.

    Resampling the seeds moves the slope by 0.035 (standard deviation): ± 0.15 is four of these,
    and shuts out the rates 0 and −1.
    """
    widths = [64, 128, 256, 512, 1024]
    x = jax.random.normal(jax.random.key(5), (4, 8), jnp.float32)
    exact = mlp_kernels(x, x, activation, (2, 2, 1)).ntk

    def rms(width):
        problem, _ = net(width, x, activation)

        def error(key):
            return kernels.empirical_ntk(problem.apply, problem.init(key), x) - exact

        return np.sqrt(np.mean(np.square(over_seeds(error, width, seeds=32))))

    errors = [rms(width) for width in widths]
    assert abs(slope(widths, errors) + 0.5) < 0.15
    assert errors[-1] < 0.15 * np.linalg.norm(exact) / len(x)


def moved(width, x, y, mean_field):
    """Relative change of the kernel in 20 steps of gradient descent, and the losses' ratio."""
    problem, scales = net(width, x, "tanh", mean_field)
    rates = scales.learning_rate

    def loss(params):
        return problem.loss(problem.apply(params, x), y).mean()

    def kernel(params):
        return kernels.empirical_ntk(problem.apply, params, x, rates=rates)

    def step(_, params):
        update = trees.multiply(rates, jax.grad(loss)(params))
        return jax.tree.map(jnp.subtract, params, update)

    def run(key):
        start = problem.init(key)
        end = jax.lax.fori_loop(0, 20, step, start)
        return kernels.relative_change(kernel(end), kernel(start)), loss(end) / loss(start)

    change, ratio = over_seeds(run, width, seeds=8)
    assert np.mean(ratio) < 0.5
    return np.mean(change)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mean_field", "lowest", "highest"), [(False, -1.2, -0.4), (True, -0.25, 0.25)]
)
def test_the_kernel_moves_less_the_wider_the_net_in_the_ntk_limit_only(mean_field, lowest, highest):
    """In the NTK limit between 1/√n, the first bound proved, and 1/n, the rate at large n.

    In the mean-field limit the change is of order 1 at every width. Half of the slower rate of the
    other limit, 0.25, tells the two apart; the seeds and the corrections of finite width, a few per
    cent of the change, move the slope by less than 0.1.
    """
    x = jax.random.normal(jax.random.key(7), (8, 8), jnp.float32)
    y = jnp.sign(jax.random.normal(jax.random.key(8), (8, 1), jnp.float32))
    widths = [64, 128, 256, 512]
    changes = [moved(width, x, y, mean_field) for width in widths]
    assert lowest < slope(widths, changes) < highest
    assert (changes[-1] > 0.5) == mean_field
