"""Locks: one holder, and none that is dead."""

import json
import os
import socket
import subprocess
import sys

import pytest

from lmech import locking
from lmech.locking import held


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "batches" / "abc.lock"


def test_one_holder_at_a_time_and_none_afterwards(lock):
    with held(lock) as first:
        assert first
        with held(lock) as second:
            assert not second
        assert lock.exists()
    assert not list(lock.parent.iterdir())
    with held(lock) as again:
        assert again


def test_an_exception_frees_it(lock):
    with pytest.raises(RuntimeError), held(lock):
        raise RuntimeError
    assert not lock.exists()


def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("host", "pid", "age", "free"),
    [
        (socket.gethostname(), None, 0, True),
        (socket.gethostname(), os.getpid(), 0, False),
        ("elsewhere", 1, 0, False),
        ("elsewhere", 1, 3600, True),
    ],
    ids=["dead here", "alive here", "beating elsewhere", "silent elsewhere"],
)
def test_who_is_gone_loses_it(lock, host, pid, age, free):
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": host, "pid": pid or dead()}))
    stamp = lock.stat().st_mtime - age
    os.utime(lock, (stamp, stamp))
    with held(lock) as mine:
        assert mine == free
    assert lock.exists() != free


def test_a_held_lock_is_touched(lock, monkeypatch):
    monkeypatch.setattr(locking, "BEAT", 0.01)
    with held(lock):
        os.utime(lock, (0, 0))
        for _ in range(1000):
            if lock.stat().st_mtime > 0:
                break
            locking.threading.Event().wait(0.01)
        assert lock.stat().st_mtime > 0


def test_a_lock_that_was_taken_over_meanwhile_is_left_to_its_holder(lock, monkeypatch):
    """Between the look at a dead holder's file and its removal, another process took it."""
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": dead()}))
    alive = json.dumps({"host": "elsewhere", "pid": 1})
    died = locking._died

    def looked(text):
        lock.write_text(alive)
        return died(text)

    monkeypatch.setattr(locking, "_died", looked)
    with held(lock) as mine:
        assert not mine
    assert lock.read_text() == alive
