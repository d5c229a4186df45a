"""Kernel gradient descent against the recursion step by step, linearized runs and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import column, job, state, train

from lmech.numerics import kernel_descent as descent
from lmech.numerics import kernels
from lmech.numerics.infinite_width import mlp_kernels
from lmech.observables.kernel_descent import kernel_descent

pytestmark = pytest.mark.usefixtures("x64")

TEACHER = ("dataset=teacher_student", "dataset.train_size=9", "dataset.test_size=5",
           "dataset.dimension=4", "model.width=6", "precision=float64",
           "observables=[kernel_descent]", "observables.kernel_descent.every=5",
           "optimizer.learning_rate=0.1", "steps=20")  # fmt: skip
CLASSES = ("dataset.train_size=9", "model.width=4", "precision=float64",
           "observables=[kernel_descent]", "observables.kernel_descent.every=5",
           "optimizer.learning_rate=0.01", "steps=20")  # fmt: skip
WIDE = {"activation": "erf", "weight_variances": [1.0, 0.5, 2.0], "bias_variances": [0.1, 0, 0.2]}
TOLD = "{activation: erf, weight_variances: [1.0, 0.5, 2.0], bias_variances: [0.1, 0, 0.2]}"


def steps(kernel, across, y, start, test, rate, count):
    """Gradient descent with a kernel, one step after the other."""
    f, g = start.copy(), test.copy()
    for _ in range(count):
        f, g = f - rate / len(y) * kernel @ (f - y), g - rate / len(y) * across @ (f - y)
    return f, g


@pytest.mark.parametrize("count", [0, 1, 2, 35])
@pytest.mark.parametrize("edge", [0.4, 1.6])
def test_the_closed_form_is_the_recursion_also_without_full_rank_and_near_the_edge(count, edge):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(10, 4))
    K = features @ features.T  # rank 4 of 7
    kernel, across = K[:7, :7], K[7:, :7]
    y, start, test = (generator.normal(size=(n, 2)) for n in (7, 7, 3))
    rate = edge * 7 / np.linalg.eigvalsh(kernel)[-1]
    f, g = steps(kernel, across, y, start, test, rate, count)
    modes = descent.spectrum(jnp.asarray(kernel), 7)
    at = (jnp.asarray(start - y), jnp.asarray(rate), jnp.asarray(count, jnp.int32))
    np.testing.assert_allclose(y + descent.residuals(modes, *at), f, atol=1e-12)
    c = descent.coefficients(modes, *at, 7)
    np.testing.assert_allclose(test - across @ c, g, atol=1e-12)
    assert (np.diff(modes.eigenvalues) <= 0).all()


def test_the_gain_has_all_its_digits_from_a_flat_direction_to_a_steep_one():
    values = jnp.asarray([0.0, 1e-18, 1e-13, 1e-7, 0.3, 0.49, 0.51, 1.0, 1.9])
    found = descent.gain(values, jnp.asarray(1.0), jnp.asarray(40, jnp.int32))
    exact = [np.sum((1 - x) ** np.arange(40)) for x in np.asarray(values)]
    np.testing.assert_allclose(found, exact, rtol=1e-13)


def recorded(*words):
    recorder, _ = train([job(*words)])
    names = [name for name in recorder.table(0).column_names if name.startswith("kernel_descent")]
    return {name.removeprefix("kernel_descent").strip("_"): column(recorder, 0, name)
            for name in names}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("words", "parametrization"), [(TEACHER, "ntk"), (CLASSES, "mup")])
def test_a_linearized_run_is_kernel_descent_and_a_nets_own_is_not(words, parametrization):
    both = [
        recorded(*words, f"parametrization={parametrization}", f"linearized={flag}")
        for flag in ("true", "false")
    ]
    linear, own = both
    for name in ("", "test"):
        assert max(linear[name].values()) < 1e-11
        assert linear[name].keys() == {0, 5, 10, 15, 20}
        assert own[name][20] > 1e-4
    for step in (5, 20):
        np.testing.assert_allclose(
            linear["modes"][step], linear["modes_predicted"][step], atol=1e-11
        )
        assert linear["test_moved"][step] > 1e-3
    rate = dict(word.split("=") for word in words)["optimizer.learning_rate"]
    shrunk = (1 - float(rate) * linear["eigenvalues"][0]) ** 20
    np.testing.assert_allclose(linear["modes"][20], shrunk * linear["modes"][0], atol=1e-11)
    np.testing.assert_allclose(linear["edge"][0], float(rate) * linear["eigenvalues"][0][0])


@pytest.mark.slow
def test_beside_an_infinite_nets_kernel():
    """The columns against the recursion with the closed form, at the outputs that the net has."""
    words = (*TEACHER, f"observables.kernel_descent.infinite={TOLD}")
    found, at = recorded(*words), state(*words)
    x, y = (np.asarray(part) for part in at.data.train[:2])
    z = np.asarray(at.data.test.x)
    kernel, across = mlp_kernels(x, x, **WIDE).ntk, mlp_kernels(z, x, **WIDE).ntk
    apply, params = at.problem.apply, at.params
    own = kernels.empirical_ntk(apply, params, x, "trace", at.scales.learning_rate)
    first, test = (np.asarray(apply(params, inputs)) for inputs in (x, z))
    now = params
    for _ in range(20):
        slope = jax.grad(lambda w: at.problem.loss(apply(w, x), y).mean())(now)
        now = jax.tree.map(lambda w, g: w - 0.1 * g, now, slope)
    f, g = steps(np.asarray(kernel), np.asarray(across), y, first, test, 0.1, 20)
    rms = {
        "": apply(now, x) - f,
        "test": apply(now, z) - g,
        "moved": f - first,
        "test_moved": g - test,
    }
    for name, difference in rms.items():
        expected = np.sqrt(np.square(difference).mean())
        assert found[name][20] == pytest.approx(expected, rel=1e-10), name
        assert expected > 0.01
    assert found["error"][0] == pytest.approx(float(kernels.relative_change(own, kernel)))
    values = np.linalg.eigvalsh(kernel / 9)[::-1][:4]
    np.testing.assert_allclose(found["eigenvalues"][0], values, rtol=1e-10)


def test_several_outputs_share_an_infinite_nets_kernel():
    found = recorded(*CLASSES, f"observables.kernel_descent.infinite={TOLD}")
    assert found["modes"][0].shape == (40,)  # row by row
    assert found["modes_predicted"][0] == pytest.approx(found["modes"][0])
    assert found[""][0] == pytest.approx(0, abs=1e-12)
    assert found["test_moved"][20] > 0


def test_once_the_rate_has_changed_there_is_no_prediction():
    found = recorded(*TEACHER, "schedule=multistep", "schedule.milestones=[0.5]")
    values = [found[""][step] for step in (0, 5, 10, 15, 20)]
    assert np.isfinite(values[:2]).all()
    assert np.isnan(values[3:]).all()
    assert np.isfinite(found["modes"][20]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=cross_entropy"], "is of squared error"),
        (["optimizer=momentum"], "full-batch gradient descent"),
        (["batch_size=3"], "full-batch gradient descent"),
        (["data_fraction=0.5"], "takes the whole training set"),
        (["observables.kernel_descent.k=91"], r"the kernel has 90 eigenvalues: lower k \(91\)"),
    ],
)
def test_what_it_cannot_predict_is_a_clear_error(words, message):
    others = [word for word in CLASSES if "optimizer=momentum" not in words or "rate" not in word]
    at = state(*others, *words)
    k = 91 if "91" in message else 4
    with pytest.raises(ValueError, match=message):
        kernel_descent(k=k).init(at)


def test_sequences_are_refused():
    at = state(*CLASSES)
    apply = at.problem.apply
    by_position = at.problem._replace(apply=lambda params, x: apply(params, x)[:, None])
    with pytest.raises(ValueError, match="a sequence's are"):
        kernel_descent().init(at._replace(problem=by_position))
