"""A run whose data change: tasks one after the other, replay of earlier ones, what is measured."""

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from problems import column, in_order, train

from lmech import building, config, datasets, engine, planning, sampling, splitting
from lmech.cli import main
from lmech.datasets import Data, Examples, Tasks
from lmech.datasets.digits import digits
from lmech.datasets.tasks import repeated, rotated, turned
from lmech.engine import End
from lmech.inputs import switches
from lmech.lanes import Record, Saved
from lmech.recorder import Recorder
from lmech.values import ConfigError

pytestmark = pytest.mark.usefixtures("x64")

ROTATED = [
    *("dataset=rotated_digits", "dataset.angles=[0,40,90]", "dataset.dataset.train_size=60"),
    *("model.width=6", "observables=[loss]", "precision=float64", "optimizer.learning_rate=0.05"),
    *("observables.train_loss.every=1", "observables.test_loss.every=5", "optimizer=gd"),
]
REPEATED = ["dataset=repeated_digits", "dataset.count=3", *ROTATED[2:]]


def job(*words):
    return config.resolve(config.compose(list(words)))


def weights(end, place=0):
    return np.asarray(ravel_pytree(jax.tree.map(lambda leaf: leaf[place], end.params))[0])


def losses(recorder, place=0):
    return column(recorder, place, "train_loss")


# The tasks of a run


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
def test_it_is_the_runs_on_each_task_chained_by_hand(every):
    """Each from the weights of the one before; gradient descent has no other state."""
    own = [*ROTATED, f"observables.train_loss.every={every}"]
    recorder, end = train([job(*own, "task_steps=6", "task_order=[2,0,1]", "steps=18")])
    whole, params = building.load_data(job(*ROTATED, "task_steps=1")), None
    found = {}
    for place, task in enumerate((2, 0, 1)):
        batch = building.build([job(*own, "task_steps=6", "task_order=[0]", "steps=6")])
        alone = datasets.of_task(whole, task)._replace(tasks=None)
        batch = batch._replace(data=alone, inputs=batch.inputs._replace(course=None), params=params)
        own_records = Recorder(1)
        for event in engine.train(*batch):
            if isinstance(event, End):
                params = event.params
            elif isinstance(event, Record):
                own_records.add(event)
        found |= {place * 6 + step: v for step, v in losses(own_records).items() if step < 6}
    for step, value in found.items():
        np.testing.assert_allclose(losses(recorder)[step], value, rtol=1e-12)
    assert len(found) == len(range(0, 6, every)) * 3
    np.testing.assert_allclose(weights(end), ravel_pytree(params)[0], rtol=1e-11)


def test_the_last_task_goes_on_to_the_end_and_one_after_it_is_never_begun():
    words = [*ROTATED, "task_steps=4"]
    long, _ = train([job(*words, "task_order=[1,0]", "steps=12")])
    padded, _ = train([job(*words, "task_order=[1,0,0]", "steps=12")])
    short, _ = train([job(*words, "task_order=[1,0,2]", "steps=8")])
    assert losses(long) == losses(padded)
    assert losses(short) == {step: losses(long)[step] for step in range(9)}


def test_members_of_one_program_have_tasks_of_their_own():
    """Orders, steps and seeds are inputs; members in turn have the bits of each alone."""
    chosen = [("task_order=[0,1]", "task_steps=5"), ("task_order=[2,0]", "task_steps=3")]
    configs = [job(*REPEATED, *own, "label_noise=0.9", "steps=9") for own in chosen]
    assert len({planning.program_key(one) for one in configs}) == 1
    together, end = train(configs)
    for place, one in enumerate(configs):
        recorder, own = train([one])
        assert losses(recorder) == losses(together, place)
        np.testing.assert_array_equal(weights(own), weights(end, place))


def test_tasks_that_are_the_same_are_a_run_without_tasks():
    words = ["dataset.train_size=60", *ROTATED[3:], "steps=9"]
    plain, _ = train([job("dataset=digits", *words)])
    tasks, _ = train([job(*REPEATED, "steps=9", "task_steps=3")])
    assert losses(plain).keys() == losses(tasks).keys()
    np.testing.assert_allclose([*losses(plain).values()], [*losses(tasks).values()], rtol=1e-13)


@pytest.mark.parametrize("mode", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_from_every_saved_state_the_rest_is_bit_for_bit_the_same(mode):
    words = [
        *(*ROTATED, "optimizer=adam", "batch_size=20", "replay=0.4", "task_steps=7", "steps=20"),
        *("observables=[loss,tasks]", "observables.test_tasks.every=1", "execution.chunk=4"),
        *("observables.train_tasks.every=5", f"execution.mode={mode}"),
    ]
    batch = building.build([job(*words, f"seed={seed}") for seed in (0, 1)])

    def tables(events):
        recorder = Recorder(2)
        for event in events:
            if isinstance(event, Record):
                recorder.add(event)
        return [recorder.table(member).to_pylist() for member in range(2)]

    whole, saving = list(engine.train(*batch)), list(engine.train(*batch, save=lambda: True))
    assert str(tables(whole)) == str(tables(saving))
    states = [i for i, event in enumerate(saving) if isinstance(event, Saved)]
    assert {7, 14} <= {saving[i].step for i in states}
    for i in states:
        rest = list(engine.train(*batch, saved=saving[i]))
        assert str(tables(saving[:i] + rest)) == str(tables(whole))
        ends = [in_order([e for e in found if isinstance(e, End)]) for found in (rest, whole)]
        for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_optimizers_state_goes_on_at_a_switch():
    """Adam's second step on a task is not what it would be from a fresh state."""
    words = [*REPEATED, "optimizer=adam", "steps=6"]
    switched, _ = train([job(*words, "task_steps=3")])
    plain, _ = train([job(*words, "task_steps=6")])
    assert losses(switched) == losses(plain)


# Examples and labels


def test_each_task_has_label_noise_of_its_own_the_first_that_of_a_run_without_tasks():
    one = job(*REPEATED, "task_steps=3", "label_noise=0.5", "seed=3")
    data = building.load_data(one)
    noisy = building.noisy_targets(one, data)
    assert noisy.shape == (3, 60)
    np.testing.assert_array_equal(noisy[0], sampling.noisy(3, data.train.y, 0.5, 10))
    agree = np.mean(noisy[1] == noisy[2])
    assert 0.25 < agree < 0.6  # ½·½ + ½·½/9 where noise is independent
    other = building.noisy_targets(job(*REPEATED, "task_steps=3", "label_noise=0.5"), data)
    assert (noisy[1] != other[1]).any()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31 - 1), old=st.integers(0, 5), start=st.integers(0, 40))
def test_minibatches_of_tasks_are_a_function_of_seed_and_step_alone(seed, old, start):
    def draw(steps, n, size):
        return sampling.minibatches(seed, steps, n, size)

    def batches(steps):
        places = np.minimum(steps // 6, 2)
        mix = sampling.Mix(seed, np.array([2, 0, 1]), 12, 6, old)
        return sampling.of_tasks(draw, mix, steps, places)

    whole = batches(np.arange(start + 9))
    np.testing.assert_array_equal(batches(np.arange(start, start + 9)), whole[start:])
    tasks = whole // 12
    np.testing.assert_array_equal(tasks[:6], 2)
    later = np.arange(len(whole)) >= 12
    np.testing.assert_array_equal(tasks[later][:, : 6 - old], 1)
    assert set(tasks[later][:, 6 - old :].ravel()) <= {2, 0}
    second = (np.arange(len(whole)) >= 6) & ~later
    assert set(tasks[second][:, 6 - old :].ravel()) <= {2}


def test_replay_takes_the_examples_of_all_earlier_tasks_alike():
    one = job(*ROTATED, "batch_size=40", "task_steps=100", "replay=0.5", "steps=300")
    drawn = building.build([one]).batches(np.arange(200, 300))[0]
    np.testing.assert_array_equal(drawn[:, :20] // 60, 2)
    counts = np.bincount(drawn[:, 20:].ravel(), minlength=180)
    assert counts[120:].sum() == 0
    assert counts[:120].sum() == 2000
    # Multinomial: mean 16.7 each, a task's share ½ ± 0.011.
    assert counts[:120].min() > 3
    assert abs(counts[:60].sum() / 2000 - 0.5) < 4 * 0.0112


def test_a_minibatch_has_the_examples_that_its_places_name():
    data = building.load_data(job(*ROTATED, "task_steps=1"))
    found = datasets.take_of_tasks(data, np.array([3, 63, 179]))
    for row, (task, i) in enumerate([(0, 3), (1, 3), (2, 59)]):
        own = datasets.of_task(data, task).train
        np.testing.assert_array_equal(found.x[row], own.x[i])
        assert found.y[row] == own.y[i]


def test_with_replacement_and_repeats_too():
    words = [*ROTATED, "batch_size=8", "task_steps=4", "steps=8", "replacement=true"]
    drawn = building.build([job(*words, "batch_repeats=2")]).batches(np.arange(9))[0]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert set((drawn[4:] // 60).ravel()) == {1}


# What is measured


def test_each_tasks_loss_and_accuracy_are_those_on_its_own_examples():
    words = [*ROTATED, "observables=[loss,accuracy,tasks]", "task_steps=5", "task_order=[1,2]"]
    recorder, end = train([job(*words, "steps=10", "observables.test_tasks.every=1")])
    data = building.load_data(job(*words))
    batch = building.build([job(*words)])
    params = jax.tree.map(lambda leaf: leaf[0], end.params)
    for place, task in enumerate((1, 2)):
        test = datasets.of_task(data, task).test
        outputs = batch.program.problem.apply(params, test.x)
        right = np.mean(np.argmax(outputs, axis=-1) == test.y)
        found = column(recorder, 0, "test_tasks_accuracy")[10]
        assert found.shape == (2,)
        assert found[place] == pytest.approx(right)
    at = column(recorder, 0, "test_tasks_loss")
    test_loss = column(recorder, 0, "test_loss")
    assert test_loss[0] == pytest.approx(at[0][0])  # of the task that the run is at
    assert test_loss[5] == pytest.approx(at[5][1])
    assert test_loss[10] == pytest.approx(at[10][1])


@pytest.mark.slow
def test_kept_weights_are_measured_on_the_task_of_their_step(elsewhere):
    words = [*ROTATED, "task_steps=5", "steps=10", "snapshots=[3,5]", "logger=none"]
    assert main([*words, "observables.train_loss.every=1"]) == 0
    (folder,) = elsewhere.glob("outputs/run/*")
    assert main(["measure", str(folder), "observables=[sharpness]"]) == 0
    kept = {3, 5, 10}
    (file,) = folder.glob("*/metrics.parquet")
    table = pd.read_parquet(file).set_index("step")
    assert set(table["sharpness"].dropna().index) == kept
    bare = [word for word in words if not word.startswith("observables")]
    own = ["observables=[sharpness]", "observables.sharpness.every=1"]
    recorder, _ = train([job(*bare, *own)])
    live = column(recorder, 0, "sharpness")
    for step in kept:
        assert table["sharpness"][step] == pytest.approx(live[step].item(), rel=0.02)


# Datasets


def test_turning_by_a_right_angle_is_exact_and_0_is_nothing():
    x = np.arange(2 * 16.0).reshape(2, 16)
    assert turned(x, 0) is x
    found = turned(x, 90).reshape(2, 4, 4)
    expected = np.stack([np.rot90(image) for image in x.reshape(2, 4, 4)])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    colour = x.reshape(1, 4, 4, 2)
    np.testing.assert_allclose(turned(colour, 90)[0], np.rot90(colour[0]), atol=1e-12)
    with pytest.raises(ValueError, match="no images"):
        turned(np.zeros((2, 15)), 10)
    with pytest.raises(ValueError, match="angles is empty"):
        rotated(digits(train_size=20), [])


def test_larger_angles_are_further_off():
    data = rotated(digits(train_size=100, standardize="none"), [0.0, 10.0, 20.0, 45.0])
    datasets.check(data)
    x = data.tasks.train.x
    np.testing.assert_array_equal(x[0], data.train.x)
    distances = [np.linalg.norm(task - x[0]) for task in x]
    assert distances == sorted(distances)
    assert distances[1] > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data._replace(test=None), "test split of its own"),
        (
            lambda data: data._replace(tasks=Tasks(Examples(None, None), Examples(None, None))),
            "nothing",
        ),
        (
            lambda data: data._replace(
                tasks=data.tasks._replace(train=Examples(None, data.tasks.train.y[:, :5]))
            ),
            "it has to be",
        ),
        (lambda data: data._replace(train=data.train._replace(y=1 - data.train.y)), "task 0"),
    ],
)
def test_tasks_that_are_not_like_the_first_are_told(change, told):
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])
    data = repeated(Data(Examples(x, y), Examples(x, y)), 2)
    datasets.check(data)
    with pytest.raises(ValueError, match=told):
        datasets.check(change(data))


def test_classes_are_counted_over_all_tasks():
    x, y = np.zeros((2, 3)), np.array([0, 1])
    data = Data(Examples(x, y), Examples(x, y))
    later = Tasks(Examples(None, np.stack([y, y + 4])), Examples(None, None))
    assert datasets.outputs(data) == 2
    assert datasets.outputs(data._replace(tasks=later)) == 6


# Identity


def test_ids_and_programs_are_as_before_where_nothing_is_said_of_tasks():
    plain = job("dataset=digits")
    older = {k: v for k, v in plain.items() if k not in ("task_steps", "task_order", "replay")}
    assert planning.job_id(plain) == planning.job_id(older)
    assert planning.program_key(plain) == planning.program_key(older)
    words = [*ROTATED, "batch_size=10", "task_steps=3"]
    others = ["task_steps=4", "task_order=[1,0]", "task_order=[0,1]", "replay=0.5"]
    configs = [job(*words), *(job(*words, other) for other in others)]
    assert len({planning.job_id(one) for one in configs}) == 5
    keys = [planning.program_key(one) for one in configs]
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]


def test_the_tasks_arrays_are_part_of_the_datas_checksum():
    words = [*REPEATED, "task_steps=3", "dataset.count=2"]
    assert planning.job_id(job(*words)) != planning.job_id(job(*words, "dataset.count=4"))


def test_another_order_of_the_tasks_leaves_the_programs_text():
    words = [*ROTATED, "task_steps=3", "task_order=[0,1]", "batch_size=10", "replay=0.5"]
    jobs = planning.expand([*words, "observables=[loss,tasks]"], {})
    variants = splitting.variants(jobs)
    assert variants["task_order"]["task_order"] == [1, 0]
    own = [variants[key] for key in ("task_order", "task_steps", "replay")]
    configs = [jobs[0].config, *own]
    whole = building.extent(configs, building.load_data(configs[0]))
    reference, *others = (splitting.texts(one, whole) for one in configs)
    assert all(found == reference for found in others)


def test_steps_at_which_some_members_data_change():
    configs = [job(*ROTATED, f"task_steps={steps}") for steps in (3, 4)]
    assert switches(building.build(configs).inputs) == {3, 6, 4, 8}
    assert switches(building.build([job("dataset=digits")]).inputs) == set()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (ROTATED, "has 3 tasks: set task_steps"),
        (["dataset=digits", "task_steps=3"], "this dataset is one task"),
        ([*ROTATED, "task_steps=3", "task_order=[0,3]"], "there are 3 tasks"),
        ([*ROTATED, "task_order=[0,1]"], "set task_steps"),
        ([*ROTATED, "task_steps=3", "replay=0.5"], "set batch_size"),
        ([*ROTATED, "task_steps=3", "data_fraction=0.5"], "data_fraction=null"),
        ([*ROTATED, "task_steps=3", "task_order=[]"], "task_order"),
        (["dataset=digits", "observables=[tasks]"], "this run has none"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(words, told):
    with pytest.raises(ValueError, match=told) as raised:
        building.check(building.build([job(*words)]))
    assert isinstance(raised.value, ConfigError) or "observables.test_tasks" in str(raised.value)
