"""The dimension at which a net reaches 90 % of its accuracy."""

import jax
import numpy as np
import pandas as pd
import pytest

from experiments import intrinsic_dimension
from lmech import claims, modelling, planning, reproducing
from lmech.collecting import Run

DIMENSIONS = [50.0, 100.0, 200.0, 400.0]


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ([0.5, 0.8, 1.0, 1.0], 100 * 2**0.5),  # half of the way from 0.8 to 1.0
        ([0.5, 0.7, 0.9, 0.8], 200),
        ([0.95, 0.96, 0.97, 0.98], 50),
        ([0.1, 0.2, 0.3, 0.4], np.nan),
    ],
)
def test_the_dimension_is_read_off_between_two_in_log_d(relative, expected):
    found = intrinsic_dimension.reached(np.array(DIMENSIONS), np.array(relative))
    np.testing.assert_allclose(found, expected)


def run(width, dimension, seed, noise, accuracy):
    config = {
        "model": {"width": width, "depth": 2, "bias": True},
        "dataset": {"dimension": 30, "classes": 5},
        "seed": seed,
        "subspace": dimension,
        "label_noise": noise,
    }
    metrics = pd.DataFrame(
        {"step": [0, 200], "test_accuracy": [0.2, accuracy], "train_accuracy": [0.2, accuracy]}
    )
    result = {"status": "done", "steps": 200}
    return Run(f"{width} {dimension} {seed} {noise}", {}, config, result, metrics)


def law(dimension, width):
    """Relative accuracy 0.9 at d = 150, a little lower for the narrow net."""
    return 0.9 + 0.2 * np.log(dimension / 150) / np.log(16) - 0.001 * (width == 32)


@pytest.fixture(name="runs")
def runs_of_a_law():
    whole = {32: 0.9, 64: 0.95, 128: 0.98}
    runs = [
        run(width, d and int(d), seed, 0.0, whole[width] * (1 if d is None else law(d, width)))
        for width in whole
        for d in (None, *DIMENSIONS)
        for seed in (0, 1)
    ]
    random = [run(64, d, s, 0.8, a) for d, a in ((None, 1.0), (400, 0.5)) for s in (0, 1)]
    return runs + random


def test_of_a_known_law_the_dimensions_are_known_and_every_claim_comes_out(runs):
    table = intrinsic_dimension.measure(runs)
    nets = table[table["kind"] == "net"].set_index(["width", "seed"])
    np.testing.assert_allclose(nets.loc[(64, 0), "d90"], 150, rtol=0.02)
    assert nets.loc[(64, 0), "d90"] < nets.loc[(32, 0), "d90"]
    assert nets["weights"].unique().tolist() == [2213, 6469, 21125]
    seeds = table[table["kind"] == "seed"]
    np.testing.assert_allclose(seeds["spread_200"], 0.001)
    np.testing.assert_allclose(
        seeds["share_ratio"] * seeds["d90_ratio"] ** -1, 21125 / 2213, rtol=0.05
    )
    for claim in reproducing.load("intrinsic_dimension", "default", []).claims:
        assert claims.judge(claim, table)["verdict"] == claim.expected
    figure = intrinsic_dimension.figure(runs, table)
    assert [len(axis.lines) for axis in figure.axes] == [9, 7]


def test_a_net_that_never_gets_there_leaves_its_claim_undetermined(runs):
    low = [one for one in runs if one.config["subspace"] in (None, 50)]
    table = intrinsic_dimension.measure(low)
    (claim, *_) = reproducing.load("intrinsic_dimension", "default", []).claims
    assert claims.judge(claim, table)["verdict"] == "undetermined"


def test_weights_are_the_models():
    jobs = planning.multirun(["experiment=intrinsic_dimension"])
    config = jobs[0].config
    config = {**config, "dataset": {**config["dataset"], "train_size": 50, "test_size": 5}}
    problem = modelling.build_problem(config, planning.load_data(config))
    sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(modelling.shapes_of(problem))]
    assert intrinsic_dimension._weights(config) == sum(sizes)
