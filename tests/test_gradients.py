"""Norms of weights, updates and gradients; gradients of single examples; the input Jacobian."""

import re
from functools import cache
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import column, job, measured, train
from problems import state as new_state

from lmech.datasets import Examples
from lmech.numerics import trees
from lmech.observables import gradients, memoryless, training_examples
from lmech.problem import loss_and_gradient

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = ("precision=float64", "model.depth=0", "model.bias=false")
NET = ("precision=float64", "model.width=4", "loss=cross_entropy")
state = cache(new_state)


def on(here, x, y):
    """The state with other training examples."""
    return here._replace(data=here.data._replace(train=Examples(x, y)))


def dense_gradients(here, examples=None):
    """Every example's gradient as a row [n, P], from one Jacobian of the losses."""
    chosen = training_examples(here, examples)
    w, unravel = ravel_pytree(here.params)

    def losses(w):
        return here.problem.loss(here.problem.apply(unravel(w), chosen.x), chosen.y)

    return np.asarray(jax.jacobian(losses)(w))


def linear_gradients(here):
    """The same for linear regression, written out: xᵢ (fᵢ − yᵢ)ᵀ."""
    x, y = map(np.asarray, here.data.train[:2])
    residuals = x @ np.asarray(here.params["readout"]["kernel"]) - np.eye(10)[y]
    return np.einsum("ni,nc->nic", x, residuals).reshape(len(x), -1)


def total_variance(rows):
    return np.mean(np.sum((rows - rows.mean(axis=0)) ** 2, axis=1))


def test_the_noise_scale_of_linear_regression_is_the_written_out_one():
    here = state(*LINEAR)
    rows = linear_gradients(here)
    values = measured(gradients.gradient_noise(), here)
    mean = rows.mean(axis=0)
    np.testing.assert_allclose(values["trace"], total_variance(rows))
    np.testing.assert_allclose(values["signal"], mean @ mean)
    np.testing.assert_allclose(values[""], total_variance(rows) / (mean @ mean))


def test_the_noise_scale_of_a_net_is_that_of_the_dense_jacobian_of_its_losses():
    here = state(*NET)
    rows = dense_gradients(here)
    values = measured(gradients.gradient_noise(microbatch=7), here)
    mean = rows.mean(axis=0)
    np.testing.assert_allclose(values[""], total_variance(rows) / (mean @ mean))


def test_over_all_probe_sets_the_noise_and_the_signal_average_to_the_exact_ones():
    here = state(*LINEAR)
    x, y = (array[:6] for array in here.data.train[:2])
    exact = measured(gradients.gradient_noise(), on(here, x, y))
    chosen = np.asarray(training_examples(on(here, np.arange(6), np.arange(6)), 3).x)
    observable = gradients.gradient_noise(examples=3)

    @jax.jit
    def measure(x, y):
        return observable.measure(on(here, x, y), ())[1]

    found = []
    for subset in combinations(range(6), 3):
        # Ordered so that the fixed places which the probe set takes hold this subset.
        order = np.empty(6, int)
        order[chosen] = subset
        order[np.setdiff1d(range(6), chosen)] = np.setdiff1d(range(6), subset)
        found.append(measure(x[order], y[order]))
    assert len({float(values["trace"]) for values in found}) == 20
    for name in ("trace", "signal"):
        np.testing.assert_allclose(np.mean([values[name] for values in found]), exact[name])


@pytest.mark.parametrize("examples", [None, 25])
def test_the_coherence_is_the_mean_cosine_of_pairs_of_the_dense_jacobians_rows(examples):
    here = state(*NET)
    rows = dense_gradients(here, examples)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(len(rows), dtype=bool)]
    values = measured(gradients.gradient_coherence(examples, microbatch=7), here)
    np.testing.assert_allclose(values[""], cosines.mean())
    mean = rows.mean(axis=0)
    np.testing.assert_allclose(values["ratio"], mean @ mean / np.mean(np.sum(rows**2, axis=1)))


def test_identical_examples_are_fully_coherent_and_without_noise():
    here = state(*NET)
    twins = on(here, *(jnp.repeat(array[:1], 9, axis=0) for array in here.data.train[:2]))
    coherence = measured(gradients.gradient_coherence(), twins)
    np.testing.assert_allclose([coherence[""], coherence["ratio"]], 1)
    np.testing.assert_allclose(measured(gradients.gradient_noise(), twins)[""], 0, atol=1e-12)


def test_examples_without_a_gradient_have_no_direction():
    here = state(*LINEAR)
    x = here.data.train.x[:8]
    f = here.problem.apply(here.params, x)
    fitted = on(here, x, f.at[:5].add(1.0))
    values = measured(gradients.gradient_coherence(), fitted)
    expected = measured(gradients.gradient_coherence(), on(here, x[:5], f[:5] + 1))
    np.testing.assert_allclose(values[""], expected[""])
    np.testing.assert_allclose(values["ratio"], expected["ratio"] * 5 / 8)
    assert np.isnan(measured(gradients.gradient_coherence(), on(here, x, f))[""])


def test_the_input_jacobian_of_a_linear_model_is_the_norm_of_its_weights():
    here = state(*LINEAR)
    found = measured(gradients.input_jacobian(), here)[""]
    np.testing.assert_allclose(found, np.linalg.norm(here.params["readout"]["kernel"]))


@pytest.mark.parametrize("model", [NET, ("precision=float64", "model=cnn", "model.depth=1")])
def test_the_input_jacobian_of_a_net_is_the_dense_one(model):
    here = state(*model, "dataset.flatten=false", "dataset.train_size=12")
    x = here.data.train.x

    def outputs(x):
        return here.problem.apply(here.params, x)

    dense = np.asarray(jax.jacobian(outputs)(x))  # [n, C, n, H, W, …]
    norms = [np.linalg.norm(dense[i, :, i]) for i in range(len(x))]
    found = measured(gradients.input_jacobian(microbatch=5), here)
    np.testing.assert_allclose(found[""], np.mean(norms))


def test_more_outputs_than_inputs_have_the_same_input_jacobian():
    here = state(*LINEAR)
    A = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7)))
    wide = on(here, here.data.train.x[:, :3], here.data.train.y)
    wide = wide._replace(problem=here.problem._replace(apply=lambda _, x: jnp.sin(x @ A)))
    slopes = np.cos(wide.data.train.x @ A)[:, None] * np.asarray(A)[None]
    expected = np.linalg.norm(slopes, axis=(1, 2)).mean()
    np.testing.assert_allclose(measured(gradients.input_jacobian(), wide)[""], expected)


def test_integer_inputs_have_no_jacobian_and_say_so():
    here = state(*LINEAR)
    tokens = on(here, jnp.ones((60, 64), jnp.int32), here.data.train.y)
    with pytest.raises(ValueError, match="this dataset's are int32: leave input_jacobian out"):
        measured(gradients.input_jacobian(), tokens)


@pytest.mark.parametrize("name", ["gradient_noise", "gradient_coherence", "input_jacobian"])
def test_what_takes_examples_alone_refuses_batch_norm(name):
    here = state("model.norm_group=20")
    with pytest.raises(ValueError, match=f"{name} needs .* examples interact: leave {name} out"):
        measured(getattr(gradients, name)(), here)


@pytest.mark.parametrize("name", ["gradient_noise", "gradient_coherence"])
def test_one_example_has_nothing_to_compare_with(name):
    with pytest.raises(ValueError, match=f"set observables.{name}.examples to 2"):
        measured(getattr(gradients, name)(examples=1), state(*LINEAR))


def norms(tree):
    """Of all entries and of each tensor, in NumPy."""
    leaves = {path.replace("/", "_"): leaf for path, leaf in trees.named_leaves(tree).items()}
    total = np.concatenate([np.ravel(leaf) for leaf in leaves.values()])
    return {name: np.linalg.norm(np.ravel(leaf)) for name, leaf in {"": total, **leaves}.items()}


def test_the_weight_norm_is_that_of_all_tensors_and_of_each():
    here = state(*NET)
    values = measured(gradients.weight_norm(), here)
    assert values.keys() == norms(here.params).keys() >= {"", "hidden_1_kernel", "readout_bias"}
    for name, norm in norms(here.params).items():
        np.testing.assert_allclose(values[name], norm, err_msg=name)


@pytest.mark.parametrize("batch_size", [None, 20])
def test_the_gradient_norm_is_of_the_whole_training_set(batch_size):
    here = state(*NET)._replace(batch_size=batch_size)
    _, gradient = loss_and_gradient(here.problem, here.params, here.data.train, None)
    values = measured(gradients.gradient_norm(), here)
    for name, norm in norms(gradient).items():
        np.testing.assert_allclose(values[name], norm, err_msg=name)


def test_the_observables_of_the_documentation_do_what_they_say():
    text = (Path(__file__).parents[1] / "docs/observables.md").read_text(encoding="utf-8")
    section = text.partition("\n## One's own\n")[2].partition("\n## ")[0]
    own = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.S):
        exec(block, own)
    here = state(*NET)
    norm = measured(gradients.gradient_norm(), here)[""]
    np.testing.assert_allclose(measured(own["gradient_norm"](), here)[""], norm)
    turning = own["turning"]()
    memory, values = turning.measure(here, turning.init(here))
    np.testing.assert_allclose(values[""], 1)
    moved = here._replace(params=jax.tree.map(lambda w: w + 1, here.params))
    rows = [
        ravel_pytree(loss_and_gradient(here.problem, one.params, here.data.train, None)[1])[0]
        for one in (here, moved)
    ]
    cosine = rows[0] @ rows[1] / np.prod([np.linalg.norm(row) for row in rows])
    np.testing.assert_allclose(turning.measure(moved, memory)[1][""], cosine)


def test_a_tensor_that_starts_at_zero_is_at_an_infinite_relative_distance():
    here = state(*NET, "model.init=normal_fan_in")
    observable = gradients.weight_distance()
    moved = here._replace(params=jax.tree.map(lambda w: w + 1, here.params))
    _, values = observable.measure(moved, observable.init(here))
    assert np.isinf(values["relative_hidden_1_bias"])
    assert np.isfinite(values["relative_hidden_1_kernel"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "every"),
    [
        (("optimizer=gd",), 1),
        (("optimizer=sgd", "batch_size=20"), 1),
        (("optimizer=adam", "batch_size=20"), 3),
    ],
)
def test_norms_along_a_run_are_those_of_its_iterates(how, every):
    observables = {
        "w": memoryless(lambda state: {"": ravel_pytree(state.params)[0]}),
        "weight_norm": gradients.weight_norm(),
        "weight_distance": gradients.weight_distance(),
        "update_norm": gradients.update_norm(),
    }
    cadence = {name: 1 if name == "w" else every for name in observables}
    recorder, _ = train([job(*NET, *how, "steps=5")], observables=observables, every=cadence)
    _, unravel = ravel_pytree(state(*NET).params)
    w = [unravel(row) for _, row in sorted(column(recorder, 0, "w").items())]
    step = 3

    def difference(a, b):
        return norms(jax.tree.map(np.subtract, w[a], w[b]))

    expected = {
        "weight_norm": (norms(w[step]), None),
        "weight_distance": (difference(step, 0), norms(w[0])),
        "update_norm": (difference(step + 1, step), norms(w[step])),
    }
    for observable, (values, reference) in expected.items():
        for tensor, value in values.items():
            name = f"{observable}_{tensor}".rstrip("_")
            found = column(recorder, 0, name)[step]
            np.testing.assert_allclose(found, value, err_msg=name)
            if reference is not None:
                name = f"{observable}_relative_{tensor}".rstrip("_")
                found = column(recorder, 0, name)[step]
                relative = value / reference[tensor]
                np.testing.assert_allclose(found, relative, err_msg=name)
