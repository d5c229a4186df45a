"""From a command line's words to trained runs, and the lines that say how they ended."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmech import claims, formats, project
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
        terminal().print(claims_table(outcome.claims))
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


def terminal() -> "Console":
    """Where tables go; a log file gets wide lines."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=140)  # a log file wraps nothing


def claims_table(judged: Sequence[dict[str, Any]]) -> "Table":
    """Claim, measured, predicted, verdict, expected."""
    from rich.table import Table

    table = Table("claim", "measured", "range", "predicted", "interval", "verdict", "expected")
    for claim in judged:
        good = claim["expected"] in ("open", claim["verdict"])
        table.add_row(
            claim["claim"],
            f"{formats.number(claim['measured'])} {claim['unit']}".strip(),
            formats.spread(claim["values"]),
            formats.number(claim["predicted"]),
            formats.interval(claim["interval"]),
            f"[{'green' if good else 'red'}]{claim['verdict']}[/]",
            claim["expected"],
        )
    return table
