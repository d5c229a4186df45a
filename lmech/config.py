"""From a command line to one resolved, validated config.

Hydra composes. What is ours: every key and option is checked before Hydra sees it, so a typo is
one line that names the nearest valid key, and every value is checked against the type of the
parameter that it will reach, before anything is compiled or written.
"""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from lmech import catalogue, paths, project, values
from lmech.catalogue import file, groups
from lmech.disk import read_yaml
from lmech.hints import alike, nearest
from lmech.project import Project
from lmech.validation import CALLS, NOT_OF_A_JOB, SEVERAL, checked, consistent, validated
from lmech.values import Config, ConfigError

Path_ = tuple[str, ...]

# Groups of which no job has a section: where a sweep is sent, what is asked of pairs of its runs.
SECRET = re.compile(r"oc\.env:\s*[\"']?(\w*(?:key\b|token|secret|password)\w*)", re.IGNORECASE)
"""A variable of the environment that may be one, by its name."""
CLUSTER = "cluster"
COMPARISON = "comparison"
APART = {CLUSTER: "lmech submit", COMPARISON: "lmech compare"}


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides in Hydra's grammar. Raises ConfigError, in one line, for what is none."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        if text.startswith("-"):
            key = text.lstrip("-").partition("=")[0]
            raise ConfigError(f"{text!r}: keys have no dashes before them{_hint(key)}")
        if text.startswith(("+", "~")):
            key = text.lstrip("+~").partition("=")[0]
            raise ConfigError(f"{text!r}: keys are neither added nor removed here{_hint(key)}")
        if "=" not in text:
            raise ConfigError(f"{text!r} is no override: write key=value{_hint(text)}")
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            raise ConfigError(f"{text!r}: {_one_line(error)}") from error
    return parsed


def _one_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _hint(key: str) -> str:
    known = _leaves(_compose(()))
    return nearest(key, [*groups(), *known, *_taken(known)])


def compose(overrides: Sequence[str]) -> DictConfig:
    """The primary config with these overrides (no sweeps), keys and options checked.

    A parameter of a section's ``_target_`` is a key even where the preset leaves it out.
    """
    for text in overrides:
        command = APART.get(_key(text).partition(".")[0])
        if command:
            raise ConfigError(f"{text} goes with {command}: no job has it")
        if _key(text) in groups():
            _check_option(*text.split("=", 1))
    config = without_strangers(_compose(tuple(spelled(overrides, overrides))), overrides)
    for override in parse([text for text in overrides if _key(text) in SEVERAL]):
        _drop_unchosen(config, override)
    return config


def is_clusters(text: str) -> bool:
    """Whether an override is of the group ``cluster``."""
    return _key(text).partition(".")[0] == CLUSTER


def cluster(overrides: Sequence[str]) -> Config:
    """What ``cluster=NAME`` and ``cluster.KEY=VALUE`` make, checked. Raises ConfigError."""
    return values.call(CLUSTER, _apart_from_jobs(CLUSTER, overrides, "slurm")[1])


def comparison(overrides: Sequence[str]) -> tuple[str, Config]:
    """The name and the section of ``comparison=NAME`` and ``comparison.KEY=VALUE``.

    Its keys are checked, values are not. Raises ConfigError, also where no NAME is given.
    """
    if not any(_key(text) == COMPARISON for text in overrides):
        raise ConfigError("comparison=NAME is missing, as in comparison=linear_path")
    return _apart_from_jobs(COMPARISON, overrides, "")


def _apart_from_jobs(group: str, overrides: Sequence[str], usual: str) -> tuple[str, Config]:
    """The chosen option of a group that no job has, and its section with these overrides.

    Composed by itself, so that a project's own may start from ours: ``defaults: [slurm, _self_]``.
    """
    values_of = {parsed.key_or_group: parsed.value() for parsed in parse(overrides)}
    option = str(values_of.pop(group, usual))
    _check_option(group, option)
    name = f"{group}/{option}"
    known = dict(_walk(plain(_compose((), name)), ()))
    settable = {".".join(path): value for path, value in known.items()}
    for key in values_of:
        check_key(key, settable)
    rest = tuple(text for text in overrides if _key(text) != group)
    return option, plain(_compose(rest, name))[group]


def _drop_unchosen(config: DictConfig, override: Override) -> None:
    """Where the user chose the options, what an experiment says of others of ours goes.

    What it leaves out with a null is there if the user chose it.
    """
    group, chosen = override.key_or_group, override.value()
    options = chosen if isinstance(chosen, list) else [chosen]
    own = {k: v for option in options for k, v in read_yaml(file(group, str(option))).items()}
    for name, node in list(config[group].items()):
        with open_dict(config):
            if node is None and name in own:
                config[group][name] = own[name]
            elif node is None or ("_target_" not in node and catalogue.presets_with(group, name)):
                del config[group][name]


def decides(key: str) -> bool:
    """Whether a key's value decides which other keys there are: a group's, or a ``_target_``."""
    return key in groups() or key.endswith("_target_")


def spelled(overrides: Sequence[str], choices: Sequence[str]) -> list[str]:
    """The overrides, which may be sweeps, as Hydra composes them, every key checked.

    ``++`` goes before a key that the preset leaves out and its ``_target_`` takes. Those of the
    ``choices`` that decide which keys there are do. Raises ConfigError.
    """
    known = _leaves(_compose(tuple(text for text in choices if decides(_key(text)))))
    others = [text for text in overrides if not decides(_key(text))]
    for text in others:
        check_key(_key(text), known)
    absent = [text for text in others if _key(text) not in known]
    return [*(text for text in overrides if text not in absent), *(f"++{t}" for t in absent)]


def without_strangers(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Where the user put another ``_target_``, the preset's keys that it does not take go."""
    config = config.copy()
    chosen = {_key(text) for text in overrides}
    for key in chosen:
        section, _, last = key.rpartition(".")
        if last != "_target_":
            continue
        node = OmegaConf.select(config, section)
        taken = {"_target_", "every", *_parameters(key, {key: node["_target_"]})}
        strangers = [f"{section}.{name}" for name in node if f"{section}.{name}" not in taken]
        with open_dict(config):
            for stranger in set(strangers) - chosen - {key, f"{section}.every"}:
                del node[stranger.rpartition(".")[2]]
    return config


def _key(text: str) -> str:
    return text.partition("=")[0]


def _check_option(group: str, value: str) -> None:
    options = groups()[group]
    if value == "null" and group in NOT_OF_A_JOB:
        return
    chosen = parse([f"{group}={value}"])[0].value()
    several = chosen if isinstance(chosen, list) and group in SEVERAL else [chosen]
    for option in map(str, several):
        if option not in options:
            raise ConfigError(
                f"{group}={option}: no such option{nearest(option, options)} "
                f"({group} is one of {', '.join(options)})"
            )


def check_key(key: str, known: Mapping[str, Any]) -> None:
    """Raise ConfigError, with the nearest key that there is, unless ``key`` may be set."""
    if key in known or key in _parameters(key, known):
        return
    candidates = [*known, *groups(), *_taken(known)]
    inner = [path for path in known if path.startswith(f"{key}.")]
    if inner:
        hint = nearest(key, [path for path in candidates if path != key and alike(key, path)])
        raise ConfigError(f"{key} is a section; set one of {', '.join(inner)}{hint}")
    others = _others_with(key)
    if others:
        section = key.partition(".")[0]
        raise ConfigError(
            f"{key} is a key of {section}={', '.join(others)}, and of no other: where several are "
            "swept, each gets its own keys in a block of its own (sweep: [{…}, {…}] in YAML)"
        )
    hint = nearest(key, candidates) or " (see lmech list keys)"
    raise ConfigError(f"unknown key '{key}'{hint}")


def _others_with(key: str) -> list[str]:
    """The options of the key's group that have it, where those that are chosen do not."""
    section, _, rest = key.partition(".")
    if section not in (*CALLS, "logger") or not rest:
        return []
    presets = {option: read_yaml(file(section, option)) for option in groups()[section]}
    return [option for option, preset in presets.items() if rest in dict(_named(preset))]


def _named(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a file, sections too."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{path}{name}", value
            yield from _named(value, f"{path}{name}.")


def _taken(known: Mapping[str, Any]) -> list[str]:
    """What the sections' targets take, as keys (of those that can be imported)."""
    taken = []
    for key in known:
        if key.endswith("._target_"):
            with suppress(ConfigError):
                taken += _parameters(key, known)
    return taken


def _parameters(key: str, known: Mapping[str, Any]) -> list[str]:
    """What the ``_target_`` of the key's section takes, as keys."""
    section = key.rpartition(".")[0]
    target = known.get(f"{section}._target_")
    if target is None:
        return []
    return [f"{section}.{name}" for name in values.signature(section, target).kinds]


class _Search(SearchPathPlugin):
    """The project's folder before the package's, in Hydra's search for configs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ours, found = str(paths.conf().resolve()), project.current()
        mains = [part.path for part in search_path.get_path() if part.provider == "main"]
        if found and [path.removeprefix("file://") for path in mains] == [ours]:
            main = SearchPathQuery(provider="main")
            search_path.prepend("lmech-project", f"file://{found.conf}", main)


def tell_hydra() -> None:
    """Have Hydra search the project too, in this process, where the primary config is ours."""
    Plugins.instance().register(_Search)


@cache
def _composed(overrides: tuple[str, ...], name: str, _: Project | None) -> DictConfig:
    """Remembered by the project too, whose files Hydra finds by its search path."""
    tell_hydra()
    with _apart(), initialize_config_dir(str(paths.conf().resolve()), version_base="1.3"):
        return hydra_compose(name, list(overrides))


@contextmanager
def _apart() -> Iterator[None]:
    """Hydra's global state set aside: we may be running inside a Hydra application."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


def _compose(overrides: tuple[str, ...], name: str = "config") -> DictConfig:
    try:
        return _composed(overrides, name, project.current())
    except MarkedYAMLError as error:
        raise ConfigError(_no_yaml(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error


def _no_yaml(error: MarkedYAMLError) -> str:
    """Where a file is not YAML, and why."""
    mark = error.problem_mark
    place = f"{project.shown(Path(mark.name))}, line {mark.line + 1}: " if mark else ""
    return f"{place}{error.problem or error}"


def _leaves(config: DictConfig) -> dict[str, Any]:
    """Settable keys, dotted, with their present values."""
    plain = OmegaConf.to_container(config)
    leaves = dict(_walk(plain, ()))
    return {".".join(path): value for path, value in leaves.items() if path[0] not in NOT_OF_A_JOB}


def _walk(node: Any, path: Path_) -> Iterable[tuple[Path_, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _walk(value, (*path, str(key)))
    else:
        yield path, node


def keys(config: DictConfig) -> dict[str, Any]:
    """Every key that may be set, and its value."""
    return _leaves(config)


def plain(config: DictConfig) -> Config:
    """Dicts and lists with interpolations resolved. Raises ConfigError."""
    _check_secrets(config)
    try:
        return typing.cast(
            Config, OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        )
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error


def _check_secrets(config: DictConfig) -> None:
    """Raise ConfigError for a key that is set to a secret of the environment, by its name."""
    for path, value in _walk(OmegaConf.to_container(config), ()):
        found = SECRET.search(str(value))  # a list's items too
        if found:
            raise ConfigError(
                f"{'.'.join(path)}: ${found[1]} may be a secret, and every key is written to disk: "
                "read it in your own code, from the environment"
            )


def resolve(config: DictConfig) -> Config:
    """Plain, resolved and validated: what a job is. Raises ConfigError."""
    return validated(plain(config))


class Template:
    """A composed, validated config, and its copies with other values."""

    def __init__(self, base: DictConfig) -> None:
        """Validate it. Raises ConfigError."""
        self._base = base
        self._known = _leaves(base)
        self._config = resolve(base)
        raw = dict(_walk(OmegaConf.to_container(base), ()))
        self._interpolates = any("${" in value for value in raw.values() if isinstance(value, str))
        self._checked: dict[str, Any] = {}

    def with_values(self, chosen: Mapping[str, Any]) -> Config:
        """A config with these keys set (each value is checked once). Raises ConfigError.

        Where the config has interpolations, which may look at any key, it is resolved anew.
        """
        for key in chosen:
            check_key(key, self._known)
        if self._interpolates:
            changed = self._base.copy()
            for key, value in chosen.items():
                OmegaConf.update(changed, key, value, force_add=True)
            return resolve(changed)
        result = self._config
        for key, value in chosen.items():
            name = f"{key}={value!r}"
            if name not in self._checked:
                self._checked[name] = checked(self._config, key, value)
            result = values.with_leaf(result, key, self._checked[name])
        consistent(result)
        return result


def changed(config: Config, chosen: Mapping[str, Any]) -> Config:
    """The resolved config with these keys' values (each checked), other keys untouched."""
    for key, value in chosen.items():
        config = values.with_leaf(config, key, checked(config, key, value))
    return config
