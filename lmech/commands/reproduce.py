"""`lmech reproduce`: an experiment, or all of them."""

import argparse

from lmech import launching
from lmech.commands import new_parser
from lmech.values import ConfigError


def main(words: list[str]) -> int:
    """Run `lmech reproduce`; returns the exit code."""
    options = options_of(words)
    from lmech import reproducing

    if options.all:
        return launching.run_all(options.scale, options.overrides)
    line = launching.command(["reproduce", *words])
    outcome = reproducing.reproduce(options.experiment, options.scale, options.overrides, line)
    return launching.close(outcome)


def options_of(words: list[str], one: bool = False) -> argparse.Namespace:
    """What follows ``reproduce``; ``one``: not --all. Raises ConfigError."""
    parser = new_parser(
        "reproduce",
        "Run an experiment's own sweep (what is not finished of it), judge its claims, draw its "
        "figure and write the report.",
        {
            "lmech reproduce edge_of_stability": "its default scale",
            "lmech reproduce edge_of_stability seed=5,6": "on seeds of your choice",
            "lmech reproduce edge_of_stability --scale paper": "as published",
            "lmech reproduce --all": "every experiment, and one table",
        },
        {
            0: "every verdict is the expected one",
            1: "a run failed, or a verdict is not the expected one",
            2: "a verdict is undetermined, or the command line is wrong",
            75: "stopped by a signal and saved: the same command goes on",
        },
    )
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
        raise ConfigError("here reproduce takes one experiment, not --all")
    if not options.all and options.experiment is None:
        raise ConfigError("reproduce what? An experiment (lmech list experiment), or --all")
    return options
