"""`lmech resume`: go on with a sweep."""

from pathlib import Path

from lmech import config, hints, launching
from lmech.commands import new_parser
from lmech.values import ConfigError

HOW = ("rerun", "on_failure", "execution.save_every", "execution.compile_cache", "logger")


def main(words: list[str]) -> int:
    """Run `lmech resume`; returns the exit code."""
    parser = new_parser(
        "resume",
        "Go on with a sweep as its manifest has it; no YAML is read again.",
        {
            "lmech resume outputs/run/3f2a9c": "what is missing",
            "lmech resume outputs/run/3f2a9c rerun=failed": "what failed too",
        },
        {
            1: "a run failed, or a verdict is not the expected one",
            2: "a verdict is undetermined, or the command line is wrong",
            75: "stopped by a signal and saved: the same command goes on",
        },
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder, with its manifest.jsonl")
    parser.add_argument("how", nargs="*", metavar="KEY=VALUE", help=f"of {', '.join(HOW)}")
    one = "train this batch alone, and draw and judge nothing (what an array's task does)"
    parser.add_argument("--batch", type=int, metavar="N", help=one)
    options = parser.parse_intermixed_args(words)
    loggers = [text for text in options.how if text.startswith(("logger=", "logger."))]
    how = config.parse([text for text in options.how if text not in loggers])
    for override in how:
        if override.key_or_group not in HOW:
            hint = hints.nearest(override.key_or_group, HOW)
            raise ConfigError(f"{override.key_or_group} is fixed by the manifest{hint}")
    from lmech import reproducing

    changes = {override.key_or_group: override.value() for override in how}
    if loggers:
        changes["logger"] = config.resolve(config.compose(loggers))["logger"]
    return launching.close(reproducing.resume(options.folder, changes, options.batch))
