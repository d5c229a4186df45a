"""The words of `lmech`, one a module: ``main(words)`` runs the command and returns the exit code.

A new one is a module here and its line in ``cli.USAGE``. Errors of the user are ConfigError, which
``cli`` makes one line. What needs no JAX must not import it. What the shell completes is read off
the module's text: the options and arguments that it adds to its parser (``lmech.completing``).
"""

import argparse
import types
from collections.abc import Mapping, Sequence
from typing import Any

from lmech.mistakes import ConfigError


def new_parser(
    name: str,
    description: str,
    examples: Mapping[str, str] = types.MappingProxyType({}),
    codes: Mapping[int, str] = types.MappingProxyType({}),
) -> argparse.ArgumentParser:
    """What each command starts from: no abbreviations, its name as it is typed.

    ``examples``: command lines, each with what it does. ``codes``: the exit codes that are the
    command's own; 0 (fine) and 2 (the command line is wrong) are everybody's.
    """
    own = {0: "fine", 2: "the command line is wrong", **codes}
    lines = ["examples:"]
    lines += [line for example, told in examples.items() for line in (f"  {example}", _note(told))]
    lines += ["", "exit codes:", *(f"  {code:<3} {own[code]}" for code in sorted(own))]
    return argparse.ArgumentParser(
        f"lmech {name}",
        description=description,
        epilog="\n".join(lines),
        formatter_class=_Paragraphs,
        allow_abbrev=False,
    )


def _note(told: str) -> str:
    return f"      {told}"


class _Paragraphs(argparse.HelpFormatter):
    """The description is wrapped; examples and exit codes keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return "".join(f"{indent}{line}\n" for line in text.splitlines())
        return super()._fill_text(text, width, indent)


def parse_steps(text: str | None) -> Any:
    """What ``collect`` takes for ``last``, ``0,100`` and ``0:1000:10``."""
    if text in (None, "last"):
        return text
    try:
        if ":" in text:
            return slice(*(int(part) if part else None for part in text.split(":")))
        return [int(part) for part in text.split(",")]
    except (TypeError, ValueError):
        raise ConfigError(f"--steps {text}: write last, 0,100 or 0:1000:10") from None


def section(group: str, overrides: Sequence[str], example: str) -> dict[str, Any]:
    """What ``GROUP=[…]`` and ``GROUP.NAME.KEY=VALUE`` make of that section, checked.

    All else of a finished sweep stands. Raises ConfigError.
    """
    from lmech import config

    for override in config.parse(overrides):
        if override.key_or_group.partition(".")[0] != group:
            raise ConfigError(f"{override.key_or_group} is fixed by the manifest: only {group}")
    if not any(text.startswith(f"{group}=") for text in overrides):
        raise ConfigError(f"{group}=[…] is missing, as in {example}")
    chosen: dict[str, Any] = config.resolve(config.compose(overrides))[group]
    return chosen
