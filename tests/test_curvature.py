"""Curvature operators, trackers and spectra against dense algebra and closed forms."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import block_krylov, column, job, measured, state, train

from lmech import building
from lmech.datasets import Examples
from lmech.numerics import krylov, tracking
from lmech.observables import matrices, training_examples
from lmech.observables.curvature import effective_sharpness, layer_sharpness, sharpness
from lmech.observables.spectrum import diagonal, frobenius, spectral_density, trace
from lmech.problem import loss_and_gradient
from lmech.values import ConfigError

pytestmark = pytest.mark.usefixtures("x64")

MLP = ("model.width=4",)
NORMED = ("model.width=4", "model.norm_group=20")
CNN = ("model=cnn", "model.width=3", "model.depth=2", "dataset.flatten=false")
slow = pytest.mark.slow
KINDS = ("hessian", "gauss_newton", "empirical_fisher", "residual")
PROBLEMS = pytest.mark.parametrize(
    ("model", "loss"),
    [
        pytest.param(MLP, "mse", id="mlp-mse"),
        pytest.param(CNN, "cross_entropy", id="cnn-cross_entropy"),
        pytest.param(NORMED, "cross_entropy", id="batch norm-cross_entropy", marks=slow),
        pytest.param(MLP, "cross_entropy", id="mlp-cross_entropy", marks=slow),
        pytest.param(CNN, "mse", id="cnn-mse", marks=slow),
        pytest.param(NORMED, "mse", id="batch norm-mse", marks=slow),
    ],
)


@cache
def small(*overrides):
    return state("precision=float64", *overrides)


def dense(at, kind="hessian", microbatch=None, examples=None):
    def matrix(params):
        here = at._replace(params=params)
        operator = matrices.operator(here, kind, examples, microbatch)
        return operator(jnp.eye(matrices.flat(params).size))

    return np.asarray(jax.jit(matrix)(at.params))


def by_definition(at):
    """The four matrices from jax's own dense derivatives."""
    x, y = at.data.train[:2]
    n = len(x)
    w, unravel = ravel_pytree(at.params)

    def matrices_at(w):
        outputs = lambda w: at.problem.apply(unravel(w), x)  # noqa: E731
        losses = lambda w: at.problem.loss(outputs(w), y)  # noqa: E731
        one = lambda f, y: at.problem.loss(f[None], y[None])[0]  # noqa: E731
        hessian = jax.hessian(lambda w: losses(w).mean())(w)
        g, jacobian = jax.jacrev(losses)(w), jax.jacrev(outputs)(w)
        inner = jax.vmap(jax.hessian(one))(outputs(w), y)
        gauss_newton = jnp.einsum("ncp,ncd,ndq->pq", jacobian, inner, jacobian) / n
        return hessian, gauss_newton, g.T @ g / n, hessian - gauss_newton

    return dict(zip(KINDS, jax.jit(matrices_at)(w), strict=True))


def test_the_hessian_of_linear_regression_is_the_covariance():
    at = small("model.depth=0", "model.bias=false")
    x = np.asarray(at.data.train.x)
    np.testing.assert_allclose(dense(at), np.kron(x.T @ x / len(x), np.eye(10)), atol=1e-12)


def test_the_hessian_of_softmax_regression_is_the_written_out_one():
    at = small("model.depth=0", "model.bias=false", "loss=cross_entropy", "dataset.train_size=20")
    x = np.asarray(at.data.train.x)
    p = np.asarray(jax.nn.softmax(at.problem.apply(at.params, x)))
    blocks = [
        np.kron(np.outer(a, a), np.diag(q) - np.outer(q, q)) for a, q in zip(x, p, strict=True)
    ]
    np.testing.assert_allclose(dense(at), np.mean(blocks, axis=0), atol=1e-12)


def test_the_hessian_of_a_deep_linear_net_is_the_written_out_one():
    """f = W₂ᵀW₁ᵀx: the blocks of H are W₂W₂ᵀ ⊗ xxᵀ, hhᵀ ⊗ 1 and the cross term with the error."""
    model = ("model.depth=1", "model.width=3", "model.bias=false", "model.activation=linear")
    at = small(*model, "dataset.train_size=25")
    x, y = (np.asarray(a) for a in at.data.train[:2])
    first, second = (np.asarray(at.params[n]["kernel"]) for n in ("hidden_1", "readout"))
    h, n = x @ first, len(x)
    error = h @ second - np.eye(10)[y]
    covariance = x.T @ x / n
    top = np.kron(covariance, second @ second.T)
    bottom = np.kron(h.T @ h / n, np.eye(10))
    # ∂²L/∂W₁[i,j]∂W₂[k,c] = E[x_i h_k] W₂[j,c] + δ_jk E[x_i e_c]
    cross = np.einsum("ik,jc->ijkc", x.T @ h / n, second)
    cross += np.einsum("ic,jk->ijkc", x.T @ error / n, np.eye(3))
    cross = cross.reshape(64 * 3, 3 * 10)
    expected = np.block([[top, cross], [cross.T, bottom]])
    np.testing.assert_allclose(dense(at), expected, atol=1e-12)


@pytest.mark.slow
@PROBLEMS
def test_each_matrix_is_the_one_of_its_definition(model, loss):
    at = small(*model, f"loss={loss}", "dataset.train_size=20")
    expected = by_definition(at)
    for kind in KINDS:
        np.testing.assert_allclose(dense(at, kind), expected[kind], atol=1e-10, err_msg=kind)


@pytest.mark.parametrize(
    ("kind", "size"),
    [*((kind, 7) for kind in KINDS), ("hessian", 1), ("hessian", 59), ("hessian", 100)],
)
def test_microbatches_change_only_the_rounding(kind, size):
    at = small("model.width=3")
    np.testing.assert_allclose(dense(at, kind, size), dense(at, kind), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_microbatches_of_whole_normalisation_groups_change_only_the_rounding(kind):
    at = small(*NORMED)
    np.testing.assert_allclose(dense(at, kind, 20), dense(at, kind), atol=1e-12)
    np.testing.assert_allclose(dense(at, kind, 40), dense(at, kind), atol=1e-12)


def test_a_microbatch_that_cuts_a_normalisation_group_is_a_clear_error():
    with pytest.raises(ValueError, match=r"groups of 20 examples and was given 30"):
        dense(small(*NORMED), microbatch=30)


@PROBLEMS
def test_the_extreme_eigenvalues_are_those_of_the_dense_hessian(model, loss):
    at = small(*model, f"loss={loss}")
    exact = np.linalg.eigvalsh(dense(at))
    for end, value in (("largest", exact[-1]), ("smallest", exact[0])):
        found = measured(sharpness(end=end, tolerance=1e-9), at)
        assert found["eigenvalues"].shape == (4,)
        assert abs(found[""] - value) <= 2e-9 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gauss_newton", "empirical_fisher", "residual"])
def test_the_largest_eigenvalue_of_each_other_matrix_is_the_dense_one(kind):
    at = small(*MLP)
    found = measured(sharpness(kind, tolerance=1e-9), at)
    np.testing.assert_allclose(found[""], np.linalg.eigvalsh(dense(at, kind))[-1], rtol=2e-9)


def test_all_followed_eigenvalues_converge_at_a_fixed_point():
    at = small(*MLP)
    exact = np.linalg.eigvalsh(dense(at))[::-1]
    found = measured(sharpness(k=3), at, times=40)
    np.testing.assert_allclose(found["eigenvalues"], exact[:3], rtol=1e-6)
    assert found["residual"] == found["residuals"][0]
    assert found["products"] == 6


def test_a_residual_bounds_the_distance_to_an_eigenvalue_and_theta_is_a_lower_bound():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(80, 80))
    matrix = jnp.asarray(matrix + matrix.T)
    exact = np.linalg.eigvalsh(matrix)[::-1]
    block = jnp.asarray(rng.normal(size=(4, 80)))
    extended = jax.jit(lambda block: block_krylov(lambda v: v @ matrix, block, 1))
    for _ in range(300):
        ritz = extended(block)
        assert ritz.values[0] <= exact[0] + 1e-10
        for value, residual in zip(ritz.values, ritz.residuals, strict=True):
            assert np.abs(exact - value).min() <= residual + 1e-10
        block = ritz.vectors
    np.testing.assert_allclose(ritz.values, exact[:4], rtol=1e-9)


def test_a_krylov_space_that_is_the_whole_space_is_exact():
    matrix = jnp.diag(jnp.asarray([5.0, 3.0, 1.0, -2.0, -9.0, 0.5]))
    block = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6)))
    ritz = block_krylov(lambda v: v @ matrix, block, 2)
    np.testing.assert_allclose(ritz.values, [5.0, 3.0], atol=1e-10)


@partial(jax.jit, static_argnums=2)
def followed(diagonal, key, policy, times=4):
    """The last of a few measurements of one diagonal matrix."""
    operator = lambda v: diagonal[None] * v  # noqa: E731
    track = tracking.start(operator, key, diagonal.size, diagonal.dtype, policy)
    for _ in range(times):
        track, pairs, _ = tracking.follow(operator, key, track, policy)
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("tolerance", [None, 1e-6])
def test_a_space_that_cannot_grow_makes_no_eigenvalue_up(tolerance, dtype):
    """Residuals are zero or rounding error, in the space already or to be found with no length."""
    policy = tracking.Policy(k=2, extensions=3, tolerance=tolerance, check_every=2)
    for spectrum in ([1] * 10, [-1] * 10, [0] * 10, [5, 1, 1, 1, 1, 1, 1, -2, -2, -2]):
        pairs = followed(jnp.asarray(spectrum, dtype), jax.random.key(0), policy)
        rounding = 50 * np.finfo(dtype).eps
        expected = sorted(spectrum)[::-1][:2]
        np.testing.assert_allclose(pairs.values, expected, rtol=rounding, atol=rounding)
        gram = pairs.vectors @ pairs.vectors.T
        np.testing.assert_allclose(gram, np.eye(2), atol=rounding)


@pytest.mark.parametrize("rows", [(0, 1), (0, 0), (0, 5)])
def test_an_orthonormal_basis_has_only_directions_that_the_block_adds(rows):
    against = jnp.eye(6)[4:]
    block = jnp.eye(6)[jnp.asarray(rows)]
    basis = krylov.orthonormalize(block, against)
    expected = jnp.zeros((6, 6)).at[0, 0].set(1).at[1, 1].set(float(rows == (0, 1)))
    np.testing.assert_allclose(basis.T @ basis, expected, atol=1e-14)


@pytest.mark.parametrize("rank", [0, 1, 3, 40])
def test_lanczos_makes_no_eigenvalue_up_where_the_rank_ends(rank):
    spectrum = jnp.asarray([float(i + 1 if i < rank else 0) for i in range(40)], jnp.float32)
    vector = jax.random.normal(jax.random.key(0), (40,), jnp.float32)
    values, weights = krylov.quadrature(lambda v: spectrum[None] * v, vector, 20)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    assert values.min() >= -1e-4
    assert values.max() <= rank + 1e-4
    moment = (vector**2 * spectrum).sum() / (vector**2).sum()
    np.testing.assert_allclose((weights * values).sum(), moment, rtol=1e-4, atol=1e-6)


def test_a_cold_check_finds_what_the_block_cannot_see_and_counts_it():
    basis, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(60, 60)))
    matrix = jnp.asarray(basis * np.r_[10, np.linspace(-1, 5, 59)][None] @ basis.T)
    operator = lambda v: v @ matrix  # noqa: E731
    policy = tracking.Policy(k=2, extensions=0, check_every=3)
    blind = jnp.asarray(basis[:, 10:12].T)  # eigenvectors of small eigenvalues: no residual
    zero = jnp.int32(0)
    track = tracking.Track(blind, zero, zero, zero)
    seen = []
    for i in range(4):
        track, pairs, products = tracking.follow(operator, jax.random.key(i), track, policy)
        seen.append((float(pairs.values[0]), int(products)))
    assert seen[0][0] < 6
    assert seen[0][1] == 2
    np.testing.assert_allclose(seen[2][0], 10, rtol=1e-9)
    assert seen[2][1] == 2 + 40 + 2
    assert (int(track.checks), int(track.misses)) == (1, 1)


@pytest.mark.slow
def test_the_tolerance_is_met_and_what_it_cost_is_recorded():
    at = small("model.width=8")
    exact = np.linalg.eigvalsh(dense(at))[-1]
    loose = measured(sharpness(tolerance=1e-2, k=2, extensions=0), at)
    tight = measured(sharpness(tolerance=1e-10, k=2, extensions=0), at)
    for found, tolerance in ((loose, 1e-2), (tight, 1e-10)):
        assert exact * (1 - tolerance) <= found[""] <= exact * (1 + 1e-12)
    assert loose["products"] <= tight["products"]
    assert tight["products"] > 2


def sharpness_run(precision, rate, steps=40):
    config = job(
        *("model.width=4", f"steps={steps}", "observables=[loss,sharpness]"),
        *("observables.sharpness.every=10", f"optimizer.learning_rate={rate}"),
        f"precision={precision}",
    )
    recorder, end = train([config])
    at = small("model.width=4")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0], jnp.float64), end.params)
    return recorder, np.linalg.eigvalsh(dense(at._replace(params=params)))[::-1]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float64", 2e-6)])
def test_where_the_weights_stand_still_the_sharpness_is_the_dense_eigenvalue(precision, tolerance):
    recorder, exact = sharpness_run(precision, rate=0, steps=100)
    assert column(recorder, 0, "sharpness_eigenvalues")[100].shape == (4,)
    np.testing.assert_allclose(column(recorder, 0, "sharpness")[100], exact[0], rtol=tolerance)


def test_where_the_weights_move_the_sharpness_is_a_lower_bound_within_its_residual():
    recorder, exact = sharpness_run("float64", rate=0.3)
    found = column(recorder, 0, "sharpness")
    residual = column(recorder, 0, "sharpness_residual")[40]
    assert sorted(found) == [0, 10, 20, 30, 40]
    assert found[40] <= exact[0] + 1e-12
    assert np.abs(exact - found[40]).min() <= residual
    np.testing.assert_allclose(found[40], exact[0], rtol=1e-3)
    eigenvalues = column(recorder, 0, "sharpness_eigenvalues")[40]
    assert column(recorder, 0, "sharpness_gap")[40] == eigenvalues[0] - eigenvalues[1]
    assert column(recorder, 0, "sharpness_products")[40] == 7


@pytest.mark.slow
def test_a_relu_net_at_its_kinks_has_finite_curvature():
    """All preactivations exactly 0: every example sits on a kink."""
    at = small("model.width=4", "model.activation=relu")
    at = at._replace(params=jax.tree.map(jnp.zeros_like, at.params))
    for kind in ("hessian", "gauss_newton"):
        matrix = dense(at, kind)
        assert np.isfinite(matrix).all()
        found = measured(sharpness(kind), at, times=5)
        np.testing.assert_allclose(found[""], np.linalg.eigvalsh(matrix)[-1], rtol=1e-6)


def test_more_eigenpairs_than_parameters_is_a_clear_error():
    config = job(
        *("dataset=chebyshev", "dataset.train_size=20", "model.width=1", "model.depth=0"),
        "observables=[loss,sharpness]",
    )
    with pytest.raises(ValueError, match=r"k=4 eigenpairs are asked of a matrix of 2 parameters"):
        building.check(building.build([config]))


def test_as_many_eigenpairs_as_parameters_are_the_right_ones():
    at = small("dataset=chebyshev", "dataset.train_size=20", "model.width=1", "model.depth=0")
    found = measured(sharpness(k=2), at)
    np.testing.assert_allclose(found["eigenvalues"], np.linalg.eigvalsh(dense(at))[::-1])


def test_a_subset_of_examples_is_measured_alone_and_may_not_exceed_the_set():
    at = small(*MLP)
    chosen = training_examples(at, 25)
    alone = at._replace(data=at.data._replace(train=chosen))
    np.testing.assert_allclose(dense(at, examples=25), dense(alone), atol=1e-12)
    with pytest.raises(ValueError, match="examples=61, but there are 60 training examples"):
        dense(at, examples=61)


@pytest.mark.parametrize(("model", "by"), [(MLP, "layer"), pytest.param(CNN, "tensor", marks=slow)])
def test_layer_sharpness_is_that_of_the_diagonal_blocks(model, by):
    at = small(*model)
    matrix = dense(at)
    found = measured(layer_sharpness(by=by), at, times=60)
    sizes = [leaf.size for leaf in jax.tree.leaves(at.params)]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    blocks = matrices.parts(at.params, by)
    for name, places in blocks.items():
        rows = np.flatnonzero(np.isin(owner, places))
        exact = np.linalg.eigvalsh(matrix[np.ix_(rows, rows)])[-1]
        np.testing.assert_allclose(found[name], exact, rtol=1e-6, atol=1e-9)
    assert found[""] == max(found[name] for name in blocks)
    assert found[""] <= np.linalg.eigvalsh(matrix)[-1] * (1 + 1e-9)


@pytest.mark.slow
@PROBLEMS
def test_trace_norm_and_diagonal_are_exact_on_request(model, loss):
    at = small(*model, f"loss={loss}")
    matrix = dense(at)
    tensors = matrices.parts(at.params, "tensor")
    found = measured(diagonal(samples=None, entries=True), at)
    np.testing.assert_allclose(measured(trace(samples=None), at)[""], np.trace(matrix))
    np.testing.assert_allclose(measured(frobenius(samples=None), at)[""], (matrix**2).sum())
    np.testing.assert_allclose(found["entries"], np.diag(matrix), atol=1e-12)
    means = [(found[name], leaf.size) for name, leaf in zip(tensors, _leaves(at), strict=True)]
    total = sum(mean * size for mean, size in means)
    np.testing.assert_allclose(total, np.trace(matrix), rtol=1e-9)


def _leaves(at):
    return jax.tree.leaves(at.params)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "empirical_fisher"])
def test_estimates_lie_within_five_standard_errors(kind):
    """A false alarm at 5σ has a chance of 6e-7; the seed is fixed."""
    at = small(*MLP)
    matrix = dense(at, kind)
    for factory, exact in ((trace, np.trace(matrix)), (frobenius, (matrix**2).sum())):
        found = measured(factory(kind, samples=200), at)
        assert abs(found[""] - exact) <= 5 * found["error"]
        assert found["error"] < abs(exact)


def test_the_spectral_density_is_the_spectrum():
    at = small(*MLP)
    eigenvalues = np.linalg.eigvalsh(dense(at))
    exact = measured(spectral_density(samples=None), at)
    np.testing.assert_allclose(exact["nodes"], eigenvalues, atol=1e-10)
    np.testing.assert_allclose(exact["weights"].sum(), 1)
    estimate = measured(spectral_density(samples=40, depth=30), at)
    assert estimate["nodes"].shape == (1200,)
    np.testing.assert_allclose(estimate["weights"].sum(), 1)
    np.testing.assert_allclose(estimate["nodes"].max(), eigenvalues.max(), rtol=1e-6)
    # The mean of 40 quadratic forms of a random direction: variance 2‖H‖_F²/P² a sample.
    moment = (estimate["nodes"] * estimate["weights"]).sum()
    size = len(eigenvalues)
    error = np.sqrt(2 * (eigenvalues**2).sum() / 40) / size
    assert abs(moment - eigenvalues.mean()) <= 5 * error


def test_a_smoothed_density_integrates_to_one():
    grid = jnp.linspace(-10.0, 10.0, 4001)
    drawn = krylov.density(jnp.asarray([-1.0, 2.0]), jnp.asarray([0.25, 0.75]), grid, 0.3)
    np.testing.assert_allclose(np.trapezoid(drawn, grid), 1, rtol=1e-9)


OTHERS = [pytest.param(name, marks=slow) for name in ("nesterov", "rmsprop", "adagrad")]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", *OTHERS])
def test_effective_sharpness_is_the_dense_preconditioned_eigenvalue_over_the_threshold(optimizer):
    at = small(*MLP, f"optimizer={optimizer}")
    at = at._replace(
        scales=at.scales._replace(
            learning_rate={
                layer: {tensor: jnp.asarray(1.0 + i + 2 * j) for j, tensor in enumerate(tensors)}
                for i, (layer, tensors) in enumerate(at.params.items())
            }
        )
    )
    _, g = loss_and_gradient(at.problem, at.params, at.data.train, None)
    transformation = at.optimizer.transformation(at.hyperparameters)
    _, after = transformation.update(g, at.optimizer_state, at.params)
    stability = at.optimizer.stability(at.hyperparameters, after, at.params)
    shaped = jax.tree.map(
        lambda c, p: jnp.broadcast_to(jnp.sqrt(c / p), p.shape),
        at.scales.learning_rate,
        stability.preconditioner,
    )
    root = np.asarray(matrices.flat(shaped))
    exact = np.linalg.eigvalsh(root[:, None] * dense(at) * root[None])[-1]
    found = measured(effective_sharpness(), at, times=40)
    np.testing.assert_allclose(found["eigenvalue"], exact, rtol=1e-7)
    np.testing.assert_allclose(found[""], exact / stability.threshold, rtol=1e-7)


def test_an_optimizer_without_a_threshold_says_so():
    config = job("optimizer=muon", "observables=[loss,effective_sharpness]")
    with pytest.raises(ValueError, match="effective_sharpness needs an optimizer with a stability"):
        building.check(building.build([config]))


def test_accuracy_of_real_targets_is_a_clear_error():
    config = job("dataset=chebyshev", "dataset.train_size=20", "observables=[loss,accuracy]")
    with pytest.raises((ValueError, ConfigError), match="needs class labels"):
        building.check(building.build([config]))


def temporary_bytes(examples, microbatch):
    """Scratch memory of one compiled product with random images."""
    sizes = ("dataset.train_size=20", "model.width=32")
    at = state(*sizes)
    shape = jax.ShapeDtypeStruct((examples, 64), jnp.float32)
    labels = jax.ShapeDtypeStruct((examples,), jnp.int32)

    def product(x, y, v):
        here = at._replace(data=at.data._replace(train=Examples(x, y)))
        return matrices.operator(here, microbatch=microbatch)(v)

    v = jax.ShapeDtypeStruct((1, matrices.flat(at.params).size), jnp.float32)
    return jax.jit(product).lower(shape, labels, v).compile().memory_analysis().temp_size_in_bytes


def test_the_memory_of_a_product_is_set_by_the_microbatch_and_not_by_the_data():
    small_set, large_set = (temporary_bytes(n, microbatch=100) for n in (2_000, 20_000))
    assert large_set < 1.1 * small_set
    assert temporary_bytes(20_000, microbatch=None) > 5 * temporary_bytes(2_000, microbatch=None)
    assert temporary_bytes(20_000, microbatch=1_000) > 3 * large_set
