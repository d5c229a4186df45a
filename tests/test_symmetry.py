"""Units that change places leave every model's outputs as they are; matching finds the places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmech import building, modelling, planning
from lmech.numerics import trees
from lmech.numerics.matching import permuted, weight_matching
from lmech.numerics.precision import numerics
from lmech.numerics.symmetry import Units, units

IMAGES = ["dataset=digits", "dataset.flatten=false"]
TEXT = ["dataset=modular", "dataset.p=7", "data_fraction=0.5"]


@pytest.fixture(autouse=True)
def _double():
    with numerics("highest"):
        yield


SMALL = {
    "mlp": ["model.width=6"],
    "mlp norm": ["model.width=6", "model.norm_group=2"],
    "deep_linear": ["model.width=6"],
    "two_layer": ["model.width=6"],
    "cnn": [*IMAGES, "model.width=6"],
    "resmlp": ["model.width=6", "model.norm=layer"],
    "resnet": [*IMAGES, "model.width=4"],
    "vit": [*IMAGES, "model.width=12", "model.head_width=4"],
    "transformer": [*TEXT, "model.width=12", "model.head_width=4"],
    "one_layer_transformer": [*TEXT],
}


def problem_of(*overrides):
    job = planning.expand([*overrides, "precision=float64"], {})[0]
    data = building.load_data(job.config)
    return modelling.build_problem(job.config, data), data


def drawn(problem, seed):
    """Weights without a tensor that is constant, so that no symmetry is there by chance."""
    generator = np.random.default_rng(seed)
    shapes = modelling.shapes_of(problem)
    return jax.tree.map(lambda leaf: 0.3 + 0.5 * generator.standard_normal(leaf.shape), shapes)


def rebuilt(tree, leaves):
    return jax.tree.unflatten(
        jax.tree.structure(tree), [leaves[k] for k in trees.named_leaves(tree)]
    )


@pytest.mark.parametrize("name", SMALL)
def test_units_that_change_places_leave_the_outputs_of_every_model(name):
    problem, data = problem_of(f"model={name.split()[0]}", *SMALL[name])
    params, x = drawn(problem, 0), data.train.x[:4]
    x = np.minimum(x, 6) if name == "transformer" else x  # which knows the outputs' tokens alone
    groups = units(problem.apply, params, x)
    generator = np.random.default_rng(1)
    orders = [generator.permutation(own.size) for own in groups]
    moved = rebuilt(params, permuted(trees.named_leaves(params), groups, orders))
    before, after = (np.asarray(problem.apply(w, x)) for w in (params, moved))
    assert np.abs(after - before).max() <= 1e-12 * max(1, np.abs(before).max())
    changed = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, moved)), strict=True)
    ]
    assert max(changed) > 0.1


def test_the_groups_of_a_multilayer_perceptron_are_its_hidden_layers():
    problem, data = problem_of("model=mlp", "model.width=6", "model.depth=2")
    shapes = modelling.shapes_of(problem)
    first, second = units(problem.apply, shapes, data.train.x[:4])
    assert first == Units(6, (("hidden_1/bias", 0), ("hidden_1/kernel", 1), ("hidden_2/kernel", 0)))
    assert second == Units(6, (("hidden_2/bias", 0), ("hidden_2/kernel", 1), ("readout/kernel", 0)))


def test_a_residual_stream_is_one_group_on_both_axes_of_its_matrices():
    problem, data = problem_of("model=resmlp", "model.width=6", "model.depth=2")
    (stream,) = units(problem.apply, modelling.shapes_of(problem), data.train.x[:4])
    assert {("block_1/out/kernel", 0), ("block_1/out/kernel", 1)} <= set(stream.axes)


def test_heads_of_attention_are_a_group_and_the_vocabulary_is_none():
    problem, data = problem_of("model=transformer", *SMALL["transformer"])
    groups = units(problem.apply, modelling.shapes_of(problem), data.train.x[:4])
    shapes = trees.named_leaves(modelling.shapes_of(problem))
    heads = {own.size for own in groups if any("query" in path for path, _ in own.axes)}
    assert shapes["block_1/attention/query/kernel"].shape[1] in heads
    assert len(groups) >= 4  # stream, heads, their queries and values, hidden units of a block


def test_what_tells_units_apart_is_no_symmetry():
    params = {"w": jax.ShapeDtypeStruct((3, 5), "float32")}
    x = jax.ShapeDtypeStruct((2, 3), "float32")
    mark = jnp.arange(5.0)

    def free(p, x):
        return jnp.tanh(x @ p["w"]).sum(axis=1)

    assert units(free, params, x) == [Units(5, (("w", 1),))]
    for ordered in (
        lambda p, x: (mark[None] * (x @ p["w"])).sum(axis=1),
        lambda p, x: jnp.cumsum(x @ p["w"], axis=1).max(axis=1),
        lambda p, x: (x @ p["w"]).reshape(-1),
        lambda p, x: (x @ p["w"])[:, :2].sum(axis=1),
        lambda p, x: x @ p["w"],
    ):
        with pytest.raises(ValueError, match="no units of this model may change places"):
            units(ordered, params, x)


def planted(name, *overrides):
    """A model's weights, the same with its units in another order, its groups, that order."""
    problem, data = problem_of(f"model={name}", *overrides)
    params = drawn(problem, 3)
    groups = units(problem.apply, params, data.train.x[:4])
    generator = np.random.default_rng(4)
    orders = [generator.permutation(own.size) for own in groups]
    leaves = {path: leaf - 0.3 for path, leaf in trees.named_leaves(params).items()}
    return leaves, permuted(leaves, groups, orders), groups, orders


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("mlp", ["model.width=24", "model.depth=3"]), ("cnn", [*IMAGES, "model.width=16"])],
)
def test_weight_matching_recovers_a_planted_permutation(name, overrides):
    a, b, groups, orders = planted(name, *overrides)
    found = weight_matching(a, b, groups)
    for planted_order, order in zip(orders, found.orders, strict=True):
        np.testing.assert_array_equal(planted_order[order], np.arange(len(order)))
    for path in a:
        np.testing.assert_array_equal(found.leaves[path], a[path])


@pytest.mark.parametrize("name", ["mlp", "resmlp"])
def test_its_objective_never_falls_and_its_leaves_are_those_of_its_orders(name):
    a, _, groups, _ = planted(name, "model.width=16")
    generator = np.random.default_rng(5)
    b = {path: generator.standard_normal(leaf.shape) for path, leaf in a.items()}
    found = weight_matching(a, b, groups)
    assert len(found.objective) > 2
    assert (np.diff(found.objective) > 0).all()
    again = permuted(b, groups, found.orders)
    assert all((again[path] == found.leaves[path]).all() for path in b)
    product = sum(np.vdot(a[path], again[path]) for path in a)
    assert found.objective[-1] == pytest.approx(product, rel=1e-12)


def test_a_network_is_matched_to_itself_by_the_identity():
    a, _, groups, _ = planted("mlp", "model.width=16")
    found = weight_matching(a, a, groups)
    assert all((order == np.arange(len(order))).all() for order in found.orders)
    assert len(found.objective) == 1


def test_one_layer_is_matched_as_well_as_by_trying_all_permutations():
    from itertools import permutations

    generator = np.random.default_rng(6)
    shapes = {"in/kernel": (3, 5), "out/kernel": (5, 2)}
    a, b = ({k: generator.standard_normal(s) for k, s in shapes.items()} for _ in range(2))
    own = Units(5, (("in/kernel", 1), ("out/kernel", 0)))
    best = max(
        sum(np.vdot(a[k], leaf) for k, leaf in permuted(b, [own], [np.array(order)]).items())
        for order in permutations(range(5))
    )
    assert weight_matching(a, b, [own]).objective[-1] == pytest.approx(best, rel=1e-12)
