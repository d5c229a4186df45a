"""The setting of a sweep in words: what all of its jobs have, and what was swept."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

CALLS = {
    "dataset": "data",
    "model": "model",
    "loss": "loss",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "parametrization": "parametrization",
}
# Shown where they are not what they usually are.
USUAL = {
    "output_scale": 1.0,
    "centred": False,
    "linearized": False,
    "subspace": None,
    "clip_norm": None,
    "label_noise": None,
    "data_fraction": None,
    "task_steps": None,
    "task_order": None,
    "replay": None,
    "init_from": None,
}
LISTED = 6
"""Values that are named one by one; of more, numbers are a range."""


class Phrase(NamedTuple):
    """A piece of a sentence; ``swept`` where the jobs differ in it."""

    text: str
    swept: bool = False


Row = tuple[str, list[Phrase]]
Config = Mapping[str, Any]


def rows(configs: Sequence[Config]) -> list[Row]:
    """What is told of the jobs' configs: data, model, …, steps, precision, seeds, what is measured.

    A part that no config has is left out, as in a manifest of another version.
    """
    if not configs:
        return []
    told = [row for key, name in CALLS.items() for row in _calls(configs, key, name)]
    told += [("steps", _steps(configs)), ("precision", _leaves(configs, "precision"))]
    told.append(("seeds", _values(configs, ["seed"])))
    told.append(("also", [p for key in USUAL for p in _unusual(configs, key)]))
    told.append(("measured", _measured(configs)))
    return [(name, phrases) for name, phrases in told if phrases]


def _calls(configs: Sequence[Config], section: str, name: str) -> list[Row]:
    """A row for each function that some of the jobs have there."""
    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault((config.get(section) or {}).get("_target_", ""), []).append(config)
    groups.pop("", None)
    told = []
    for target, own in groups.items():
        of = Phrase(f"in {len(own)} of {len(configs)} jobs", swept=True)
        title = Phrase(target.rpartition(".")[2], swept=len(groups) > 1)
        extra = [of] if len(groups) > 1 else []
        told.append((name, [title, *_leaves(own, section), *extra]))
    return told


def _leaves(configs: Sequence[Config], section: str) -> list[Phrase]:
    flat = [leaves(config.get(section) or {}) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one if not key.endswith("_target_"))
    return [phrase for key in keys for phrase in _said(key, distinct(one.get(key) for one in flat))]


def _said(key: str, values: Sequence[Any]) -> list[Phrase]:
    """``width 64``, ``bias``, ``no bias``; nothing where it is not set."""
    name = key.replace("_", " ")
    if len(values) > 1:
        return [Phrase(f"{name} {several(values)}", swept=True)]
    value = values[0]
    if value is None:
        return []
    if isinstance(value, bool):
        return [Phrase(name if value else f"no {name}")]
    return [Phrase(f"{name} {text(value)}")]


def _steps(configs: Sequence[Config]) -> list[Phrase]:
    """How long and on which examples: ``3000, the whole training set``."""
    told = _values(configs, ["steps"])
    sizes = distinct(config.get("batch_size") for config in configs)
    if sizes == [None]:
        told.append(Phrase("each on the whole training set"))
    else:
        told.append(Phrase(f"minibatches of {several(sizes)}", swept=len(sizes) > 1))
        repeats = distinct(config.get("batch_repeats", 1) for config in configs)
        if repeats != [1]:
            told.append(Phrase(f"each {several(repeats)} times", swept=len(repeats) > 1))
        if any(config.get("replacement") for config in configs):
            told.append(Phrase("with replacement"))
    rules = [leaves(config.get("stop") or {}) for config in configs]
    for key in dict.fromkeys(key for one in rules for key in one):
        told += _said(f"stop at {key}", distinct(one.get(key) for one in rules))
    return told


def _values(configs: Sequence[Config], path: Sequence[str]) -> list[Phrase]:
    found = distinct(leaves(config).get(".".join(path)) for config in configs)
    return [] if found == [None] else [Phrase(several(found), swept=len(found) > 1)]


def _unusual(configs: Sequence[Config], key: str) -> list[Phrase]:
    found = distinct(config.get(key, USUAL[key]) for config in configs)
    return [] if found == [USUAL[key]] else _said(key, found)


def _measured(configs: Sequence[Config]) -> list[Phrase]:
    """Observables and their cadence."""
    nodes = [config.get("observables") or {} for config in configs]
    told = []
    for name in dict.fromkeys(name for one in nodes for name in one):
        every = distinct(one[name].get("every") for one in nodes if name in one)
        often = "every step" if every == [1] else f"every {several(every)}"
        told.append(Phrase(f"{name} {often}", swept=len(every) > 1))
    return told


def common(configs: Sequence[Config]) -> list[tuple[str, str]]:
    """Every key that has one value in all jobs, with that value."""
    flat = [leaves(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = {key: distinct(one.get(key) for one in flat) for key in keys}
    return [(key, text(values[0])) for key, values in found.items() if len(values) == 1]


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Dotted key → value of a config's every leaf; lists are leaves."""
    if not isinstance(node, Mapping) or not node:
        return {path: node} if path else {}
    inner = {f"{path}.{key}".lstrip("."): value for key, value in node.items()}
    return {key: leaf for name, value in inner.items() for key, leaf in leaves(value, name).items()}


def distinct(values: Any) -> list[Any]:
    """Each value once, in order; lists and mappings too."""
    return list(
        {json.dumps(value, sort_keys=True, default=str): value for value in values}.values()
    )


def several(values: Sequence[Any]) -> str:
    """``0.1, 0.2, 0.4``; of many numbers ``0.25 to 2.3 (42 values)``, of other things the first."""
    if len(values) <= LISTED:
        return ", ".join(map(text, values))
    known = [value for value in values if isinstance(value, int | float) and value is not True]
    if len(known) == len(values):
        return f"{text(min(known))} to {text(max(known))} ({len(values)} values)"
    return f"{', '.join(map(text, values[:LISTED]))}, … ({len(values)} values)"


def text(value: Any) -> str:
    """A value of a config as the page says it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return f"{value:.10g}" if isinstance(value, float) else str(value)
