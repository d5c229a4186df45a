"""The `lmech` command."""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lmech import __version__, config, formats, hints, launching, project
from lmech.stopping import StoppedError
from lmech.values import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from lmech.estimating import Estimate
    from lmech.measuring import Outcome as Measured
    from lmech.planning import Job

USAGE = """\
lmech: a lab bench for learning mechanics

  lmech KEY=VALUE …                      train one run, e.g. lmech dataset=digits steps=500
  lmech -m KEY=VALUES …                  train a sweep: every combination; values are 0.1,0.2 or
                                         range(8) or geomspace(low, high, n) or linspace(…)
  lmech -m hydra/KEY=VALUE …             the same by another sweeper or launcher of Hydra's, e.g.
                                         hydra/launcher=joblib or hydra/sweeper=optuna
  lmech reproduce EXPERIMENT [KEY=VALUE …] [--scale SCALE]
                                         the experiment's own sweep, its claims, figure, report;
                                         --all: every experiment in turn, and one table
  lmech plan [--compile] [--verify] …    what any of the above would run: jobs, programs, time,
                                         memory; starts nothing. --verify lowers every program at
                                         another value of each input key: the text must not change
  lmech plan --show parametrization …    its table: each tensor's role, init, multiplier, rates
  lmech resume DIR [rerun=failed]        go on with a sweep as its manifest has it
  lmech measure DIR observables=[A,B] [observables.A.KEY=VALUE …] [--steps last|0,100|0:1000:10]
                                         add columns to finished runs, from the weights that they
                                         kept (`snapshots`); trains nothing
  lmech init NAME                        a folder of your own: an experiment and its module
  lmech list [GROUP|keys [KEY=VALUE …]]  experiments, models, datasets, … or every key of a choice
  lmech collect DIR [--columns A,B] [--steps last|0,100|0:1000:10] [--to FILE]
                                         results as one table: .parquet or .csv
  lmech verify                           golden numbers beside this machine's
  lmech --version

--config-dir DIR, anywhere on the line, adds your own config groups. A folder whose pyproject.toml
has a table [tool.lmech] needs no flag: `lmech init` writes one.
Keys follow Hydra's grammar; `lmech list keys` shows them with their defaults. Results go to
outputs/<name>/<sweep>/ (see the README); a run that is already there is not run again.

exit codes  0 fine, or every verdict as expected · 1 a run failed, or a verdict is not the expected
            one · 2 a verdict is undetermined, or the command line is wrong · 75 stopped by SIGTERM
            or SIGUSR1, and saved: the same command goes on
"""


def command() -> NoReturn:
    """The process that the shell starts: ``main`` with its arguments and exit code.

    JAX alone brings a million objects that live as long as the process. The garbage collector goes
    through them seldom, and not once more at the exit: most of a second of every command.
    """
    gc.set_threshold(50_000)
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `| head`; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + 13  # as the shell tells of SIGPIPE
    gc.freeze()
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors of the user are one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"lmech {__version__}")
        return 0
    try:
        words, folder = project.split(words)
        with project.at(folder):
            project.join()
            return _dispatch(words)
    except BrokenPipeError:
        raise
    except (ConfigError, OSError) as error:
        print(f"lmech: {error}", file=sys.stderr)
        return 2
    except StoppedError as stopped:
        print(f"lmech: {stopped}", file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print("\nlmech: interrupted", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]]
    commands = {
        "reproduce": _reproduce,
        "plan": _plan,
        "resume": _resume,
        "measure": _measure,
        "list": _list,
        "collect": _collect,
        "verify": _verify,
        "init": _init,
    }
    if words[0] in commands:
        return commands[words[0]](words[1:])
    overrides = [word for word in words if word not in ("-m", "--multirun")]
    if overrides and "=" not in overrides[0]:
        hint = hints.nearest(overrides[0], commands)
        raise ConfigError(f"no command '{overrides[0]}'{hint} (see lmech --help)")
    multirun = overrides != words
    if any(map(launching.is_hydras, overrides)):
        from lmech import application

        return application.main(overrides, multirun)
    return launching.run(overrides, multirun)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(f"lmech {name}", description=description, allow_abbrev=False)


def _reproduce(words: list[str]) -> int:
    options = _reproduce_options(words)
    from lmech import reproducing

    if options.all:
        return launching.run_all(options.scale, options.overrides)
    line = launching.command(["reproduce", *words])
    outcome = reproducing.reproduce(options.experiment, options.scale, options.overrides, line)
    return launching.close(outcome)


def _reproduce_options(words: list[str], one: bool = False) -> argparse.Namespace:
    """What follows ``reproduce``; ``one``: not --all. Raises ConfigError."""
    parser = _parser("reproduce", "Run an experiment's own sweep and judge its claims.")
    parser.usage = "lmech reproduce (EXPERIMENT | --all) [KEY=VALUE …] [--scale SCALE]"
    parser.add_argument(
        "experiment", nargs="?", help="a name from `lmech list experiment`; or --all of them"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="a swept key may get values a,b,c"
    )
    every = "every experiment in turn, then one table; a finished one is not run again"
    parser.add_argument("--all", action="store_true", help=every)
    scale = "default: minutes on a CPU; the others are in the experiment's YAML, as paper"
    parser.add_argument("--scale", default="default", help=scale)
    options = parser.parse_intermixed_args(words)
    if options.all and options.experiment is not None:
        options.overrides = [options.experiment, *options.overrides]
        if "=" not in options.experiment:
            raise ConfigError(f"reproduce takes {options.experiment} or --all, not both")
    if one and options.all:
        raise ConfigError("lmech plan reproduce takes one experiment, not --all")
    if not options.all and options.experiment is None:
        raise ConfigError("reproduce what? An experiment (lmech list experiment), or --all")
    return options


HOW = ("rerun", "on_failure", "execution.save_every", "execution.compile_cache")


def _resume(words: list[str]) -> int:
    parser = _parser("resume", "Go on with a sweep as its manifest has it; no YAML is read again.")
    parser.add_argument("folder", type=Path, help="a sweep's folder, with its manifest.jsonl")
    parser.add_argument("how", nargs="*", metavar="KEY=VALUE", help=f"of {', '.join(HOW)}")
    options = parser.parse_args(words)
    for override in config.parse(options.how):
        if override.key_or_group not in HOW:
            hint = hints.nearest(override.key_or_group, HOW)
            raise ConfigError(f"{override.key_or_group} is fixed by the manifest{hint}")
    from lmech import reproducing

    changes = {override.key_or_group: override.value() for override in config.parse(options.how)}
    return launching.close(reproducing.resume(options.folder, changes))


def _measure(words: list[str]) -> int:
    parser = _parser("measure", "Add columns to finished runs, from the weights that they kept.")
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
    steps = _steps(options.steps)
    for override in config.parse(options.overrides):
        if override.key_or_group.partition(".")[0] != "observables":
            raise ConfigError(f"{override.key_or_group} is fixed by the manifest: only observables")
    if not any(text.startswith("observables=") for text in options.overrides):
        raise ConfigError("say what to measure, as in observables=[ntk,trace]")
    observables = config.resolve(config.compose(options.overrides))["observables"]
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


def _plan(words: list[str]) -> int:
    """Print what the rest of the line would run."""
    parser = _parser("plan", "What any other command line would run; starts nothing.")
    parser.usage = "lmech plan [options] (KEY=VALUE … | -m KEY=VALUES … | reproduce EXPERIMENT …)"
    parser.add_argument("--compile", action="store_true", help="measure memory, by compiling")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="lower every program at another value of each input key: the text must not change",
    )
    parser.add_argument(
        "--show", choices=["parametrization"], help="its table: what it does to each tensor"
    )
    options, rest = parser.parse_known_args(words)
    from lmech import planning, reproducing

    if rest[:1] == ["reproduce"]:
        asked = _reproduce_options(rest[1:], one=True)
        experiment = reproducing.load(asked.experiment, asked.scale, asked.overrides)
        jobs = planning.expand(experiment.overrides, experiment.sweep)
    else:
        plain = [word for word in rest if word not in ("-m", "--multirun")]
        jobs = launching.jobs_of(plain, multirun=plain != rest)
    if options.show:
        from lmech import showing

        for table in showing.parametrizations(jobs):
            launching.terminal().print(table)
        return 0
    if options.verify and not _verified(jobs):
        return 1
    folder = planning.folder(jobs)
    todo = planning.todo(jobs, folder)
    if jobs[0].config["rerun"] != "all":
        taken = planning.elsewhere(todo, folder)
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
    failed = sum(planning.standing(folder / job.id, job) == "failed" for job in left)
    done = len(jobs) - len(todo) - failed
    programs = "1 program" if len(groups) == 1 else f"{len(groups)} programs"
    print(f"jobs:   {len(jobs)}, of which {done} finished; {programs} to compile")
    if failed:
        print(f"failed: {failed}; rerun=failed tries them again")
    seconds = formats.duration(sum(cost.seconds for cost in estimates))
    print(f"time:   {seconds} of arithmetic to train, at the speed of a matrix product here")
    print(f"folder: {folder}")
    return 0


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


def _list(words: list[str]) -> int:
    parser = _parser("list", "What there is to choose from.")
    parser.add_argument("what", nargs="?", help="a config group, or `keys`")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="whose keys: of the default, or of these"
    )
    options = parser.parse_args(words)
    what = options.what
    if what == "keys":
        for key, value in config.keys(config.compose(options.overrides)).items():
            print(f"{key}={'null' if value is None else value}")
        return 0
    if options.overrides:
        raise ConfigError(f"{options.overrides[0]} goes with `lmech list keys`")
    groups, own = config.groups(), project.current()
    if what is not None and what not in groups:
        hint = hints.nearest(what, [*groups, "keys"])
        raise ConfigError(f"no group '{what}'{hint} (groups: {', '.join(groups)}; or keys)")
    for group in [what] if what else groups:
        print(group)
        for option in groups[group]:
            mark = "*" if config.of_project(group, option) else " "
            print(f"{mark} {option:20} {config.describe(group, option)}")
    if own is not None:
        print(f"* of the project {own.root.name}: {own.conf}")
    return 0


def _init(words: list[str]) -> int:
    parser = _parser("init", "Write the smallest project: an experiment of your own, which runs.")
    parser.add_argument("folder", type=Path, help="a new folder; its name is the module's")
    from lmech import starting

    for line in starting.write(parser.parse_args(words).folder):
        print(line)
    return 0


def _collect(words: list[str]) -> int:
    parser = _parser("collect", "Results as one table, one row a run and step.")
    parser.add_argument("folder", type=Path, help="a sweep's, or one above: all below it")
    parser.add_argument("--columns", help="observables, A,B (default: all); the rest is not read")
    parser.add_argument(
        "--steps", help="last (each run's last row), 0,100 or FIRST:END:STRIDE (default: all)"
    )
    parser.add_argument("--to", type=Path, help="FILE.parquet or FILE.csv (default: print a part)")
    options = parser.parse_args(words)
    from lmech import collecting

    writers = {".parquet": collecting.write_parquet, ".csv": collecting.write_csv}
    if options.to and options.to.suffix not in writers:
        raise ConfigError(f"--to {options.to}: write a file that ends in {' or '.join(writers)}")
    columns = options.columns.split(",") if options.columns else None
    frame = collecting.collect(options.folder, columns, _steps(options.steps))
    if options.to is None:
        print(frame)
        return 0
    writers[options.to.suffix](frame, options.to)
    print(f"{len(frame)} rows: {options.to}")
    return 0


def _steps(text: str | None) -> Any:
    """What ``collect`` takes for ``last``, ``0,100`` and ``0:1000:10``."""
    if text in (None, "last"):
        return text
    try:
        if ":" in text:
            return slice(*(int(part) if part else None for part in text.split(":")))
        return [int(part) for part in text.split(",")]
    except (TypeError, ValueError):
        raise ConfigError(f"--steps {text}: write last, 0,100 or 0:1000:10") from None


def _verify(words: list[str]) -> int:
    _parser("verify", "Golden numbers beside this machine's.").parse_args(words)
    from rich.console import Console
    from rich.table import Table

    from lmech.verifying import TOLERANCE, compare

    rows = compare()
    table = Table("quantity", "golden", "here", "difference")
    for row in rows:
        color = "green" if row.agrees else "red"
        difference = f"[{color}]{row.ours - row.golden:.1e}[/]"
        table.add_row(row.quantity, f"{row.golden:.12g}", f"{row.ours:.12g}", difference)
    Console().print(table)
    wrong = sum(not row.agrees for row in rows)
    print(f"{len(rows) - wrong} of {len(rows)} agree within {TOLERANCE:g} (relative above 1)")
    return int(wrong > 0)
