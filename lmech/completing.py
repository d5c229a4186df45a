"""Which words may come next on a command line: what a shell shows for a TAB.

Everything is read when it is asked for, from the YAML files and the commands' own texts, so nothing
can be out of date; neither Hydra, numpy nor JAX is imported, so it takes a tenth of a second.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from lmech import catalogue, definitions, paths, project
from lmech.mistakes import ConfigError

FOLDERS, FILES = ":folders", ":files"
"""In place of words: the shell completes these itself."""
RESUMING = ("rerun", "on_failure", "execution.save_every", "execution.compile_cache", "logger")
"""The keys that ``lmech resume`` takes."""
FLAGS = {
    "-m": "a sweep: every combination",
    project.FLAG: "your own config groups",
    "--help": "the commands",
    "--version": "",
}


class Word(NamedTuple):
    """A word that may come next. Those that end in ``=`` or ``.`` go on."""

    text: str
    told: str = ""


class Argument(NamedTuple):
    """What a command adds to its parser."""

    names: tuple[str, ...]
    told: str
    many: bool
    is_path: bool
    choices: tuple[str, ...]
    takes: bool
    """Whether a value comes after it."""


def complete(words: Sequence[str], current: str, commands: Sequence[str]) -> list[Word]:
    """What ``current`` may become, after the words that stand before it (without ``lmech``)."""
    if project.FLAG in words[-1:]:
        return [Word(FOLDERS)]
    with suppress(ConfigError, OSError):
        rest, folder = project.split([*words, current])  # of one word at least
        with project.at(folder):
            project.join()
            found = list(_next(rest[:-1], current, commands))
        return [word for word in found if word.text.startswith((current, ":"))]
    return []


def _next(words: list[str], current: str, commands: Sequence[str]) -> Iterator[Word]:
    if words[:1] == ["plan"]:
        yield from _of_command("plan", words[1:], current)
        if words[-1] == "--show" or current.startswith("-"):
            return
        words = [word for word in words[1:] if word not in ("--compile", "--verify")]
        commands = ["reproduce"]
    command = words[0] if words and words[0] in commands else None
    if command is not None:
        yield from _of_command(command, words[1:], current)
        return
    if not words and "=" not in current:
        yield from (Word(name, about(name)) for name in commands)
    if current.startswith("-"):
        yield from (Word(*flag) for flag in FLAGS.items())
    else:
        yield from overrides(words, current)


def about(command: str) -> str:
    """A command's line: its module's docstring, without its name."""
    doc = definitions.first_line(definitions.docstring(f"lmech.commands.{command}"))
    return doc.partition(": ")[2].rstrip(".")


def _of_command(command: str, words: list[str], current: str) -> Iterator[Word]:
    """Options of a command, or what its next argument may be."""
    known = list(arguments(command))
    options = {name: one for one in known for name in one.names if name.startswith("-")}
    before = options.get(words[-1]) if words else None
    if before is not None and before.takes:
        yield from _values(command, before, words)
        return
    if current.startswith("-"):
        yield from (Word(name, one.told) for name, one in options.items())
        yield Word("--help", "this command's arguments, with examples")
        return
    places = [one for one in known if not one.names[0].startswith("-")]
    plain = [word for word in _plain(words, options) if "=" not in word or not places]
    if not places:
        return
    place = places[min(len(plain), len(places) - 1)]
    if len(plain) >= len(places) and not place.many:
        return
    if command == "reproduce" and plain:
        words = [f"experiment={plain[0]}", *words]
    yield from _argument(command, place, words, plain, current)


def _plain(words: Sequence[str], options: Mapping[str, Argument]) -> Iterator[str]:
    """The words that are neither options nor their values."""
    skip = False
    for word in words:
        if not skip and not word.startswith("-"):
            yield word
        skip = word in options and options[word].takes


def _values(command: str, option: Argument, words: Sequence[str]) -> Iterator[Word]:
    """What may follow an option."""
    if option.is_path:
        yield Word(FILES)
    elif option.names == ("--scale",) and command == "reproduce":
        names = [word for word in words if word in catalogue.groups()["experiment"]]
        yield from (Word(scale) for name in names for scale in catalogue.experiment(name).minutes)
    else:
        yield from map(Word, option.choices)


def _argument(
    command: str, place: Argument, words: list[str], plain: Sequence[str], current: str
) -> Iterator[Word]:
    """What an argument of a command may be: by its name in the parser."""
    name = place.names[0]
    groups = catalogue.groups()
    if place.is_path:
        yield Word(FOLDERS)
    elif place.choices:
        yield from map(Word, place.choices)
    elif name == "experiment":
        yield from _options("experiment", "")
    elif name == "what":
        yield from (Word(group) for group in [*groups, "keys"])
        yield from (Word(f"{group}s") for group in groups if not group.endswith("s"))
    elif name == "choice" and plain:
        group = catalogue.group_of(plain[0])
        found = _options(group, "") if group else overrides(words[1:], current)
        yield from found
    elif name == "how":
        yield from _chosen(current, catalogue.primary(), RESUMING)
    elif name == "overrides":
        only = {"measure": "observables", "compare": "comparison"}.get(command, "")
        yield from (word for word in overrides(words, current) if word.text.startswith(only))


def _options(group: str, before: str) -> Iterator[Word]:
    for option in catalogue.groups()[group]:
        yield Word(before + option, catalogue.describe(group, option))


# ------------------------------------------------------------------ keys and their values


def overrides(words: Sequence[str], current: str) -> Iterator[Word]:
    """The keys that ``current`` may become, level by level; behind ``=``, the values of one."""
    key, equals, value = current.partition("=")
    groups = catalogue.groups()
    if equals and key in groups:
        head = value[: max(value.rfind(","), value.rfind("[")) + 1]
        yield from _options(key, f"{key}={head}")
        return
    node = chosen(words)
    if equals:
        head = value[: value.rfind(",") + 1]
        yield from (Word(f"{key}={head}{choice}") for choice in catalogue.choices(node, key))
        return
    known = [name for name, _ in catalogue.leaves(node) if not name.endswith("_target_")]
    if "." not in current:
        yield from (Word(f"{group}=") for group in groups)
    yield from _chosen(current, node, known)


def _chosen(current: str, node: Mapping[str, Any], keys: Sequence[str]) -> Iterator[Word]:
    """The keys below what is written so far, one level further; or the values of one."""
    key, equals, _ = current.partition("=")
    if equals:
        yield from (Word(f"{key}={choice}") for choice in catalogue.choices(node, key))
        return
    depth = current.count(".")
    seen = dict.fromkeys(
        ".".join(parts[: depth + 1]) + ("=" if len(parts) == depth + 1 else ".")
        for parts in (name.split(".") for name in keys)
        if len(parts) > depth
    )
    yield from map(Word, seen)


def chosen(words: Sequence[str]) -> dict[str, Any]:
    """The config that these words choose, as far as its keys go: values are not looked at."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    node = catalogue.primary()
    experiment = given.get("experiment")
    choices = catalogue.defaults(node)
    own: dict[str, Any] = {}
    if experiment in catalogue.groups()["experiment"]:
        own = catalogue.read("experiment", str(experiment))
        choices |= catalogue.defaults(own)
    choices |= {group: value for group, value in given.items() if group in catalogue.groups()}
    for group, option in choices.items():
        for name in _listed(option):
            if name in catalogue.groups()[group] and group not in ("experiment", "sweep"):
                node = _merged(node, catalogue.read(group, name))
    kept = {key: value for key, value in own.items() if key not in ("defaults", "experiment")}
    return _merged(node, kept)


def _listed(option: Any) -> list[str]:
    """The options of ``[a,b]``, ``a,b`` or ``a``."""
    several = option if isinstance(option, list) else str(option).strip("[]").split(",")
    return [str(one) for one in several]


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both, and where they meet the other."""
    result = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


# ------------------------------------------------------------------ what a command takes


def arguments(command: str) -> Iterator[Argument]:
    """What a command's module adds to its parser, as its text says it."""
    file = paths.package() / "commands" / f"{command}.py"
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            names = tuple(str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))
            if node.func.attr == "add_argument" and names:
                yield _read(names, {word.arg: word.value for word in node.keywords})


def _read(names: tuple[str, ...], said: Mapping[str | None, ast.expr]) -> Argument:
    def text(key: str) -> Any:
        with suppress(KeyError, ValueError):
            return ast.literal_eval(said[key])
        return None

    kind = said.get("type")
    return Argument(
        names,
        told=str(text("help") or ""),
        many=text("nargs") in ("*", "+"),
        is_path=isinstance(kind, ast.Name) and kind.id == "Path",
        choices=tuple(map(str, text("choices") or ())),
        takes=names[0].startswith("-") and text("action") is None,
    )
