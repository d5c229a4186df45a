"""What each step is fed: its examples, its learning rate, its random numbers."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmech import schedules, seeds
from lmech.sampling import independent, minibatches

SEED = st.integers(0, 2**31 - 1)


# minibatches


@settings(deadline=None)
@given(seed=SEED, n=st.integers(1, 60), parts=st.integers(1, 60), start=st.integers(0, 200))
def test_minibatches_are_a_function_of_seed_and_step_alone(seed, n, parts, start):
    size = max(1, n // parts)
    whole = minibatches(seed, np.arange(start + 8), n, size)
    np.testing.assert_array_equal(
        minibatches(seed, np.arange(start, start + 8), n, size), whole[start:]
    )
    np.testing.assert_array_equal(minibatches(seed, np.array([start]), n, size)[0], whole[start])


@settings(deadline=None)
@given(seed=SEED, n=st.integers(1, 60), parts=st.integers(1, 60), epoch=st.integers(0, 5))
def test_an_epoch_draws_no_example_twice(seed, n, parts, epoch):
    size = max(1, n // parts)
    per_epoch = n // size
    rows = minibatches(seed, np.arange(epoch * per_epoch, (epoch + 1) * per_epoch), n, size)
    assert rows.shape == (per_epoch, size)
    assert len(np.unique(rows)) == rows.size
    assert rows.min() >= 0
    assert rows.max() < n


def test_an_epoch_covers_every_example_where_the_size_divides_their_number():
    rows = minibatches(3, np.arange(4), 20, 5)
    np.testing.assert_array_equal(np.sort(rows, axis=None), np.arange(20))


def test_the_remainder_of_an_epoch_does_not_shift_the_next():
    rows = minibatches(3, np.arange(6), 10, 3)
    order = seeds.generator(3, "batches", 1).permutation(10)
    np.testing.assert_array_equal(rows[3:], order[:9].reshape(3, 3))


def test_epochs_and_seeds_are_shuffled_differently():
    orders = [minibatches(seed, np.arange(2), 50, 50) for seed in (0, 1)]
    distinct = {tuple(row) for order in orders for row in order}
    assert len(distinct) == 4


# minibatches with replacement


@settings(deadline=None)
@given(seed=SEED, n=st.integers(1, 60), size=st.integers(1, 9000), start=st.integers(0, 200))
def test_independent_minibatches_are_a_function_of_seed_and_step_alone(seed, n, size, start):
    whole = independent(seed, np.arange(start + 4), n, size)
    assert whole.shape == (start + 4, size)
    assert whole.min() >= 0
    assert whole.max() < n
    np.testing.assert_array_equal(
        independent(seed, np.arange(start, start + 4), n, size), whole[start:]
    )
    np.testing.assert_array_equal(independent(seed, np.array([start]), n, size)[0], whole[start])


def test_independent_indices_are_even_and_know_nothing_of_their_neighbours():
    """Counts of the pairs of successive steps: χ² of 24 degrees of freedom, 5σ above its mean."""
    rows = independent(0, np.arange(50_001), 5, 1)[:, 0]
    counts = np.bincount(5 * rows[:-1] + rows[1:], minlength=25)
    expected = 50_000 / 25
    assert np.square(counts - expected).sum() / expected < 24 + 5 * np.sqrt(48)


def test_an_independent_minibatch_may_have_an_example_twice_and_more_than_there_are():
    assert independent(0, np.arange(1), 3, 8).shape == (1, 8)
    twice = [len(set(row)) < 2 for row in independent(1, np.arange(4000), 10, 2).tolist()]
    assert abs(np.mean(twice) - 0.1) < 5 * np.sqrt(0.09 / 4000)


def test_independent_seeds_draw_differently():
    one, other = (independent(seed, np.arange(20), 50, 4) for seed in (0, 1))
    assert (one != other).any()


# schedules


def test_constant_is_1_after_a_linear_warmup():
    steps = np.arange(6)
    np.testing.assert_allclose(schedules.constant()(steps, 6), 1)
    np.testing.assert_allclose(schedules.constant(4)(steps, 6), [0.25, 0.5, 0.75, 1, 1, 1])


def test_linear_goes_from_1_to_its_final_value():
    np.testing.assert_allclose(schedules.linear()(np.array([0, 25, 100]), 100), [1, 0.75, 0])
    factors = schedules.linear(warmup=10, final=0.1)(np.array([0, 9, 10, 60, 110]), 110)
    np.testing.assert_allclose(factors, [0.1, 1, 1, 0.55, 0.1])


def test_cosine_is_halfway_at_half_time():
    factors = schedules.cosine(final=0.2)(np.array([0, 25, 50, 100]), 100)
    quarter = 0.2 + 0.8 * (1 + np.sqrt(0.5)) / 2
    np.testing.assert_allclose(factors, [1, quarter, 0.6, 0.2])
    warmed = schedules.cosine(warmup=10)(np.array([0, 10, 60, 110]), 110)
    np.testing.assert_allclose(warmed, [0.1, 1, 0.5, 0], atol=1e-15)


def test_wsd_is_stable_until_its_decay_then_linear():
    schedule = schedules.wsd(warmup=10, decay=0.2, final=0.5)
    steps = np.array([0, 4, 9, 50, 80, 90, 100])
    np.testing.assert_allclose(schedule(steps, 100), [0.1, 0.5, 1, 1, 1, 0.75, 0.5])


def test_wsd_without_decay_is_constant():
    np.testing.assert_allclose(schedules.wsd(decay=0.0)(np.arange(50), 50), 1)


def test_multistep_drops_at_its_milestones():
    steps = np.array([0, 1, 49, 50, 74, 75, 99])
    factors = schedules.multistep([0.5, 0.75], warmup=2)(steps, 100)
    np.testing.assert_allclose(factors, [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    np.testing.assert_allclose(schedules.multistep([0.5], factor=1.0)(steps, 100), 1)


@pytest.mark.parametrize(
    ("milestone", "horizon", "first"), [(0.7, 10, 7), (0.7, 15, 11), (1, 9, 9)]
)
def test_a_milestone_is_the_first_step_of_its_stage(milestone, horizon, first):
    factors = schedules.multistep([milestone], factor=0.5)(np.arange(horizon + 1), horizon)
    assert np.flatnonzero(factors < 1)[0] == first


@settings(deadline=None)
@given(
    name=st.sampled_from(["constant", "linear", "cosine", "wsd", "multistep"]),
    warmup=st.integers(0, 60),
    final=st.floats(0, 1),
    decay=st.floats(0, 1),
    horizon=st.integers(1, 50),
)
def test_factors_lie_between_0_and_1(name, warmup, final, decay, horizon):
    own = {
        "constant": {},
        "wsd": {"decay": decay, "final": final},
        "multistep": {"milestones": [decay], "factor": final},
    }.get(name, {"final": final})
    factors = getattr(schedules, name)(warmup=warmup, **own)(np.arange(horizon + 1), horizon)
    assert factors.shape == (horizon + 1,)
    assert (factors >= 0).all()
    assert (factors <= 1).all()


# seeds


def test_a_stream_has_the_jobs_seed_unless_it_has_its_own():
    streams = seeds.stream_seeds(3, {"noise": 7, "init": 0, "probes": None})
    assert streams == {"init": 0, "batches": 3, "noise": 7, "probes": 3, "subset": 3}


def test_the_streams_of_one_seed_are_distinct():
    own = seeds.stream_seeds(5, {})
    keys = {tuple(jax.random.key_data(seeds.key(own, s)).tolist()) for s in seeds.STREAMS}
    draws = {seeds.generator(5, s, 0).integers(2**60) for s in seeds.STREAMS}
    assert len(keys) == len(draws) == len(seeds.STREAMS)


def test_a_streams_key_depends_on_its_own_seed_alone():
    def key(stream, **overrides):
        drawn = seeds.key(seeds.stream_seeds(5, overrides), stream)
        return jax.random.key_data(drawn).tolist()

    assert key("init", noise=6) == key("init")
    assert key("noise", noise=6) != key("noise")


@pytest.mark.parametrize("other", [(6, "batches", 2), (5, "noise", 2), (5, "batches", 3)])
def test_a_generator_is_a_function_of_seed_stream_and_counter(other):
    def draw(*arguments):
        return seeds.generator(*arguments).integers(2**60)

    assert draw(5, "batches", 2) == draw(5, "batches", 2)
    assert draw(5, "batches", 2) != draw(*other)
