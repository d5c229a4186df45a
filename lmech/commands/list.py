"""`lmech list`: what there is to choose from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmech import catalogue, definitions, formats, hints, project
from lmech.commands import new_parser
from lmech.mistakes import ConfigError

if TYPE_CHECKING:
    from lmech.catalogue import Experiment

NARROW = 100
"""Columns of a terminal below which a table's cells stand one below another."""
Cells = Sequence[Sequence[str]]


def main(words: list[str]) -> int:
    """Run `lmech list`; returns the exit code."""
    parser = new_parser(
        "list",
        "What there is to choose from, each with its line: everything; the options of a group, in "
        "the singular or the plural; one option, with its parameters. Experiments come with their "
        "paper and how they were judged when they last ran below this folder.",
        {
            "lmech list": "everything",
            "lmech list experiments": "headline, paper, last verdict and its date",
            "lmech list models mlp": "its parameters: types, defaults, what they are",
            "lmech list keys optimizer=adam": "every key of this choice and its value",
        },
    )
    parser.add_argument("what", nargs="?", help="a config group, or `keys`")
    parser.add_argument(
        "choice",
        nargs="*",
        metavar="OPTION | KEY=VALUE",
        help="one of the group; for `keys`: of the default config, or with these overrides",
    )
    options = parser.parse_args(words)
    if options.what == "keys":
        _print_keys(options.choice)
        return 0
    group = _group(options.what) if options.what else None
    for word in options.choice:
        if "=" in word:
            raise ConfigError(f"{word} goes with `lmech list keys`")
    if len(options.choice) > 1:
        raise ConfigError(f"lmech list {group} takes one option, not {len(options.choice)}")
    if options.choice:
        _print_option(str(group), options.choice[0])
    elif group == "experiment":
        _print_experiments(catalogue.experiments())
    else:
        _print_groups([group] if group else list(catalogue.groups()))
    return 0


def _print_keys(overrides: list[str]) -> None:
    from lmech import config

    for key, value in config.keys(config.compose(overrides)).items():
        print(f"{key}={'null' if value is None else value}")


def _group(word: str) -> str:
    """The group that is meant. Raises ConfigError."""
    group = catalogue.group_of(word)
    if group is None:
        groups = catalogue.groups()
        hint = hints.nearest(word, [*groups, "keys"])
        raise ConfigError(f"no group '{word}'{hint} (groups: {', '.join(groups)}; or keys)")
    return group


def _print_groups(groups: list[str]) -> None:
    for group in groups:
        print(group)
        options = catalogue.groups()[group]
        marks = ["*" if catalogue.of_project(group, option) else " " for option in options]
        names = [f"{mark} {option}" for mark, option in zip(marks, options, strict=True)]
        told = [catalogue.describe(group, option) for option in options]
        show(list(zip(names, told, strict=True)))
    _print_project()


def _print_project() -> None:
    """What the stars mean, where there are any."""
    own = project.current()
    if own is not None:
        print(f"* of the project {own.root.name}: {own.conf}")


def _print_experiments(found: "Sequence[Experiment]") -> None:
    rows = []
    for one in found:
        last = one.last
        scale = "" if last is None or last.scale == "default" else f" ({last.scale})"
        verdict = f"{last.told}, {last.when:%Y-%m-%d}{scale}" if last else "-"
        mark = "* " if catalogue.of_project("experiment", one.name) else ""
        rows.append((mark + one.name, one.headline, one.paper, verdict))
    show(rows, ("experiment", "what it shows", "paper", "last verdict here"))
    _print_project()


def _print_option(group: str, option: str) -> None:
    """One option: what it is, its keys, how it is used. Raises ConfigError."""
    options = catalogue.groups()[group]
    if option not in options:
        hint = hints.nearest(option, options)
        raise ConfigError(f"no {group} '{option}'{hint} ({group} is one of {', '.join(options)})")
    print(f"{option}: {catalogue.describe(group, option)}")
    print(f"  file: {catalogue.place(group, option)}")
    if group == "experiment":
        _print_experiment(catalogue.experiment(option))
        return
    node = catalogue.read(group, option)
    for target in dict.fromkeys(target for _, target in catalogue.targets(node)):
        found = definitions.find(target)
        if found is not None:
            print(f"  code: {target} ({project.shown(found.file)}, line {found.line})")
            print(f"        {definitions.first_line(found.doc)}")
    rows = catalogue.rows(group, option)
    if rows and group != "sweep":
        print()
        show(rows, ("key", "default", "type", "what it is"))
    choice = f"'{group}=[{option}]'" if group == "observables" else f"{group}={option}"
    before = {"sweep": "-m ", "comparison": "compare outputs "}.get(group, "")
    first = next((f" {row.key}={row.default}" for row in rows if " " not in row.default), "")
    print(f"\nlmech {before}{choice}{first if group != 'sweep' else ''}")


def _print_experiment(found: "Experiment") -> None:
    print(f"  paper: {found.paper or '-'}")
    print(f"  scales: {', '.join(map(_scale, found.minutes, found.minutes.values()))}")
    blocks = found.sweep if isinstance(found.sweep, list) else [found.sweep]
    for block in blocks:
        parts = [f"{key}: {catalogue.written(value)}" for key, value in catalogue.leaves(block)]
        print(f"  sweep: {', '.join(parts)}")
    measured = {one["claim"]: one for one in found.last.claims} if found.last else {}
    rows = []
    for claim in found.claims:
        name = str(claim.get("claim", ""))
        judged = measured.get(name)
        last = f"{judged['verdict']}, {formats.number(judged['measured'])}" if judged else "-"
        interval = formats.interval(claim.get("interval", (None, None)))
        rows.append((name, interval, str(claim.get("expected", "")), last))
    print()
    show(rows, ("claim", "interval", "expected", "last verdict here, measured"))
    if found.last:
        print(f"\nlast: {found.last.told}, {found.last.when:%Y-%m-%d %H:%M}: {found.last.folder}")
    print(f"\nlmech reproduce {found.name}")


def _scale(name: str, minutes: float | None) -> str:
    return name if minutes is None else f"{name} ({formats.duration(60 * minutes)} on 2 CPU cores)"


def show(rows: Cells, heads: Sequence[str] = ()) -> None:
    """Aligned columns. A terminal wraps the cells, a narrow one puts them below one another.

    Where nobody looks at it directly, as in a pipe, a row is a line.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        print("\n".join(plain([heads, *rows] if heads else rows)))
        return
    if console.width < NARROW and len(rows[0]) > 2:
        for name, *cells in rows:
            console.print(Text(name, style="bold"))
            told = Text("\n".join(cell for cell in cells if cell))
            console.print(Padding(told, (0, 0, 0, 4)))
        return
    table = Table(box=None, pad_edge=False, show_header=bool(heads), header_style="dim")
    for number, _ in enumerate(rows[0]):
        head = heads[number] if heads else ""
        table.add_column(head, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def plain(rows: Cells) -> list[str]:
    """A line a row, its cells two spaces apart and below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
