"""`lmech log`: what lies on disk, into TensorBoard or wandb."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lmech.commands import new_parser, section
from lmech.mistakes import one_line

if TYPE_CHECKING:
    from lmech.loggers.replay import Beside


def main(words: list[str]) -> int:
    """Run `lmech log`; returns the exit code."""
    parser = new_parser(
        "log",
        "What a logger would have shown of sweeps on disk: all of it, whatever was told before.",
        {
            "lmech log outputs/run/3f2a9c logger=wandb": "a sweep",
            "lmech log outputs logger=[tensorboard,wandb]": "every one below a folder",
        },
    )
    parser.add_argument("folder", type=Path, help="a sweep's, or one above: all below it")
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="logger=[tensorboard,wandb] of `lmech list logger`, then logger.NAME.KEY=VALUE",
    )
    options = parser.parse_args(words)
    chosen = section("logger", options.overrides, "logger=wandb")
    from lmech import collecting
    from lmech.loggers import following

    replays, sweeps = following.replays(chosen), collecting.sweeps(options.folder)
    told = [_told(replay, sweep) for sweep in sweeps for replay in replays]
    return int(not all(told))


def _told(replay: "Beside", sweep: Path) -> bool:
    """Whether a sweep got there; one that did not is a line, and keeps no other from it."""
    try:
        lines = replay.replay(sweep)
    except Exception as error:
        print(f"lmech: {replay.name}: {sweep}: {one_line(error)}", file=sys.stderr)
        return False
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return True
