"""`lmech measure`: columns from kept weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from lmech import formats
from lmech.commands import new_parser, parse_steps, section

if TYPE_CHECKING:
    from lmech.measuring import Outcome as Measured


def main(words: list[str]) -> int:
    """Run `lmech measure`; returns the exit code."""
    parser = new_parser(
        "measure",
        "Add columns to finished runs, from the weights that they kept (`snapshots`, and the last "
        "ones). Trains nothing.",
        {
            "lmech measure outputs 'observables=[trace]'": "at every step whose weights are kept",
            "lmech measure outputs 'observables=[ntk]' observables.ntk.every=1 --steps last": (
                "at the last one"
            ),
        },
        {1: "something asked for has no answer"},
    )
    parser.add_argument("folder", type=Path, help="a sweep's, or one above: all below it")
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="observables=[A,B] of `lmech list observables`, then observables.A.KEY=VALUE",
    )
    parser.add_argument(
        "--steps", help="last (each run's), 0,100 or FIRST:END:STRIDE (default: all that it kept)"
    )
    options = parser.parse_intermixed_args(words)
    steps = parse_steps(options.steps)
    observables = section("observables", options.overrides, "observables=[ntk,trace]")
    from lmech import collecting

    sweeps = collecting.sweeps(options.folder)
    from lmech import measuring

    outcome = measuring.measure(sweeps, observables, steps)
    for line in measured_lines(outcome):
        print(line)
    return int(bool(outcome.gaps))


def measured_lines(outcome: "Measured") -> list[str]:
    """Columns, jobs and snapshots; then a line for each reason why something has no answer."""
    columns = {name for done in outcome.done for name in done.columns}
    observables = {name for done in outcome.done for name in done.observables}
    steps = sorted({step for done in outcome.done for step in done.steps})
    counts = {
        "measured": len(outcome.done),
        "with nothing left to measure": outcome.known,
        "unfinished": outcome.unfinished,
    }
    lines = [
        f"columns:   {len(columns)}" + f", of {', '.join(sorted(observables))}" * bool(columns),
        f"jobs:      {', '.join(f'{n} {kind}' for kind, n in counts.items() if n) or 'none'}",
        f"snapshots: {formats.listed(steps)}",
    ]
    reasons: dict[str, tuple[set[str], set[Path]]] = {}
    for gap in outcome.gaps:
        names, jobs = reasons.setdefault(gap.reason, (set(), set()))
        names |= set(gap.observables)
        jobs.add(gap.job)
    for reason, (names, jobs) in reasons.items():
        which = f"{len(jobs)} jobs" if len(jobs) > 1 else f"job {min(jobs).name}"
        lines.append(f"no answer: {', '.join(sorted(names))}: {reason} ({which})")
    return lines
