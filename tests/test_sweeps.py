"""Sweeps: grids, zips, unions, and what a key's values may be written as."""

import numpy as np
import pytest

from lmech import planning, sweeps
from lmech.values import ConfigError

FAST = ["dataset=chebyshev", "observables=[loss]"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1,0.2", [0.1, 0.2]),
        ("range(3)", [0, 1, 2]),
        ("geomspace(0.001, 1, 4)", [0.001, 0.01, 0.1, 1.0]),
        ("geomspace(2**-8,1,9)", [2.0**-k for k in range(8, -1, -1)]),
        ("geomspace(1e-3,1e-1,3)", [1e-3, 1e-2, 1e-1]),
        ("linspace(0, 1, 5)", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("linspace(-1,1,1)", [-1.0]),
        ("mlp,cnn", ["mlp", "cnn"]),
        ("adam", ["adam"]),
    ],
)
def test_values_read_as_they_are_written(text, expected):
    assert sweeps.values("x", text) == expected
    if len(expected) > 1:
        assert sweeps.split([f"x={text}", "steps=5"]) == (["steps=5"], {"x": expected})


def test_a_log_spaced_grid_has_equal_ratios():
    values = np.asarray(sweeps.values("x", "geomspace(3e-4, 0.3, 13)"))
    np.testing.assert_allclose(values[1:] / values[:-1], 10**0.25, rtol=1e-10)
    assert (values[0], values[-1]) == (3e-4, 0.3)


@pytest.mark.parametrize(
    ("node", "hint"),
    [
        ({"seed": "geomspace(0.1, 1)"}, r"write geomspace\(low, high, n\)"),
        ({"seed": "geomspace(0, 1, 3)"}, "both ends must be positive"),
        ({"seed": "linspace(0, 1, 0)"}, "at least one value"),
        ({"seed": []}, "sweep of seed: a list of values is needed"),
        ({"model.width": {"a": 1}}, "sweep of model.width: a list of values is needed"),
        ("seed", "a mapping of keys to values is needed"),
        ({"zip": {"seed": [1, 2], "steps": [3]}}, "as many values each: seed has 2, steps has 1"),
        ({"zip": {"seed": [1]}, "grid": {"seed": [1]}}, "seed is both in grid and in zip"),
        ({"grid": {"seed": [1, 1]}}, "two jobs of the sweep are the same"),
        ({"grid": {"sede": [1]}}, "did you mean 'seed'"),
        ({"seed": [0.5]}, "seed=0.5: input should be a valid integer"),
    ],
)
def test_what_is_no_sweep_is_one_line(node, hint):
    with pytest.raises(ConfigError, match=hint) as error:
        planning.expand(FAST, node)
    assert "\n" not in str(error.value)


def test_zipped_keys_step_together_at_every_point_of_the_grid():
    node = {"grid": {"seed": "range(2)"}, "zip": {"steps": [5, 10], "model.width": [4, 8]}}
    jobs = planning.expand(FAST, node)
    assert [(j.config["steps"], j.config["model"]["width"], j.config["seed"]) for j in jobs] == [
        *((5, 4, 0), (5, 4, 1)),
        *((10, 8, 0), (10, 8, 1)),
    ]


def test_a_union_has_a_job_that_blocks_share_once_and_every_swept_key_as_a_column():
    jobs = planning.expand(FAST, [{"seed": [0, 1]}, {"seed": [1, 2]}, {"steps": [7]}])
    assert [dict(job.overrides) for job in jobs] == [
        *({"seed": seed, "steps": 1000} for seed in (0, 1, 2)),
        {"seed": 0, "steps": 7},
    ]


def test_a_change_of_a_zipped_key_is_refused_and_of_another_replaces_its_values():
    blocks = sweeps.parse({"grid": {"seed": [0, 1]}, "zip": {"steps": [5, 6]}})
    (changed,) = sweeps.override(blocks, {"seed": [9]})
    assert changed.grid == {"seed": [9]}
    with pytest.raises(ConfigError, match="steps steps together with others"):
        sweeps.override(blocks, {"steps": [3]})


@pytest.mark.parametrize("key", ["model.width", "optimizer.learning_rate", "seeds.init", "steps"])
def test_a_value_set_on_a_copy_is_the_one_that_hydra_composes(key):
    (swept,) = planning.expand(FAST, {key: [3]})
    (composed,) = planning.expand([*FAST, f"{key}=3"], {})
    assert swept.config == composed.config
    assert swept.id == composed.id


def test_a_sweep_from_the_configs_is_ranged_over_and_changed_by_the_command_line():
    jobs = planning.multirun(["sweep=learning_rate", "seed=5", "model.width=2,3"])
    assert len(jobs) == 9 * 2
    assert {job.config["seed"] for job in jobs} == {5}
    assert {job.overrides["optimizer.learning_rate"] for job in jobs} == {2.0**-k for k in range(9)}
    assert all(job.config["sweep"] is None for job in jobs)


def test_an_experiments_own_sweep_is_what_a_multirun_of_it_ranges_over():
    jobs = planning.multirun(["experiment=edge_of_stability"])
    assert len(jobs) == 15
    assert {job.config["experiment"] for job in jobs} == {"edge_of_stability"}


def test_a_union_in_a_file_is_the_union_of_its_blocks():
    blocks = [{"seed": [0, 1]}, {"zip": {"steps": [1, 2], "seed": [1, 2]}}]
    assert sweeps.parse({"union": blocks}) == sweeps.parse(blocks)
