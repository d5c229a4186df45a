"""Two processes of this machine that are one run."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from lmech.cli import main
from lmech.collecting import collect

RUN = [
    *("dataset.train_size=60", "model.width=8", "precision=float64", "execution.mode=map"),
    *("observables=[loss,sharpness]", "observables.sharpness.every=10", "logger=none"),
    *("optimizer=adam", "execution.share=examples"),
]


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(folder, *words, program=("-m", "lmech")):
    """Both processes of one run."""
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port()}",
        "LMECH_PROCESSES": "2",
    }
    command = [sys.executable, *program, *RUN, "execution.processes=2", *words]
    return [
        subprocess.Popen(
            command,
            cwd=folder,
            env={**shared, "LMECH_PROCESS": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]


def wait_for_state(folder):
    deadline = time.monotonic() + 200
    while not list(folder.glob("outputs/run/*/batches/*/state.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(processes, limit=300):
    try:
        told = [process.communicate(timeout=limit) for process in processes]
    finally:
        for process in processes:
            process.kill()  # nothing, to one that has ended
    return [process.returncode for process in processes], told


def files(folder):
    found = folder.glob("outputs/run/*/*/*")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if path.name in ("metrics.parquet", "result.json")
    }


@pytest.mark.slow
def test_two_processes_are_one_run_and_go_on_after_a_signal(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    codes, told = ended(started(whole, "steps=1500"))
    assert codes == [0, 0], told
    assert ("runs:" in told[0][0], "runs:" in told[1][0]) == (True, False)
    assert len(files(whole)) == 2

    first, second = started(cut, "steps=1500", "execution.save_every=0")
    wait_for_state(cut)
    first.send_signal(signal.SIGUSR1)
    codes, told = ended([first, second])
    assert codes == [75, 0], told
    assert files(cut) == {}
    codes, told = ended(started(cut, "steps=1500"))
    assert codes == [0, 0], told
    assert files(cut) == files(whole)

    monkeypatch.chdir(tmp_path)
    words = [word for word in RUN if not word.startswith("execution.share")]
    assert main([*words, "steps=1500"]) == 0
    alone, both = (collect(folder / "outputs")["train_loss"] for folder in (tmp_path, whole))
    assert (abs(alone - both) < 1e-7 * abs(alone) + 1e-12).all()


def test_several_processes_share_the_examples_of_a_run(capsys):
    assert main([*RUN[:-1], "execution.processes=2"]) == 2
    assert "set execution.share=examples" in capsys.readouterr().err


ASKED_LATE = """
import os, signal, sys
from lmech import cli, together

train = together.train

def late(*args, last, **options):
    asked = []

    def asking():
        said = last()
        if not asked:
            asked.append(os.kill(os.getpid(), signal.SIGUSR1))
        return said

    return train(*args, last=asking, **options)

together.train = late
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_signal_after_it_was_decided_to_go_on_stops_at_the_next_state(tmp_path):
    """The first may not stop where it has told the others to go on."""
    words = ("steps=1500", "execution.save_every=0")
    codes, told = ended(started(tmp_path, *words, program=("-c", ASKED_LATE)))
    assert codes == [75, 0], told
    assert "stopped by SIGUSR1 at step" in told[0][1]
    codes, told = ended(started(tmp_path, "steps=1500"))
    assert codes == [0, 0], told
    assert len(files(tmp_path)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_an_interrupt_of_one_process_ends_both(tmp_path, process):
    both = started(tmp_path, "steps=100000", "execution.save_every=0")
    wait_for_state(tmp_path)
    both[process].send_signal(signal.SIGINT)
    codes, told = ended(both, limit=200)  # JAX's own way out waits 300 s for the other
    assert codes[process] == 130, told
    assert codes[1 - process] not in (0, 130), told
    assert told[process][1].strip().splitlines()[-1] == "lmech: interrupted"


SLOW = """
import sys, time
from lmech import cli, together

tell = together._tell

def slow(task):
    time.sleep(35 if task else 0)
    tell(task)

together._tell = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_others_wait_for_the_first_as_long_as_it_plans(tmp_path):
    """More than the 30 s that JAX's CPU waits for a process at their first collective."""
    codes, told = ended(started(tmp_path, "steps=20", program=("-c", SLOW)))
    assert codes == [0, 0], told
    assert len(files(tmp_path)) == 2


FULL = """
import errno, os, sys
from lmech import cli, together

agreed = together._agreed

def full(answer):
    if os.environ["LMECH_PROCESS"] == "{process}" and answer in (together.NO, together.YES):
        raise OSError(errno.ENOSPC, "No space left on device")
    return agreed(answer)

together._agreed = full
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_what_fails_in_one_process_ends_both_and_the_same_command_goes_on(tmp_path, process):
    program = ("-c", FULL.format(process=process))
    codes, told = ended(started(tmp_path, "steps=20", program=program))
    assert 0 not in codes
    assert "No space left on device" in told[process][1]
    assert files(tmp_path) == {}
    codes, told = ended(started(tmp_path, "steps=20"))
    assert codes == [0, 0], told
    assert len(files(tmp_path)) == 2
