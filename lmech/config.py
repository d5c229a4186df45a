"""From a command line to one resolved, validated config.

Hydra composes. What is ours: every key and option is checked before Hydra sees it, so a typo is
one line that names the nearest valid key, and every value is checked against the type of the
parameter that it will reach, before anything is compiled or written.
"""

import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from lmech import paths, signatures
from lmech.hints import alike, nearest
from lmech.signatures import Signature

Config = dict[str, Any]
Seed = Annotated[int, Interval(ge=0, lt=2**31)]
Positive = Annotated[int, Ge(1)]
Path_ = tuple[str, ...]

# Every key that is not a parameter of some `_target_`.
KEYS: dict[str, Any] = {
    "name": Annotated[str, Field(pattern=r"^[\w.-]*\w$")],
    "output": str,
    "objective": Annotated[str, Field(min_length=1)] | None,
    "steps": Annotated[int, Interval(ge=1, lt=2**31)],
    "batch_size": Positive | None,
    "microbatch": Positive | None,
    "clip_norm": Annotated[FiniteFloat, Gt(0)] | None,
    "output_scale": Annotated[FiniteFloat, Gt(0)],
    "centred": bool,
    "label_noise": Annotated[FiniteFloat, Ge(0)] | None,
    "data_fraction": Annotated[float, Interval(gt=0, le=1)] | None,
    "seed": Seed,
    "seeds.init": Seed | None,
    "seeds.batches": Seed | None,
    "seeds.noise": Seed | None,
    "seeds.probes": Seed | None,
    "seeds.subset": Seed | None,
    "stop.train_loss": float | None,
    "stop.train_accuracy": Annotated[float, Interval(gt=0, le=1)] | None,
    "init_from": str | None,
    "snapshots": list[Annotated[int, Ge(0)]],
    "rerun": Literal["missing", "failed", "all"],
    "on_failure": Literal["continue", "stop"],
    "execution.mode": Literal["auto", "map", "vmap", "loop"],
    "execution.lanes": Positive | None,
    "execution.devices": Positive | None,
    "execution.chunk": Positive,
    "execution.compile_cache": bool,
    "execution.save_every": Annotated[float, Ge(0)],
    "precision.dtype": Literal["float32", "float64"],
    "precision.matmul": Literal["highest", "high", "default"],
}
NOT_OF_A_JOB = ("sweep", "experiment")
# Sections that are one call each; `observables` holds one call an entry.
CALLS = ("model", "dataset", "loss", "optimizer", "schedule", "parametrization", "logger")


class ConfigError(ValueError):
    """A key, option or value that cannot be: one line, with what to write instead."""


@cache
def groups() -> dict[str, list[str]]:
    """Options of each config group."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(paths.conf().iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def describe(group: str, option: str) -> str:
    """First comment line of an option's file: what it is."""
    lines = (paths.conf() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((line for line in comments if line and not line.startswith("@package")), "")


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
        if _key(text) in groups():
            _check_option(*text.split("=", 1))
    return without_strangers(_compose(tuple(spelled(overrides, overrides))), overrides)


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
    several = chosen if isinstance(chosen, list) and group == "observables" else [chosen]
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
    hint = nearest(key, candidates) or " (see lmech list keys)"
    raise ConfigError(f"unknown key '{key}'{hint}")


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
    return [f"{section}.{name}" for name in signature(section, target).kinds]


def signature(path: str, target: str) -> Signature:
    """What the ``_target_`` of the section at ``path`` takes. Raises ConfigError."""
    try:
        return signatures.signature(target, by_name=path == "optimizer")
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{path}._target_={target}: {_one_line(cause)}") from error


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with _apart(), initialize_config_dir(str(paths.conf().resolve()), version_base="1.3"):
        return hydra_compose("config", list(overrides))


@contextmanager
def _apart() -> Iterator[None]:
    """Hydra's global state set aside: we may be running inside a Hydra application."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


def _compose(overrides: tuple[str, ...]) -> DictConfig:
    try:
        return _composed(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error


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
    try:
        return typing.cast(
            Config, OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        )
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error


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

    def with_values(self, values: Mapping[str, Any]) -> Config:
        """A config with these keys set (each value is checked once). Raises ConfigError.

        Where the config has interpolations, which may look at any key, it is resolved anew.
        """
        for key in values:
            check_key(key, self._known)
        if self._interpolates:
            changed = self._base.copy()
            for key, value in values.items():
                OmegaConf.update(changed, key, value, force_add=True)
            return resolve(changed)
        result = self._config
        for key, value in values.items():
            name = f"{key}={value!r}"
            if name not in self._checked:
                self._checked[name] = _checked(self._config, key, value)
            result = with_leaf(result, key, self._checked[name])
        _consistent(result)
        return result


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """The resolved config with these keys' values (each checked), other keys untouched."""
    for key, value in values.items():
        config = with_leaf(config, key, _checked(config, key, value))
    return config


def select(config: Config, key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def with_leaf(config: Config, key: str, value: Any) -> Config:
    """A copy of the config with the value at a dotted key; what lies elsewhere is shared."""
    first, _, rest = key.partition(".")
    return {**config, first: with_leaf(config[first], rest, value) if rest else value}


def _checked(config: Config, key: str, value: Any) -> Any:
    """A value as its key's kind."""
    return _argument(key, value, _kind(config, key))


def _kind(config: Config, key: str) -> Any:
    """What the value of a key may be."""
    section, _, leaf = key.rpartition(".")
    if key in KEYS:
        return KEYS[key]
    if leaf == "every":
        return Positive
    inner = [leaf]
    while section and "_target_" not in select(config, section):
        section, _, leaf = section.rpartition(".")
        inner = [leaf, *inner]
    if not section:
        return Any
    return _inner(signature(section, select(config, section)["_target_"]).kinds, inner)


def _inner(kinds: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The kind at a path in a dictionary of kinds: of a parameter, or of a table's entry."""
    kind = kinds.get(path[0], Any)
    if len(path) == 1:
        return kind
    for option in typing.get_args(kind) or (kind,):
        if is_typeddict(option):
            return _inner(typing.get_type_hints(option, include_extras=True), path[1:])
    return Any


def another(config: Config, key: str) -> Any:
    """Another value that the key may have; its own where none is known."""
    kind, value = _kind(config, key), select(config, key)
    found = [*_near(value), *_choices(kind), *_halves(kind)]
    for candidate in found if kind is not Any or value else []:
        try:
            other = check(key, candidate, kind)
        except ConfigError:
            continue
        if other != value:
            return other
    return value


def _halves(kind: Any) -> list[Any]:
    """Tables of a kind, with ½ everywhere."""
    options = [option for option in typing.get_args(kind) if is_typeddict(option)]
    return [dict.fromkeys(typing.get_type_hints(option), 0.5) for option in options]


def _near(value: Any) -> list[Any]:
    """Values of about that size and kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [2 * value, (1 + value) / 2, 0.999 * value, value + 1, value - 1]
    return [0.5, 1, True] if value is None else []


def validated(config: Config) -> Config:
    """The config with every value checked and of its parameter's type (ints become floats)."""
    _known(config)
    result = dict(config)
    for key, kind in KEYS.items():
        section, _, leaf = key.rpartition(".")
        if section:
            result[section] = {
                **result[section],
                leaf: check(key, config[section][leaf], kind),
            }
        else:
            result[key] = check(key, config[key], kind)
    for name in CALLS:
        result[name] = call(name, config[name])
    result["observables"] = {
        name: _observable(name, node) for name, node in config["observables"].items()
    }
    _consistent(result)
    return result


def _known(config: Config) -> None:
    """Raise ConfigError for a key that nothing reads (a YAML file may bring one)."""
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    top = {key for key in KEYS if "." not in key} | sections
    top |= {*CALLS, "observables", *NOT_OF_A_JOB}
    present = set(config)
    for section in sections & present:
        present |= {f"{section}.{leaf}" for leaf in config[section]}
    for key in sorted(present - top - set(KEYS)):
        raise ConfigError(f"unknown key '{key}'{nearest(key, [*top, *KEYS])}")


def _observable(name: str, node: Config) -> Config:
    path = f"observables.{name}"
    every = check(f"{path}.every", node.get("every"), Positive)
    rest = {key: value for key, value in node.items() if key != "every"}
    return {**call(path, rest), "every": every}


def _consistent(config: Config) -> None:
    for column, threshold in config["stop"].items():
        if threshold is not None and column not in config["observables"]:
            raise ConfigError(
                f"stop.{column}={threshold} needs the observable {column}, which is not recorded; "
                "add its group to observables=[…]"
            )
    if "learning_rate" not in config["optimizer"]:
        raise ConfigError("optimizer.learning_rate is missing: schedules act on it")


def check(key: str, value: Any, kind: Any) -> Any:
    """``value`` as ``kind`` (strictly: no text for a number), or ConfigError."""
    adapter = _adapter(kind)
    if adapter is None:
        return value
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        hint = nearest(str(value), _choices(kind)) if isinstance(value, str) else ""
        if isinstance(value, dict):  # which of its entries
            key, value = ".".join([key, *map(str, problem["loc"])]), problem["input"]
        raise ConfigError(f"{key}={value}: {problem['msg'].lower()}{hint}") from None


def _adapter(kind: Any) -> TypeAdapter[Any] | None:
    """None for an annotation that pydantic cannot check."""
    try:
        return _cached_adapter(kind)
    except Exception:
        return None


_cached_adapter = cache(TypeAdapter)


def _choices(kind: Any) -> list[str]:
    if typing.get_origin(kind) is Literal:
        return list(typing.get_args(kind))
    return [choice for part in typing.get_args(kind) for choice in _choices(part)]


def call(path: str, node: Any) -> Config:
    """A ``_target_`` node whose keys are the target's parameters and whose values fit them."""
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{path} needs a _target_")
    target = node["_target_"]
    kinds = signature(path, target).kinds
    for key in node:
        if key != "_target_" and key not in kinds:
            raise ConfigError(
                f"unknown key '{path}.{key}': {target} has no such parameter{nearest(key, kinds)}"
            )
    return {
        key: value if key == "_target_" else _argument(f"{path}.{key}", value, kinds[key])
        for key, value in node.items()
    }


def _argument(path: str, value: Any, kind: Any) -> Any:
    """A value of that kind, or a call that makes one."""
    if isinstance(value, dict) and "_target_" in value:
        return call(path, value)
    return check(path, value, kind)
