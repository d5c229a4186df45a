"""The words of `lmech`, one a module: ``main(words)`` runs the command and returns the exit code.

A new one is a module here and its line in ``cli.USAGE``. Errors of the user are ConfigError, which
``cli`` makes one line. What needs no JAX must not import it.
"""

import argparse
from typing import Any

from lmech.mistakes import ConfigError


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """What each command starts from: no abbreviations, its name as it is typed."""
    return argparse.ArgumentParser(f"lmech {name}", description=description, allow_abbrev=False)


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
