"""Which mode, and how many at once."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import job

from lmech import building, tuning
from lmech.lanes import Record
from lmech.numerics import lapack

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


def test_a_cpus_devices_have_their_copies_of_the_data_in_the_same_memory():
    batch = building.build([job(f"seed={i}") for i in range(10)])
    four = batch._replace(program=replace(batch.program, devices=4))
    assert tuning.lanes(four, 2**40) == 10  # more lanes than members are no use
    copies = 3 * tuning.bytes_of(batch.data)
    sizes = range(copies, copies + 2**21, 2**13)
    found = {free: tuning.lanes(four, free) for free in sizes}
    assert all(count in (10, 8, 4) or count < 4 for count in found.values())
    assert {4, 8} <= set(found.values())
    assert all(count <= tuning.lanes(batch, free - copies) for free, count in found.items())


def test_devices_are_tried_where_nobody_has_said_how_many(monkeypatch):
    program = building.build([job()]).program
    monkeypatch.setattr(tuning.jax, "device_count", lambda: 8)
    alone = {"devices": None}
    assert tuning.most_devices(program, alone) == 8
    assert tuning.most_devices(program, {"devices": 1}) == 1
    assert tuning.most_devices(program, {**alone, "share": "examples"}) == 1
    monkeypatch.setattr(tuning.jax, "default_backend", lambda: "gpu")
    two = replace(program, devices=2)  # all there are: no choice
    assert tuning.most_devices(two, alone) == 2
    assert tuning.on_one_device(two) is two  # each has a memory of its own


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
    monkeypatch.setattr(tuning, "_seconds", lambda _, p, __: (0.1, seconds[p.mode]))
    assert tuning.fastest(batch).mode == mode


WAYS = {("map", 1): 4.0, ("vmap", 1): 3.0, ("map", 2): 1.0, ("vmap", 2): 2.0}


@pytest.mark.parametrize(
    ("slow", "members", "most", "found"),
    [
        ({}, 3, 1, ("vmap", 1)),
        ({}, 3, 2, ("vmap", 2)),  # the faster mode on one device, then on two
        ({("vmap", 2): 3.5}, 3, 2, ("vmap", 1)),
        ({("vmap", 1): 5.0}, 3, 2, ("map", 2)),
        ({}, 2, 8, ("vmap", 2)),  # no more devices than members
    ],
)
def test_devices_are_taken_where_they_pay(monkeypatch, tmp_path, slow, members, most, found):
    batch = building.build([job("steps=1000", f"seed={i}") for i in range(members)])
    seconds = WAYS | slow
    monkeypatch.setattr(tuning, "_seconds", lambda _, p, __: (0.1, seconds[p.mode, p.devices]))
    for _ in range(2):  # the second time from the memo
        way = tuning.fastest(batch, most, tmp_path / "memo")
        assert (way.mode, way.devices) == found
        seconds = dict.fromkeys(seconds, 1.0)


def test_devices_are_not_taken_where_copies_of_the_data_have_no_room(monkeypatch, tmp_path):
    batch = building.build([job("steps=1000", f"seed={i}") for i in range(3)])
    monkeypatch.setattr(tuning, "_seconds", lambda _, p, __: (0.1, WAYS[p.mode, p.devices]))
    size = tuning.bytes_of(batch.data)
    for free, devices in ((2 * size, 2), (2 * size - 1, 1)):
        memo = tmp_path / str(free)
        monkeypatch.setattr(tuning, "free_memory", lambda free=free: free)
        assert tuning.fastest(batch, 2, memo).devices == devices
        assert memo.exists() == (devices == 2)  # another time there may be room


def test_side_by_side_is_not_tried_where_it_has_no_room(monkeypatch, tmp_path):
    batch = building.build([job("steps=1000", f"seed={i}") for i in range(3)])
    sides = replace(batch.program, mode="vmap")
    need = next(
        free
        for free in range(0, 2**24, 2**10)
        if tuning.lanes(batch._replace(program=sides), free) == 3
    )
    tried = []

    def seconds(_, program, __):
        tried.append(program.mode)
        return 0.1, WAYS[program.mode, program.devices]

    monkeypatch.setattr(tuning, "_seconds", seconds)
    for free, modes in ((need, ["map", "vmap"]), (need - 2**10, ["map"])):
        tried.clear()
        memo = tmp_path / str(free)
        monkeypatch.setattr(tuning, "free_memory", lambda free=free: free)
        assert tuning.fastest(batch, 1, memo).mode == modes[-1]
        assert tried == modes
        assert memo.exists() == (len(modes) == 2)


def test_every_limit_above_the_process_counts_and_cached_files_do_not(monkeypatch, tmp_path):
    free = 2**40
    monkeypatch.setattr(tuning.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(tuning, "CGROUP", tmp_path / "groups")
    monkeypatch.setattr(tuning, "OWN_CGROUP", tmp_path / "own")
    assert tuning.free_memory() == free  # no groups here
    (tmp_path / "own").write_text("4:memory:/old\n0::/job/step\n")
    groups = {"job/step": ("max", 100, 0), "job": (5000, 4000, 700), "": (9000, 1000, 0)}
    for name, (most, now, cached) in groups.items():
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{now}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert tuning.free_memory() == 1700  # the job's: 1000 and what its cached files take
    (tmp_path / "own").write_text("0::/../elsewhere\n")
    assert tuning.free_memory() == 8000


@pytest.mark.parametrize(
    ("waits", "found"),
    [
        ({"vmap"}, ("map", 2)),  # as it waits side by side, it is in turn on devices
        ({"map"}, ("vmap", 2)),
        ({"map", "vmap"}, ("map", 1)),
    ],
)
def test_no_way_is_taken_in_which_a_call_may_wait_for_ever(monkeypatch, waits, found):
    batch = building.build([job("steps=1000", f"seed={i}") for i in range(3)])
    monkeypatch.setattr(tuning, "_seconds", lambda _, p, __: (0.1, WAYS[p.mode, p.devices]))
    monkeypatch.setattr(tuning, "ends", lambda _, program: program.mode not in waits)
    way = tuning.fastest(batch, 2)
    assert (way.mode, way.devices) == found


@pytest.mark.parametrize(
    ("f", "side_by_side"),
    [
        (jnp.linalg.eigvalsh, False),
        (lapack.eigvalsh, True),
        (jnp.fft.fft2, False),
        (jax.lax.erf, True),
        (jnp.sort, True),
    ],
)
def test_calls_that_may_wait_for_ever_are_known_by_the_programs_text(f, side_by_side):
    shapes = jax.ShapeDtypeStruct((4, 50, 50), jnp.float32)
    text = jax.jit(jax.vmap(f)).lower(shapes).as_text()
    assert (tuning.WAITS.search(text) is None) is side_by_side


def test_a_program_ends_where_its_matrices_are_taken_one_by_one():
    batch = building.build([job("observables=[sharpness]", f"seed={i}") for i in range(3)])
    for mode in ("map", "vmap"):
        assert tuning.ends(batch, replace(batch.program, mode=mode))


def test_devices_that_raise_are_not_taken(monkeypatch):
    def seconds(_, program, __):
        if program.devices > 1:
            raise RuntimeError("no two of them")
        return 0.1, WAYS[program.mode, 1]

    batch = building.build([job("steps=1000", f"seed={i}") for i in range(3)])
    monkeypatch.setattr(tuning, "_seconds", seconds)
    assert (tuning.fastest(batch, 2).mode, tuning.fastest(batch, 2).devices) == ("vmap", 1)


def test_what_was_found_is_remembered_of_so_many_members(monkeypatch):
    batch = building.build([job("steps=1000", f"seed={i}") for i in range(2)])
    timed = []

    def seconds(_, program, __):
        timed.append(program.mode)
        return 0.1, {"map": 2.0, "vmap": 1.0}[program.mode]

    monkeypatch.setattr(tuning, "_seconds", seconds)
    memo = tuning.memo_file("a-program", 2, 1)
    assert [tuning.fastest(batch, 1, memo).mode for _ in range(2)] == ["vmap", "vmap"]
    assert sorted(timed) == ["map", "vmap"]
    memo.write_text("map 1")
    assert tuning.fastest(batch, 1, memo).mode == "map"
    for odd in ("vm", "map 2"):  # damaged, or what cannot be here: timed again
        memo.write_text(odd)
        assert tuning.fastest(batch, 1, memo).mode == "vmap"
        assert memo.read_text() == "vmap 1"
    others = [("a-program", 3, 1), ("a-program", 2, 2), ("another", 2, 1)]
    assert len({memo, *(tuning.memo_file(*other) for other in others)}) == 4


def test_a_choice_that_cannot_be_written_is_made_all_the_same(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    batch = building.build([job("steps=1000", f"seed={i}") for i in range(2)])
    times = {"map": 2.0, "vmap": 1.0}
    monkeypatch.setattr(tuning, "_seconds", lambda _, p, __: (0.1, times[p.mode]))
    assert tuning.fastest(batch, 1, tmp_path / "file" / "below").mode == "vmap"


@pytest.mark.parametrize("overrides", [("steps=20",), ("steps=1000",)])
def test_a_short_run_is_not_worth_another_compilation(monkeypatch, overrides):
    batch = building.build([job(*overrides, f"seed={i}") for i in range(2)])
    monkeypatch.setattr(
        tuning, "_seconds", lambda _, p, __: (100.0, {"map": 0.5, "vmap": 0.2}[p.mode])
    )
    assert tuning.fastest(batch).mode == "map"


def test_chunks_are_timed_after_one_that_compiles():
    batch = building.build([job("steps=100", f"seed={i}") for i in range(2)])
    first, later = tuning._seconds(batch, batch.program, 4)
    assert first > 0
    assert later > 0


def test_a_step_is_told_of_the_quickest_chunk_however_long(monkeypatch):
    """Chunks of 12, 12, 2 and 12 steps, of which something else delayed the third and the last."""
    clock = iter([0.0, 9.0, 10.2, 10.6, 12.1])
    widths = [12, 12, 2, 12]
    rows = [np.zeros((1, width), int) for width in widths]
    records = [Record(np.arange(1), row, row == 0, {"batch_loss": row}, True) for row in rows]
    monkeypatch.setattr(tuning.engine, "train", lambda *_, **__: iter(records))
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    batch = building.build([job("steps=100", f"seed={i}") for i in range(2)])
    assert tuning._seconds(batch, batch.program, 12) == (9.0, pytest.approx(0.1))


@pytest.mark.parametrize(
    ("steps", "sizes"), [(100, []), (479, []), (1000, [2, 2, 2]), (10**5, [16, 16, 16])]
)
def test_timing_takes_a_26th_of_a_run_at_most(monkeypatch, steps, sizes):
    """Five or six chunks of each way; a run too short for that takes the usual one."""
    seen = []

    def timed(_, __, size):
        seen.append(size)
        return 0.001, 1.0

    monkeypatch.setattr(tuning, "_seconds", timed)
    tuning.fastest(building.build([job(f"steps={steps}", f"seed={i}") for i in range(2)]), 2)
    assert seen == sizes
    assert (tuning.TIMED + 2) * sum(seen) <= steps / 26


def test_what_raises_while_it_is_timed_is_left_to_the_run(monkeypatch):
    def broken(*_):
        raise RuntimeError("the lamp is broken")

    batch = building.build([job("steps=1000", f"seed={i}") for i in range(2)])
    monkeypatch.setattr(tuning, "_seconds", broken)
    assert tuning.fastest(batch).mode == "map"


def test_one_member_runs_in_turn():
    assert tuning.fastest(building.build([job("steps=1000", "execution.mode=vmap")])).mode == "map"


def test_an_observable_that_draws_inside_the_loop_can_run_side_by_side():
    words = ("execution.mode=vmap", "observables=[loss,sharpness]", "observables.sharpness.every=1")
    batch = building.build([job(*words, f"seed={i}") for i in range(2)])
    assert tuning.lanes(batch, 2**33) == 2
