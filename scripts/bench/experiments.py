"""How long every experiment takes at its default scale, from ``lmech reproduce`` to its report.

One process an experiment and no repetition; the cache of compiled programs is empty before the
first one. The exit status stands beside the time: 0 where every claim is as expected.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts.bench.asked import Asked
from scripts.bench.tables import Cell, Table, Target
from scripts.bench.timing import environment, family, same_threads, spent

CONFIGS = Path(__file__).parents[2] / "conf" / "experiment"
MINUTES, OF_ALL = 3, 90


def measure(asked: Asked) -> Iterator[Table]:
    """All of them; at tiny sizes the plan of one."""
    same_threads(asked.threads)
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    rows: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.size(names, names[:1]):
            words = asked.size(["reproduce", name], ["plan", f"experiment={name}"])
            rows.append([name, *one(Path(folder), name, words)])
    minutes = [row[1] for row in rows]
    longest = max(rows, key=lambda row: row[1])[0]
    columns = ("experiment", "minutes", "CPU minutes", "of it compiling", "exit status", "jobs")
    yield Table(
        "at default scale",
        columns,
        [*rows, ["all", sum(minutes), sum(row[2] for row in rows), None, None, None]],
        targets=(
            Target("minutes of all", sum(minutes), "≤", OF_ALL),
            Target(f"minutes of the longest, {longest}", max(minutes), "≤", MINUTES, _longer(rows)),
            Target("experiments that exit with 0, of all", _passed(rows), "≥", 1.0, _others(rows)),
        ),
    )


def _longer(rows: list[list[Cell]]) -> str:
    """Who takes longer, and for how many jobs."""
    told = [f"{name} ({jobs} runs)" for name, minutes, *_, jobs in rows if minutes > MINUTES]
    return f"{len(told)} of {len(rows)} take longer: {', '.join(told)}"


def _others(rows: list[list[Cell]]) -> str:
    """Who does not exit with 0, and what that says."""
    told = ", ".join(f"{name} ({row[3]})" for name, *row in rows if row[3])
    return f"1 says that a claim came out otherwise than registered: {told}"


def _passed(rows: list[list[Cell]]) -> float:
    return sum(row[4] == 0 for row in rows) / len(rows)


def one(room: Path, name: str, words: list[str]) -> list[Cell]:
    """Minutes, CPU minutes, compiling, exit status and jobs of an experiment."""
    folder, codes = room / name, []
    folder.mkdir()

    def run() -> None:
        command = [sys.executable, "-m", "lmech", *words]
        env = environment(LMECH_CACHE=str(room / "cache"))
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False)  # noqa: S603
        codes.append(done.returncode)

    wall, cpu = spent(run, family)
    found = sorted(folder.glob("outputs/*/*/summary.json"))
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in found]
    compiling = sum(summary["seconds"]["compile"] for summary in summaries)
    jobs = sum(1 for _ in folder.glob("outputs/*/*/*/metrics.parquet"))
    return [wall / 60, cpu / 60, compiling / 60, codes[0], jobs]
