"""`lmech report`: sweeps as one HTML file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmech.commands import new_parser
from lmech.values import ConfigError

if TYPE_CHECKING:
    from lmech.report import Section


def main(words: list[str]) -> int:
    """Run `lmech report`; returns the exit code."""
    parser = new_parser(
        "report",
        "Sweeps as one HTML file, which opens offline, with curves to read values from.",
        {
            "lmech report outputs/edge_of_stability/1c1f72": "a sweep, to report.html",
            "lmech report outputs/grokking outputs/catapult --to two.html": "all below two folders",
        },
        {1: "a page says otherwise than was recorded, or could not measure anew"},
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a sweep's, or one above: all below it"
    )
    parser.add_argument(
        "--to", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html"
    )
    options = parser.parse_args(words)
    if options.to.suffix != ".html":
        raise ConfigError(f"--to {options.to}: write a file that ends in .html")
    from lmech import collecting

    sweeps = [sweep for folder in options.folders for sweep in collecting.sweeps(folder)]
    each = {sweep.resolve(): sweep for sweep in sweeps}.values()
    from lmech import report, reproducing

    sections = [reproducing.redrawn(sweep) for sweep in each]
    report.write(options.to, sections)
    size = options.to.stat().st_size / 1e6
    print(f"sweeps: {len(sections)}")
    print(f"report: {options.to} ({size:.1f} MB)")
    return close(sections)


def close(sections: Sequence["Section"]) -> int:
    """Print the notes of sweeps that are not as they were recorded; the exit code."""
    for section in sections:
        for note in section.notes:
            print(f"note:   {section.folder}: {note}")
    return int(any(section.notes for section in sections))
