"""What every observable preset owes the run that it watches.

The numbers themselves stand in golden_observables.json, beside the version of our measures; to
renew it: python tests/test_observables.py
"""

import inspect
import json
import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from hydra.utils import get_method
from problems import PRESETS, column, job, train

from lmech import building, config, member, planning

pytestmark = pytest.mark.usefixtures("x64")

# Several at a time: a program costs more to compile than most observables do.
SOME = [PRESETS[i::5] for i in range(5)]
TOGETHER = pytest.mark.parametrize("presets", SOME, ids=lambda names: names[0])
GOLDEN = Path(__file__).parent / "golden_observables.json"
SMALL = ("model.width=6", "model.activation=relu", "steps=6", "dataset.train_size=100")
SMALLER = (
    *("observables.batch_sharpness.batches=3", "observables.batch_sharpness.batch_size=20"),
    *("observables.spectral_density.samples=2", "observables.spectral_density.depth=8"),
)


def words(presets):
    """Overrides for these presets, measured every third step."""
    chosen = f"observables=[{','.join(presets)}]"
    composed = config.compose([chosen])
    names = list(composed.observables)
    every = [f"observables.{name}.every=3" for name in names]
    smaller = [text for text in SMALLER if text.split(".")[1] in names]
    probes = (name for name in names if composed.observables[name].get("examples") is not None)
    smaller += [f"observables.{name}.examples=20" for name in probes]
    return [chosen, *every, *SMALL, *smaller]


def watched(presets, *overrides):
    """A job with these presets."""
    return job(*words(presets), *overrides)


def weights(end, member=0):
    return [np.asarray(leaf[member]) for leaf in jax.tree.leaves(end.params)]


def measurements(presets):
    """The float64 run's end, and the last number of every column (the norm of a vector)."""
    overrides = ("optimizer=adam", "precision=float64")
    recorder, end = train([watched(["loss", *presets], *overrides)])
    columns = {name: column(recorder, 0, name) for name in recorder.table(0).column_names[1:]}
    last = {name: values[max(values)] for name, values in columns.items()}
    return end, {name: float(np.linalg.norm(v) if v.ndim else v) for name, v in last.items()}


@pytest.mark.slow
@TOGETHER
def test_observables_change_no_bit_of_the_parameters_and_measure_the_golden_numbers(presets):
    end, found = measurements(presets)
    bare, _ = measurements([])
    for a, b in zip(weights(end), weights(bare), strict=True):
        np.testing.assert_array_equal(a, b)
    golden = json.loads(GOLDEN.read_text())
    assert golden["measures_version"] == planning.MEASURES_VERSION
    for name in config.compose([f"observables=[{','.join(presets)}]"]).observables:
        assert [key for key in found if key == name or key.startswith(f"{name}_")], name
    for name, value in found.items():
        np.testing.assert_allclose(value, golden["last"][name], rtol=1e-6, err_msg=name)


@pytest.mark.slow
@TOGETHER
def test_a_mapped_member_measures_what_it_would_alone_and_a_vmapped_one_nearly(presets):
    """Bound for vmap: reductions are reordered, 1e-6 a product of ~10³ terms, times up to 10³ by
    the conditioning of eigenvectors and ratios: 2e-3 of the column's largest value."""
    jobs = [watched(["loss", *presets], f"seed={seed}") for seed in (0, 1)]
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


def lowered(presets):
    """The text of a float32 program that measures them."""
    batch = building.build([watched(["loss", *presets])])
    inputs = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[0]), batch.inputs)
    first = partial(member.first_measurements, batch.program)
    return jax.jit(first).lower(inputs, batch.data).as_text()


@pytest.mark.slow
@TOGETHER
def test_float32_measurements_have_no_float64_in_them(presets):
    """Scalars may be: jax writes Python's constants so, and converts them."""
    wide = re.compile(r"tensor<[^>]*xf64>")
    if wide.search(lowered(presets)):
        assert [preset for preset in presets if wide.search(lowered([preset]))] == []


@pytest.mark.slow
@TOGETHER
@pytest.mark.parametrize(
    "setting",
    [
        ("dataset=chebyshev", "dataset.train_size=30"),
        ("model=cnn", "dataset.flatten=false", "loss=cross_entropy", "batch_size=20"),
    ],
    ids=["one real output", "cnn, cross-entropy, minibatches"],
)
def test_every_observable_traces_on_other_problems(presets, setting):
    """Shapes and types alone: nothing compiles."""
    labelled = ("accuracy", "neural_collapse", "class_geometry")
    named = [preset for preset in presets if preset not in labelled]
    extra = [o for o in ("observables.batch_sharpness.batches=1",) if "batch_sharpness" in named]
    building.check(building.build([watched(["loss", *named], *setting, *extra)]))


@pytest.mark.parametrize("preset", config.groups()["observables"])
def test_a_preset_shows_every_argument(preset):
    """What is not shown cannot be overridden without knowing the source."""
    for name, node in job(f"observables=[{preset}]")["observables"].items():
        arguments = inspect.signature(get_method(node["_target_"])).parameters
        assert {"every", "_target_", *arguments} == set(node), name


if __name__ == "__main__":
    from lmech.numerics.precision import numerics

    with numerics():
        last = {key: value for presets in SOME for key, value in measurements(presets)[1].items()}
    content = {"measures_version": planning.MEASURES_VERSION, "last": last}
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")
