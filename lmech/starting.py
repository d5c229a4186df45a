"""``lmech init``: the smallest project, an experiment that runs and the module that measures it."""

import importlib.util
import keyword
import shlex
from pathlib import Path
from string import Template

from lmech import paths
from lmech.disk import write_text
from lmech.values import ConfigError

EXPERIMENT = "small_steps"


def write(folder: Path) -> list[str]:
    """Write a project into a new folder; returns what to do next. Raises ConfigError.

    The folder's name is that of the module, so it must be one that Python can import.
    """
    name = folder.absolute().name
    _check(name, folder)
    for source, target in _files(name).items():
        text = (paths.package() / "templates" / "project" / source).read_text(encoding="utf-8")
        file = folder / target
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, Template(text).substitute(name=name))
    return [
        f"{folder}: an experiment and what it measures",
        f"next: cd {shlex.quote(str(folder))} && lmech reproduce {EXPERIMENT}",
    ]


def _files(name: str) -> dict[str, str]:
    """Template → file of the project."""
    config = f"conf/experiment/{EXPERIMENT}.yaml"
    return {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "gitignore": ".gitignore",
        config: config,
        "package.py": f"{name}/__init__.py",
        f"{EXPERIMENT}.py": f"{name}/{EXPERIMENT}.py",
    }


def _check(name: str, folder: Path) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(f"{name}: Python can import no module of that name; write my_project")
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:
        raise ConfigError(f"{name}: a module of that name is there already, {spec.origin}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: it is there already, and not empty")
