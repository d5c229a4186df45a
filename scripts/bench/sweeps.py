"""What a sweep costs beside its arithmetic.

Whole commands in processes of their own, from the words to the result: 64 runs on digits by
``lmech -m``, and the same jobs by the same engine under Hydra's basic sweeper with its basic and
its joblib launcher (two workers), with an empty and with a filled cache of compiled programs; a
finished sweep of 1,000 jobs. Then, here, what planning a job takes, and what writing states and
metrics does.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmech import checkpoints, cli, planning, training
from scripts.bench.asked import Asked, wanted
from scripts.bench.tables import Cell, Table
from scripts.bench.timing import process, ratio_of

SIZES = {
    "width 16, 20 steps, 200 images": ("model.width=16", "steps=20", "dataset.train_size=200"),
    "width 32, 100 steps, 500 images": ("model.width=32", "steps=100", "dataset.train_size=500"),
    "width 64, 300 steps, 1,500 images": ("model.width=64", "steps=300"),
}
RUN = ("dataset=digits", "observables=[loss]", "logger=none")
BASIC = ("hydra/sweeper=basic", "hydra/launcher=basic")
JOBLIB = ("hydra/sweeper=basic", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def measure(asked: Asked) -> Iterator[Table]:
    """Launchers, what planning and writing take."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        yield launchers(room, asked)
        yield parts(room, asked)


def lmech(folder: Path, words: Sequence[str], cache: Path) -> tuple[float, float]:
    """Wall and CPU time of a command in a folder, with a cache of compiled programs."""
    command = [sys.executable, "-m", "lmech", *words]
    return process(command, folder, LMECH_CACHE=str(cache))


def to_results(folder: Path, words: Sequence[str], cache: Path) -> tuple[float, float, float]:
    """The same, and the wall time until the last run's result was written (then lmech -m draws)."""
    began = time.time()
    spent = lmech(folder, words, cache)
    written = max(file.stat().st_mtime for file in folder.glob("**/result.json"))
    return *spent, written - began


def told(folder: Path) -> dict:
    """What a sweep's summary says."""
    (summary,) = folder.glob("outputs/run/*/summary.json")
    return json.loads(summary.read_text(encoding="utf-8"))


def launchers(room: Path, asked: Asked) -> Table:
    """64 runs, ours and Hydra's, from command to result."""
    members = asked.size(64, 3)
    sides = {"lmech -m": (), "Hydra's basic launcher": BASIC}
    if wanted("hydra_plugins.hydra_joblib_launcher") is not None:
        sides["Hydra's joblib launcher, 2 workers"] = JOBLIB
    rows: list[list[Cell]] = []
    commands = []
    for number, (size, overrides) in enumerate(
        asked.size(list(SIZES.items()), [*SIZES.items()][:1])
    ):
        words = ("-m", *RUN, *overrides, f"seed=range({members})")
        rounds: dict[str, list[list[tuple[float, ...]]]] = {"empty": [], "filled": []}
        for turn in range(asked.repetitions):
            for kind, found in rounds.items():
                found.append([])
                for side, more in enumerate(sides.values()):
                    place = room / f"{number}-{side}" / f"{turn}-{kind}"
                    cache = room / f"cache{number}-{side}-{turn}"
                    found[-1].append(to_results(place, (*words, *more), cache))
                    if turn == 0 and kind == "empty":
                        commands.append(f"lmech {' '.join((*words, *more))}")
        for kind, found in rounds.items():
            rows += [[size, kind, *row] for row in beside(list(sides), found)]
    note = (
        "From the words to the end of the command, and to the last run's result: after that lmech "
        f"-m draws a figure and a report. Empty cache: a new one each round. {asked.repetitions} "
        "rounds. CPU time is of all processes."
    )
    if len(sides) == 2:
        note += " Hydra's joblib launcher skipped: pip install hydra-joblib-launcher."
    columns = ("runs", "cache of programs", "side", "wall s", "CPU s", "to results s")
    columns = (*columns, *(f"{what} over lmech's" for what in ("wall", "CPU", "to results")))
    title = f"{members} runs on digits, loss alone"
    return Table(title, columns, rows, note, commands=tuple(commands))


def beside(names: list[str], rounds: list[list[tuple[float, ...]]]) -> Iterator[list[Cell]]:
    """Rows of the sides' medians, and their ratios to the first."""
    for side, name in enumerate(names):
        seconds = [statistics.median(turn[side][clock] for turn in rounds) for clock in range(3)]
        ratios = [ratio_of([turn[side][c] / turn[0][c] for turn in rounds]) for c in range(3)]
        yield [name, *seconds, *ratios]


def parts(room: Path, asked: Asked) -> Table:
    """A finished sweep, planning, writing."""
    jobs = asked.size(1000, 20)
    first, again = finished(room, asked, jobs)
    rows: list[list[Cell]] = [
        [f"{jobs} jobs of one step, seconds", first],
        ["the same again, all finished, seconds", ratio_of(again)],
        ["planning a job after start-up, ms", planning_a_job(asked.size(1000, 20)) * 1e3],
    ]
    (room / "writing").mkdir()
    rows += [[f"writing {kind}, of the run", share] for kind, share in writing(room, asked).items()]
    return Table("planning and writing", ("what", "value"), rows)


def finished(room: Path, asked: Asked, jobs: int) -> tuple[float, list[float]]:
    """Wall time of a sweep of so many jobs, and of the same when all are finished."""
    rates = ",".join(str(rate / 100) for rate in range(1, 11))
    words = ("-m", *RUN, "model.width=2", "steps=1", "dataset.train_size=20")
    words = (*words, f"optimizer.learning_rate={rates}", f"seed=range({jobs // 10})")
    calls = [lmech(room / "thousand", words, room / "cache") for _ in range(1 + asked.repetitions)]
    return calls[0][0], [wall for wall, _ in calls[1:]]


def planning_a_job(count: int) -> float:
    """Seconds to compose, check and hash a job, after start-up."""

    def expanded(count: int) -> float:
        started = time.perf_counter()
        planning.multirun([*RUN, f"seed=range({count})"])
        return time.perf_counter() - started

    expanded(2)
    return (expanded(2 * count) - expanded(count)) / count


def writing(room: Path, asked: Asked) -> dict[str, float]:
    """The share of states and of metrics and results in a run of 64 members."""
    spent = {"states": 0.0, "metrics and results": 0.0}

    def timed(module: object, name: str, kind: str) -> None:
        function = getattr(module, name)

        def call(*arguments: object) -> object:
            started = time.perf_counter()
            result = function(*arguments)
            spent[kind] += time.perf_counter() - started
            return result

        setattr(module, name, call)

    timed(checkpoints, "write", "states")
    timed(training, "_write_ended", "metrics and results")
    words = ("-m", *RUN[:1], "logger=none", f"steps={asked.size(2000, 10)}")
    words = (*words, f"seed=range({asked.size(64, 2)})", "observables=[loss,sharpness]")
    with contextlib.chdir(room / "writing"):
        cli.main([*words, "execution.mode=map"])
    run = told(room / "writing")["seconds"]["wall"]
    return {kind: seconds / run for kind, seconds in spent.items()}
