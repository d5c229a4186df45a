"""`lmech plan`: what a command line would run."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmech import formats, launching
from lmech.commands import new_parser
from lmech.commands.reproduce import options_of

if TYPE_CHECKING:
    from rich.table import Table

    from lmech.estimating import Estimate
    from lmech.planning import Job


def main(words: list[str]) -> int:
    """Print what the rest of the line would run."""
    options, rest = _parser().parse_known_args(words)
    from lmech import planning, standing

    jobs, _ = asked_of(rest)
    if options.show:
        from lmech import showing

        for table in showing.parametrizations(jobs):
            launching.terminal().print(table)
        return 0
    if options.verify and not _verified(jobs):
        return 1
    folder = planning.folder(jobs)
    todo = standing.todo(jobs, folder)
    if jobs[0].config["rerun"] != "all":
        taken = standing.elsewhere(todo, folder)
        todo = [job for job in todo if job.id not in taken]
    groups = planning.group(todo)
    estimates = []
    if groups:
        from lmech import compiling
        from lmech.estimating import estimate

        compiling.host_devices(jobs[0].config["execution"]["devices"] or 1)
        estimates = [estimate(group, compile=options.compile) for group in groups]
        launching.terminal().print(plan_table(groups, estimates))
        for number, cost in enumerate(estimates):
            if cost.short:
                print(f"memory: program {number} takes more than is free: lower execution.lanes")
    again = {job.id for job in todo}
    left = [job for job in jobs if job.id not in again]
    failed = sum(standing.of(folder / job.id, job) == "failed" for job in left)
    done = len(jobs) - len(todo) - failed
    programs = "1 program" if len(groups) == 1 else f"{len(groups)} programs"
    print(f"jobs:   {len(jobs)}, of which {done} finished; {programs} to compile")
    if failed:
        print(f"failed: {failed}; rerun=failed tries them again")
    seconds = formats.duration(sum(cost.seconds for cost in estimates))
    print(f"time:   {seconds} of arithmetic to train, at the speed of a matrix product here")
    print(f"folder: {folder}")
    return 0


def asked_of(words: list[str]) -> tuple[list["Job"], dict[str, Any]]:
    """The jobs of any command line that trains, and what ``resume`` is to know of it.

    Raises ConfigError.
    """
    from lmech import planning, reproducing

    line = launching.command(words)
    if words[:1] == ["reproduce"]:
        asked = options_of(words[1:], one=True)
        experiment = reproducing.load(asked.experiment, asked.scale, asked.overrides)
        jobs = planning.expand(experiment.overrides, experiment.sweep)
        what = {"title": "", "experiment": asked.experiment, "scale": asked.scale}
    else:
        plain = [word for word in words if word not in ("-m", "--multirun")]
        jobs = launching.jobs_of(plain, multirun=plain != words)
        title = ", ".join(jobs[0].overrides) or "one run"
        what = {"title": title, "experiment": None, "scale": None}
    return jobs, {"command": line, **what}


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "plan",
        "What any other command line would run: jobs, programs, operations, memory, time. Starts "
        "nothing.",
        {
            "lmech plan -m seed=0,1 model.width=64,128": "a sweep's programs and their cost",
            "lmech plan reproduce edge_of_stability": "an experiment's",
            "lmech plan --verify -m seed=0,1": "that a seed is an input of its program",
            "lmech plan --show parametrization parametrization=mup": "what μP does to each tensor",
        },
        {1: "--verify: a key that should be an input changes the program"},
    )
    parser.usage = "lmech plan [options] (KEY=VALUE … | -m KEY=VALUES … | reproduce EXPERIMENT …)"
    parser.add_argument(
        "--compile", action="store_true", help="measure memory, by compiling (on one device)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="lower every program at another value of each input key: the text must not change",
    )
    parser.add_argument(
        "--show", choices=["parametrization"], help="its table: what it does to each tensor"
    )
    return parser


def _verified(jobs: Sequence["Job"]) -> bool:
    """Print what splits the jobs into programs, and whether what should not does not."""
    from lmech import planning, splitting

    print(splitting.static_keys(jobs))
    lines, unchanged = splitting.verify(planning.group(jobs))
    print("\n".join(lines))
    return unchanged


def plan_table(groups: Sequence[Sequence["Job"]], estimates: Sequence["Estimate"]) -> "Table":
    """A program a line: its jobs, in how many batches, what they differ in, steps, cost."""
    from rich.filesize import decimal
    from rich.table import Table

    from lmech import manifest

    heads = (
        "program",
        "jobs",
        "batches",
        "differ in",
        "alike in",
        "steps",
        "FLOP a step",
        "memory",
        "time",
    )
    table = Table(*heads)
    shared = {key for group in groups for job in group for key in job.overrides}
    for number, (group, cost) in enumerate(zip(groups, estimates, strict=True)):
        seen = {key: {repr(job.overrides[key]) for job in group} for key in sorted(shared)}
        alike = [f"{k.rpartition('.')[2]}={min(v)}" for k, v in seen.items() if len(v) == 1]
        memory = cost.state + cost.data + (cost.scratch or 0)
        table.add_row(
            str(number),
            str(len(group)),
            str(len(manifest.batches(group, cost.lanes))),
            ", ".join(k for k, v in seen.items() if len(v) > 1),
            ", ".join(alike) if len(groups) > 1 else "",
            str(max(job.config["steps"] for job in group)),
            f"{cost.operations:.2g}",
            decimal(memory) + ("" if cost.scratch is not None else " +"),
            formats.duration(cost.seconds),
        )
    return table
