"""The training loop: what it computes, and what must not change it."""

import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from problems import column, job, train

from lmech import building, compiling, engine, member, programs
from lmech.problem import loss_and_gradient

pytestmark = pytest.mark.usefixtures("x64")


def weights(end, place):
    return np.asarray(ravel_pytree(jax.tree.map(lambda leaf: leaf[place], end.params))[0])


def test_gradient_descent_is_the_written_out_recursion():
    config = job("precision=float64", "steps=5", "optimizer.learning_rate=0.3")
    batch = building.build([config])
    inputs = jax.tree.map(lambda leaf: leaf[0], batch.inputs)
    params = member.start(batch.program, inputs, None).params
    losses = []
    for _ in range(5):
        evaluation, gradient = loss_and_gradient(
            batch.program.problem, params, batch.data.train, None
        )
        losses.append(float(evaluation.loss))
        params = jax.tree.map(lambda w, g: w - 0.3 * g, params, gradient)
    recorder, end = train([config])
    recorded = column(recorder, 0, "train_loss")
    np.testing.assert_allclose([recorded[t] for t in range(5)], losses, rtol=1e-12)
    np.testing.assert_allclose(weights(end, 0), ravel_pytree(params)[0], rtol=1e-10)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_learning_rates_compiles_one_training_program(count):
    configs = [job(f"optimizer.learning_rate={0.1 * (i + 1)}", f"seed={i}") for i in range(count)]
    with compiling.counted() as compilations:
        train(configs)
    assert len([*compilations.training, *compilations.hits]) == 1


def test_a_run_says_first_that_it_has_begun_and_compiles_nothing_after():
    batch = building.build([job("observables=[loss,sharpness]", "observables.sharpness.every=3")])
    with compiling.counted() as compilations:
        events = engine.train(*batch)
        assert next(events) == engine.Begun(0)
        before = len(compilations.seconds)
        list(events)
    assert len(compilations.seconds) == before > 2


def test_a_map_member_is_bit_for_bit_the_single_run():
    configs = [
        job(f"optimizer.learning_rate={rate}", f"seed={i}") for i, rate in enumerate((0.1, 0.3))
    ]
    recorder, end = train(configs, mode="map")
    for place, config in enumerate(configs):
        alone, alone_end = train([config], mode="map")
        assert weights(end, place).tobytes() == weights(alone_end, 0).tobytes()
        assert recorder.table(place).equals(alone.table(0))


def test_a_vmap_member_is_the_single_run_up_to_rounding():
    configs = [job(f"optimizer.learning_rate={rate}") for rate in (0.1, 0.3)]
    side_by_side, _ = train(configs, mode="vmap")
    for place, config in enumerate(configs):
        alone, _ = train([config], mode="map")
        ours, single = column(side_by_side, place, "train_loss"), column(alone, 0, "train_loss")
        np.testing.assert_allclose(list(ours.values()), list(single.values()), rtol=1e-5)


@pytest.mark.slow
def test_observables_between_chunks_change_no_bit_of_the_training():
    plain, end = train([job("observables=[loss]")])
    watched, watched_end = train(
        [job("observables=[loss,sharpness]", "observables.sharpness.every=3")]
    )
    assert weights(end, 0).tobytes() == weights(watched_end, 0).tobytes()
    ours, theirs = column(plain, 0, "train_loss"), column(watched, 0, "train_loss")
    assert all(ours[t] == theirs[t] for t in range(12))


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_the_length_of_a_chunk_changes_nothing(chunk):
    recorder, end = train([job(f"execution.chunk={chunk}")])
    reference, reference_end = train([job("execution.chunk=7")])
    assert weights(end, 0).tobytes() == weights(reference_end, 0).tobytes()
    assert column(recorder, 0, "train_loss") == column(reference, 0, "train_loss")


def test_each_observable_is_recorded_at_its_cadence_and_at_the_end():
    recorder, _ = train([job("steps=10", "observables.test_loss.every=4")])
    assert sorted(column(recorder, 0, "train_loss")) == list(range(11))
    assert sorted(column(recorder, 0, "test_loss")) == [0, 4, 8, 10]


@pytest.mark.slow
def test_a_member_that_ends_early_has_the_records_of_the_single_run():
    watched = ("observables=[loss,sharpness]", "observables.sharpness.every=2")
    watched += ("optimizer.learning_rate=0.3",)
    recorder, end = train([job("steps=5", *watched), job("steps=20", *watched)])
    assert end.step.tolist() == [5, 20]
    single, single_end = train([job("steps=5", *watched)])
    assert weights(end, 0).tobytes() == weights(single_end, 0).tobytes()
    assert recorder.table(0).equals(single.table(0))
    assert sorted(column(recorder, 0, "sharpness")) == [0, 2, 4, 5]


@pytest.mark.parametrize("every", [1, 3])
def test_a_stop_rule_ends_a_member_where_the_observable_met_it(every):
    free, _ = train([job("steps=30", "optimizer.learning_rate=0.4")])
    losses = column(free, 0, "train_loss")
    threshold = (losses[11] + losses[12]) / 2
    stopped, end = train(
        [
            job(
                *("steps=30", "optimizer.learning_rate=0.4", f"stop.train_loss={threshold}"),
                f"observables.train_loss.every={every}",
            ),
            job("steps=30", "optimizer.learning_rate=0.1", f"observables.train_loss.every={every}"),
        ]
    )
    assert end.step.tolist() == [12, 30]
    assert max(column(stopped, 0, "train_loss")) == 12
    assert column(stopped, 0, "train_loss")[12] <= threshold


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["train_accuracy", "test_accuracy", "test_loss"])
def test_what_is_measured_of_either_split_stops_a_member_too(rule):
    def trained(*stop):
        watched = ("observables=[loss,accuracy]", f"observables.{rule}.every=10")
        return train([job("steps=300", "optimizer.learning_rate=0.4", *watched, *stop)])

    free = column(trained()[0], 0, rule)
    first = sorted(free)[4]
    recorder, end = trained(f"stop.{rule}={free[first]}")
    sign = 1 if rule == "test_loss" else -1
    met = min(step for step in free if sign * free[step] <= sign * free[first])
    assert end.step.tolist() == [met]
    assert max(column(recorder, 0, rule)) == met > 0


def test_a_run_that_is_stopped_between_chunks_has_all_its_columns_there():
    watched = ("steps=30", "observables=[loss,accuracy]", "observables.test_loss.every=10")
    free, _ = train([job(*watched)])
    recorder, end = train([job(*watched, f"stop.test_loss={column(free, 0, 'test_loss')[10]}")])
    assert end.step.tolist() == [10]
    for name in ("train_loss", "batch_loss", "train_accuracy", "test_loss"):
        assert max(column(recorder, 0, name)) == 10
        assert column(recorder, 0, name)[10] == column(free, 0, name)[10]


def test_the_last_row_sees_the_minibatch_that_the_next_step_would_have_had():
    split = ("batch_size=20", "optimizer.learning_rate=0.4")
    short, _ = train([job("steps=7", *split)])
    long, _ = train([job("steps=12", *split)])
    ours, theirs = (column(recorder, 0, "batch_loss") for recorder in (short, long))
    assert ours == {t: theirs[t] for t in range(8)}


def test_what_is_measured_at_every_step_is_compiled_into_the_loop_alone():
    config = job("observables=[loss,accuracy]", "observables.test_loss.every=5")
    batch = building.build([config])
    for _ in engine.train(*batch):
        pass
    compiled = programs.compiled(batch.program).measure
    assert {"train_loss", "train_accuracy"} < compiled.keys()
    assert {name for name, f in compiled.items() if f._cache_size()} == {
        *("test_loss", "test_accuracy")  # of a cadence of their own
    }


def test_a_diverging_member_is_frozen_and_the_others_go_on():
    configs = [job("steps=200", f"optimizer.learning_rate={r}") for r in ("1e6", "0.1")]
    recorder, end = train(configs)
    assert end.finite.tolist() == [False, True]
    assert end.step[0] < 200
    assert end.step[1] == 200
    last = max(column(recorder, 0, "train_loss"))
    assert last == end.step[0]
    assert not np.isfinite(column(recorder, 0, "train_loss")[last])
    alone, _ = train([configs[1]])
    assert column(recorder, 1, "train_loss") == column(alone, 0, "train_loss")


@pytest.mark.slow
def test_microbatches_change_only_the_rounding():
    whole, _ = train([job("precision=float64")])
    for size in (7, 20, 60):
        parts, _ = train([job("precision=float64", f"microbatch={size}")])
        ours, theirs = column(whole, 0, "train_loss"), column(parts, 0, "train_loss")
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-12)


def test_minibatches_of_the_whole_set_are_gradient_descent():
    full, end = train([job("precision=float64")])
    batched, batched_end = train([job("precision=float64", "batch_size=60")])
    np.testing.assert_allclose(weights(end, 0), weights(batched_end, 0), rtol=1e-9)
    ours, theirs = column(full, 0, "batch_loss"), column(batched, 0, "batch_loss")
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-12)


def test_the_batch_stream_alone_decides_the_minibatches():
    first, _ = train(
        [job("batch_size=8", "seed=0"), job("batch_size=8", "seed=0", "seeds.batches=5")]
    )
    start = [column(first, m, "train_loss")[0] for m in (0, 1)]
    end = [column(first, m, "train_loss")[12] for m in (0, 1)]
    assert start[0] == start[1]
    assert end[0] != end[1]


def test_a_minibatch_repeated_is_as_many_steps_on_it():
    """Two members of one program: 12 steps, each minibatch once, or two of them six times."""
    own = ("batch_size=8", "precision=float64")
    repeated, end = train([job(*own, "batch_repeats=6"), job(*own)])
    config = job(*own)
    setup = building.build([config])
    drawn = setup.batches(np.arange(2))[0]
    losses = column(repeated, 0, "batch_loss")
    once = column(repeated, 1, "batch_loss")
    assert losses[0] == once[0]
    falling = np.array([losses[t] for t in range(12)])
    assert (np.diff(falling)[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10]] < 0).all()
    assert (weights(end, 0) != weights(end, 1)).any()
    np.testing.assert_array_equal(
        building.build([job(*own, "batch_repeats=6")]).batches(np.arange(12))[0],
        drawn[np.arange(12) // 6],
    )


def test_a_schedule_is_data_and_recompiles_nothing():
    configs = [job("schedule=cosine"), job("schedule=wsd", "schedule.warmup=3"), job()]
    with compiling.counted() as compilations:
        recorder, _ = train(configs)
    assert len([*compilations.training, *compilations.hits]) == 1
    assert len({column(recorder, m, "train_loss")[12].item() for m in range(3)}) == 3


@pytest.mark.parametrize(
    "preset", ["gd", "sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "muon"]
)
def test_every_optimizer_preset_trains_as_optax_alone_does(preset):
    config = job(f"optimizer={preset}", "precision=float64", "batch_size=null", "steps=4")
    batch = building.build([config])
    node = {k: v for k, v in config["optimizer"].items() if k != "_target_"}
    factory = (
        optax.contrib.muon
        if preset == "muon"
        else getattr(optax, config["optimizer"]["_target_"].split(".")[-1])
    )
    transformation = factory(**node)
    inputs = jax.tree.map(lambda leaf: leaf[0], batch.inputs)
    params = member.start(batch.program, inputs, None).params
    state = transformation.init(params)
    for _ in range(4):
        _, gradient = loss_and_gradient(batch.program.problem, params, batch.data.train, None)
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    _, end = train([config])
    np.testing.assert_allclose(weights(end, 0), ravel_pytree(params)[0], rtol=1e-7, atol=1e-10)


def lowered(config):
    batch = building.build([config])
    run = programs.compiled(batch.program)
    carry = run.start((), (batch.inputs, None))
    feeds = member.Feed(batch.rates(np.arange(batch.program.capacity)), None)
    now = member.Feed(feeds.rate[:, 0], None)
    memories = {n: f((), (batch.inputs, carry, now), batch.data) for n, f in run.memory.items()}
    inside = {n: m for n, m in memories.items() if batch.program.every[n] == 1}
    arguments = ((carry, inside), (batch.inputs, feeds), 3, batch.data)
    return run.chunk.lower(*arguments).as_text()


def test_a_float32_program_has_no_float64_in_it():
    text = lowered(job("optimizer=adamw", "observables=[loss,accuracy]"))
    assert not re.search(r"tensor<[^>]*f64>", text)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optimizer.learning_rate", ("0.1", "0.2")),
        ("optimizer.momentum", ("0.5", "0.9")),
        ("seed", ("0", "3")),
        ("seeds.init", ("1", "2")),
        ("stop.train_loss", ("null", "0.1")),
    ],
)
def test_an_input_key_leaves_the_program_text_as_it_is(key, values):
    texts = {lowered(job("optimizer=momentum", f"{key}={value}")) for value in values}
    assert len(texts) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells a process's maps")
def test_of_many_shapes_a_process_holds_the_latest_programs_only():
    """Linux ends a process of 65,530 memory maps, and every compiled program has hundreds."""

    def maps():
        return Path("/proc/self/maps").read_text().count("\n")

    programs.forget()
    counts = [maps()]
    for width in range(3, 3 + 3 * programs.KEPT):
        train([job("steps=1", f"model.width={width}", "observables=[loss]")])
        counts.append(maps())
    one = (counts[programs.KEPT] - counts[0]) / programs.KEPT
    assert one > 50  # or this test would show nothing
    assert counts[-1] - counts[programs.KEPT] < 2 * one
