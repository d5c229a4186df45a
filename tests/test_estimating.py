"""What a plan says of a sweep before it runs."""

import numpy as np
import pytest

from lmech import estimating, planning
from lmech.cli import main

FAST = ["dataset=chebyshev", "observables=[loss]", "model.width=6"]


@pytest.mark.slow
def test_a_plan_counts_jobs_programs_and_what_is_finished_and_starts_nothing(elsewhere, capsys):
    words = ["-m", *FAST, "model.depth=1,2", "seed=range(3)", "steps=5", "logger=none"]
    assert main(["plan", *words]) == 0
    told = capsys.readouterr().out
    assert "6, of which 0 finished; 2 programs to compile" in told
    assert "depth=1" in told
    assert not list(elsewhere.iterdir())
    assert main(words) == 0
    (folder,) = elsewhere.glob("outputs/run/*")
    capsys.readouterr()
    assert main(["plan", *words]) == 0
    told = capsys.readouterr().out
    assert "6, of which 6 finished; 0 programs" in told
    assert folder.name in told


def test_a_plan_of_an_experiment_is_its_own_sweep(elsewhere, capsys):
    assert main(["plan", "reproduce", "edge_of_stability", "seed=1,2"]) == 0
    assert "10, of which 0 finished; 1 program to compile" in capsys.readouterr().out
    assert not list(elsewhere.iterdir())


def test_a_steps_operations_are_those_of_its_matrix_products():
    """A weight and example: two forward, two for the weight's gradient, two for the layer below."""
    (job,) = planning.expand(["model.width=64", "steps=7", "observables=[]"], {})
    cost = estimating.estimate([job], compile=True)
    weights, first = 2 * 64 * 64 + 640, 64 * 64
    least = 1500 * (4 * weights + 2 * (weights - first))
    assert least < cost.operations < 1.3 * least
    assert cost.state >= 4 * (weights + 2 * 64 + 10)
    assert cost.data >= 4 * 1500 * 64
    assert cost.scratch > 0
    assert cost.seconds > 0


@pytest.mark.parametrize("batch_size", [None, 5])
def test_twice_the_members_have_twice_the_state_and_the_data_once(batch_size):
    overrides = [*FAST, *([] if batch_size is None else [f"batch_size={batch_size}"])]
    one = planning.expand(overrides, {"seed": [0]})
    two = planning.expand(overrides, {"seed": [0, 1]})
    single, double = (estimating.estimate(group) for group in (one, two))
    assert double.state == 2 * single.state
    assert double.data == single.data
    np.testing.assert_allclose(double.operations, single.operations, rtol=1e-2)
