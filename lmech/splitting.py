"""What splits a sweep into programs, and the proof that nothing else does: the lowered text."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lmech import building, member, planning, programs, values
from lmech.building import Extent
from lmech.datasets import Data
from lmech.mistakes import one_line
from lmech.numerics.precision import numerics
from lmech.planning import Job
from lmech.values import Config, ConfigError


def texts(job: Config, whole: Extent) -> dict[str, str]:
    """The lowered text of every program of a job of a group, by name; nothing compiles."""
    batch = building.build([job], whole=whole)
    lower = programs.lowerings(batch.program, batch.argument_shapes())
    return {name: lowered().as_text() for name, lowered in lower.items()}


def variants(group: Sequence[Job]) -> dict[str, Config]:
    """The first job's config with another value of one input key, for each of them.

    A swept key has another of the sweep's own values. Keys of which no other value is known (texts)
    are left out.
    """
    first = group[0]
    swept = {
        key: values.select(job.config, key)
        for job in group
        for key in job.overrides
        if job.overrides[key] != first.overrides[key]
    }
    keys = [key for key in planning.input_keys(first.config) if key not in swept]
    others = swept | {key: _another(first.config, key) for key in keys}
    return {
        key: values.with_leaf(first.config, key, value)
        for key, value in others.items()
        if value != values.select(first.config, key)
    }


def _another(config: Config, key: str) -> Any:
    """Another value of an input key; of the tasks those that there are, the other way round."""
    if key == "task_order":
        return values.select(config, key)[::-1]
    return values.another(config, key)


def changes(group: Sequence[Job]) -> tuple[list[str], dict[str, str]]:
    """The keys that were tried, and what those do to the group's programs that are no input.

    Raises ConfigError for a program that cannot be traced, whatever the keys.
    """
    first, others = group[0].config, variants(group)
    configs = [*(job.config for job in group), *others.values()]
    with numerics(first["precision"]["matmul"]):
        try:
            whole = building.extent(configs, building.load_data(first))
            reference = texts(first, whole)
        except Exception as error:
            refused = _refused(first)
            if not refused:
                raise ConfigError(one_line(error)) from error
            return list(others), refused
        found = {key: _change(variant, whole, reference) for key, variant in others.items()}
    return list(others), {key: change for key, change in found.items() if change}


def _change(variant: Config, whole: Extent, reference: Mapping[str, str]) -> str:
    """What is different in a variant's programs: nothing, or why."""
    try:
        found = texts(variant, whole)
    except Exception as error:
        return f"cannot be an input: {one_line(error)}"
    different = [name for name in reference if found[name] != reference[name]]
    return f"changes {', '.join(different)}" if different else ""


def _refused(first: Config) -> dict[str, str]:
    """The optimizer's floats that its factory does not take as data: each traced on its own.

    None where it is something else that fails, with all of them known.
    """
    try:
        batch = building.build([first])
    except Exception:
        return {}
    inputs = jax.tree.map(lambda leaf: leaf[0], batch.inputs)

    def failure(traced: dict[str, Any]) -> str:
        def measured(traced: dict[str, Any], data: Data) -> Any:
            given = inputs._replace(hyperparameters={**inputs.hyperparameters, **traced})
            return member.first_measurements(batch.program, given, data)

        try:
            jax.eval_shape(measured, traced, batch.data)
        except Exception as error:
            return f"cannot be an input: {one_line(error)}"
        return ""

    if failure({}):
        return {}
    found = {key: failure({key: value}) for key, value in inputs.hyperparameters.items()}
    return {f"optimizer.{key}": reason for key, reason in found.items() if reason}


def verify(groups: Sequence[Sequence[Job]]) -> tuple[list[str], bool]:
    """Lines on whether another value of an input key leaves all programs as they are; if all do."""
    tried: dict[str, None] = {}
    lines: dict[str, None] = {}
    for group in groups:
        keys, found = changes(group)
        tried |= dict.fromkeys(keys)
        lines |= dict.fromkeys(f"verify: {key} {change}" for key, change in found.items())
    if lines:
        return list(lines), False
    programs = "1 program" if len(groups) == 1 else f"{len(groups)} programs"
    return [f"verify: {len(tried)} keys of {programs} leave the text unchanged"], True


def static_keys(jobs: Sequence[Job]) -> str:
    """A line: which swept keys split the sweep into programs, and into how many."""
    counts = {key: _programs(jobs, key) for key in jobs[0].overrides}
    named = [f"{key} ({count} values)" for key, count in counts.items() if count > 1]
    total = len(planning.group(jobs))
    programs = "1 program" if total == 1 else f"{total} programs"
    return f"static keys: {', '.join(named) or 'none'}: {programs}"


def _programs(jobs: Sequence[Job], key: str) -> int:
    """How many static values a swept key takes, or programs it makes where the others rest."""
    own = {planning.digest(values.select(planning.static(job.config), key)) for job in jobs}
    peers: dict[str, set[str]] = {}
    for job in jobs:
        rest = planning.digest({k: v for k, v in job.overrides.items() if k != key})
        peers.setdefault(rest, set()).add(planning.program_key(job.config))
    return max(len(own), *map(len, peers.values()))
