"""What a key's value may be: the kind of the parameter that it will reach, and values as it."""

import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Len
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from lmech import mistakes, signatures
from lmech.hints import nearest
from lmech.mistakes import ConfigError
from lmech.signatures import Signature

Config = dict[str, Any]
Seed = Annotated[int, Interval(ge=0, lt=2**31)]
Positive = Annotated[int, Ge(1)]

# Every key that is not a parameter of some `_target_`.
KEYS: dict[str, Any] = {
    "name": Annotated[str, Field(pattern=r"^[\w.-]*\w$")],
    "output": str,
    "objective": Annotated[str, Field(min_length=1)] | None,
    "steps": Annotated[int, Interval(ge=1, lt=2**31)],
    "batch_size": Positive | None,
    "replacement": bool,
    "batch_repeats": Positive,
    "microbatch": Positive | None,
    "clip_norm": Annotated[FiniteFloat, Gt(0)] | None,
    "output_scale": Annotated[FiniteFloat, Gt(0)],
    "centred": bool,
    "linearized": bool,
    "subspace": Positive | None,
    "label_noise": Annotated[FiniteFloat, Ge(0)] | None,
    "data_fraction": Annotated[float, Interval(gt=0, le=1)] | None,
    "task_steps": Positive | None,
    "task_order": Annotated[list[Annotated[int, Ge(0)]], Len(1)] | None,
    "replay": Annotated[float, Interval(ge=0, lt=1)] | None,
    "seed": Seed,
    "seeds.init": Seed | None,
    "seeds.batches": Seed | None,
    "seeds.noise": Seed | None,
    "seeds.probes": Seed | None,
    "seeds.subset": Seed | None,
    "stop.train_loss": float | None,
    "stop.train_accuracy": Annotated[float, Interval(gt=0, le=1)] | None,
    "stop.test_loss": float | None,
    "stop.test_accuracy": Annotated[float, Interval(gt=0, le=1)] | None,
    "init_from": str | None,
    "snapshots": list[Annotated[int, Ge(0)]],
    "rerun": Literal["missing", "failed", "all"],
    "on_failure": Literal["continue", "stop"],
    "execution.mode": Literal["auto", "map", "vmap", "loop"],
    "execution.lanes": Positive | None,
    "execution.devices": Positive | None,
    "execution.share": Literal["members", "examples"],
    "execution.processes": Positive | None,
    "execution.chunk": Positive,
    "execution.compile_cache": bool,
    "execution.save_every": Annotated[float, Ge(0)],
    "precision.dtype": Literal["float32", "float64"],
    "precision.matmul": Literal["highest", "high", "default"],
}


def signature(path: str, target: str) -> Signature:
    """What the ``_target_`` of the section at ``path`` takes. Raises ConfigError."""
    try:
        return signatures.signature(target, by_name=path == "optimizer")
    except Exception as error:
        told = signatures.absent(target) or mistakes.one_line(error.__cause__ or error)
        raise ConfigError(f"{path}._target_={target}: {told}{_missing(error)}") from error


def _missing(error: Exception) -> str:
    """Where a module that is not installed may be, and how it is found there."""
    if not isinstance(error.__cause__ or error, ModuleNotFoundError):
        return ""
    return " (a project's modules are found where its pyproject.toml is, or with --config-dir DIR)"


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


def kind_of(config: Config, key: str) -> Any:
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
    kind, value = kind_of(config, key), select(config, key)
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
    """Values of about that size and kind; of a list, all its entries changed alike."""
    if isinstance(value, list):
        return [list(entries) for entries in zip(*map(_near, value), strict=False)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [2 * value, (1 + value) / 2, 0.999 * value, value + 1, value - 1]
    return [0.5, 1, True] if value is None else []


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
            hint = nearest(key, kinds)
            raise ConfigError(
                f"unknown key '{path}.{key}': {target} has no such parameter{hint} (if a preset "
                f"brought it: `override /{path}: null` in the YAML's defaults leaves that out)"
            )
    return {
        key: value if key == "_target_" else argument(f"{path}.{key}", value, kinds[key])
        for key, value in node.items()
    }


def argument(path: str, value: Any, kind: Any) -> Any:
    """A value of that kind, or a call that makes one."""
    if isinstance(value, dict) and "_target_" in value:
        return call(path, value)
    if isinstance(value, list):
        for place, item in enumerate(value):
            if isinstance(item, dict) and "_target_" in item:
                call(f"{path}.{place}", item)
    return check(path, value, kind)
