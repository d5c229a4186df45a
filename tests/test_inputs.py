"""Label noise, a fraction of the data and the init's scale, as inputs of the compiled program."""

import jax
import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from problems import PRESETS, column, job, train

from lmech import building, config, datasets, engine, member, planning, sampling
from lmech.datasets import Examples
from lmech.engine import End
from lmech.lanes import Record
from lmech.observables import training_examples
from lmech.observables.features import dead_units
from lmech.problem import count, masked
from lmech.recorder import Recorder
from lmech.values import ConfigError

pytestmark = pytest.mark.usefixtures("x64")

FRACTION = "data_fraction=0.6"
NARROW = ("precision=float64", "model.width=4", "model.depth=1", "model.activation=relu")


def weights(end, place=0):
    return np.asarray(ravel_pytree(jax.tree.map(lambda leaf: leaf[place], end.params))[0])


def run(batch):
    recorder, end = Recorder(len(batch.inputs.horizon)), None
    for event in engine.train(*batch):
        if isinstance(event, End):
            end = event
        elif isinstance(event, Record):
            recorder.add(event)
    return recorder, end


def on_its_own(full, plain):
    """The batch of ``plain`` on the examples that ``full`` keeps, as a dataset of its own."""
    batch = building.build([plain])
    rows = building.build([full]).inputs.rows
    count = rows.count[0]
    train = datasets.take(batch.data.train, rows.own[0, :count])
    batches = building.minibatches([plain], count, [None])
    return batch._replace(data=batch.data._replace(train=train), batches=batches)


def at_start(batch):
    inputs = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[0]), batch.inputs)
    return member.initial_state(batch.program, inputs, jax.device_put(batch.data))


def measurements(batch, observables):
    """All observables once at step 0, as one program."""
    state = at_start(batch)

    def values(params, optimizer):
        here = state._replace(params=params, optimizer_state=optimizer)
        return {n: o.measure(here, o.init(here))[1] for n, o in observables.items()}

    return jax.jit(values)(state.params, state.optimizer_state)


# a fraction of the data


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [[], ["microbatch=7"], ["batch_size=8", "optimizer=adam"], ["loss=cross_entropy"]]
)
def test_training_on_a_fraction_is_training_on_those_examples_alone(how):
    watched = [*NARROW, "observables=[loss,accuracy]", *how]
    full, plain = job(*watched, FRACTION), job(*watched)
    recorder, end = run(building.build([full]))
    alone, alone_end = run(on_its_own(full, plain))
    np.testing.assert_allclose(weights(end), weights(alone_end), rtol=1e-12, atol=1e-14)
    for name in recorder.table(0).column_names[1:]:
        ours, theirs = column(recorder, 0, name), column(alone, 0, name)
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-12)


ONCE = {
    **{
        f"trace_{matrix}": ("spectrum.trace", {"matrix": matrix, "samples": None})
        for matrix in ("hessian", "gauss_newton", "empirical_fisher", "residual")
    },
    "sharpness": ("curvature.sharpness", {"k": 2}),
    "noise": ("gradients.gradient_noise", {}),
    "coherence": ("gradients.gradient_coherence", {}),
    "jacobian": ("gradients.input_jacobian", {}),
    "gradient": ("gradients.gradient_norm", {}),
    "activations": ("features.activations", {"microbatch": 7}),
    "dead": ("features.dead_units", {"microbatch": 7}),
    "distinct": ("features.distinct_units", {"microbatch": 7}),
    "distinct_centred": ("features.distinct_units", {"cosine": 0.5, "centred": True}),
    "logits": ("features.logits", {}),
    "rank": ("features.effective_rank", {}),
    "collapse": ("collapse.neural_collapse", {}),
    "geometry": ("collapse.class_geometry", {}),
    "batch": ("directions.batch_sharpness", {}),
    "direction": ("directions.directional_sharpness", {}),
    "rate": ("directions.critical_learning_rate", {}),
    "ntk": ("kernel.ntk", {"examples": 36}),
    "cka": ("kernel.cka", {"examples": 36}),
}


@pytest.mark.slow
def test_what_is_measured_on_a_fraction_is_that_of_those_examples_alone():
    observables = {
        name: instantiate({"_target_": f"lmech.observables.{target}", **arguments})
        for name, (target, arguments) in ONCE.items()
    }
    full, plain = job(*NARROW, FRACTION), job(*NARROW)
    ours = measurements(building.build([full]), observables)
    theirs = measurements(on_its_own(full, plain), observables)
    for name, values in theirs.items():
        for part in {part for part in values if "residual" not in part and part != "velocity"}:
            # What is zero in theory (a change since step 0) is rounding.
            np.testing.assert_allclose(
                *(ours[name][part], values[part]), rtol=1e-12, atol=1e-12, err_msg=f"{name} {part}"
            )


def test_a_unit_is_dead_if_the_examples_that_count_do_not_move_it():
    h = jax.numpy.array([[1.0, 1.0, 2.0], [1.0, 5.0, 3.0], [1.0, 1.0, 4.0]])
    here = at_start(building.build([job(FRACTION)]))
    train = Examples(h, np.zeros(3, np.int32), np.array([1.0, 0.0, 1.0]))
    problem = here.problem._replace(activations=lambda _, x: {"activation_1": x})
    lone = here._replace(problem=problem, data=here.data._replace(train=train))
    for microbatch in (None, 1):
        _, values = dead_units(microbatch=microbatch).measure(lone, ())
        assert values[""] == pytest.approx(2 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(4))
def test_every_observable_along_a_run_on_a_fraction_is_that_of_those_examples_alone(place):
    """The iterations that are not converged, residuals and what starts from a random vector over
    the examples, are compared in the eigenvalue that they are about."""
    presets = PRESETS[place::4]
    names = list(config.compose([f"observables=[{','.join(presets)}]"]).observables)
    overrides = [
        *(f"observables.{name}.every=3" for name in names if name[:5] not in ("train", "test_")),
        *(f"observables.{name}.examples=36" for name in ("ntk", "cka") if name in names),
    ]
    if "ntk_top" in names:
        overrides.append("observables.ntk_top.extensions=60")
    chosen = [f"observables=[{','.join(presets)}]", *overrides, *NARROW, "steps=6"]
    full, plain = job(*chosen, FRACTION), job(*chosen)
    recorder, _ = run(building.build([full]))
    alone, _ = run(on_its_own(full, plain))
    for name in recorder.table(0).column_names[1:]:
        if "residuals" in name or name.endswith("_residual") or "ntk_top_" in name:
            continue
        ours, theirs = column(recorder, 0, name), column(alone, 0, name)
        assert ours.keys() == theirs.keys()
        for step, value in ours.items():
            scale = np.max(np.abs(np.nan_to_num(theirs[step], posinf=0)), initial=1e-3)
            near = {"rtol": 1e-9, "atol": 1e-9 * scale, "err_msg": f"{name}, step {step}"}
            np.testing.assert_allclose(value, theirs[step], **near)


def test_the_whole_fraction_is_no_fraction_up_to_rounding():
    watched = [*NARROW, "observables=[loss,accuracy]"]
    whole, end = train([job(*watched, "data_fraction=1.0")])
    plain, plain_end = train([job(*watched)])
    np.testing.assert_allclose(weights(end), weights(plain_end), rtol=1e-12, atol=1e-14)
    for name in ("train_loss", "test_loss", "train_accuracy"):
        ours, theirs = column(whole, 0, name), column(plain, 0, name)
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 200), st.floats(0.001, 1), st.floats(0.001, 1))
def test_fractions_are_nested_and_of_the_size_asked_for(seed, n, a, b):
    small, large = (set(sampling.subset(seed, n, f).tolist()) for f in sorted((a, b)))
    assert small <= large <= set(range(n))
    assert len(small) == max(1, np.ceil(np.round(min(a, b) * n, 6)))


def test_seven_tenths_of_ten_are_seven():
    assert len(sampling.subset(0, 10, 0.7)) == 7


def test_minibatches_hold_only_examples_that_count_and_in_an_epoch_each_once():
    batch = building.build([job("batch_size=6", FRACTION)])
    places = np.sort(batch.batches(np.arange(6))[0], axis=None)
    np.testing.assert_array_equal(places, np.arange(36))
    np.testing.assert_array_equal(batch.inputs.rows.count, 36)


def test_a_probe_set_takes_examples_that_count_and_the_usual_ones_if_all_do():
    part, whole, plain = (
        at_start(building.build([job(*extra)])) for extra in ([FRACTION], ["data_fraction=1.0"], [])
    )
    chosen = training_examples(part, 10)
    assert chosen.weight is None
    counting = np.asarray(part.data.train.x)[np.asarray(part.data.train.weight) > 0]
    rows = {row.tobytes() for row in np.asarray(chosen.x)}
    assert len(rows) == 10
    assert rows <= {row.tobytes() for row in counting}
    taken = [np.asarray(training_examples(at, 10).x) for at in (whole, plain)]
    assert {row.tobytes() for row in taken[0]} == {row.tobytes() for row in taken[1]}


def test_what_is_measured_on_a_fraction_does_not_depend_on_the_other_members():
    """They decide how much room there is for the examples, and so the last bits, no more."""
    chosen = [*NARROW, "observables=[loss,batch_sharpness]", "observables.batch_sharpness.every=2"]
    configs = [job(*chosen, f"data_fraction={fraction}", "steps=4") for fraction in (0.5, 0.9)]
    together, _ = run(building.build(configs))
    alone, _ = run(building.build(configs[:1]))
    for name in alone.table(0).column_names[1:]:
        ours, theirs = column(together, 0, name), column(alone, 0, name)
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-10)


PAIRS = """
import numpy as np
from lmech.datasets import Data, Examples

def squares(train_size: int):
    x = np.arange(train_size)[:, None] / train_size
    return Data(Examples(x, x**2), None)
"""


def test_without_a_test_split_each_member_is_tested_on_what_its_fraction_leaves(
    tmp_path, monkeypatch
):
    (tmp_path / "unsplit.py").write_text(PAIRS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = ["dataset._target_=unsplit.squares", "precision=float64", "label_noise=0.3"]
    configs = [job(*own, f"data_fraction={fraction}") for fraction in (0.25, 0.6)]
    batch = building.build(configs)
    for place, size in enumerate((15, 36)):
        inputs = jax.tree.map(lambda leaf, i=place: leaf[i], batch.inputs)
        data = member.initial_state(batch.program, inputs, batch.data).data
        counts = [np.asarray(split.weight) > 0 for split in (data.train, data.test)]
        x = [np.asarray(s.x)[c, 0] for s, c in zip((data.train, data.test), counts, strict=True)]
        assert [len(part) for part in x] == [size, 60 - size]
        np.testing.assert_array_equal(np.sort(np.concatenate(x)), np.arange(60) / 60)
        np.testing.assert_allclose(np.asarray(data.test.y)[counts[1], 0], x[1] ** 2)  # no noise


@pytest.mark.parametrize(
    ("extra", "message"), [([], "set it"), (["data_fraction=1.0"], "leaves nothing to test on")]
)
def test_something_must_be_left_to_test_on(extra, message, tmp_path, monkeypatch):
    (tmp_path / "unsplit.py").write_text(PAIRS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        building.build([job("dataset._target_=unsplit.squares", *extra)])


def test_what_does_not_count_spoils_no_sum_even_where_it_is_infinite():
    examples = Examples(np.zeros((3, 1)), np.zeros(3), np.array([1.0, 0.0, 1.0]))
    values = jax.numpy.array([1.0, np.inf, 2.0])
    assert masked(examples, values).sum() / count(examples) == 1.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=50", FRACTION], "batch_size=50, but data_fraction=0.6 keeps 36 training"),
        (["observables=[cka]", "observables.cka.examples=40", FRACTION], "there are 36 training"),
        (["observables=[ntk]", "observables.ntk.examples=null", FRACTION],
         "set observables.ntk.examples to 36 or less"),
        (["observables=[cka]", "observables.cka.examples=null", FRACTION],
         "set observables.cka.examples to 36 or less"),
        (["observables=[batch_sharpness]", "batch_size=9", FRACTION], "lower batches to 4"),
        (["observables=[gradient_noise]", "data_fraction=0.01"], "raise data_fraction"),
        (["model.norm_group=20", FRACTION], "model.norm_group=null"),
        (["label_noise=1.5"], "label_noise=1.5: the fraction of labels replaced is at most 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_that_says_what_to_write(overrides, message):
    with pytest.raises(ValueError, match=r"data_fraction|label_noise|examples") as error:
        building.check(building.build([job(*overrides)]))
    assert message in planning.one_line(error.value)


def test_data_that_bring_weights_of_their_own_are_refused():
    split = Examples(np.zeros((2, 1)), np.zeros((2, 1)), np.ones(2))
    with pytest.raises(ValueError, match="leave them to data_fraction"):
        datasets.check(datasets.Data(split, split))


@pytest.mark.parametrize("text", ["data_fraction=0", "data_fraction=1.1", "label_noise=-0.1"])
def test_values_out_of_range_are_refused(text):
    with pytest.raises(ConfigError, match=text.partition("=")[0]):
        job(text)


# label noise


def test_no_label_noise_is_no_noise_bit_for_bit():
    for data in ([], ["dataset=chebyshev", "dataset.train_size=20"]):
        noisy, end = train([job(*data, "label_noise=0.0")])
        plain, plain_end = train([job(*data)])
        assert weights(end).tobytes() == weights(plain_end).tobytes()
        assert noisy.table(0).equals(plain.table(0))


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 10), st.floats(0, 1), st.floats(0, 1))
def test_more_label_noise_corrupts_more_labels_and_those_of_less_alike(seed, classes, a, b):
    y = np.arange(200, dtype=np.int32) % classes
    less, more = (sampling.noisy(seed, y, level, classes) for level in sorted((a, b)))
    assert less.dtype == y.dtype
    np.testing.assert_array_equal(more[less != y], less[less != y])
    assert more.min() >= 0
    assert more.max() < classes


def test_every_label_is_replaced_at_level_1_and_by_each_other_class_alike():
    y = np.zeros(9000, np.int32)
    wrong = sampling.noisy(0, y, 1.0, 4)
    shares = np.bincount(wrong, minlength=4) / len(y)
    assert shares[0] == 0
    np.testing.assert_allclose(shares[1:], 1 / 3, atol=4 * np.sqrt(2 / 9 / 9000))


def test_about_the_fraction_of_labels_is_wrong_and_test_labels_are_clean():
    state = at_start(building.build([job("label_noise=0.3", "dataset.train_size=1000")]))
    plain = at_start(building.build([job("dataset.train_size=1000")]))
    wrong = np.asarray(state.data.train.y) != np.asarray(plain.data.train.y)
    assert abs(wrong.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)
    np.testing.assert_array_equal(state.data.test.y, plain.data.test.y)


def test_noise_on_real_targets_is_gaussian_of_that_standard_deviation():
    y = np.ones((20000, 1))
    noise = sampling.noisy(3, y, 0.5, 1) - y
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(20000)
    assert abs(noise.std() - 0.5) < 4 * 0.5 / np.sqrt(40000)
    np.testing.assert_allclose(sampling.noisy(3, y, 1.0, 1) - y, 2 * noise, atol=1e-12)


def test_one_class_has_no_other_to_put_in_its_place():
    with pytest.raises(ValueError, match="only one"):
        sampling.noisy(0, np.zeros(5, np.int32), 0.5, 1)


def test_the_noise_stream_alone_decides_the_noise_and_the_subset_stream_the_subset():
    keys = ("label_noise=0.5", FRACTION)
    batch = building.build(
        [job(*keys), job(*keys, "seeds.noise=7"), job(*keys, "seeds.subset=7"), job(*keys)]
    )
    targets, chosen = batch.inputs.targets, batch.inputs.rows.own
    same = [[np.array_equal(a[0], a[i]) for i in range(4)] for a in (targets, chosen)]
    assert same == [[True, False, True, True], [True, True, False, True]]


# members


@pytest.mark.slow
def test_members_of_different_noise_fraction_and_scale_are_bit_for_bit_their_single_runs():
    configs = [
        job("batch_size=5", f"label_noise={noise}", f"data_fraction={fraction}",
            f"parametrization.init_scale={scale}", "observables=[loss,accuracy]")
        for noise, fraction, scale in ((0.0, 1.0, 1.0), (0.5, 0.3, 2.0), (0.2, 0.7, 0.5))
    ]  # fmt: skip
    assert len({planning.program_key(c) for c in configs}) == 1
    recorder, end = train(configs, mode="map")
    whole = building.extent(configs, building.load_data(configs[0]))
    for place, single in enumerate(configs):
        alone, alone_end = run(building.build([single], whole=whole))
        assert weights(end, place).tobytes() == weights(alone_end).tobytes()
        assert recorder.table(place).equals(alone.table(0))


def test_the_init_scale_multiplies_every_tensors_first_value():
    one, three = (
        at_start(building.build([job(f"parametrization.init_scale={scale}")])).params
        for scale in (1.0, 3.0)
    )
    for small, large in zip(jax.tree.leaves(one), jax.tree.leaves(three), strict=True):
        np.testing.assert_array_equal(large, 3 * small)


def test_members_with_and_without_replacement_share_a_program():
    """A minibatch may then be larger than the training set; of a full batch nothing changes."""
    configs = [job("batch_size=6", FRACTION, f"replacement={how}") for how in ("false", "true")]
    assert len({planning.program_key(config) for config in configs}) == 1
    drawn = building.build(configs).batches(np.arange(6))  # an epoch of 36 examples
    assert [len(np.unique(rows)) == 36 for rows in drawn] == [True, False]
    many = building.build([job("batch_size=50", FRACTION, "replacement=true")])
    assert many.batches(np.arange(3)).shape == (1, 3, 50)
    assert many.batches(np.arange(3)).max() < 36


@pytest.mark.parametrize(("size", "same"), [("null", True), ("8", False)])
def test_replacement_is_a_part_of_a_jobs_identity_where_there_are_minibatches(size, same):
    words = ["dataset=chebyshev", f"batch_size={size}"]
    (plain,), (other,) = (planning.expand([*words, *o], {}) for o in ([], ["replacement=true"]))
    assert (plain.id == other.id) == same


@pytest.mark.parametrize("key", ["label_noise=0.1", "data_fraction=0.5", "seeds.subset=3"])
def test_noise_fraction_and_their_seeds_are_a_part_of_a_jobs_identity(key):
    (plain,), (other,) = (planning.expand(["dataset=chebyshev", *o], {}) for o in ([], [key]))
    assert plain.id != other.id
