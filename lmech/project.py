"""The user's project: their own folder, whose configs and modules join the package's.

A project is the nearest folder, the working directory or one above it, whose ``pyproject.toml`` has
a table ``[tool.lmech]``. Its config groups are in the folder that the table's ``conf`` names
(``conf`` if it names none). ``--config-dir DIR`` names a folder of config groups instead; the
project is then the folder that DIR is in. Its options come before the package's of the same name,
and its modules are importable, after everything that is installed.

It has config groups only. The primary config is lmech's, so that a key means the same everywhere.
Nothing here imports Hydra: the shell's completion asks too.
"""

import ast
import os
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lmech.hints import nearest
from lmech.mistakes import ConfigError
from lmech.paths import OURS

FLAG = "--config-dir"
VARIABLE = "LMECH_CONFIG_DIR"
"""What the flag was given, for the processes that we start."""


class Project(NamedTuple):
    """Where it is."""

    root: Path
    """What its modules are imported from."""
    conf: Path
    """Its config groups."""


def current() -> Project | None:
    """The project that this process works in. Raises ConfigError for one that cannot be."""
    named = os.environ.get(VARIABLE)
    return _named(named) if named else _above(os.getcwd())


@cache
def _named(folder: str) -> Project:
    conf = Path(folder)
    return _checked(Project(conf.parent, conf), f"{FLAG} {folder}")


@cache
def _above(folder: str) -> Project | None:
    for root in (Path(folder), *Path(folder).parents):
        file = root / "pyproject.toml"
        table = _table(file)
        if table is not None:
            for key in table.keys() - {"conf"}:
                raise ConfigError(f"{file}: tool.lmech.{key} is unknown{nearest(key, ['conf'])}")
            conf = str(table.get("conf", "conf"))
            return _checked(Project(root, root / conf), f"{file}: tool.lmech.conf={conf}")
    return None


def _table(file: Path) -> dict[str, Any] | None:
    """``[tool.lmech]`` of a ``pyproject.toml``; None where there is none."""
    try:
        text = file.read_text(encoding="utf-8")
        tool = tomllib.loads(text).get("tool", {}) if "lmech" in text else {}
    except (OSError, UnicodeDecodeError):
        return None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
    table = tool.get("lmech")
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{file}: tool.lmech={table}: it is a table, as in [tool.lmech]")
    return table


def _checked(project: Project, place: str) -> Project:
    if not project.conf.is_dir():
        raise ConfigError(f"{place}: no such folder")
    if (project.conf / "config.yaml").exists():
        raise ConfigError(
            f"{shown(project.conf / 'config.yaml')}: a project has config groups only, since the "
            "primary config is lmech's everywhere; set what you want in an experiment's YAML"
        )
    return project


def shown(file: Path) -> str:
    """A file's path as messages have it: from the working directory, where it lies below that."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _modules() -> Path:
    """What the user's modules are imported from: the project, else the working directory."""
    found = current()
    return found.root if found else Path.cwd()


def join() -> None:
    """Make the user's modules importable, after all others, so that one of theirs shadows none."""
    folder = str(_modules())
    if folder not in sys.path:
        sys.path.append(folder)


def imported(file: Path) -> list[Path]:
    """A user's file and those of the same folder of modules that it imports, at any depth.

    As their texts say it; what is imported by a name that is made at run time is not seen.
    """
    root, found, left = _modules(), [], [file]
    while left:
        found.append(left.pop())
        imports = _imports(ast.parse(found[-1].read_bytes()), found[-1], root)
        files = [root.joinpath(*name.split(".")) for name in imports]
        there = [part for at in files for part in (at.with_suffix(".py"), at / "__init__.py")]
        left += [
            part for part in dict.fromkeys(there) if part.is_file() and part not in found + left
        ]
    return [file, *sorted(set(found) - {file})]


def _imports(module: ast.Module, file: Path, root: Path) -> list[str]:
    """Dotted names that may be modules: what is imported, and the packages above it."""
    names: list[str] = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, file, root)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    parts = [name.split(".") for name in names if name and name.partition(".")[0] not in OURS]
    return [".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)]


def _absolute(node: ast.ImportFrom, file: Path, root: Path) -> str:
    """The module that ``from … import`` names, from the root on."""
    if node.level == 0 or not file.is_relative_to(root):
        return node.module or ""
    package = file.relative_to(root).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def split(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """A command line without its ``--config-dir DIR``, and that folder. Raises ConfigError."""
    rest, folder = [], None
    given = iter(words)
    for word in given:
        flag, _, value = word.partition("=")
        if flag != FLAG:
            rest.append(word)
            continue
        value = value or next(given, "")
        if not value:
            raise ConfigError(f"{FLAG} needs a folder of config groups")
        folder = Path(value).resolve()
    if folder is not None and not rest:
        raise ConfigError(f"{FLAG} goes with a command (see lmech --help)")
    return rest, folder


@contextmanager
def at(conf: Path | None) -> Iterator[None]:
    """With that folder of config groups, here and in the processes that are started meanwhile."""
    before = os.environ.get(VARIABLE)
    if conf is not None:
        os.environ[VARIABLE] = str(conf)
    try:
        yield
    finally:
        if conf is not None:
            os.environ.pop(VARIABLE)
            os.environ.update({} if before is None else {VARIABLE: before})


def words() -> list[str]:
    """What of a command line names the project: nothing where the working directory does."""
    named = os.environ.get(VARIABLE)
    return [FLAG, named] if named else []
