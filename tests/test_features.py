"""Activations, dead units, logits and effective rank; and what holds of every probe-set observable.

The table at the end also runs what is in ``observables.gradients`` and ``observables.collapse``.
"""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from problems import measured
from problems import state as new_state

from lmech.datasets import Examples
from lmech.numerics import features as numerics
from lmech.numerics import trees
from lmech.observables import features
from lmech.observables.collapse import class_geometry, neural_collapse
from lmech.observables.gradients import (
    gradient_coherence,
    gradient_noise,
    input_jacobian,
)

pytestmark = pytest.mark.usefixtures("x64")

RELU = ("precision=float64", "model.activation=relu")
CNN = ("precision=float64", "model=cnn", "dataset.flatten=false", "model.width=4", "model.depth=2")

state = cache(new_state)


def changed(params, path, change):
    """The parameters with one tensor replaced by ``change(tensor)``."""
    layer, tensor = path.split("/")
    return params | {layer: params[layer] | {tensor: change(params[layer][tensor])}}


def with_outputs(here, f, y):
    """A state whose model puts out ``f`` whatever its weights, with targets ``y``."""
    train = Examples(here.data.train.x[: len(f)], y)
    problem = here.problem._replace(apply=lambda _params, x: f[: len(x)])
    return here._replace(problem=problem, data=here.data._replace(train=train))


def with_activations(here, activations):
    return here._replace(problem=here.problem._replace(activations=activations))


def test_a_tensors_own_update_is_its_change_times_what_its_layer_saw_at_step_0():
    """mean |ΔW h₀|; the layer's whole change has the earlier layers' part too."""
    here = state(*RELU)
    observable = features.layer_updates()
    memory = observable.init(here)
    bumped = changed(here.params, "hidden_1/kernel", lambda w: w + 0.01)
    bumped = changed(bumped, "hidden_2/kernel", lambda w: w * 1.5)
    _, values = observable.measure(here._replace(params=bumped), memory)
    first, x = here.params["hidden_1"], here.data.train.x
    seen = np.maximum(np.asarray(x @ first["kernel"] + first["bias"][None]), 0)
    own = np.abs(seen @ np.asarray(0.5 * here.params["hidden_2"]["kernel"])).mean()
    np.testing.assert_allclose(values["hidden_2_kernel"], own)
    np.testing.assert_allclose(
        values["hidden_1_kernel"], np.abs(0.01 * np.asarray(x).sum(axis=1)).mean()
    )
    assert values["readout_kernel"] == values["hidden_2_bias"] == 0


def test_activations_have_not_changed_at_step_0_and_their_size_is_that_of_the_forward_pass():
    here = state("precision=float64")
    values = measured(features.activations(), here)
    layers = ("hidden_1", "activation_1", "hidden_2", "activation_2", "readout")
    quantities = ("rms", "mean_change", "rms_change", "relative_change")
    assert set(values) == {f"{what}_{layer}" for what in quantities for layer in layers}
    for name, value in values.items():
        if "change" in name:
            np.testing.assert_allclose(value, 0, atol=1e-12)
    first = here.params["hidden_1"]
    h = np.asarray(here.data.train.x @ first["kernel"] + first["bias"][None])
    np.testing.assert_allclose(values["rms_hidden_1"], np.sqrt(np.mean(h**2)))
    np.testing.assert_allclose(values["rms_activation_1"], np.sqrt(np.mean(np.tanh(h) ** 2)))


@pytest.mark.parametrize("microbatch", [None, 7])
def test_activations_change_by_what_the_weights_make_them(microbatch):
    here = state("precision=float64", "model.activation=linear", "model.bias=false")
    observable = features.activations(examples=30, microbatch=microbatch)
    memory = observable.init(here)
    kernel = here.params["hidden_2"]["kernel"]
    moved = here._replace(params=changed(here.params, "hidden_2/kernel", lambda w: 1.5 * w))
    _, values = observable.measure(moved, memory)
    h = np.asarray(memory["hidden_1"] @ kernel) / 2
    np.testing.assert_allclose(values["relative_change_hidden_1"], 0, atol=1e-14)
    for layer in ("hidden_2", "activation_2", "readout"):
        np.testing.assert_allclose(values[f"relative_change_{layer}"], 0.5)
    np.testing.assert_allclose(values["mean_change_hidden_2"], np.abs(h).mean())
    np.testing.assert_allclose(values["rms_change_hidden_2"], np.sqrt(np.mean(h**2)))
    np.testing.assert_allclose(values["rms_hidden_2"], 3 * np.sqrt(np.mean(h**2)))


def test_a_nested_layers_column_has_no_slash():
    here = state("precision=float64")
    nested = with_activations(here, lambda _, x: {"block/inner": x, "readout": x})
    assert "rms_block_inner" in measured(features.activations(), nested)


@pytest.mark.parametrize("observable", [features.activations(), features.effective_rank()])
def test_a_model_that_does_not_tell_its_layers_is_a_clear_error(observable):
    silent = with_activations(state(), lambda _, x: {})  # noqa: ARG005
    with pytest.raises(ValueError, match="does not tell what its layers put out"):
        measured(observable, silent)


@pytest.mark.parametrize("microbatch", [None, 7])
def test_relu_units_that_no_example_reaches_are_dead(microbatch):
    here = state(*RELU)
    biases = {"hidden_1/bias": 3, "hidden_2/bias": 1}  # so many units pushed below 0
    params = here.params
    for path, dead in biases.items():
        params = changed(params, path, lambda _, n=dead: jnp.asarray([-99.0] * n + [9.0] * (8 - n)))
    values = measured(features.dead_units(microbatch=microbatch), here._replace(params=params))
    assert values == {"": 4 / 16, "activation_1": 3 / 8, "activation_2": 1 / 8}


def test_a_saturated_tanh_unit_is_dead():
    here = state("precision=float64", "model.depth=1")
    params = changed(here.params, "hidden_1/bias", lambda b: b.at[:2].set(jnp.asarray([99, -99])))
    values = measured(features.dead_units(), here._replace(params=params))
    assert values == {"": 2 / 8, "activation_1": 2 / 8}


@pytest.mark.parametrize("microbatch", [None, 7])
def test_a_convolutions_unit_is_a_channel(microbatch):
    here = state(*CNN)
    params = changed(here.params, "hidden_1/bias", lambda _: jnp.asarray([-99.0, 9, 9, 9]))
    params = changed(params, "hidden_2/bias", lambda b: jnp.full_like(b, 99))
    values = measured(features.dead_units(microbatch=microbatch), here._replace(params=params))
    assert values == {"": 1 / 8, "activation_1": 1 / 4, "activation_2": 0}


def test_a_channel_with_one_position_that_varies_is_alive():
    def activations(_, x):
        h = jnp.zeros((len(x), 2, 2, 3), x.dtype)
        return {"activation": h.at[:, 1, 0, 2].set(x.sum(axis=-1)), "readout": x}

    values = measured(features.dead_units(), with_activations(state(*RELU), activations))
    np.testing.assert_allclose(values["activation"], 2 / 3)


# Columns: units. Two are multiples of each other, one is 0, one is constant, two rise linearly.
UNITS = np.array([[0.0, 0, 0, 1, 1, 2], [1, 2, 0, 1, 2, 3], [3, 6, 0, 1, 3, 4], [3, 6, 0, 1, 4, 5]])


@pytest.mark.parametrize("microbatch", [None, 3])
@pytest.mark.parametrize(
    ("cosine", "centred", "expected"),
    [
        (0.9999, False, 4),  # multiples are one, and 0 is none
        (0.99, False, 3),  # (1 2 3 4) and (2 3 4 5): 0.994
        (0.9, False, 2),  # both and (0 1 3 3): 0.963, 0.937; the constant and that: 0.803
        (0.8, False, 1),
        (0.9999, True, 2),  # the constant is none, the lines are one, 0.947 off (0 1 3 3)
        (0.9, True, 1),
    ],
)
def test_units_that_are_nearly_multiples_of_another_are_one(cosine, centred, expected, microbatch):
    here = with_activations(state("precision=float64", *RELU), lambda _, x: {"activation": x})
    train = here.data.train._replace(x=jnp.asarray(UNITS), y=jnp.zeros((4, 1)))
    here = here._replace(data=here.data._replace(train=train))
    observable = features.distinct_units(cosine=cosine, centred=centred, microbatch=microbatch)
    assert measured(observable, here) == {"": expected, "activation": expected}


@pytest.mark.parametrize("centred", [False, True])
def test_distinct_units_are_those_of_a_loop_over_pairs_of_features(centred):
    here = state("precision=float64", *RELU)
    layers = here.problem.activations(here.params, here.data.train.x)
    found = measured(features.distinct_units(cosine=0.7, centred=centred), here)
    for layer in ("activation_1", "activation_2"):
        kept = []
        for f in np.asarray(trees.named_leaves(layers)[layer]).T:
            own = f - f.mean() if centred else f
            own = own / max(np.linalg.norm(own), 1e-300)
            if own.any() and all(own @ other < 0.7 for other in kept):
                kept.append(own)
        assert found[layer] == len(kept)
    assert found[""] == found["activation_1"] + found["activation_2"]


def test_the_channels_of_a_convolution_are_compared_over_all_positions():
    here = with_activations(
        state(*RELU),
        lambda _, x: {"activation": jnp.stack([x, x.at[:, 0].add(9)], axis=-1)[:, None]},
    )
    assert measured(features.distinct_units(), here)["activation"] == 2


def test_a_unit_is_distinct_by_the_examples_that_count():
    here = with_activations(state(*RELU), lambda _, x: {"activation": x})
    x = jnp.asarray([[1.0, 1.0], [5.0, 0.0], [1.0, 1.0]])
    for weight, expected in ((np.array([1, 0, 1]), 1), (np.array([1, 1, 1]), 2)):
        train = here.data.train._replace(x=x, y=jnp.zeros((3, 1)), weight=jnp.asarray(weight))
        one = here._replace(data=here.data._replace(train=train))
        assert measured(features.distinct_units(), one)[""] == expected


def test_dead_units_of_a_model_without_activation_layers_names_the_layers_that_it_has():
    with pytest.raises(ValueError, match=r"starts with 'activation'.*model's are readout: leave"):
        measured(features.dead_units(), state("model.depth=0"))


def test_logits_are_those_written_out_by_hand():
    f = jnp.asarray([[3.0, 1, -4], [0, 2, 1]])
    values = measured(features.logits(), with_outputs(state(*RELU), f, jnp.asarray([0, 2])))
    assert values.keys() == {"norm", "max", "gap", "margin", "log_partition"}
    np.testing.assert_allclose(values["norm"], np.sqrt((26 + 5) / 2))
    assert values["max"] == 4
    log_z = np.log(np.exp(np.asarray(f)).sum(axis=1))
    np.testing.assert_allclose(values["log_partition"], np.mean(log_z**2))
    np.testing.assert_allclose(values["gap"], (2 + 1) / 2)
    np.testing.assert_allclose(values["margin"], (2 - 1) / 2)


def test_logits_of_real_targets_have_no_label_and_a_single_one_no_gap():
    here = state("precision=float64")
    f = jnp.asarray([[3.0, 1], [0, 2]])
    assert measured(features.logits(), with_outputs(here, f, f)).keys() == {"norm", "max", "gap"}
    single = with_outputs(here, f[:, :1], f[:, :1])
    values = measured(features.logits(), single)
    assert values.keys() == {"norm", "max"}
    np.testing.assert_allclose(values["norm"], np.sqrt(4.5))


@pytest.mark.parametrize("microbatch", [None, 3])
def test_attention_logits_are_the_largest_and_the_entropy_is_that_of_the_weights(microbatch):
    here = state(*RELU)
    logits = jnp.arange(8.0)[None, :, None, None] * jnp.ones((1, 1, 2, 4))
    layers = {
        "block_1/attention/logits": -logits,
        "block_1/attention/weights": jnp.zeros((1, 8, 2, 4)).at[..., 0].set(1),
        "block_2/attention/logits": logits / 10,
        "block_2/attention/weights": jnp.full((1, 8, 2, 4), 1 / 4),
        "readout": jnp.full((1, 3), 99.0),
    }

    def activations(_, x):
        return {name: h.repeat(len(x), axis=0) for name, h in layers.items()}

    values = measured(
        features.attention_logits(examples=8, microbatch=microbatch),
        with_activations(here, activations),
    )
    assert values == {
        "": 7,
        "block_1_attention_logits": 7,
        "block_2_attention_logits": pytest.approx(0.7),
        "block_1_attention_weights": 0,
        "block_2_attention_weights": pytest.approx(np.log(4)),
    }


def rank_of(matrix):
    return numerics.effective_rank(jnp.linalg.svd(matrix, compute_uv=False))


def test_the_effective_rank_is_one_of_parallel_rows_and_the_dimension_of_an_isometry():
    rng = np.random.default_rng(0)
    line = jnp.asarray(np.outer(rng.normal(size=9), rng.normal(size=5)))
    orthonormal = jnp.asarray(np.linalg.qr(rng.normal(size=(9, 5)))[0])
    np.testing.assert_allclose(rank_of(line), 1)
    np.testing.assert_allclose(rank_of(7 * orthonormal), 5)
    p = np.asarray([0.75, 0.25])
    found = rank_of(jnp.diag(jnp.asarray([3.0, 1, 0])))
    np.testing.assert_allclose(found, np.exp(-(p @ np.log(p))))


def test_the_effective_rank_in_float32_is_not_drowned_in_rounding():
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 64))
    exact = rank_of(jnp.asarray(flat))
    found = rank_of(numerics.triangular(jnp.asarray(flat, jnp.float32)))
    np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_the_effective_rank_of_a_convolution_is_of_its_channels_over_positions():
    here = state(*CNN)
    values = measured(features.effective_rank(microbatch=7), here)
    h = here.problem.activations(here.params, here.data.train.x)
    sigma = np.linalg.svd(np.asarray(h["activation_1"]).reshape(-1, 4), compute_uv=False)
    p = sigma / sigma.sum()
    np.testing.assert_allclose(values["activation_1"], np.exp(-(p @ np.log(p))))
    assert set(values) == set(h)


@pytest.mark.parametrize("size", [1, 4, 5, 10, 99, None])
def test_microbatches_in_a_row_are_the_whole(size):
    x = jnp.arange(20.0).reshape(10, 2)
    found = numerics.in_microbatches(lambda x: {"twice": 2 * x}, x, size)
    np.testing.assert_array_equal(found["twice"], 2 * x)


# What holds of every observable that looks at the probe set, whatever it measures.

SPLIT = {
    "activations": features.activations,
    "dead_units": features.dead_units,
    "distinct_units": features.distinct_units,
    "logits": features.logits,
    "effective_rank": features.effective_rank,
    "gradient_noise": gradient_noise,
    "gradient_coherence": gradient_coherence,
    "input_jacobian": input_jacobian,
    "neural_collapse": neural_collapse,
    "class_geometry": class_geometry,
}
# Interacting examples refuse to be taken alone.
TOGETHER = (
    "activations",
    "dead_units",
    "distinct_units",
    "logits",
    "effective_rank",
    "neural_collapse",
    "class_geometry",
)


def same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


@pytest.mark.parametrize("name", SPLIT)
def test_microbatches_change_only_the_rounding(name):
    here = state(*RELU)
    whole = measured(SPLIT[name](examples=50, microbatch=None), here)
    same(measured(SPLIT[name](examples=50, microbatch=7), here), whole, rtol=1e-9, atol=1e-12)
    runs = here._replace(microbatch=7)
    found = measured(SPLIT[name](examples=50, microbatch=None), runs)
    same(found, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TOGETHER)
def test_batch_norm_is_seen_in_whole_groups(name):
    here = state(*RELU, "loss=cross_entropy", "model.norm_group=20")
    whole = measured(SPLIT[name](), here)
    same(measured(SPLIT[name](microbatch=20), here), whole, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="batch norm works on groups of 20"):
        measured(SPLIT[name](microbatch=7), here)
