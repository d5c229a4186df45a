"""Who works on a batch: a file with a heartbeat, by which processes share a sweep."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT = 10.0
"""Seconds between two touches of a held lock."""
DEAD = 6
"""Beats without a touch after which its holder is taken for dead."""


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold the lock for the block; False if somebody else does.

    A holder that is gone (its process, on this host; its heartbeat, on any) loses it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (_take(path) or (_abandoned(path) and _take(path))):
        yield False
        return
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, done), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        done.set()
        heart.join()
        with suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == _holder():  # else it was taken for dead
                path.unlink()


@contextmanager
def waited(path: Path) -> Iterator[None]:
    """Hold the lock for the block, when whoever has it lets go."""
    while True:
        with held(path) as mine:
            if mine:
                yield
                return
        time.sleep(0.05)


def holder(path: Path) -> str | None:
    """The host of the process that holds the lock; None if nobody does, or who is gone."""
    try:
        text, touched = path.read_text(encoding="utf-8"), path.stat().st_mtime
        return None if _gone(path, text, touched) else str(json.loads(text)["host"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return "?"


def _take(path: Path) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_holder())
    except (FileExistsError, FileNotFoundError):  # the folder went between two calls
        return False
    return True


def _holder() -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid()})


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _abandoned(path: Path) -> bool:
    """Whether the holder is gone; its lock is then removed, by one process only."""
    try:
        text, touched = path.read_text(encoding="utf-8"), path.stat().st_mtime
        if not _gone(path, text, touched):
            return False
        grave = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
        path.rename(grave)
    except FileNotFoundError:
        return True
    if grave.read_text(encoding="utf-8") == text:
        grave.unlink()
        return True
    grave.rename(path)  # somebody took it over in between
    return False


def _gone(path: Path, text: str, touched: float) -> bool:
    """Whether a lock's holder runs no more, or has been silent for too long."""
    return _died(text) or _now(path) - touched > DEAD * BEAT


def _died(text: str) -> bool:
    """Whether the holder ran on this host and runs no more."""
    try:
        holder = json.loads(text)
        if holder["host"] != socket.gethostname():
            return False
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, PermissionError):
        return False
    return False


def _now(path: Path) -> float:
    """The time by the clock that touches are stamped with, which may be a file server's.

    By this machine's where nothing can be written.
    """
    probe = path.with_name(f".now.{socket.gethostname()}.{os.getpid()}")
    try:
        probe.touch()
    except FileNotFoundError:
        raise
    except OSError:
        return time.time()
    stamp = probe.stat().st_mtime
    probe.unlink()
    return stamp
