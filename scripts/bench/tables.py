"""A table, the machine that it was measured on, and both as Markdown and as JSON."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

PACKAGES = (
    *("lmech", "jax", "jaxlib", "numpy", "scipy", "flax", "optax", "hydra-core", "joblib"),
    *("hydra-joblib-launcher", "torch", "mup", "pyhessian", "hessian-eigenthings"),
    *("curvlinops-for-pytorch",),
)
BUSY = 0.1
"""Share of the machine's cores that others use, above which it was not quiet."""


class Ratio(NamedTuple):
    """Median and range over paired repetitions."""

    median: float
    low: float
    high: float


Cell = float | int | str | Ratio | None


class Target(NamedTuple):
    """A number that is asked for."""

    what: str
    value: float | Ratio
    """A ratio is judged by its median."""
    relation: str
    """≥ or ≤"""
    bound: float
    limits: str = ""
    """What limits it where it is missed."""

    @property
    def met(self) -> bool:
        """Whether the value is on the right side; never if it is no number."""
        value = self.value.median if isinstance(self.value, Ratio) else self.value
        return value >= self.bound if self.relation == "≥" else value <= self.bound


class Table(NamedTuple):
    """A part of what a module measures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    """How to read it: what is held equal, the peers' versions."""
    targets: tuple[Target, ...] = ()
    commands: tuple[str, ...] = ()
    """What the peers ran."""


class Usage(NamedTuple):
    """The clocks of the machine and of this process with its finished children, seconds."""

    wall: float
    busy: float
    """CPU time that all processes have used since the machine started."""
    own: float
    load: float


def usage() -> Usage:
    """Now."""
    all_cores, own = psutil.cpu_times(), os.times()
    busy = sum(all_cores) - all_cores.idle - getattr(all_cores, "iowait", 0.0)
    # Linux counts a guest's time in the user's as well.
    busy -= getattr(all_cores, "guest", 0.0) + getattr(all_cores, "guest_nice", 0.0)
    return Usage(time.perf_counter(), busy, sum(own[:4]), os.getloadavg()[0])


def others(start: Usage, end: Usage) -> float:
    """Share of the machine's cores that other processes used in between."""
    cores = (end.wall - start.wall) * (os.cpu_count() or 1)
    return max(0.0, (end.busy - start.busy) - (end.own - start.own)) / cores


def machine() -> dict[str, Any]:
    """What the numbers depend on, apart from the load."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "cores used": len(psutil.Process().cpu_affinity() or ()) or os.cpu_count(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the packages that a table might measure, where installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The repository's, with a + where files have changed; empty outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, check=False)  # noqa: S603, S607
        return done.stdout.decode().strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def document(
    name: str, parts: Sequence[Table], start: Usage, end: Usage, command: str
) -> dict[str, Any]:
    """All of a table, as it goes into a JSON file."""
    return {
        "table": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "load": {
            "start": round(start.load, 2),
            "end": round(end.load, 2),
            "others": round(others(start, end), 3),
        },
        "seconds": round(end.wall - start.wall, 1),
        "parts": [plain(part) for part in parts],
    }


def plain(part: Table) -> dict[str, Any]:
    """A part in JSON's terms."""

    def cell(value: Cell) -> Any:
        return value._asdict() if isinstance(value, Ratio) else value

    return {
        **part._asdict(),
        "rows": [[cell(value) for value in row] for row in part.rows],
        "targets": [
            {**target._asdict(), "value": cell(target.value), "met": bool(target.met)}
            for target in part.targets
        ],
    }


def shown(cell: Any) -> str:
    """A cell's text: three digits, a ratio with its range."""
    match cell:
        case None:
            return ""
        case {"median": median, "low": low, "high": high}:
            return f"{_digits(median)} ({_digits(low)}–{_digits(high)})"
        case float():
            return _digits(cell)
        case _:
            return str(cell).replace("|", "\\|")


def _digits(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e7 else f"{value:.2g}"


def markdown(told: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a document, under its table's heading."""
    yield f"## {told['table']}"
    yield ""
    yield from _measured(told)


def _measured(told: Mapping[str, Any]) -> Iterator[str]:
    yield from _origin(told)
    for part in told["parts"]:
        yield from ("", f"### {part['title']}", "")
        if part["note"]:
            yield from (part["note"], "")
        if part["rows"]:
            yield "| " + " | ".join(part["columns"]) + " |"
            yield "| " + " | ".join("---" for _ in part["columns"]) + " |"
            yield from ("| " + " | ".join(map(shown, row)) + " |" for row in part["rows"])
        if part["targets"]:
            yield ""
        for target in part["targets"]:
            verdict = "met" if target["met"] else "**not met**"
            limits = f": {target['limits']}" if target["limits"] and not target["met"] else ""
            yield (
                f"- {target['what']}: {_judged(target)}, target {target['relation']} "
                f"{_digits(target['bound'])}: {verdict}{limits}"
            )
        if part["commands"]:
            yield from ("", *(f"    {command}" for command in part["commands"]))


def _origin(told: Mapping[str, Any]) -> Iterator[str]:
    computer, load = told["machine"], told["load"]
    packages = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    quiet = "" if load["others"] <= BUSY else " **Measured under load: others used the machine.**"
    yield (
        f"{told['date']}, commit {told['commit']}, `{told['command']}`, {told['seconds']:.0f} s. "
        f"{computer['processor']}, {computer['cores used']} of {computer['cores']} cores, "
        f"{computer['memory GiB']} GiB, Python {computer['python']}, {packages}. "
        f"Load {load['start']} at the start, {load['end']} at the end; other processes used "
        f"{load['others']:.0%} of the cores.{quiet}"
    )


def page(documents: Sequence[Mapping[str, Any]], about: Mapping[str, str]) -> str:
    """All documents as a page of Markdown, targets first, tables in order of ``about``.

    ``about``: name → what the table measures. It may have been measured on several machines. The
    page names the tables that it lacks.
    """
    ordered = sorted(documents, key=lambda told: (told["machine"]["processor"], told["date"]))
    found = {name: [told for told in ordered if told["table"] == name] for name in about}
    absent = [name for name, own in found.items() if not own]
    lines = [
        "# What it costs",
        "",
        "Written by `python -m scripts.bench --page docs/bench/*.json` from what `make bench`",
        "measured; those files have the tables in JSON, each with its machine, versions and date.",
        "Ratios are medians over paired repetitions of one run, with their range in brackets (some",
        "of earlier commits have none at their targets; each names its commit). A share of GFLOP/s",
        "is a median of quotients, and may differ from the quotient of the two medians beside it.",
        *([f"Tables that are not on this page: {', '.join(absent)}."] if absent else []),
        "",
        "## Targets",
        "",
        "| table | processor | what | measured | target | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for told in (told for own in found.values() for told in own):
        place = f"| [{told['table']}](#{told['table']}) | {told['machine']['processor']} |"
        for part in told["parts"]:
            for target in part["targets"]:
                bound = f"{target['relation']} {_digits(target['bound'])}"
                met = "met" if target["met"] else "**not met**"
                what = f"{part['title']}: {target['what']}"
                lines.append(f"{place} {what} | {_judged(target)} | {bound} | {met} |")
    for name, own in found.items():
        lines += ["", f"## {name}", "", *_plain(about[name])] if own else []
        for told in own:
            lines += ["", *_measured(told)]
    return "\n".join(lines) + "\n"


def _judged(target: Mapping[str, Any]) -> str:
    """A target's value, with a digit more where its rounding hides which side it is on."""
    text, bound = shown(target["value"]), _digits(target["bound"])
    ratio = target["value"] if isinstance(target["value"], Mapping) else None
    value = ratio["median"] if ratio else target["value"]
    hidden = not target["met"] and _digits(value) == bound
    return text.replace(bound, f"{value:.4g}", 1) if hidden else text


def _plain(docstring: str) -> list[str]:
    """A docstring as Markdown: its code has one backquote, and asterisks are its own."""
    return docstring.replace("``", "`").splitlines()


def write(told: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """The two files of a document."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"{told['table']}.json", folder / f"{told['table']}.md"
    files[0].write_text(
        json.dumps(told, ensure_ascii=False, indent=1, default=float) + "\n", encoding="utf-8"
    )
    files[1].write_text("\n".join(markdown(told)) + "\n", encoding="utf-8")
    return files
