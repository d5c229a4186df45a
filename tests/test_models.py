"""What holds of every model: shapes, gradients, independence, declarations, the stated init."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from problems import job

from lmech import modelling
from lmech.cli import main
from lmech.datasets import Data, Examples
from lmech.models.cnn import cnn
from lmech.models.declared import Declared, matches
from lmech.models.mlp import mlp, normalized_mlp
from lmech.models.quadratic import quadratic
from lmech.models.resmlp import resmlp
from lmech.models.resnet import resnet
from lmech.models.transformer import transformer
from lmech.models.vit import vit
from lmech.numerics import kernels, trees

pytestmark = pytest.mark.usefixtures("x64")

N, C, T = 4, 3, 5
SMALL = {"width": 8, "depth": 2, "head_width": 4}
VECTORS, IMAGES, TOKENS = (N, 6), (N, 8, 4, 2), (N, T)

# The model, and the shape of its inputs.
NETS = {
    "mlp": (lambda **k: mlp(C, **{"width": 8, "depth": 2, **k}), VECTORS),
    "normalized_mlp": (lambda **k: normalized_mlp(C, **{"width": 8, "depth": 2, **k}), VECTORS),
    "two_layer": (lambda **k: mlp(C, 8, 1, frozen_readout=True, **k), VECTORS),
    "cnn": (lambda **k: cnn(C, **{"width": 4, "depth": 2, **k}), IMAGES),
    "resmlp": (lambda **k: resmlp(C, **{"width": 8, "depth": 2, **k}), VECTORS),
    "resmlp, two matrices": (
        lambda **k: resmlp(C, **{"width": 8, "depth": 2, "matrices": 2, "norm": "layer", **k}),
        VECTORS,
    ),
    "resnet": (lambda **k: resnet(C, **{"width": 4, "depth": 3, "stages": 2, **k}), IMAGES),
    "resnet, layer norm": (
        lambda **k: resnet(C, **{"width": 4, "depth": 3, "stages": 2, "norm": "layer", **k}),
        IMAGES,
    ),
    "vit": (lambda **k: vit(C, **{**SMALL, "patch": 2, **k}), IMAGES),
    "vit, qk-norm": (lambda **k: vit(C, **{**SMALL, "patch": 2, "qk_norm": True, **k}), IMAGES),
    "transformer": (lambda **k: transformer(C, **{**SMALL, **k}), TOKENS),
    "transformer, qk-norm, tied": (
        lambda **k: transformer(C, **{**SMALL, "qk_norm": True, "tied": True, **k}),
        TOKENS,
    ),
    "transformer, post-norm": (
        lambda **k: transformer(C, **{**SMALL, "norm_position": "post", **k}),
        TOKENS,
    ),
    "transformer, rms, no biases": (
        lambda **k: transformer(C, **{**SMALL, "norm": "rms", "bias": False, **k}),
        TOKENS,
    ),
    "quadratic": (lambda **k: quadratic(C, **{"width": 8, **k}), VECTORS),
}
EACH = pytest.mark.parametrize("name", NETS)
STACKS = pytest.mark.parametrize(
    "name",
    [name for name in NETS if name.startswith(("res", "vit", "trans")) and "post" not in name],
)


def inputs(shape, seed=0):
    draws = np.random.default_rng(seed)
    return draws.integers(0, C, shape) if shape == TOKENS else draws.normal(size=shape)


def shapes(model, x):
    """Shapes of the parameters, by path; nothing compiles."""
    params = jax.eval_shape(model.init, jax.random.key(0), x[:1])["params"]
    return trees.named_leaves(params)


def generic(model, x):
    """Parameters at no special point, with outputs of order 1: constants are 1, as they must be."""
    draws, leaves = np.random.default_rng(3), {}
    for path, leaf in shapes(model, x).items():
        if leaf.shape == () or path.endswith("scale"):
            values = 1 + 0.1 * draws.normal(size=leaf.shape) * (leaf.shape != ())
        else:
            values = draws.normal(size=leaf.shape) / math.sqrt(fan_in(model, path, leaf.shape))
        leaves[path] = jnp.asarray(values)
    return leaves


def fan_in(model, path, shape):
    """Product of the axes that the input is summed over, as declared."""
    if path.endswith("table"):  # a one-hot input
        return 1
    fan_ins = declared(model).fan_in.items()
    (axes,) = [axes for pattern, axes in fan_ins if matches(path, (pattern,))] or [
        range(len(shape) - 1)
    ]
    return math.prod(shape[axis] for axis in axes)


def nested(leaves):
    tree = {}
    for path, leaf in leaves.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return {"params": tree}


def run(model, leaves, x):
    return model.apply(nested(leaves), jnp.asarray(x))


def captured(model, x):
    """What each layer puts out for x, by path, in the order of the forward pass."""
    params = nested(generic(model, x))
    _, found = model.apply(
        params, jnp.asarray(x), capture_intermediates=True, mutable=["intermediates"]
    )
    return modelling._layers(found["intermediates"])


def case(name, **keys):
    """A model, its parameters, and inputs."""
    factory, shape = NETS[name]
    model, x = factory(**keys), inputs(shape)
    return model, generic(model, x), x


def bare(name, **keys):
    """A model, and the shapes of its parameters."""
    factory, shape = NETS[name]
    return factory(**keys), shapes(factory(**keys), inputs(shape))


def chosen(leaves, patterns):
    return {path for path in leaves if matches(path, tuple(patterns))}


def declared(model):
    return getattr(model, "declared", Declared())


def scaled(leaves, patterns, factor):
    """The parameters with those that match multiplied."""
    hit = chosen(leaves, patterns)
    assert hit, patterns
    return {path: leaf * factor if path in hit else leaf for path, leaf in leaves.items()}


@EACH
def test_outputs_are_one_number_a_class_and_for_tokens_a_position(name):
    model, leaves, x = case(name)
    outputs = run(model, leaves, x)
    assert outputs.shape == ((N, T, C) if NETS[name][1] == TOKENS else (N, C))
    assert outputs.dtype == np.float64
    assert np.isfinite(outputs).all()


@EACH
def test_every_parameter_gets_a_gradient_but_the_declared_constants_whose_own_is_0(name):
    model, leaves, x = case(name)

    @jax.jit
    @jax.grad
    def gradient_of(leaves, x):
        outputs = run(model, leaves, x)
        return jnp.vdot(np.random.default_rng(1).normal(size=outputs.shape), outputs)

    gradient = gradient_of(leaves, x)
    constants = chosen(leaves, declared(model).constants)
    assert bool(constants) == any(word in name for word in ("two_layer", "qk-norm", "quadratic"))
    for path, leaf in gradient.items():
        size = float(jnp.abs(leaf).max())
        assert size == 0 if path in constants else size > 1e-8, path


@EACH
def test_an_examples_outputs_do_not_depend_on_the_others(name):
    model, leaves, x = case(name)
    others = np.concatenate([x[:1], inputs(x.shape, seed=1)[1:]])
    before, after = run(model, leaves, x), run(model, leaves, others)
    assert not np.array_equal(before[1:], after[1:])
    np.testing.assert_array_equal(before[0], after[0])


@EACH
def test_what_a_model_declares_names_tensors_that_it_has(name):
    model, leaves = bare(name)
    for field, patterns in declared(model)._asdict().items():
        for pattern in patterns:
            assert chosen(leaves, [pattern]), (field, pattern)
    ends, branches = (
        chosen(leaves, getattr(declared(model), f)) for f in ("branch_ends", "branches")
    )
    assert ends <= branches


@EACH
def test_declaring_leaves_a_module_what_it_was(name):
    model = NETS[name][0]()
    assert model.clone() == model
    assert hash(model.clone()) == hash(model)
    assert declared(model.clone()) == declared(model)


@EACH
def test_a_float32_models_gradient_has_no_float64_in_it(name):
    factory, shape = NETS[name]
    model, x = factory(), inputs(shape)
    x = x if shape == TOKENS else x.astype("float32")
    leaves = shapes(model, x)
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype("float32")}
    gradient = jax.grad(lambda leaves, x: run(model, leaves, x).sum())
    # Scalars may be: jax writes Python's constants so, and converts them.
    assert not re.search(r"tensor<[^>]*xf64>", jax.jit(gradient).lower(leaves, x).as_text())


@EACH
def test_the_layers_that_tell_their_outputs_end_with_the_models_own(name):
    if name == "quadratic":
        pytest.skip("has no layers")
    factory, shape = NETS[name]
    x = inputs(shape)
    layers = captured(factory(), x)
    assert list(layers)[-1] == "readout"
    np.testing.assert_array_equal(layers["readout"], run(*case(name)))


# The stated init


@pytest.mark.parametrize("init", ["uniform_fan_in", "normal_fan_in", "gpt2"])
@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_kernels_tables_and_biases_are_drawn_as_the_inits_name_says(name, init):
    """The variance of n draws is within 6 of its standard deviations, √(κ − 1)/√n relative."""
    factory, shape = NETS[name]
    model = factory(init=init, width=32, depth=1)
    params = model.init(jax.random.key(0), jnp.asarray(inputs(shape)))["params"]
    for path, leaf in trees.named_leaves(params).items():
        kind = path.rpartition("/")[2]
        if "norm" in path:
            np.testing.assert_array_equal(leaf, 1.0 if kind == "scale" else 0.0)
        elif kind == "bias":
            assert np.any(leaf != 0) == (init == "uniform_fan_in"), path
        else:
            fan = fan_in(model, path, leaf.shape)
            variance = {"uniform_fan_in": 1 / fan / 3, "normal_fan_in": 1 / fan, "gpt2": 0.02**2}
            kurtosis = 1.8 if init == "uniform_fan_in" else 3
            found = np.mean(np.square(leaf)) / variance[init]
            assert abs(found - 1) < 6 * math.sqrt((kurtosis - 1) / leaf.size), path
            assert init != "uniform_fan_in" or np.abs(leaf).max() <= fan**-0.5


# Residual branches


@STACKS
def test_without_its_branch_ends_a_net_is_the_one_of_depth_0(name):
    model, leaves, x = case(name)
    gone = scaled(leaves, declared(model).branch_ends, 0.0)
    shallow, rest = bare(name, depth=0)
    kept = {path: leaf for path, leaf in leaves.items() if not path.startswith("block")}
    assert set(kept) == set(rest)
    assert not np.array_equal(run(model, leaves, x), run(shallow, kept, x))
    np.testing.assert_array_equal(run(model, gone, x), run(shallow, kept, x))


@STACKS
def test_a_deeper_net_has_more_blocks_of_the_same_shapes_and_nothing_else(name):
    keys = {"stages": 1} if "resnet" in name else {}
    _, two = bare(name, depth=2, **keys)
    _, five = bare(name, depth=5, **keys)
    for path, leaf in five.items():
        assert leaf.shape == two[re.sub(r"block_\d", "block_2", path)].shape
    assert {path for path in five if path not in two} == chosen(five, ["block_[345]/*"])


def test_the_blocks_of_a_resnet_are_shared_out_over_stages_of_doubling_channels():
    _, leaves = bare("resnet", depth=5, stages=3)
    channels = [leaves[f"block_{i}/convolution_2/kernel"].shape[-1] for i in range(1, 6)]
    assert channels == [4, 4, 8, 8, 16]


# Transformers


@pytest.mark.parametrize("name", [name for name in NETS if name.startswith("transformer")])
def test_a_positions_logits_depend_on_its_own_and_earlier_tokens_alone(name):
    model, leaves, x = case(name)
    before = run(model, leaves, x)
    for t in range(T):
        changed = x.copy()
        changed[:, t] = (changed[:, t] + 1) % C
        after = run(model, leaves, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        for later in range(t, T):
            assert not np.array_equal(after[:, later], before[:, later]), (t, later)


def test_a_vits_outputs_depend_on_every_pixel():
    model, leaves, x = case("vit")
    slope = jax.grad(lambda x: run(model, leaves, x)[0, 0])(jnp.asarray(x))
    assert np.all(slope[0] != 0)


def test_a_tied_readout_has_the_embedding_and_a_constant_for_its_parameters():
    _, untied = bare("transformer")
    model, tied, x = case("transformer", tied=True)
    assert set(untied) - set(tied) == {"readout/kernel", "readout/bias"}
    assert set(tied) - set(untied) == {"readout/scale"}
    assert model.declared.outputs == ("readout/scale",)
    twice = scaled(tied, model.declared.outputs, 2.0)
    np.testing.assert_array_equal(run(model, twice, x), 2 * run(model, tied, x))


@pytest.mark.parametrize(("head_width", "tolerance"), [(4, 0), (16, 0), (8, 1e-12)])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_over_d_is_attention_over_root_d_times_a_multiplier(
    qk_norm, head_width, tolerance
):
    """Bit for bit where √d is a power of 2."""
    keys = {"width": 16, "depth": 1, "head_width": head_width, "qk_norm": qk_norm}
    model, leaves, x = case("transformer", attention_scale="inverse_sqrt", **keys)
    inverse, _ = bare("transformer", attention_scale="inverse", **keys)
    assert not np.allclose(run(inverse, leaves, x), run(model, leaves, x), rtol=1e-6)
    there = scaled(leaves, model.declared.attention, head_width**-0.5)
    np.testing.assert_allclose(run(inverse, leaves, x), run(model, there, x), rtol=tolerance)


def test_normalised_queries_absorb_a_multiplier_and_the_constant_does_not():
    """Up to the norm's 10⁻⁵ beside variances of order 1."""
    model, leaves, x = case("transformer, qk-norm, tied", bias=False)
    before = run(model, leaves, x)
    queries = scaled(leaves, ["block_*/attention/query/kernel"], 4.0)
    change = np.abs(run(model, queries, x) - before).max()
    sharper = scaled(leaves, model.declared.attention, 4.0)
    assert change < 1e-3
    assert np.abs(run(model, sharper, x) - before).max() > 100 * change


def test_attention_can_be_watched_by_name():
    factory, shape = NETS["transformer"]
    x = inputs(shape)
    layers = captured(factory(), x)
    logits, weights = (layers[f"block_2/attention/{name}"] for name in ("logits", "weights"))
    later = np.triu(np.ones((T, T), bool), k=1)
    assert logits.shape == weights.shape == (N, 2, T, T)
    for values in (logits, weights):
        assert np.all(np.asarray(values)[..., later] == 0)
        assert np.all(np.asarray(values)[..., ~later] != 0)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "keys", "shape", "message"),
    [
        ("transformer", {"head_width": 3}, TOKENS, r"model.width=8 is no multiple of model.head_"),
        ("vit", {"head_width": 16}, IMAGES, r"model.width=8 is no multiple of model.head_width=16"),
        ("vit", {"patch": 3}, IMAGES, r"images of 8 × 4 are not cut into patches of model.patch=3"),
        ("vit", {}, VECTORS, r"a vit takes images .* set dataset.flatten=false"),
        ("resnet", {}, VECTORS, r"a resnet takes images .* set dataset.flatten=false"),
        ("transformer", {}, VECTORS, r"a transformer takes integer tokens \[N, T\]"),
        ("resnet", {"norm": "batch"}, IMAGES, r"model.norm=batch and model.norm_group=.* both"),
        ("resnet", {"norm_group": 2}, IMAGES, r"model.norm=batch and model.norm_group=.* both"),
        ("quadratic", {"eigenvalues": [1.0]}, VECTORS, r"model.width=8 parameters, and model.eig"),
    ],
)
def test_what_a_model_cannot_take_is_one_line_that_says_so(name, keys, shape, message):
    x = inputs(shape) if shape != VECTORS else np.zeros(shape)
    with pytest.raises(ValueError, match=message) as caught:
        shapes(NETS[name][0](**keys), x)
    assert "\n" not in str(caught.value)


# Norms


def test_a_resnet_with_batch_norm_takes_whole_groups():
    model, leaves, x = case("resnet", norm="batch", norm_group=2)
    run(model, leaves, x)
    with pytest.raises(
        ValueError, match="batch norm works on groups of 2 examples and was given 3"
    ):
        run(model, leaves, x[:3])


@pytest.mark.parametrize("name", ["resnet, layer norm", "resmlp, two matrices", "vit"])
def test_a_normalised_stream_forgets_its_size(name):
    """With the norm's 10⁻⁵ negligible beside a large input: only branch sizes are left out."""
    model, leaves, x = case(name, depth=0, bias=False)
    if name == "vit":
        leaves["position/table"] = 0 * leaves["position/table"]
    np.testing.assert_allclose(run(model, leaves, 1e6 * x), run(model, leaves, 1e8 * x), rtol=1e-6)


# Frozen readouts and quadratic models


def test_a_frozen_readout_is_a_parameter_of_the_same_function():
    x = inputs(VECTORS)
    frozen, free = (mlp(C, 8, 1, frozen_readout=frozen) for frozen in (True, False))
    leaves = generic(free, x)
    assert set(shapes(frozen, x)) == set(leaves)
    np.testing.assert_array_equal(run(frozen, leaves, x), run(free, leaves, x))
    moved = scaled(leaves, ["readout/*"], 2.0)
    np.testing.assert_array_equal(run(frozen, moved, x), 2 * run(frozen, leaves, x))


def outputs_of(model, leaves, x):
    return lambda theta: run(model, {**leaves, "parameters": theta}, x)


def test_the_hessian_of_a_quadratic_models_outputs_is_constant_and_is_what_q_says():
    model, leaves, x = case("quadratic")
    f = outputs_of(model, leaves, x)
    theta = np.random.default_rng(2).normal(size=8)
    G, Q = np.asarray(leaves["linear"]), np.asarray(leaves["quadratic"])
    dense = np.einsum("nk,kcpq->ncpq", x, (Q + Q.swapaxes(-1, -2)) / 2)
    for at in (0 * theta, theta, 100 * theta):
        np.testing.assert_allclose(jax.hessian(f)(jnp.asarray(at)), dense, rtol=1e-9, atol=1e-9)
    linear = np.einsum("nk,kcp,p->nc", x, G, theta)
    expected = linear + np.einsum("ncpq,p,q->nc", dense, theta, theta) / 2
    np.testing.assert_allclose(f(jnp.asarray(theta)), expected, rtol=1e-10)


def drawn_quadratic(**keys):
    """Q, as the model draws it."""
    params = quadratic(C, **keys).init(jax.random.key(0), jnp.asarray(inputs(VECTORS)))["params"]
    return params["quadratic"]


def test_a_quadratic_models_spectrum_is_a_semicircle_or_what_is_given():
    """Wigner: the second moment is 1 + 1/P, and the edge is at 2 up to P^(-2/3)."""
    width = 64
    found = np.linalg.eigvalsh(drawn_quadratic(width=width))
    np.testing.assert_allclose(np.mean(found**2), 1 + 1 / width, rtol=0.02)
    np.testing.assert_allclose(np.abs(found).max(axis=-1).mean(), 2, atol=width ** (-2 / 3) * 2)
    given = [3.0, -0.5]
    planted = drawn_quadratic(width=2, eigenvalues=given, curvature=2.0)
    np.testing.assert_array_equal(planted, np.broadcast_to(np.diag([6.0, -1.0]), planted.shape))


def test_without_curvature_a_quadratic_models_tangent_kernel_does_not_move():
    for curvature in (0.0, 1.0):
        model, leaves, x = case("quadratic")
        leaves["quadratic"] = drawn_quadratic(width=8, curvature=curvature)
        jacobian = jax.jacobian(outputs_of(model, leaves, x))
        there, here = (jacobian(jnp.full(8, value)) for value in (1.0, 0.0))
        assert np.array_equal(there, here) == (curvature == 0)


def test_gradient_descent_on_a_quadratic_model_sharpens_to_just_below_the_edge():
    """η times the tangent kernel's largest eigenvalue rises past 2 and ends below, at 0 loss."""
    n, rate = 30, 8 / 30
    x, y = jnp.eye(n), jnp.asarray(np.random.default_rng(0).normal(size=(n, 1)))
    model = quadratic(1, width=60, curvature=0.4)
    leaves = trees.named_leaves(model.init(jax.random.key(0), x)["params"])
    f = outputs_of(model, leaves, x)

    def step(theta, _):
        jacobian = jax.jacobian(f)(theta)[:, 0]
        edge = rate * jnp.linalg.norm(jacobian, ord=2) ** 2
        residual = (f(theta) - y)[:, 0]
        return theta - rate * residual @ jacobian, (edge, residual @ residual)

    _, (edge, loss) = jax.lax.scan(step, leaves["parameters"], length=2000)
    assert edge[0] < 1.5
    assert edge.max() > 2
    assert 1.9 < edge[-1] < 2
    assert loss[-1] < 1e-4 * loss[0]


# Through the command line


@pytest.mark.parametrize(
    "words",
    [
        ["model=deep_linear"],
        ["model=two_layer"],
        ["model=resmlp", "model.depth=1"],
        [
            "model=resnet",
            "dataset.flatten=false",
            "model.depth=1",
            "model.stages=1",
            "model.norm=batch",
            "model.norm_group=3",
        ],
        pytest.param(
            ["model=vit", "dataset.flatten=false", "model.depth=1", "model.head_width=4"],
            marks=pytest.mark.slow,
        ),
        ["model=quadratic", "model.eigenvalues=[1,2,-0.1,0]"],
    ],
    ids=" ".join,
)
def test_every_preset_trains(words, elsewhere):
    tiny = ["dataset.train_size=30", "model.width=4", "steps=3", "optimizer.learning_rate=0.01"]
    assert main([*words, *tiny, "observables=[loss]", "logger=none"]) == 0
    (table,) = elsewhere.glob("outputs/run/*/*/metrics.parquet")
    losses = pq.read_table(table).column("train_loss").to_pylist()
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_a_frozen_readout_stays_where_it_was_drawn_while_the_rest_trains(elsewhere):
    words = ["model=two_layer", "model.width=4", "dataset=chebyshev", "steps=3"]
    assert main([*words, "observables=[loss]", "snapshots=[0]", "logger=none"]) == 0
    first, last = (
        np.load(next(elsewhere.glob(f"outputs/run/*/*/weights/{n}.npz"))) for n in (0, 3)
    )
    same = {path: np.array_equal(first[path], last[path]) for path in first.files}
    assert same == {"hidden_1/kernel": False, "readout/kernel": True}


def test_a_transformer_learns_to_repeat_its_input():
    model, leaves, x = case("transformer", depth=1)
    labels = jax.nn.one_hot(x, C)

    def loss(leaves):
        return -(labels * jax.nn.log_softmax(run(model, leaves, x))).sum(axis=-1).mean()

    step = jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(30):
        value, gradient = step(leaves)
        losses.append(float(value))
        leaves = jax.tree.map(lambda w, g: w - 0.3 * g, leaves, gradient)
    assert losses[-1] < 0.1 < losses[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_of_tokens_has_the_precision_of_the_config(dtype):
    config = {
        **job(f"precision={dtype}"),
        "model": {
            "_target_": "lmech.models.transformer.transformer",
            **SMALL,
        },
    }
    x = inputs(TOKENS)
    examples = Examples(x, np.eye(C, dtype=dtype)[x[:, 0]])
    problem = modelling.build_problem(config, Data(examples, examples))
    shapes = modelling.shapes_of(problem)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(dtype)}
    assert jax.eval_shape(problem.apply, shapes, x).dtype == dtype


@EACH
def test_the_tangent_kernel_is_that_of_jaxs_jacobian(name):
    model, leaves, x = case(name)

    def outputs(leaves, x):
        return run(model, leaves, x)

    J = jax.jit(jax.jacrev(outputs))(leaves, x)
    rows = jax.eval_shape(outputs, leaves, x).size
    flat = np.concatenate([np.asarray(leaf).reshape(rows, -1) for leaf in J.values()], axis=1)
    found = jax.jit(partial(kernels.empirical_ntk, outputs))(leaves, x)
    np.testing.assert_allclose(found, flat @ flat.T, rtol=1e-9, atol=1e-9 * np.abs(flat).max() ** 2)
