"""Tangent kernels, what is read off them, and CKA, against dense algebra and closed forms."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import block_krylov, column, job, measured, state, train

from lmech.models.mlp import mlp
from lmech.numerics import features, kernels
from lmech.numerics.precision import numerics
from lmech.observables import training_examples
from lmech.observables.kernel import cka, ntk, ntk_top
from lmech.values import ConfigError

pytestmark = pytest.mark.usefixtures("x64")

N = 12
FAMILIES = {
    "mlp": ("model.width=4", "model.depth=1"),
    "cnn": ("model=cnn", "model.width=2", "model.depth=2", "dataset.flatten=false"),
    "batch norm": ("model.width=4", "model.depth=1", "model.norm_group=4"),
    "one output": ("dataset=chebyshev", "model.width=5", "model.depth=1"),
}
ONE_OUTPUT = ("dataset=chebyshev", "dataset.train_size=20", "model.width=5")


def with_rates(at):
    """The state with learning-rate multipliers that are not 1, one of them 0."""
    leaves, shape = jax.tree.flatten(at.params)
    rates = [jnp.asarray(rate) for rate in np.random.default_rng(0).uniform(0.1, 3, len(leaves))]
    rates[-1] = jnp.asarray(0.0)
    return at._replace(scales=at.scales._replace(learning_rate=jax.tree.unflatten(shape, rates)))


start = cache(state)


@cache
def small(family):
    with numerics():
        train_size = f"dataset.train_size={N}"
        return with_rates(state("precision=float64", train_size, *FAMILIES[family]))


def jacobian(at, x):
    """J [N·C, P] from jax, over all examples at once, and the diagonal of C [P]."""
    w, unravel = ravel_pytree(at.params)
    J = jax.jit(jax.jacobian(lambda w: at.problem.apply(unravel(w), x).reshape(-1)))(w)
    ones = jax.tree.map(jnp.ones_like, at.params)
    rates = jax.tree.map(jnp.multiply, ones, at.scales.learning_rate)
    return J, ravel_pytree(rates)[0]


@cache
def dense(family):
    """Θ [N, C, N, C] by the definition."""
    with numerics():
        at = small(family)
        J, rates = jacobian(at, at.data.train.x)
        return np.asarray((J * rates[None]) @ J.T).reshape(N, len(J) // N, N, len(J) // N)


def reduced(theta, reduction):
    n, outputs = theta.shape[:2]
    return {
        "full": theta.reshape(n * outputs, -1),
        "trace": np.einsum("icjc->ij", theta) / outputs,
        "sum_logits": np.einsum("icjd->ij", theta),
    }[reduction]


def formed(at, reduction, block=None):
    """The kernel as we form it, on all training examples."""
    x, rates = at.data.train.x, at.scales.learning_rate

    def kernel(params):
        return kernels.empirical_ntk(at.problem.apply, params, x, reduction, rates, block)

    return jax.jit(kernel)(at.params)


BLOCKS = [("mlp", 1), ("mlp", 5), ("mlp", 100), ("cnn", 5), ("batch norm", 8), ("one output", 7)]


@pytest.mark.parametrize("reduction", sorted(kernels.REDUCTIONS))
@pytest.mark.parametrize(("family", "block"), [*((f, None) for f in FAMILIES), *BLOCKS])
def test_the_kernel_is_the_dense_jacobians_in_blocks_of_any_size(family, block, reduction):
    found = formed(small(family), reduction, block)
    expected = reduced(dense(family), reduction)
    np.testing.assert_allclose(found, expected, atol=1e-10, rtol=1e-10)


def test_gradients_taken_a_few_examples_at_a_time_are_the_same(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 2**14)
    found = formed(small("mlp"), "full")
    np.testing.assert_allclose(found, reduced(dense("mlp"), "full"), atol=1e-10)


def test_examples_that_interact_are_recognised():
    def unit(family):
        return kernels.interacting(small(family).problem.apply, small(family).params, x(family))

    def x(family):
        return small(family).data.train.x

    assert [unit(family) for family in ("mlp", "cnn", "batch norm")] == [1, 1, 4]
    at = small("batch norm")
    with pytest.raises(ValueError, match="groups of 4 examples and was given 10"):
        kernels.empirical_ntk(at.problem.apply, at.params, x("batch norm")[:10])
    with pytest.raises(ValueError, match=r"groups of 4: their number \(12\) and .* block \(6\)"):
        kernels.empirical_ntk(at.problem.apply, at.params, x("batch norm"), block=6)


def test_the_kernel_of_two_thousand_images_takes_four_gib_at_most():
    """All gradients of Σ_c f_c would be 5.3 GB."""
    model = mlp(10, width=200, depth=2)
    x = jax.ShapeDtypeStruct((2000, 3072), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3072), x.dtype))["params"]

    def kernel(params, x):
        apply = lambda params, x: model.apply({"params": params}, x)  # noqa: E731
        return kernels.empirical_ntk(apply, params, x, "sum_logits")

    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 656_810
    memory = jax.jit(kernel).lower(params, x).compile().memory_analysis()
    total = memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes
    assert total < 2**32


PRODUCTS = [("mlp", None), ("mlp", 1), ("mlp", 5), ("cnn", 5), ("batch norm", 8)]


@pytest.mark.parametrize(("family", "microbatch"), PRODUCTS)
def test_products_are_those_of_the_dense_kernel(family, microbatch):
    at, theta = small(family), reduced(dense(family), "full")
    U = np.random.default_rng(3).normal(size=(3, len(theta)))
    x, rates = at.data.train.x, at.scales.learning_rate

    @jax.jit
    def product(params, U):
        return kernels.ntk_products(at.problem.apply, params, x, rates, microbatch)(U)

    np.testing.assert_allclose(product(at.params, U), U @ theta, atol=1e-10)


def test_eigenvalues_through_products_are_the_dense_ones():
    at, theta = small("mlp"), reduced(dense("mlp"), "full")
    x, rates = at.data.train.x, at.scales.learning_rate
    product = kernels.ntk_products(at.problem.apply, at.params, x, rates)

    @jax.jit
    def again(block):
        return block_krylov(product, block, 2).vectors

    block = jax.random.normal(jax.random.key(1), (4, len(theta)))
    for _ in range(30):
        block = again(block)
    found = block_krylov(jax.jit(product), block, 0).values
    np.testing.assert_allclose(found, np.linalg.eigvalsh(theta)[::-1][:4], rtol=1e-8)


def test_the_kernel_of_a_linear_model_is_the_gram_matrix_of_the_inputs():
    at = state("precision=float64", "model.depth=0")
    x = np.asarray(at.data.train.x)
    gram = x @ x.T + 1
    expected = {"full": np.kron(gram, np.eye(10)), "trace": gram, "sum_logits": 10 * gram}
    for reduction, kernel in expected.items():
        found = formed(at, reduction)
        np.testing.assert_allclose(found, kernel, atol=1e-10)


def test_alignment_is_one_for_the_target_kernel_and_zero_across_it():
    y = jnp.asarray([1.0, -1.0, 2.0])
    z = jnp.asarray([1.0, 1.0, 0.0])
    np.testing.assert_allclose(kernels.alignment(jnp.outer(y, y), y), 1.0)
    np.testing.assert_allclose(kernels.alignment(jnp.outer(z, z), y), 0.0, atol=1e-15)
    shifted = kernels.centred_alignment(jnp.outer(y + 5, y + 5), y)
    np.testing.assert_allclose(shifted, 1.0)


def test_alignment_with_several_outputs_is_with_the_kernel_of_the_targets():
    rng = np.random.default_rng(4)
    Y, A = rng.normal(size=(5, 3)), rng.normal(size=(15, 15))
    H = np.eye(5) - 1 / 5
    for K, T, center in (
        (A[:5] @ A[:5].T, Y @ Y.T, H),
        (A @ A.T, np.outer(Y.reshape(-1), Y.reshape(-1)), np.kron(H, np.eye(3))),
    ):
        np.testing.assert_allclose(kernels.alignment(K, jnp.asarray(Y)), cosine(K, T))
        expected = cosine(center @ K @ center, center @ T @ center)
        np.testing.assert_allclose(kernels.centred_alignment(K, jnp.asarray(Y)), expected)


def cosine(K, L):
    return np.sum(K * L) / np.linalg.norm(K) / np.linalg.norm(L)


def test_the_distance_sees_the_shape_of_a_kernel_and_the_change_its_size_too():
    A, B = np.random.default_rng(5).normal(size=(2, 6, 6))
    K, L = A @ A.T, B @ B.T
    np.testing.assert_allclose(kernels.kernel_distance(K, L), 1 - cosine(K, L), rtol=1e-12)
    np.testing.assert_allclose(kernels.kernel_distance(3 * K, K), 0, atol=1e-15)
    np.testing.assert_allclose(kernels.relative_change(3 * K, K), 2, rtol=1e-12)


def test_the_effective_rank_counts_equal_eigenvalues_and_ignores_zeros():
    for values, rank in (([2.0] * 5, 5), ([3.0, 3.0, 0.0, -1e-17], 2), ([1.0, 0.0], 1)):
        np.testing.assert_allclose(features.effective_rank(jnp.asarray(values)), rank)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(features.effective_rank(jnp.asarray([6.0, 2.0])), np.exp(entropy))


def linear_cka(X, Y):
    return jnp.vdot(kernels.centred_gram(X), kernels.centred_gram(Y))


def test_cka_is_one_with_itself_and_blind_to_rotation_scale_and_shift():
    rng = np.random.default_rng(6)
    X, Y = rng.normal(size=(20, 7)), rng.normal(size=(20, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(7, 7)))
    np.testing.assert_allclose(linear_cka(X, X), 1)
    np.testing.assert_allclose(linear_cka(X, 3 * X @ rotation + 2), 1)
    assert linear_cka(X, X * np.arange(7.0)[None]) < 0.99
    X, Y = X - X.mean(0), Y - Y.mean(0)
    expected = np.sum((Y.T @ X) ** 2) / np.linalg.norm(X.T @ X) / np.linalg.norm(Y.T @ Y)
    np.testing.assert_allclose(linear_cka(X, Y + 5), expected)


@pytest.mark.parametrize("reduction", sorted(kernels.REDUCTIONS))
@pytest.mark.parametrize("family", ["mlp", "one output"])
def test_the_columns_at_the_start_are_those_of_the_dense_kernel(family, reduction):
    at, K = small(family), reduced(dense(family), reduction)
    values = measured(ntk(examples=None, reduction=reduction, k=3), at)
    eigenvalues = np.linalg.eigvalsh(K)[::-1] / N
    y = np.asarray(at.data.train.y)
    Y = np.eye(10)[y] if y.ndim == 1 else y
    target = np.outer(Y.reshape(-1), Y.reshape(-1)) if reduction == "full" else Y @ Y.T
    np.testing.assert_allclose(values[""], eigenvalues[0])
    np.testing.assert_allclose(values["eigenvalues"], eigenvalues[:3])
    np.testing.assert_allclose(values["trace"], np.trace(K) / N)
    np.testing.assert_allclose(values["alignment"], cosine(K, target))
    np.testing.assert_allclose(values["alignment_centred"], kernels.centred_alignment(K, Y))
    np.testing.assert_allclose(
        values["effective_rank"], features.effective_rank(jnp.asarray(eigenvalues))
    )
    np.testing.assert_allclose([values["distance"], values["change"]], 0, atol=1e-14)
    assert np.isnan(values["velocity"])


@pytest.mark.slow
def test_a_run_records_how_far_its_kernel_and_its_layers_have_moved():
    config = job(
        *("observables=[loss,ntk,cka]", "observables.ntk.examples=12", "observables.ntk.every=4"),
        *("observables.cka.examples=30", "observables.cka.every=4"),
        *("loss=cross_entropy", "precision=float64", "steps=8"),
    )
    recorder, end = train([config])
    at = state("precision=float64", "model.width=8")
    x = training_examples(at, 12).x

    def kernel(params):
        return kernels.empirical_ntk(at.problem.apply, params, x, "trace")

    K0, K = kernel(at.params), kernel(jax.tree.map(lambda leaf: leaf[0], end.params))
    found = {name: column(recorder, 0, f"ntk_{name}") for name in ("distance", "change")}
    assert sorted(found["distance"]) == [0, 4, 8]
    np.testing.assert_allclose(found["distance"][8], kernels.kernel_distance(K, K0), rtol=1e-8)
    np.testing.assert_allclose(found["change"][8], kernels.relative_change(K, K0), rtol=1e-8)
    velocity = column(recorder, 0, "ntk_velocity")
    assert np.isnan(velocity[0])
    np.testing.assert_allclose(velocity[4], found["distance"][4] / 4)
    assert 0 < velocity[8] < velocity[4]
    table = column(recorder, 0, "cka")[8].reshape(5, 5)
    np.testing.assert_allclose(np.diag(table), 1)
    np.testing.assert_allclose(table, table.T)
    initial = column(recorder, 0, "cka_initial")
    np.testing.assert_allclose(initial[0], 1)
    assert initial[8].max() < 1


def repeated(observable, at, times):
    """What is measured at the same point so many times, each a call of the compiled program."""
    memory = jax.jit(lambda params: observable.init(at._replace(params=params)))(at.params)
    again = jax.jit(lambda params, m: observable.measure(at._replace(params=params), m))
    for _ in range(times):
        memory, values = again(at.params, memory)
    return values


def test_for_a_linear_model_under_squared_error_the_top_eigenvalue_is_the_sharpness():
    at = state("precision=float64", "model.depth=0", "model.bias=false")
    x = np.asarray(at.data.train.x)
    exact = np.linalg.eigvalsh(x.T @ x / 60)[-1]
    np.testing.assert_allclose(repeated(ntk_top(), at, 8)[""], exact, rtol=1e-8)
    np.testing.assert_allclose(measured(ntk(examples=None), at)[""], exact)


def test_the_tracked_eigenvalues_are_the_dense_ones():
    at = small("mlp")
    values = repeated(ntk_top(k=3), at, times=20)
    exact = np.linalg.eigvalsh(reduced(dense("mlp"), "full"))[::-1] / N
    np.testing.assert_allclose(values[""], exact[0], rtol=1e-10)
    assert np.abs(exact - values[""]).min() <= values["residual"] + 1e-12
    np.testing.assert_allclose(values["eigenvalues"], exact[:3], rtol=1e-2)
    assert values["gap"] == values["eigenvalues"][0] - values["eigenvalues"][1]


def test_cka_of_every_pair_of_layers_and_of_each_with_its_start():
    at = small("cnn")
    moved = jax.tree.map(lambda w: 1.5 * w + 0.1, at.params)
    x = at.data.train.x
    observable = cka(examples=None)
    memory = observable.init(at)
    np.testing.assert_allclose(observable.measure(at, memory)[1]["initial"], 1)
    values = observable.measure(at._replace(params=moved), memory)[1]
    first, last = (list(at.problem.activations(p, x).values()) for p in (at.params, moved))
    pairs = [[linear_cka(flat(a), flat(b)) for b in last] for a in last]
    np.testing.assert_allclose(values[""], pairs, rtol=1e-10)
    initial = [linear_cka(flat(a), flat(b)) for a, b in zip(first, last, strict=True)]
    np.testing.assert_allclose(values["initial"], initial, rtol=1e-10)
    assert 0 < min(initial) < 0.99


def flat(features):
    return features.reshape(len(features), -1)


@pytest.mark.parametrize(
    ("observable", "problem", "message"),
    [
        (ntk(examples=61), (), "examples=61, but there are 60 training examples"),
        (cka(examples=61), (), "examples=61, but there are 60"),
        (ntk_top(examples=61), (), "examples=61, but there are 60"),
        (ntk(examples=0), (), "given 0 .* at least 1: raise observables.ntk.examples"),
        (ntk_top(examples=0), (), "at least 1: raise observables.ntk_top.examples"),
        (cka(examples=1), (), "given 1 .* at least 2: raise observables.cka.examples"),
        (ntk(examples=5), (), r"has 5 eigenvalues: lower k \(10\)"),
        (ntk_top(k=21), ONE_OUTPUT, r"20 eigenvalues: lower k \(21\)"),
    ],
)
def test_a_probe_set_that_cannot_be_is_a_clear_error(observable, problem, message):
    at = start(*problem)
    with pytest.raises(ValueError, match=message):
        measured(observable, at)


def test_an_empty_probe_set_in_a_config_is_refused_before_anything_is_built():
    for name in ("ntk", "ntk_top", "cka"):
        with pytest.raises(ConfigError, match=f"observables.{name}.examples=0"):
            job(f"observables=[loss,{name}]", f"observables.{name}.examples=0")


def test_formed_and_tracked_kernels_have_columns_of_their_own():
    at = start()
    names = [
        {f"{name}_{part}".rstrip("_") for part in measured_shapes(observable, at)}
        for name, observable in (("ntk", ntk(12)), ("ntk_top", ntk_top()))
    ]
    assert not names[0] & names[1]


def measured_shapes(observable, at):
    return jax.eval_shape(lambda: observable.measure(at, observable.init(at))[1])


def test_cka_of_a_model_that_tells_no_layers_is_a_clear_error():
    at = start()
    silent = at._replace(problem=at.problem._replace(activations=lambda _params, _x: {}))
    with pytest.raises(ValueError, match="this model does not tell them"):
        measured(cka(examples=10), silent)
