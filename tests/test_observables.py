"""What every observable preset owes the run that it watches."""

import re

import jax
import numpy as np
import pytest
from problems import column, job, train

from lmech import building, config, engine
from lmech.numerics.precision import numerics

pytestmark = pytest.mark.usefixtures("x64")

PRESETS = config.groups()["observables"]
SMALL = ("model.width=6", "model.activation=relu", "steps=6", "dataset.train_size=100")
SMALLER = (
    *("observables.batch_sharpness.batches=3", "observables.batch_sharpness.batch_size=20"),
    *("observables.spectral_density.samples=2", "observables.spectral_density.depth=8"),
)


def watched(presets, *overrides):
    """A job with these presets, measured every third step."""
    chosen = f"observables=[{','.join(presets)}]"
    composed = config.compose([chosen])
    names = list(composed.observables)
    every = [f"observables.{name}.every=3" for name in names]
    smaller = [text for text in SMALLER if text.split(".")[1] in names]
    probes = (name for name in names if composed.observables[name].get("examples") is not None)
    smaller += [f"observables.{name}.examples=20" for name in probes]
    return job(chosen, *every, *SMALL, *smaller, *overrides)


def weights(end, member=0):
    return [np.asarray(leaf[member]) for leaf in jax.tree.leaves(end.params)]


@pytest.fixture(scope="module")
def bare():
    with numerics():
        return {
            optimizer: weights(train([watched(["loss"], f"optimizer={optimizer}")])[1])
            for optimizer in ("gd", "adam")
        }


@pytest.mark.parametrize("preset", PRESETS)
def test_an_observable_changes_no_bit_of_the_parameters_and_measures_a_number(preset, bare):
    recorder, end = train([watched(["loss", preset], "optimizer=adam")])
    for found, expected in zip(weights(end), bare["adam"], strict=True):
        np.testing.assert_array_equal(found, expected)
    table = recorder.table(0).to_pydict()
    names = config.compose([f"observables=[{preset}]"]).observables
    columns = [c for c in table if any(c == n or c.startswith(f"{n}_") for n in names)]
    assert columns
    late = [row for row, step in enumerate(table["step"]) if step >= 3]
    for name in columns:
        values = [table[name][row] for row in late if table[name][row] is not None]
        assert values, name
        assert np.isfinite(np.asarray(values, float)).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_mapped_member_measures_what_it_would_alone_and_a_vmapped_one_nearly(preset):
    """Bound for vmap: reductions are reordered, 1e-6 a product of ~10³ terms, times up to 10³ by
    the conditioning of eigenvectors and ratios: 2e-3 of the column's largest value."""
    jobs = [watched(["loss", preset], f"seed={seed}") for seed in (0, 1)]
    alone = train([jobs[1]])[0]
    mapped, side_by_side = (train(jobs, mode=mode)[0] for mode in ("map", "vmap"))
    for name in alone.table(0).column_names:
        reference = column(alone, 0, name)
        for step, value in column(mapped, 1, name).items():
            np.testing.assert_array_equal(value, reference[step], err_msg=name)
        if not re.search(r"_(products|checks|misses|steps)$", name):
            for step, value in column(side_by_side, 1, name).items():
                scale = max(np.max(np.abs(reference[step]), initial=0), 1e-3)
                difference = np.abs(value - reference[step]).max(initial=0)
                assert np.isnan(difference) or difference <= 2e-3 * scale, (name, step)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_float32_measurement_has_no_float64_in_it(preset):
    batch = building.build([watched(["loss", preset])])
    program = batch.program
    inputs = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[0]), batch.inputs)
    text = (
        jax.jit(lambda inputs, data: engine.first_measurements(program, inputs, data))
        .lower(inputs, batch.data)
        .as_text()
    )
    assert not re.search(r"tensor<[^>]*f64>", text)


@pytest.mark.parametrize("preset", [p for p in PRESETS if p not in ("accuracy", "neural_collapse")])
@pytest.mark.parametrize(
    "setting",
    [
        ("dataset=chebyshev", "dataset.train_size=30"),
        ("model=cnn", "dataset.flatten=false", "loss=cross_entropy", "batch_size=20"),
    ],
    ids=["one real output", "cnn, cross-entropy, minibatches"],
)
def test_every_observable_traces_on_other_problems(preset, setting):
    """Shapes and types alone: nothing compiles."""
    extra = ["observables.batch_sharpness.batches=1"] if preset == "batch_sharpness" else []
    building.check(building.build([watched(["loss", preset], *setting, *extra)]))
