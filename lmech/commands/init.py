"""`lmech init`: a project of your own."""

from pathlib import Path

from lmech.commands import new_parser


def main(words: list[str]) -> int:
    """Run `lmech init`; returns the exit code."""
    parser = new_parser(
        "init",
        "Write the smallest project, a folder of your own: an experiment and its module, which run "
        "at once. What lies in it is found before lmech's own.",
        {"lmech init my_project": "then: cd my_project && lmech reproduce small_steps"},
    )
    parser.add_argument("folder", type=Path, help="a new folder; its name is the module's")
    from lmech import starting

    for line in starting.write(parser.parse_args(words).folder):
        print(line)
    return 0
