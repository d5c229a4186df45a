"""How far a sweep has come, by a clock of the test's own, and how the console tells it."""

import io

import numpy as np
import pytest
from rich.console import Console

from lmech.loggers import console
from lmech.progress import Tally


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def job(loss):
    return {"train_loss": loss}


def story(clock):
    """Two batches, of jobs a, b (10 steps) and c (20, of which a stop rule leaves 15 undone)."""
    tally = Tally([{"a": 10, "b": 10}, {"c": 20}], skipped=3, clock=clock)
    yield tally.begins(0)
    clock.now = 4.0  # compiled
    yield tally.reaches(["a", "b"], 0, [job(2.0), job(3.0)])
    clock.now = 5.0
    yield tally.reaches(["a", "b"], 4, [job(1.0), job(0.5)])
    clock.now = 6.0
    yield tally.reaches(["a", "b"], 8, [job(0.5), job(np.nan)])
    clock.now = 7.0
    yield tally.ends({"a": "done", "b": "diverged"})
    clock.now = 8.0
    yield tally.begins(1)
    clock.now = 10.0
    yield tally.reaches(["c"], 2, [job(1.0)])
    clock.now = 12.0
    yield tally.reaches(["c"], 5, [job(0.25)])
    yield tally.ends({"c": "done"})


def told(number):
    return list(story(Clock()))[number]


def shown(counts):
    return {status: count for status, count in counts.items() if count}


def test_jobs_are_counted_by_status_and_never_lost():
    for progress in story(Clock()):
        assert sum(progress.sweep.counts.values()) == 6
        assert sum(progress.counts.values()) == progress.members
    assert shown(told(0).sweep.counts) == {"waiting": 1, "running": 2, "skipped": 3}
    assert shown(told(4).sweep.counts) == {"waiting": 1, "done": 1, "diverged": 1, "skipped": 3}
    assert shown(told(-1).sweep.counts) == {"done": 2, "diverged": 1, "skipped": 3}
    assert shown(told(4).counts) == {"done": 1, "diverged": 1}


def test_steps_are_summed_over_the_members_and_an_ended_one_has_none_left():
    sums = [progress.sweep.steps for progress in story(Clock())]
    assert sums == [0, 0, 8, 16, 20, 20, 22, 25, 40]
    assert {progress.sweep.horizon for progress in story(Clock())} == {40}
    assert told(-1).sweep.left == 0


def test_the_rate_leaves_the_compilation_out():
    assert [told(number).rate for number in (0, 1, 2, 3, 5, 6, 7)] == [0, 0, 4, 4, 0, 0, 1.5]


def test_the_batchs_time_left_is_at_its_own_rate():
    assert np.isnan([told(0).left, told(1).left, told(6).left]).all()
    assert told(3).left == 4 / 8  # four steps left of two members at eight a second
    assert told(7).left == 10.0


def test_the_sweeps_time_left_has_the_start_of_batches_to_come():
    assert np.isnan([told(0).sweep.left, told(1).sweep.left]).all()
    assert told(3).sweep.left == (4 + 20) / 8 + 4
    assert told(7).sweep.left == 15 / ((16 + 3) / (2 + 2))  # 19 steps in four seconds so far


def test_halves_of_a_batch_are_followed_from_where_they_go_on():
    clock = Clock()
    tally = Tally([{"a": 10, "b": 30}], clock=clock)
    tally.begins(0)
    tally.reaches(["a", "b"], 20, [job(1.0), job(1.0)])
    clock.now = 1.0
    again = tally.reaches(["a"], 5, [job(1.0)])
    assert (again.step, again.horizon, again.rate, again.sweep.steps) == (5, 10, 0, 5 + 20)
    clock.now = 2.0
    assert tally.reaches(["a"], 9, [job(1.0)]).rate == 4
    other = tally.reaches(["b"], 6, [job(1.0)])
    assert (other.step, other.horizon, other.sweep.steps) == (6, 30, 9 + 6)
    assert len(other.last) == 1
    end = tally.ends({"a": "failed", "b": "done"})
    assert shown(end.sweep.counts) == {"done": 1, "failed": 1}
    assert len(end.last) == 2


def test_the_late_record_of_a_member_that_ended_early_sets_nothing_back():
    clock = Clock()
    tally = Tally([{"a": 10, "b": 10}], clock=clock)
    tally.begins(0)
    tally.reaches(["a", "b"], 0, [{}, {}])
    clock.now = 1.0
    tally.reaches(["a", "b"], 10, [{}, {}])
    late = tally.reaches(["a", "b"], 3, [{}, {}])
    assert (late.step, late.sweep.steps, late.rate, late.left) == (10, 20, 10, 0)


def test_a_batch_that_another_process_has_done_is_skipped():
    tally = Tally([{"a": 10}, {"b": 10}], clock=Clock())
    end = tally.ends({"a": "skipped"})
    assert (shown(end.sweep.counts), end.sweep.steps) == ({"waiting": 1, "skipped": 1}, 10)
    assert end.seconds == 0


def plain(seconds, capsys):
    clock = Clock()
    with console._plain(seconds, clock) as show:
        for progress in story(clock):
            show(progress)
    return capsys.readouterr().out.splitlines()


BEGINS_AND_ENDS = [
    "batch 1/2 × 2: begins, 10 steps",
    "batch 1/2 × 2: 1 done, 1 diverged in 7 s, loss 0.5",
    "batch 2/2 × 1: begins, 20 steps",
    "batch 2/2 × 1: 1 done in 4 s, loss 0.25",
    "sweep: 2 done, 1 diverged, 3 skipped, 100 % of 40 steps in 12 s",
]


def test_a_log_file_has_a_line_for_each_beginning_and_end_and_a_last_one(capsys):
    assert plain(100, capsys) == BEGINS_AND_ENDS


def test_a_log_file_has_a_line_every_so_many_seconds(capsys):
    lines = plain(3, capsys)
    assert [line for line in lines if "begins" in line or ": step" not in line] == BEGINS_AND_ENDS
    assert [line for line in lines if ": step" in line] == [
        "batch 1/2 × 2: step 0/10, loss 2–3; sweep: 1 waiting, 2 running, 3 skipped, "
        "0 % of 40 steps",
        "batch 2/2 × 1: step 5/20, 1.5 steps/s, 10 s left, loss 0.25; sweep: 1 running, 1 done, "
        "1 diverged, 3 skipped, 62 % of 40 steps, 3.2 s left",
    ]


def test_a_sweep_that_is_cut_off_says_how_far_it_came(capsys):
    def interrupted():
        clock = Clock()
        with console._plain(100, clock) as show:
            for progress in list(story(clock))[:3]:
                show(progress)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "sweep: 1 waiting, 2 running, 3 skipped, 20 % of 40 steps in 5 s"


def test_a_sweep_with_nothing_to_do_says_nothing(capsys):
    with console._plain(1, Clock()):
        pass
    assert capsys.readouterr().out == ""


def test_a_terminal_has_the_total_on_top_and_ended_batches_as_single_lines():
    terminal = Console(force_terminal=True, record=True, width=160, file=io.StringIO())
    with console._live(terminal) as show:
        for progress in story(Clock()):
            show(progress)
    text = terminal.export_text()
    assert BEGINS_AND_ENDS[1] in text
    assert BEGINS_AND_ENDS[3] in text
    assert text.rstrip().endswith("40/40 2 done, 1 diverged, 3 skipped, 0 s left")


def test_a_terminals_running_batch_is_a_bar_below_the_total():
    terminal = Console(force_terminal=True, record=True, width=160, file=io.StringIO())
    with console._live(terminal) as show:
        for progress in list(story(Clock()))[:4]:
            show(progress)
    total, batch = (line for line in terminal.export_text().splitlines()[-2:])
    assert "16/40" in total
    assert "1 waiting, 2 running, 3 skipped, 7 s left" in total
    assert batch.startswith("batch 1/2 × 2")
    assert "8/10" in batch
    assert "4/s, 0.5 s left, loss 0.5" in batch
