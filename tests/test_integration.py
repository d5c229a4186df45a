"""Integrators: orders, stability polynomials, and what the step control does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import chebyshev as polynomials

from lmech.numerics import integration

pytestmark = pytest.mark.usefixtures("x64")
COUNTS = (2, 3, 5, 20, integration.STAGES)


def radius_of(stages):
    """The largest step times eigenvalue for which so many stages are taken."""
    return integration.scheme().stability[stages - 2]


def amplified(stages, z):
    """What a step makes of w = 1 on ẇ = zw: the method's stability polynomial at z."""

    def one(z):
        step, radius = jnp.ones(()), jnp.asarray(radius_of(stages))
        return 1 + integration.chebyshev(lambda w: z * w, jnp.ones(()), z, step, radius)[0]

    return np.asarray(jax.vmap(one)(jnp.asarray(z)))


@pytest.mark.parametrize("stages", COUNTS)
def test_the_stability_polynomial_is_the_shifted_chebyshev_polynomial(stages):
    """a + b·T_s(w₀ + w₁z), T_s by numpy; derivatives at 0 are 1 and 1, so the order is two."""
    w0, unit = 1 + integration.DAMPING / stages**2, np.eye(stages + 1)[stages]
    at, first, second = (
        polynomials.chebval(w0, polynomials.chebder(unit, m) if m else unit) for m in range(3)
    )
    w1, b = first / second, second / first**2
    z = np.linspace(-radius_of(stages), 0, 501)
    expected = 1 - b * at + b * polynomials.chebval(w0 + w1 * z, unit)
    np.testing.assert_allclose(amplified(stages, z), expected, atol=1e-11)
    np.testing.assert_allclose([b * first * w1, b * second * w1**2], 1, rtol=1e-9)
    assert radius_of(stages) == pytest.approx((w0 + 1) / w1)


@pytest.mark.parametrize("stages", COUNTS)
def test_what_is_stable_stays_so_and_is_damped_inside(stages):
    z = np.linspace(-radius_of(stages), 0, 2001)
    size = np.abs(amplified(stages, z))
    assert size.max() <= 1 + 1e-12
    inside = z < -12 / stages**2  # beyond the first oscillation, |w₀ + w₁z| ≤ 1
    if stages > 2:
        assert size[inside].max() <= 1 - integration.DAMPING / 3 + 0.01
    if stages % 2 == 0:  # of odd degree it is at −1/3 there, and −1 a little further out
        assert amplified(stages, [-1.02 * radius_of(stages)]) > 1


def test_a_longer_step_takes_more_stages_as_its_square_root():
    reach = integration.scheme().stability
    assert (np.diff(reach) > 0).all()
    counts = np.arange(2, integration.STAGES + 1)
    np.testing.assert_allclose(reach, 2 / 3 * (counts**2 - 1) * (1 - 2 / 15 * 2 / 13), rtol=2e-2)


def curved(w):
    """A nonlinear system: ẋ = −x², ẏ = x cos y − y³."""
    return jnp.stack([-(w[0] ** 2), w[0] * jnp.cos(w[1]) - w[1] ** 3])


def orders(step, ladder, reference):
    """log₂ of the ratios of the errors at time 1 with n and 2n steps."""
    errors = []
    for n in ladder:
        w = jax.lax.fori_loop(0, n, lambda _, w, n=n: step(w, 1 / n), jnp.asarray([1.0, 0.3]))
        errors.append(np.linalg.norm(w - reference))
    return np.log2(np.asarray(errors[:-1]) / np.asarray(errors[1:]))


def test_orders_of_convergence():
    fourth = partial(integration.runge_kutta, curved)
    reference = jax.lax.fori_loop(0, 2000, lambda _, w: fourth(w, 1 / 2000), jnp.array([1.0, 0.3]))
    assert reference[0] == pytest.approx(0.5)
    np.testing.assert_allclose(orders(fourth, (8, 16, 32), reference), 4, atol=0.2)
    for stages in (2, 3, 12):

        def second(w, step, stages=stages):
            radius = jnp.asarray(radius_of(stages) / step)
            return w + integration.chebyshev(curved, w, curved(w), jnp.asarray(step), radius)[0]

        found = orders(second, (16, 32, 64, 128), reference)
        np.testing.assert_allclose(found, 2, atol=0.1)
        assert abs(found[-1] - 2) < abs(found[0] - 2)


def test_the_estimate_is_the_error_of_a_step():
    """Of third order; at z → 0 it is (1/15)|z³| where exp(z) − P(z) is (1/6 − P'''(0)/6)z³."""
    for stages in (2, 12):
        radius = jnp.asarray(radius_of(stages) / 0.02)
        for z in (0.02, 0.01):
            one = jnp.ones(())
            move, _, error = integration.chebyshev(
                lambda w: -w, one, -one, jnp.asarray(z), radius * 0.02 / z
            )
            actual = abs(float(1 + move) - np.exp(-z))
            assert 0.3 < error / actual < 3


def controlled(f, start, goal, radius, tolerance):
    """The end, and how many steps were taken and tried."""
    goal, radius = (jnp.asarray(number, start.dtype) for number in (goal, radius))

    def going(loop):
        _, time, _, tried = loop
        return (time < goal) & (tried < 3000)

    def once(loop):
        course, time, taken, tried = loop
        remaining = goal - time
        course, passed = integration.attempt(f, course, start, remaining, radius, tolerance)
        time = jnp.where(passed == remaining, goal, time + passed)
        return course, time, taken + (passed > 0), tried + 1

    course = integration.Course(start, f(start), 1 / radius)
    loop = (course, jnp.zeros_like(goal), 0, 0)
    course, time, taken, tried = jax.jit(lambda loop: jax.lax.while_loop(going, once, loop))(loop)
    assert time == goal
    return np.asarray(course.w), int(taken), int(tried)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_a_stiff_quadratic_is_the_exponential_to_the_tolerance(tolerance):
    """Condition 1e4, until the slowest mode is at exp(−1): errors of the steps add up at most."""
    values = np.geomspace(1, 1e4, 30)
    start = np.random.default_rng(0).standard_normal(30)
    w, taken, tried = controlled(
        lambda w: -jnp.asarray(values) * w, jnp.asarray(start), 1.0, 1.2e4, tolerance
    )
    error = np.linalg.norm(w - start * np.exp(-values)) / np.linalg.norm(start)
    assert error < taken * tolerance
    # RK4 in steps of 0.5/λ₁ would be 20,000, of 4 calls.
    assert tried < 60 * (1e-3 / tolerance) ** (1 / 3) + 60


def test_float32_does_not_stall():
    """A start far from 0 and a tolerance below rounding: nearly the steps of float64."""
    values = np.geomspace(1, 1e3, 30)
    start = 100 + np.random.default_rng(0).standard_normal(30)
    tried = {}
    for dtype in (np.float32, np.float64):
        a, centre = jnp.asarray(values, dtype), jnp.asarray(100.0, dtype)
        f = lambda w, a=a, centre=centre: -a * (w - centre)  # noqa: E731
        w, _, tried[dtype] = controlled(f, jnp.asarray(start, dtype), 3.0, 1.2e3, 1e-6)
        exact = 100 + (start - 100) * np.exp(-3 * values)
        rounding = np.finfo(dtype).eps * 100 * np.sqrt(30)
        np.testing.assert_allclose(w, exact, atol=40 * rounding + 1e-4)
    assert tried[np.float32] < 1.5 * tried[np.float64]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_nothing_moves_one_step_goes_all_the_way(dtype):
    """The radius is the smallest number that there is: no step is too long, and none infinite."""
    tiny = np.finfo(dtype).tiny
    w, taken, tried = controlled(jnp.zeros_like, jnp.ones(3, dtype), 1e-3, tiny, 0.1)
    assert (w == 1).all()
    assert taken == tried == 1


def test_step_sizes_after_an_error():
    def next_size(error, wanted=1.0):
        sizes = (jnp.asarray(v) for v in (1.0, wanted, error, 1.0))
        return float(integration.resized(*sizes))

    assert next_size(1.0) == pytest.approx(0.8)
    assert next_size(1 / 8) == pytest.approx(1.6)
    assert next_size(0.0) == 5
    assert next_size(0.0, wanted=3.0) == 15
    assert next_size(8.0) == pytest.approx(0.4)
    assert next_size(1.0001) < 0.8
    assert next_size(1e9) == next_size(np.nan) == next_size(np.inf) == pytest.approx(0.1)
