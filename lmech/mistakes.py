"""What went wrong in somebody's code, in one line: what, where, what to do. No JAX here."""

import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What to do about what JAX and flax say, by the name of the exception or of one that it is a kind
# of: they are not imported for it.
ADVICE = {
    "ConcretizationTypeError": "values are not known while a program is traced: use jnp and "
    "jax.lax, and no if, float(), int() or bool() of them",
    "TracerArrayConversionError": "values are not known while a program is traced: use jnp, not np",
    "InvalidRngError": "a model draws in its init alone: switch dropout and the like off",
    "ScopeCollectionNotFound": "a model is a function of its parameters and inputs alone",
    "ScopeParamShapeError": "a parameter's shape is what one example gives it: it cannot depend "
    "on how many there are",
}

PLAIN = (ValueError, ImportError, SyntaxError, FileNotFoundError)
"""Whose messages say enough without their names."""
MANUAL = re.compile(r" \(https://\S+\)")
"""Where flax sends its readers."""


class ConfigError(ValueError):
    """A key, option or value that cannot be: one line, with what to write instead."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook prints of it, in place of a traceback: the line."""
        return [f"ConfigError: {self}"]


def innermost(error: BaseException) -> BaseException:
    """What a target raised, out of Hydra's wrapping."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """The message's first line, where in a user's code, and what to do where that is known.

    With the exception's type, unless its message says enough.
    """
    error = innermost(error)
    first = MANUAL.sub("", (str(error).strip().splitlines() or [""])[0])
    if not (first and isinstance(error, PLAIN)):
        first = f"{type(error).__name__}: {first}"
    kinds = [kind.__name__ for kind in type(error).__mro__]
    advice = next((f"; {ADVICE[kind]}" for kind in kinds if kind in ADVICE), "")
    return f"{first}{_place(error)}{advice}"


def _place(error: BaseException) -> str:
    """`` (my_module.py, line 7)``, the innermost of a user's lines; "" where none took part."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _users(frame.filename):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def _users(file: str) -> bool:
    """Whether a file is neither ours nor Python's nor an installed library's, of whatever place."""
    theirs = [str(Path(__file__).parent), *sysconfig.get_paths().values()]
    theirs += [sys.prefix, sys.base_prefix]
    path = Path(file)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path.is_file() and not installed and not any(map(path.is_relative_to, theirs))


@contextmanager
def of(section: str) -> Iterator[None]:
    """Errors inside the block are ValueErrors that name the part of the config to look at."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{section}: {one_line(error)}") from error


def expect(thing: object, kind: Any, section: str, target: str, what: str) -> None:
    """Raise ValueError unless what the section's factory returned is of that kind."""
    if not isinstance(thing, kind):
        raise ValueError(f"{section}._target_={target} returned {described(thing)}, and not {what}")


def described(thing: object) -> str:
    """``None``, or ``a dict``."""
    return "None" if thing is None else f"a {type(thing).__name__}"
