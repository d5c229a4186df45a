"""`lmech log`: what lies on disk, into TensorBoard or wandb."""

from pathlib import Path

from lmech import config
from lmech.commands import new_parser
from lmech.values import ConfigError


def main(words: list[str]) -> int:
    """Run `lmech log`; returns the exit code."""
    parser = new_parser("log", "What a logger would have shown of sweeps that are on disk.")
    parser.add_argument("folder", type=Path, help="a sweep's, or one above: all below it")
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="logger=[tensorboard,wandb] of `lmech list logger`, then logger.NAME.KEY=VALUE",
    )
    options = parser.parse_args(words)
    for override in config.parse(options.overrides):
        if override.key_or_group.partition(".")[0] != "logger":
            raise ConfigError(f"{override.key_or_group} is fixed by the manifest: only logger")
    if not any(text.startswith("logger=") for text in options.overrides):
        raise ConfigError("say where to, as in logger=wandb")
    chosen = config.resolve(config.compose(options.overrides))["logger"]
    from lmech import collecting
    from lmech.loggers import following

    replays = following.replays(chosen)
    for sweep in collecting.sweeps(options.folder):
        for replay in replays:
            print("".join(f"{line}\n" for line in replay.replay(sweep)), end="", flush=True)
    return 0
