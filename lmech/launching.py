"""From a command line's words to trained runs, and the lines that say how they ended."""

import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmech import claims, formats, project
from lmech.mistakes import one_line
from lmech.stopping import StoppedError
from lmech.values import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lmech.planning import Job
    from lmech.reproducing import Outcome


def is_hydras(word: str) -> bool:
    """Whether it sets something of Hydra's own: ``hydra/launcher=…``, ``hydra.job.name=…``."""
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def run(overrides: list[str], multirun: bool) -> int:
    """Train one run, or a sweep; returns the exit code. Raises ConfigError."""
    from lmech import reproducing

    return close(
        reproducing.run(jobs_of(overrides, multirun), command(["-m"] * multirun + overrides))
    )


def jobs_of(overrides: list[str], multirun: bool) -> list["Job"]:
    """The jobs of a command line; only a multirun has several."""
    from lmech import planning, sweeps

    if multirun:
        return planning.multirun(overrides)
    plain, swept = sweeps.split(overrides)
    several = [*swept, *(text for text in plain if text.startswith("sweep="))]
    if several:
        raise ConfigError(f"{several[0]} has several values: write lmech -m for a sweep")
    return planning.expand(plain, [])


def command(words: Sequence[str]) -> str:
    """The command line that reads so."""
    return shlex.join(["lmech", *project.words(), *words])


def close(outcome: "Outcome") -> int:
    """The closing table and lines; the exit code."""
    if outcome.claims:
        terminal().print(claims_table({"": outcome.claims}))
    for job, trace in outcome.failures.items():
        print(f"failed: {job}: {trace}")
    counts = ", ".join(f"{count} {kind}" for kind, count in outcome.counts.items() if count)
    print(f"runs:   {counts}")
    print(f"folder: {outcome.folder}")
    for name in ("figure.png", "report.html"):
        if (outcome.folder / name).is_file():
            print(f"{name.partition('.')[0] + ':':8}{outcome.folder / name}")
    if outcome.failures:
        return 1
    return claims.exit_code(outcome.claims)


def run_all(scale: str, overrides: Sequence[str]) -> int:
    """Reproduce every experiment that has the scale, one after another; the exit code.

    One that cannot be run does not keep the others from it. Raises ConfigError if none has the
    scale.
    """
    from lmech import reproducing

    names = reproducing.having(scale)
    print(f"plan:   {planned(names)}", flush=True)
    judged: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for number, name in enumerate(names, start=1):
        minutes = names[name]
        about = f", {formats.duration(60 * minutes)}" if minutes else ""
        print(f"{name} ({number}/{len(names)}{about})", flush=True)
        words = ["reproduce", name, *overrides, *(["--scale", scale] if scale != "default" else [])]
        started = time.perf_counter()
        try:
            outcome = reproducing.reproduce(name, scale, overrides, command(words))
        except StoppedError:
            raise
        except Exception as error:
            failed[name] = one_line(error)
            continue
        finally:
            reproducing.forget()
        judged[name] = outcome.claims
        failed |= {f"{name}, {job}": trace for job, trace in outcome.failures.items()}
        took = formats.duration(time.perf_counter() - started)
        print(f"{name}: {told(outcome.claims)} in {took}: {outcome.folder}", flush=True)
    terminal().print(claims_table(judged))
    for place, trace in failed.items():
        print(f"failed: {place}: {trace}")
    every = [claim for claims_of in judged.values() for claim in claims_of]
    print(f"{len(names)} experiments: {told(every)}")
    return 1 if failed else claims.exit_code(every)


def planned(minutes: Mapping[str, float | None]) -> str:
    """``22 experiments, 41 min …``, from what each took where it was measured."""
    known = [each for each in minutes.values() if each is not None]
    count = f"{len(minutes)} experiment{'s' * (len(minutes) != 1)}"
    unknown = f", {len(minutes) - len(known)} of them not measured" * (len(known) < len(minutes))
    if not known:
        return f"{count}; how long they take was not measured"
    return f"{count}, {formats.duration(60 * sum(known))} on 2 quiet CPU cores{unknown}"


def told(judged: Sequence[dict[str, Any]]) -> str:
    """``12 claims as expected, 1 not, 2 open``."""
    marks = Counter(formats.mark(claim) for claim in judged)
    parts = {"as expected": "as expected", "NOT as expected": "NOT", "open question": "open"}
    counts = ", ".join(f"{marks[mark]} {word}" for mark, word in parts.items() if marks[mark])
    return f"{len(judged)} claims, {counts}" if judged else "no claims"


def terminal() -> "Console":
    """Where tables go; a log file gets wide lines."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=140)  # a log file wraps nothing


def claims_table(judged: Mapping[str, Sequence[dict[str, Any]]]) -> "Table":
    """Experiment (where there are several), claim, measured, predicted, verdict, expected."""
    from rich.markup import escape
    from rich.table import Table

    several = len(judged) > 1
    names = ("claim", "measured", "range", "predicted", "interval", "verdict", "expected")
    table = Table(*(["experiment"] if several else []), *names)
    for name, claim in ((name, claim) for name, own in judged.items() for claim in own):
        good = claim["expected"] in ("open", claim["verdict"])
        table.add_row(
            *([name] if several else []),
            escape(claim["claim"]),
            escape(f"{formats.number(claim['measured'])} {claim['unit']}".strip()),
            formats.spread(claim["values"]),
            formats.number(claim["predicted"]),
            escape(formats.interval(claim["interval"])),
            f"[{'green' if good else 'red'}]{claim['verdict']}[/]",
            claim["expected"],
        )
    return table
