"""Which mode, and how many at once."""

import jax
import jax.numpy as jnp
import pytest
from problems import job

from lmech import building, tuning

pytestmark = pytest.mark.usefixtures("x64")


def test_a_programs_values_are_counted_once_a_loops_body_once():
    def f(a):
        b = a + 1
        return jax.lax.fori_loop(0, 7, lambda _, c: jnp.sin(c) * b, b)

    found = tuning.intermediates(jax.make_jaxpr(f)(jnp.zeros(100, jnp.float32)).jaxpr)
    arrays = 3 * 100 * 4  # a + 1, sin c, their product
    assert arrays <= found <= arrays + 64  # the loop's counter and test


def test_lanes_are_what_free_memory_has_room_for():
    batch = building.build([job(f"seed={i}") for i in range(10)])
    assert tuning.lanes(batch, 2**40) == 10
    assert tuning.lanes(batch, 0) == 1
    some = [tuning.lanes(batch, free) for free in range(0, 2**20, 2**14)]
    assert some == sorted(some)
    assert 1 < some[len(some) // 8] < 10


def test_side_by_side_needs_more_room_than_in_turn():
    configs = [job(f"seed={i}", "execution.mode=map") for i in range(10)]
    turns = building.build(configs)
    sides = building.build(
        [{**c, "execution": {**c["execution"], "mode": "vmap"}} for c in configs]
    )
    assert tuning.lanes(sides, 2**19) < tuning.lanes(turns, 2**19)


@pytest.mark.parametrize(
    ("seconds", "mode"), [({"map": 2.0, "vmap": 1.0}, "vmap"), ({"map": 1.0, "vmap": 2.0}, "map")]
)
def test_the_faster_mode_is_taken(monkeypatch, seconds, mode):
    batch = building.build([job("steps=1000", f"seed={i}") for i in range(2)])
    monkeypatch.setattr(tuning, "_chunk_seconds", lambda _, p, __: (0.1, seconds[p.mode]))
    assert tuning.fastest(batch).mode == mode


@pytest.mark.parametrize("overrides", [("steps=20",), ("steps=1000",)])
def test_a_short_run_is_not_worth_another_compilation(monkeypatch, overrides):
    batch = building.build([job(*overrides, f"seed={i}") for i in range(2)])
    monkeypatch.setattr(
        tuning, "_chunk_seconds", lambda _, p, __: (100.0, {"map": 2.0, "vmap": 1.0}[p.mode])
    )
    assert tuning.fastest(batch).mode == "map"


def test_two_chunks_are_timed_after_one_that_compiles():
    batch = building.build([job("steps=100", f"seed={i}") for i in range(2)])
    first, later = tuning._chunk_seconds(batch, batch.program, 4)
    assert first > 0
    assert later > 0


@pytest.mark.parametrize(
    ("steps", "sizes"), [(100, []), (159, []), (1000, [6, 6]), (10**5, [16, 16])]
)
def test_timing_takes_a_twentieth_of_a_run_at_most(monkeypatch, steps, sizes):
    """Three or four chunks of each mode; a run too short for that takes the usual one."""
    seen = []

    def timed(_, __, size):
        seen.append(size)
        return 0.001, 1.0

    monkeypatch.setattr(tuning, "_chunk_seconds", timed)
    tuning.fastest(building.build([job(f"steps={steps}", f"seed={i}") for i in range(2)]))
    assert seen == sizes
    assert all(2 * (tuning.TIMED + 2) * size <= steps / 20 for size in seen)


def test_what_raises_while_it_is_timed_is_left_to_the_run(monkeypatch):
    def broken(*_):
        raise RuntimeError("the lamp is broken")

    batch = building.build([job("steps=1000", f"seed={i}") for i in range(2)])
    monkeypatch.setattr(tuning, "_chunk_seconds", broken)
    assert tuning.fastest(batch).mode == "map"


def test_one_member_runs_in_turn():
    assert tuning.fastest(building.build([job("steps=1000", "execution.mode=vmap")])).mode == "map"


def test_an_observable_that_draws_inside_the_loop_can_run_side_by_side():
    words = ("execution.mode=vmap", "observables=[loss,sharpness]", "observables.sharpness.every=1")
    batch = building.build([job(*words, f"seed={i}") for i in range(2)])
    assert tuning.lanes(batch, 2**33) == 2
