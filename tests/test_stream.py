"""Data that are drawn anew at each step: one pass."""

import numpy as np
import pytest
from problems import job, train

from lmech import building, planning, sampling
from lmech.datasets import Data, Examples, check
from lmech.datasets.power_law import power_law_regression
from lmech.values import ConfigError

WORDS = (
    *("model=random_features", "model.activation=linear", "model.spread=1.0", "model.width=4"),
    *("dataset=power_law_regression", "dataset.dimension=6", "dataset.train_size=5"),
    *("dataset.one_pass=true", "optimizer=sgd", "optimizer.learning_rate=0.2", "batch_size=3"),
    *("precision=float64", "loss=mse", "steps=150"),
)


def draw(generator, n):
    return Examples(generator.standard_normal((n, 2)), np.arange(n)[:, None] + 0.0)


def test_fresh_examples_are_a_function_of_seed_and_step_and_never_come_twice():
    whole = sampling.fresh(draw, 1, np.arange(200), 3)
    assert whole.x.shape == (200, 3, 2)
    assert len(np.unique(whole.x)) == whole.x.size
    for steps in (np.arange(50, 140), np.array([199]), np.array([3, 3, 70])):
        np.testing.assert_array_equal(sampling.fresh(draw, 1, steps, 3).x, whole.x[steps])
    assert not np.isin(sampling.fresh(draw, 2, np.arange(200), 3).x, whole.x).any()


@pytest.mark.usefixtures("x64")
def test_training_is_sgd_on_the_examples_that_were_drawn():
    """By hand, of two members; whatever the chunks, and the last step's minibatch is a new one."""
    configs = [job(*WORDS, f"seed={seed}") for seed in (0, 3)]
    _, end = train(configs)
    stream = building.load_data(configs[0]).stream
    for member, seed in enumerate((0, 3)):
        W = end.params["features"][member]
        theta = np.zeros((4, 1))
        batches = sampling.fresh(stream, seed, np.arange(150), 3)
        for x, y in zip(batches.x, batches.y, strict=True):
            features = x @ W / 2
            theta -= 0.2 * features.T @ (features @ theta - y) / 3
        np.testing.assert_allclose(end.params["readout"][member], theta, rtol=1e-10)
    _, parted = train([job(*WORDS, f"seed={seed}", "execution.chunk=7") for seed in (0, 3)])
    np.testing.assert_array_equal(parted.params["readout"], end.params["readout"])


@pytest.mark.usefixtures("x64")
def test_repeated_minibatches_are_drawn_once():
    setup = building.build([job(*WORDS, "batch_repeats=5")])
    x = setup.batches(np.arange(20)).x[0]
    assert (x[:5] == x[0]).all()
    assert (x[5] != x[4]).all()
    assert setup.feed(7).batch.x.shape == (1, 3, 6)


@pytest.mark.usefixtures("x64")
def test_what_needs_a_training_set_is_refused():
    for words, told in (
        (["batch_size=null"], "set batch_size"),
        (["label_noise=0.1"], "label_noise is of a training set"),
        (["data_fraction=0.5"], "data_fraction is of a training set"),
    ):
        with pytest.raises(ConfigError, match=told):
            building.build([job(*WORDS, *words)])
    assert building.build([job(*WORDS, "batch_size=50")])  # more than the sample to measure on


def test_one_pass_is_part_of_a_jobs_identity_and_of_its_program():
    once, often = job(*WORDS), job(*WORDS, "dataset.one_pass=false")
    assert planning.job_id(once) != planning.job_id(often)
    assert planning.program_key(once) != planning.program_key(often)


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (lambda _, n: (np.zeros((n, 2)), np.zeros((n, 1))), "draws a tuple"),
        (lambda _, _n: Examples(np.zeros((1, 2)), np.zeros((1, 1))), "1 inputs and 1 targets"),
        (lambda _, n: Examples(np.zeros((n, 3)), np.zeros((n, 1))), r"\(3,\) in the stream"),
        (lambda _, n: Examples(np.zeros((n, 2)), np.zeros(n, int)), r"int64 \(2,\) \(stream\)"),
        (lambda _, n: Examples(np.full((n, 2), np.nan), np.zeros((n, 1))), "not finite"),
    ],
)
def test_a_stream_that_draws_something_else_is_told(stream, told):
    sample = draw(np.random.default_rng(0), 4)
    check(Data(sample, sample, stream=draw))
    with pytest.raises(ValueError, match=told):
        check(Data(sample, sample, stream=stream))


def test_the_population_is_in_the_test_points_and_the_sample_has_its_moments():
    data = power_law_regression(dimension=5, alpha=0.7, beta=0.4, train_size=200_000)
    j = np.arange(1, 6.0)
    second = data.test.x.T @ data.test.x / len(data.test.x)
    np.testing.assert_allclose(second, np.diag(j**-1.4), atol=1e-15)
    w = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    risk = np.square(data.test.x @ w - data.test.y[:, 0]).mean()
    assert risk == pytest.approx((j**-1.4 * (w - j**-0.4) ** 2).sum(), rel=1e-12)
    sampled = np.square(data.train.x @ w - data.train.y[:, 0])  # a Gaussian's square: 2 E²
    assert sampled.mean() == pytest.approx(risk, rel=4 * (2 / 200_000) ** 0.5)
    drawn = power_law_regression(5, 0.7, 0.4, 10, test_size=7, one_pass=True)
    assert drawn.test.x.shape == (7, 5)
    assert drawn.stream(np.random.default_rng(0), 3).x.shape == (3, 5)
    assert data.stream is None
