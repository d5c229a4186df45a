"""Lanes: padding, fewer of them when members have ended, several devices, one by one."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from problems import in_order, job
from test_resume import tables

from lmech import building, compiling, engine
from lmech.engine import End, Snapshot
from lmech.lanes import Saved, in_lanes, survivors

pytestmark = pytest.mark.usefixtures("x64")
WATCHED = ("observables=[loss,sharpness]", "observables.sharpness.every=3")


def built(*configs, **replacements):
    batch = building.build(list(configs))
    return batch._replace(program=dataclasses.replace(batch.program, **replacements))


def events(batch, **options):
    return list(engine.train(*batch, **options))


def end_of(found):
    return in_order([event for event in found if isinstance(event, End)])


def assert_same_ends(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("mode", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_empty_lanes_change_nothing_and_are_told_of_nowhere(mode):
    """Side by side a member's bits may depend on the lanes, so both runs have as many."""
    configs = [job(*WATCHED, f"optimizer.learning_rate={r}") for r in (0.1, 0.2, 0.3)]
    batch = built(*configs, mode=mode)
    padded = events(batch, lanes=5)
    plain = events(built(*configs, *configs[:2], mode=mode))
    assert tables(padded, 3) == tables(plain, 5)[:3]
    assert end_of(padded).members.tolist() == [0, 1, 2]
    ends = jax.tree.map(lambda leaf: leaf[:3], end_of(plain))
    assert_same_ends(end_of(padded), ends)


def test_batches_of_a_group_with_as_many_lanes_share_a_compilation():
    batch = built(job("seed=1"), job("seed=2"), job("seed=3"))
    rest = building.build([job("seed=4")], batch.program)
    with compiling.counted() as count:
        events(batch)
        events(rest, lanes=3)
    assert len([*count.training, *count.hits]) == 1


@pytest.mark.slow
def test_one_by_one_is_the_same_as_in_turn():
    configs = [job(*WATCHED, f"optimizer.learning_rate={r}") for r in (0.1, 0.3)]
    alone = events(built(*configs, mode="loop"))
    assert tables(alone, 2) == tables(events(built(*configs, mode="map")), 2)


def early(count, steps=60):
    """Members of which all but the first end within ten steps; chunks of two steps."""
    rest = [job(*WATCHED, "execution.chunk=2", f"steps={3 + i % 7}") for i in range(count - 1)]
    first = job(*WATCHED, "execution.chunk=2", f"steps={steps}")
    return built(first, *rest, mode="vmap")


@pytest.mark.slow
def test_members_that_are_left_move_into_fewer_lanes_and_the_others_end_is_told():
    found = events(early(8))
    ends = [event for event in found if isinstance(event, End)]
    assert [end.members.tolist() for end in ends] == [list(range(1, 8)), [0]]
    saved = [event for event in events(early(8), save=lambda: True) if isinstance(event, Saved)]
    assert [len(state.members) for state in saved][:6] == [8] * 6
    assert len(saved[-1].members) == 1
    singles = events(built(*[job(*WATCHED, f"steps={s}") for s in (60, 3)], mode="map"))
    np.testing.assert_array_equal(end_of(found).step[:2], end_of(singles).step)
    for ours, theirs in zip(
        jax.tree.leaves(end_of(found).params), jax.tree.leaves(end_of(singles).params), strict=True
    ):
        np.testing.assert_allclose(ours[:2], theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_from_every_state_before_and_after_the_move_the_rest_is_the_same():
    batch = early(5, steps=40)
    whole = events(batch)
    saving = events(batch, save=lambda: True)
    assert tables(saving, 5) == tables(whole, 5)
    for i, event in enumerate(saving):
        if isinstance(event, Saved):
            rest = saving[:i] + events(batch, saved=event)
            assert tables(rest, 5) == tables(whole, 5)
            assert_same_ends(end_of(rest), end_of(whole))


@pytest.mark.parametrize(
    ("members", "ended", "kept"),
    [
        ([0, 1, 2, 3], [0, 0, 1, 1], None),  # half are alive
        ([0, 1, 2, 3], [1, 1, 1, 0], [3]),
        ([0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 0, 1, 1, 1, 0, 1], [2, 6]),
        ([0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 0, 1, 1, 0, 0, 1], [2, 5, 6, 0]),
        ([0, 1, -1, -1], [1, 1, 1, 1], None),  # the run is over
        ([0, 1, 2], [0, 1, 1], None),  # an odd number has no half
    ],
)
def test_lanes_are_halved_while_those_alive_have_room(members, ended, kept):
    found = survivors(np.asarray(members), np.asarray(ended, bool))
    assert (None if found is None else found.tolist()) == kept


def test_lanes_are_a_multiple_of_the_devices():
    assert in_lanes(3, None, 1).tolist() == [0, 1, 2]
    assert in_lanes(3, None, 2).tolist() == [0, 1, 2, -1]
    assert in_lanes(3, 5, 4).tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert len(survivors(np.arange(8), np.arange(8) > 0, devices=2)) == 2


def test_a_snapshot_is_the_weights_at_its_step_and_changes_nothing():
    batch = built(job("steps=12"), job("steps=5"), mode="map")
    found = events(batch, snapshots=[0, 5, 7, 12, 99])
    assert tables(found, 2) == tables(events(batch), 2)
    shots = {event.step: event for event in found if isinstance(event, Snapshot)}
    assert {step: shot.members.tolist() for step, shot in shots.items()} == {
        0: [0, 1],
        5: [0, 1],
        7: [0],
    }
    shorter = end_of(events(built(job("steps=7"), mode="map")))
    for ours, theirs in zip(
        jax.tree.leaves(shots[7].params), jax.tree.leaves(shorter.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


EIGHT = """
import dataclasses, sys
sys.path.insert(0, sys.argv[1])
import jax
from lmech import compiling
compiling.host_devices(8)
from lmech.numerics.precision import numerics
import numpy as np
from test_lanes import built, end_of, events, job
from test_resume import tables
with numerics():
    configs = [job(f"seed={i}", f"steps={4 + i}", "observables.train_loss.every=3",
                   "observables.test_loss.every=1") for i in range(11)]
    for mode in ("map", "vmap"):
        batch = built(*configs, mode=mode, devices=8)
        found = events(batch, save=lambda: True)
        ours, theirs = end_of(found), end_of(events(built(*configs, mode=mode)))
        assert ours.members.tolist() == list(range(11))
        assert ours.step.tolist() == theirs.step.tolist() == [4 + i for i in range(11)]
        for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params)):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
        state = next(event for event in found if type(event).__name__ == "Saved")
        assert len(state.members) == 16
        rest = events(batch, saved=state)
        for a, b in zip(jax.tree.leaves(end_of(rest)), jax.tree.leaves(ours)):
            np.testing.assert_array_equal(a, b)
"""


@pytest.mark.slow
def test_eight_devices_share_eleven_members():
    """In a process of its own: devices are asked for before JAX looks at them."""
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
