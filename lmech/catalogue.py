"""What there is to choose from, in words: groups, options, their parameters, experiments.

Read from YAML and source texts alone; neither Hydra nor JAX takes part, so that a shell that
completes a word can ask too. The line about a preset is its YAML's first comment, which says what
that preset of a function is for (several share one); where it has none, the docstring's first line.
The line about an experiment is its module's, which heads its report.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lmech import definitions, paths, project
from lmech.definitions import ANYTHING, Kind, Parameter
from lmech.disk import read_json, read_yaml
from lmech.hints import nearest
from lmech.mistakes import ConfigError
from lmech.project import Project

GLOBAL = "# @package _global_"


def groups() -> dict[str, list[str]]:
    """Options of each config group, the project's among them. Raises ConfigError."""
    return _options(project.current())


@cache
def _options(own: Project | None) -> dict[str, list[str]]:
    ours = _found(paths.conf())
    theirs = {} if own is None else _found(own.conf)
    for group in theirs.keys() - ours.keys():  # others may hold what an experiment's defaults name
        hint = nearest(group, ours, least=0.75)  # `common` is no mistyped `comparison`
        if hint and own is not None:
            place = project.shown(own.conf / group)
            raise ConfigError(f"{place}: no group of that name{hint}")
    return {group: sorted(ours[group] | theirs.get(group, set())) for group in ours}


def _found(conf: Path) -> dict[str, set[str]]:
    """Options by group of one folder."""
    found: dict[str, set[str]] = {}
    for file in sorted(conf.glob("*/*.yaml")):
        found.setdefault(file.parent.name, set()).add(file.stem)
    return found


def file(group: str, option: str) -> Path:
    """The file of an option: the project's, before the package's of that name."""
    name, own = f"{group}/{option}.yaml", project.current()
    if own is not None and (own.conf / name).is_file():
        return own.conf / name
    return paths.conf() / name


def presets_with(group: str, name: str) -> list[str]:
    """The options of a group of several that have an entry of that name."""
    return [option for option in groups()[group] if name in read_yaml(file(group, option))]


def of_project(group: str, option: str) -> bool:
    """Whether an option is the project's own."""
    return not file(group, option).is_relative_to(paths.conf())


def place(group: str, option: str) -> str:
    """The option's file as messages name it; the package's own from ``conf`` on."""
    if of_project(group, option):
        return project.shown(file(group, option))
    return f"conf/{group}/{option}.yaml"


def group_of(word: str) -> str | None:
    """The group that a word names, in the singular or the plural; None if there is none."""
    known = {form: group for group in groups() for form in _forms(group)}
    return known.get(word)


def _forms(group: str) -> tuple[str, ...]:
    """``model, models``; ``loss, losses``; ``observables, observable``."""
    return group, f"{group}es" if group.endswith("s") else f"{group}s", group.removesuffix("s")


def describe(group: str, option: str) -> str:
    """What an option is, in a line."""
    if group == "experiment":
        module = _experiment(option).get("module", "")
        return definitions.first_line(definitions.docstring(module)) or comment(group, option)
    return comment(group, option) or next(
        (definitions.first_line(found.doc) for found in _definitions(read(group, option))), ""
    )


def comment(group: str, option: str) -> str:
    """The first comment of an option's file; "" where there is none."""
    lines = file(group, option).read_text(encoding="utf-8").splitlines()
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((line for line in comments if line and not line.startswith("@package")), "")


def read(group: str, option: str) -> dict[str, Any]:
    """What an option's file says, each key as it is set: ``model.width`` below ``model``."""
    node = read_yaml(file(group, option)) or {}
    return dict(node) if _is_global(group, option) else {group: node}


def _is_global(group: str, option: str) -> bool:
    """Whether an option's file sets keys from the top on, rather than its group's."""
    return file(group, option).read_text(encoding="utf-8").startswith(GLOBAL)


def primary() -> dict[str, Any]:
    """The primary config, as its file says it; what is Hydra's own aside."""
    node = read_yaml(paths.conf() / "config.yaml")
    return {key: value for key, value in node.items() if key != "hydra"}


def defaults(node: Mapping[str, Any]) -> dict[str, Any]:
    """Group → what the ``defaults`` of a file choose in it."""
    entries = [one for one in node.get("defaults", []) if isinstance(one, Mapping)]
    pairs = [(key.removeprefix("override "), one[key]) for one in entries for key in one]
    return {key.lstrip("/"): option for key, option in pairs if key.lstrip("/") in groups()}


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key that may be set, and its value."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, node


# ------------------------------------------------------------------ an option's parameters


class Row(NamedTuple):
    """A key that may be set."""

    key: str
    default: str
    kind: str
    told: str


def targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where a ``_target_`` stands, and what it names."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node["_target_"]
        for name, value in node.items():
            yield from targets(value, f"{path}.{name}" if path else str(name))


def _definitions(node: Any) -> Iterator[definitions.Definition]:
    for _, target in targets(node):
        found = definitions.find(target)
        if found is not None:
            yield found


def rows(group: str, option: str) -> list[Row]:
    """The keys of an option: those of its file, then what its functions take beside them."""
    node = read(group, option)
    text = file(group, option).read_text(encoding="utf-8")
    above = "" if _is_global(group, option) else f"{group}."
    said = {f"{above}{key}": told for key, told in comments(text).items()}
    known = {key: value for key, value in leaves(node) if not key.endswith("_target_")}
    taken = dict(_taken(node))
    listed = [
        _row(key, written(value), taken.get(key), said.get(key, "")) for key, value in known.items()
    ]
    inner = {key.rpartition(".")[0] for key in known}
    others = {key: one for key, one in taken.items() if key not in known and key not in inner}
    return listed + [_row(key, _in_yaml(one.default), one, "") for key, one in others.items()]


def _row(key: str, default: str, parameter: Parameter | None, said: str) -> Row:
    found = parameter.kind if parameter else of_key(key)
    told = said or (parameter.told if parameter else "")
    return Row(key, default, found.text, "" if told == ", ".join(found.choices) else told)


def _taken(node: Any) -> Iterator[tuple[str, Parameter]]:
    """What each ``_target_`` takes, by key; what lmech gives, as ``outputs``, is no key."""
    known = dict(leaves(node))
    for path, target in targets(node):
        found = definitions.find(target)
        for name, parameter in (found.parameters if found else {}).items():
            if parameter.default is not None or f"{path}.{name}" in known:
                own = _by_name(name, parameter) if path == "optimizer" else parameter
                yield f"{path}.{name}", own


def _by_name(name: str, parameter: Parameter) -> Parameter:
    """An optimizer's, as ``signatures.kind`` has it: by its name, or by the type of its default."""
    ranges = definitions.kinds("lmech.signatures", "RANGES")
    default = parameter.default or ""
    number = r"-?\d+(\.\d*)?(e-?\d+)?"
    guess = ANYTHING
    if default in ("True", "False"):
        guess = Kind("bool", ("true", "false"))
    elif re.fullmatch(number, default):
        guess = Kind("int" if default.lstrip("-").isdigit() else "float", ())
    return parameter._replace(kind=ranges.get(name, guess))


def of_key(key: str) -> Kind:
    """What a key may be that is no parameter of a ``_target_``."""
    if key.endswith(".every"):
        return Kind("int ≥ 1", ())
    return definitions.kinds("lmech.values", "KEYS").get(key, ANYTHING)


def choices(node: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The words that a key may be set to in a config; none where it is a number or a text."""
    parameter = dict(_taken(node)).get(key)
    return (parameter.kind if parameter else of_key(key)).choices


def written(value: Any) -> str:
    """A value as YAML and the command line have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return str(value)


def _in_yaml(default: str | None) -> str:
    """A default of Python's as YAML has it."""
    plain = {None: "", "None": "null", "True": "true", "False": "false"}
    return plain.get(default, (default or "").strip("'"))


def comments(text: str) -> dict[str, str]:
    """The comment behind each key of a YAML text, by dotted key."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"( *)([\w.]+):(.*)$", line)
        if not match:
            continue
        indent, name, rest = len(match[1]), match[2], match[3]
        above = [*(part for part in above if part[0] < indent), (indent, name)]
        told = rest.partition(" # ")[2].strip()
        if told:
            found[".".join(part for _, part in above)] = told
    return found


# ------------------------------------------------------------------ experiments


def _experiment(name: str) -> dict[str, Any]:
    """The experiment's section."""
    return (read_yaml(file("experiment", name)) or {}).get("experiment") or {}


class Standing(NamedTuple):
    """How an experiment was judged when it last ran here."""

    folder: Path
    when: datetime
    scale: str
    claims: list[dict[str, Any]]

    @property
    def told(self) -> str:
        """``12 as expected, 1 not, 2 open``."""
        decided = [claim for claim in self.claims if claim["expected"] != "open"]
        right = sum(claim["verdict"] == claim["expected"] for claim in decided)
        counts = {
            "as expected": right,
            "not": len(decided) - right,
            "open": len(self.claims) - len(decided),
        }
        return ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "no claims"


class Experiment(NamedTuple):
    """An experiment, before and after it ran."""

    name: str
    headline: str
    paper: str
    minutes: Mapping[str, float | None]
    """By scale, what it took where it was measured; None: not known."""
    sweep: Any
    claims: list[dict[str, Any]]
    last: Standing | None


def experiments() -> list[Experiment]:
    """All of them, as they stand below the working directory."""
    standings = _standings()
    return [experiment(name, standings) for name in groups()["experiment"]]


def experiment(name: str, standings: Mapping[str, Standing] | None = None) -> Experiment:
    """One of them."""
    node = _experiment(name)
    known = _standings() if standings is None else standings
    return Experiment(
        name,
        describe("experiment", name),
        str(node.get("paper", "")),
        {scale: own.get("minutes") for scale, own in scales(node).items()},
        node.get("sweep"),
        node.get("claims") or [],
        known.get(name),
    )


DEFAULT_SCALE = "default"


def scales(node: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """An experiment's scales by name: its own sweep and claims, then the others'."""
    return {DEFAULT_SCALE: node, **node.get("scales", {})}


def _standings() -> dict[str, Standing]:
    """The newest verdicts of each experiment below the ``output`` folder of this one."""
    output = Path(primary()["output"])
    found: dict[str, Standing] = {}
    for judged in output.glob("*/*/claims.json"):
        request = judged.with_name("request.json")
        if not request.is_file():
            continue
        asked: Mapping[str, Any] = read_json(request)
        claims: Sequence[dict[str, Any]] = read_json(judged, list)
        when = datetime.fromtimestamp(judged.stat().st_mtime)
        name = asked["experiment"]
        if name not in found or found[name].when < when:
            found[name] = Standing(judged.parent, when, asked["scale"], list(claims))
    return found
