"""`lmech atlas`: all experiments as a folder of pages."""

from pathlib import Path

from lmech.commands import new_parser
from lmech.commands.report import close


def main(words: list[str]) -> int:
    """Run `lmech atlas`; returns the exit code."""
    parser = new_parser(
        "atlas",
        "Every sweep below a folder as a static site: a gallery and a page a name.",
        {"lmech atlas": "outputs, to site", "lmech atlas outputs --to pages": "elsewhere"},
        {1: "a page says otherwise than was recorded, or could not measure anew"},
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("outputs"), metavar="DIR", help="outputs"
    )
    parser.add_argument(
        "--to", type=Path, default=Path("site"), metavar="FOLDER", help="default: site"
    )
    options = parser.parse_args(words)
    from lmech import collecting

    found = collecting.sweeps(options.folder)
    from lmech import reproducing
    from lmech.report import atlas

    sections = atlas.write(options.to, found, reproducing.redrawn)
    print(f"sweeps: {len(sections)}")
    print(f"site:   {options.to / 'index.html'}")
    return close(sections)
