"""Pairs of a sweep's runs, and what has been measured of them. No JAX here.

A comparison's table is ``comparisons/NAME.parquet`` of the sweep's folder: a row a pair and step,
with ``job``, ``other``, ``step`` and ``other_step`` before its columns. The file's metadata say
which settings and code it is of.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from lmech import formats, locking, planning, snapshots, values
from lmech.disk import read_json, read_table, write_table
from lmech.hints import nearest
from lmech.manifest import Entry
from lmech.planning import Job
from lmech.values import Config, ConfigError

FOLDER = "comparisons"
LABELS = ("job", "other", "step", "other_step")
OWN = ("between", "steps")
"""Keys of a comparison that its ``_target_`` does not take."""
IDENTITY = b"lmech"
VERSION = 1
"""Raise it when what comparisons say of the same weights changes."""


class Comparison(NamedTuple):
    """One of an experiment's, as its YAML states it."""

    name: str
    between: tuple[str, ...]
    """Keys in which the two runs of a pair differ, and in no other."""
    steps: tuple[int, ...] | None
    """Whose weights are compared (None: each run's last)."""
    node: Config
    """The ``_target_`` and its parameters, checked."""


class Pair(NamedTuple):
    """Two runs of a sweep, in the manifest's order, and the steps of their weights."""

    job: str
    other: str
    step: int
    other_step: int


def parse(comparisons: Any) -> list[Comparison]:
    """The section ``comparisons`` of an experiment. Raises ConfigError."""
    return [_parsed(name, node) for name, node in (comparisons or {}).items()]


def _parsed(name: str, node: Any) -> Comparison:
    path = f"comparisons.{name}"
    if not isinstance(node, dict):
        raise ConfigError(f"{path} needs a _target_")
    if "between" not in node:
        hint = nearest("between", node)
        raise ConfigError(f"{path}.between is missing: the key in which two runs differ{hint}")
    between = values.check(f"{path}.between", node["between"], str | list[str])
    steps = values.check(f"{path}.steps", node.get("steps", "last"), list[int] | str)
    if isinstance(steps, str) and steps != "last":
        raise ConfigError(f"{path}.steps={steps}: write last, or a list of steps")
    return Comparison(
        name=name,
        between=(between,) if isinstance(between, str) else tuple(between),
        steps=None if steps == "last" else tuple(steps),
        node=values.call(path, {key: node[key] for key in node if key not in OWN}),
    )


def check(comparisons: Sequence[Comparison], jobs: Sequence[Job]) -> None:
    """Before anything is trained: raise ConfigError for keys ``between`` which no runs differ in.

    That is no key of the sweep, or one that makes another program.
    """
    for comparison in comparisons:
        overrides = {job.id: job.overrides for job in jobs}
        groups = {job.id: planning.group_id(job.config) for job in jobs}
        for one, other in _alike(overrides, comparison):
            check_program(comparison, groups[one], groups[other])


def check_program(comparison: Comparison, one: str, other: str) -> None:
    """Raise ConfigError unless two runs' programs are one."""
    if one != other:
        keys = ", ".join(comparison.between)
        raise ConfigError(
            f"comparisons.{comparison.name}.between: {keys} makes another program, and two "
            "states of one are compared: choose keys of inputs (lmech plan names them)"
        )


def _alike(
    overrides: Mapping[str, Mapping[str, Any]], comparison: Comparison
) -> list[tuple[str, str]]:
    """Every two jobs, by id, whose overrides differ in the keys ``between`` and in no other.

    Raises ConfigError where the sweep has no such key.
    """
    swept = {key for own in overrides.values() for key in own}
    for key in comparison.between:
        if key not in swept:
            place = f"comparisons.{comparison.name}.between={key}"
            raise ConfigError(f"{place}: the sweep has no such key{nearest(key, swept)}")
    alike: dict[Hashable, list[str]] = {}
    for job, own in overrides.items():
        others = {key: own[key] for key in own if key not in comparison.between}
        alike.setdefault(planning.digest(others), []).append(job)
    return [
        (one, other)
        for group in alike.values()
        for one, other in combinations(group, 2)
        if all(overrides[one][key] != overrides[other][key] for key in comparison.between)
    ]


def wanted(sweep: Path, entries: Sequence[Entry], comparison: Comparison) -> list[Pair]:
    """Every two finished runs whose overrides differ in the keys ``between`` and in no other.

    A run that diverged has no partner. Raises ConfigError where ``between`` is no swept key, and
    for steps whose weights were not kept.
    """
    pairs = _alike({entry["id"]: entry["overrides"] for entry in entries}, comparison)
    ended = {job: _end(sweep / job) for job in {job for pair in pairs for job in pair}}
    return [
        Pair(one, other, *steps)
        for one, other in pairs
        if ended[one] is not None and ended[other] is not None
        for steps in _steps(sweep, one, other, comparison)
    ]


def _end(folder: Path) -> int | None:
    """The last step of a run that is done."""
    path = folder / "result.json"
    result = read_json(path) if path.is_file() else {}
    return int(result["steps"]) if result.get("status") == "done" else None


def _steps(sweep: Path, one: str, other: str, comparison: Comparison) -> list[tuple[Any, Any]]:
    if comparison.steps is None:
        return [(_end(sweep / one), _end(sweep / other))]
    for job in (one, other):
        kept = snapshots.kept(sweep / job)
        missing = [step for step in comparison.steps if step not in kept]
        if missing:
            raise ConfigError(
                f"comparisons.{comparison.name}.steps: {job} kept no weights at "
                f"{formats.listed(missing)}; there are {formats.listed(sorted(kept))}"
            )
    return [(step, step) for step in comparison.steps]


def identity(comparison: Comparison) -> str:
    """Of what a comparison says of two runs: its settings, our version of it, a user's source."""
    code = [source for _, source in planning.sources(comparison.node, comparison.name)]
    return planning.digest([VERSION, comparison.node, code])


def left(sweep: Path, entries: Sequence[Entry], comparison: Comparison) -> list[Pair]:
    """The pairs that have not been compared."""
    known = _labels(_table(sweep, comparison))
    return [pair for pair in wanted(sweep, entries, comparison) if pair not in known]


def table(sweep: Path, name: str) -> Path:
    """Where a comparison's numbers lie."""
    return sweep / FOLDER / f"{name}.parquet"


def _table(sweep: Path, comparison: Comparison) -> Any:
    """What there is of this very comparison; None where there is nothing."""
    path = table(sweep, comparison.name)
    if not path.is_file():
        return None
    there = read_table(path)
    same = (there.schema.metadata or {}).get(IDENTITY) == identity(comparison).encode()
    return there if same else None


def write(sweep: Path, comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to the comparison's table; one of other settings is replaced.

    Of a pair that another process has added meanwhile, its row stays.
    """
    import pyarrow as pa  # noqa: PLC0415

    with locking.waited(sweep / "manifest.lock"):
        before = _table(sweep, comparison)
        known = _labels(before)
        added = [row for row in rows if tuple(row[label] for label in LABELS) not in known]
        if not added:
            return
        new = pa.Table.from_pylist(added)
        whole = pa.concat_tables([before, new], promote_options="permissive") if before else new
        whole = whole.replace_schema_metadata({IDENTITY: identity(comparison).encode()})
        write_table(table(sweep, comparison.name), whole)


def _labels(there: Any) -> set[tuple[Any, ...]]:
    """The pairs of a table; none where there is no table."""
    columns = [there[label].to_pylist() for label in LABELS] if there else []
    return set(zip(*columns, strict=True))
