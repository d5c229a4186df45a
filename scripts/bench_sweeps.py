"""What a sweep costs beside its arithmetic, as ratios measured side by side in one run.

    make bench-sweeps

Whole commands in processes of their own, from the words to the result: 64 runs on digits beside the
same engine under Hydra's basic sweeper and launcher, at three sizes, with an empty and with a
filled cache of compiled programs; the modes at 3,000 full-batch steps; a finished sweep of 1,000
jobs. Then, in this process, what planning a job takes, and what writing states and metrics does.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lmech import checkpoints, cli, planning, running

MEMBERS = 64
SIZES = {
    "width 16, 20 steps": ("model.width=16", "steps=20", "dataset.train_size=200"),
    "width 32, 100 steps": ("model.width=32", "steps=100", "dataset.train_size=500"),
    "width 64, 300 steps": ("model.width=64", "steps=300"),
}
RUN = ("dataset=digits", "observables=[loss]", "logger=none")
BASIC = ("hydra/sweeper=basic", "hydra/launcher=basic")
LONG = ("model.width=32", "steps=3000", "dataset.train_size=500")
OURS = ("execution.mode=map",)


def seconds(folder: Path, words: Sequence[str], cache: Path) -> float:
    """Wall time of a command in a folder, with a cache of compiled programs. Raises if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(Path.cwd()), *sys.path])
    environment = {**os.environ, "LMECH_CACHE": str(cache), "PYTHONPATH": paths}
    started = time.perf_counter()
    command = [sys.executable, "-m", "lmech", *words]
    out = subprocess.DEVNULL
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=out)  # noqa: S603
    return time.perf_counter() - started


def told(folder: Path) -> dict:
    """What a sweep's summary says."""
    (summary,) = folder.glob("outputs/run/*/summary.json")
    return json.loads(summary.read_text(encoding="utf-8"))


def beside_basic(room: Path) -> None:
    """64 runs, ours and Hydra's, from command to result."""
    print(f"{MEMBERS} runs from command to result; lmech -m, Hydra's basic sweeper and launcher")
    for number, (name, size) in enumerate(SIZES.items()):
        words = ("-m", *RUN, *size, f"seed=range({MEMBERS})")
        for cache in ("empty", "filled"):
            places = {who: room / f"{who}{number}" / cache for who in ("ours", "basic")}
            ours = seconds(places["ours"], words, room / f"cache-ours{number}")
            basic = seconds(places["basic"], (*words, *BASIC), room / f"cache-basic{number}")
            spent = told(places["ours"])["seconds"]
            run, compiling = spent["run"] / MEMBERS, spent["compile"]
            print(
                f"  {name}, {cache} cache: {ours:.1f} s, {basic:.1f} s: {basic / ours:.1f} ×;"
                f" of ours {compiling / ours:.0%} compiling, {run * MEMBERS / ours:.0%} batching,"
                f" the rest start, composing, figure; {run * 1e3:.0f} ms a run without compiling",
                flush=True,
            )


def modes(room: Path) -> None:
    """3,000 full-batch steps of 16 runs: each mode, one after another, two devices, auto."""
    print("16 runs of 3,000 full-batch steps (digits, 500 images, width 32), run time alone")
    ways = {
        "one run at a time": ("execution.lanes=1", "execution.mode=map"),
        "map": ("execution.mode=map",),
        "vmap": ("execution.mode=vmap",),
        "auto": (),
        "map on 2 devices": ("execution.mode=map", "execution.devices=2"),
        "vmap on 2 devices": ("execution.mode=vmap", "execution.devices=2"),
    }
    found = {}
    for name, way in ways.items():
        words = ("-m", *RUN, *LONG, "seed=range(16)", *way)
        seconds(room / name, words, room / "cache")
        found[name] = told(room / name)["seconds"]["run"]
        ratio = found["one run at a time"] / found[name]
        print(f"  {name}: {found[name]:.1f} s, {ratio:.2f} × as fast as one at a time", flush=True)


def finished(room: Path) -> None:
    """A finished sweep of 1,000 jobs, given again."""
    rates = ",".join(str(rate / 100) for rate in range(1, 11))
    words = ("-m", *RUN, "model.width=2", "steps=1", "dataset.train_size=20", "seed=range(100)")
    words = (*words, f"optimizer.learning_rate={rates}")
    first = seconds(room / "thousand", words, room / "cache")
    again = [seconds(room / "thousand", words, room / "cache") for _ in range(5)]
    print(f"1,000 jobs: {first:.1f} s; again, all finished: {min(again):.2f} s at best of 5")


def planning_a_job() -> None:
    """Composing, checking and hashing, after start-up."""

    def expanded(count: int) -> float:
        started = time.perf_counter()
        planning.multirun([*RUN, f"seed=range({count})"])
        return time.perf_counter() - started

    expanded(2)
    each = (expanded(2000) - expanded(1000)) / 1000
    print(f"planning: {each * 1e3:.2f} ms a job")


def writing(room: Path) -> None:
    """The share of states, metrics and results in a run of 64 members with the usual states."""
    spent = {"states": 0.0, "results": 0.0}

    def timed(module: object, name: str, kind: str) -> None:
        function = getattr(module, name)

        def call(*arguments: object) -> object:
            started = time.perf_counter()
            result = function(*arguments)
            spent[kind] += time.perf_counter() - started
            return result

        setattr(module, name, call)

    timed(checkpoints, "write", "states")
    timed(running, "_write_ended", "results")
    os.chdir(room)
    words = ("-m", *RUN[:-1], "logger=none", "steps=2000", f"seed=range({MEMBERS})")
    cli.main([*words, "observables=[loss,sharpness]", "execution.mode=map"])
    run = told(room)["seconds"]["wall"]
    for kind, time_spent in spent.items():
        print(f"writing {kind}: {time_spent:.2f} s, {time_spent / run:.2%} of {run:.0f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        planning_a_job()
        finished(room)
        beside_basic(room)
        modes(room / "modes")
        (room / "writing").mkdir()
        writing(room / "writing")
