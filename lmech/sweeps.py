"""What a sweep ranges over: grids, zipped keys and unions of both.

The same in YAML and on the command line. A key's values are a list, a single value, a text in
Hydra's grammar (``0.1,0.2``, ``range(8)``, ``choice(a,b)``), or what Hydra has not,
``geomspace(low, high, n)`` and ``linspace(low, high, n)``: n values, both ends included, evenly
apart in the logarithm or as they are (``geomspace(2**-8, 1, 20)``).

In YAML a sweep is a mapping from keys to values (all combinations, first key slowest), or

    grid: {seed: range(4), model.width: [64, 128]}
    zip: {optimizer.learning_rate: [0.1, 0.01], steps: [100, 1000]}   # one by one, not crossed

or a list of such blocks (in a file of its own ``union: […]``): their union, in which a job that two
blocks share is there once.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from hydra.errors import HydraException

from lmech import config as configs
from lmech import hints
from lmech.values import ConfigError

Values = list[Any]
Setting = dict[str, Any]  # swept key → its value in one job


class Block(NamedTuple):
    """All combinations of ``grid``, at each of the settings that ``zip`` steps through."""

    grid: dict[str, Values]
    zip: dict[str, Values]


SPACES: dict[str, Callable[..., np.ndarray]] = {"geomspace": np.geomspace, "linspace": np.linspace}
# Hydra's own.
FUNCTIONS = (
    *("int", "str", "bool", "float", "choice", "range", "interval"),
    *("tag", "sort", "shuffle", "glob"),
)
NUMBER = r"\s*(-?[\d.]+(?:e[+-]?\d+)?)(?:\*\*(-?[\d.]+))?\s*"
SPACE = re.compile(rf"({'|'.join(SPACES)})\(({NUMBER}),({NUMBER}),\s*(\d+)\s*\)")


def _space(text: str) -> Values:
    match = SPACE.fullmatch(text)
    if match is None:
        name = text.partition("(")[0]
        raise ConfigError(f"{text!r}: write {name}(low, high, n), as in {name}(2**-8, 1, 20)")
    name, _, low, low_power, _, high, high_power, count = match.groups()
    ends = [float(b) ** float(p or 1) for b, p in ((low, low_power), (high, high_power))]
    if name == "geomspace" and min(ends) <= 0:
        raise ConfigError(f"{text!r}: both ends must be positive")
    if int(count) < 1:
        raise ConfigError(f"{text!r}: at least one value is needed")
    # Twelve digits: 0.01 rather than 0.010000000000000002, in tables and in what an id hashes.
    return [float(f"{value:.12g}") for value in SPACES[name](*ends, int(count))]


def values(key: str, node: Any) -> Values:
    """The values that a swept key takes. Raises ConfigError."""
    if isinstance(node, str):
        override = f"{key}={node}"
        node = of_text(override) or [configs.parse([override])[0].value()]
    if isinstance(node, Mapping) or (isinstance(node, Sequence) and not node):
        raise ConfigError(f"sweep of {key}: a list of values is needed, got {node!r}")
    return list(node) if isinstance(node, Sequence) else [node]


def of_text(override: str) -> Values | None:
    """The values of a swept override ``key=…``; None if it is a single value."""
    texts = strings(override)
    if texts is None:
        return None
    if not texts:
        raise ConfigError(
            f"{override!r}: only a search (hydra/sweeper=optuna) takes an interval"
            if "interval(" in override
            else f"{override!r}: there is no value in it"
        )
    return [configs.parse([f"x={text}"])[0].value() for text in texts]


def strings(override: str) -> list[str] | None:
    """The values of a swept override as texts in Hydra's grammar; None if it is a single value.

    Empty where there is no end of them: an ``interval``. Raises ConfigError.
    """
    text = override.partition("=")[2]
    if is_space(text):
        return [repr(value) for value in _space(text)]
    name, bracket, _ = text.partition("(")
    if name.isidentifier() and bracket and name not in FUNCTIONS:
        hint = hints.nearest(name, (*SPACES, *FUNCTIONS))
        raise ConfigError(f"{override!r}: no function '{name}'{hint}")
    (parsed,) = configs.parse([override])
    if not parsed.is_sweep_override():
        return None
    if parsed.is_interval_sweep():
        return []
    try:
        return list(parsed.sweep_string_iterator())
    except HydraException as error:
        raise ConfigError(f"{override!r}: {str(error).strip().splitlines()[0]}") from error


def is_space(text: str) -> bool:
    """Whether the values are written in words that Hydra's grammar has not."""
    return text.startswith(tuple(f"{name}(" for name in SPACES))


def split(overrides: Sequence[str]) -> tuple[list[str], dict[str, Values]]:
    """Plain overrides, and the swept ones as lists of values."""
    found = [(text, of_text(text) if "=" in text else None) for text in overrides]
    plain = [text for text, swept in found if swept is None]
    configs.parse(plain)
    return plain, {text.partition("=")[0]: swept for text, swept in found if swept is not None}


def parse(node: Any) -> list[Block]:
    """The blocks of a sweep as YAML states it (or as they are). Raises ConfigError."""
    if isinstance(node, Mapping) and set(node) == {"union"}:
        return parse(node["union"])
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_block(item) for item in node] or [Block({}, {})]
    return [_block(node or {})]


def _block(node: Any) -> Block:
    if isinstance(node, Block):
        return node
    if not isinstance(node, Mapping):
        raise ConfigError(f"sweep: a mapping of keys to values is needed, got {node!r}")
    parts = node if set(node) <= set(Block._fields) else {"grid": node}
    block = Block(
        *({k: values(k, v) for k, v in (parts.get(part) or {}).items()} for part in Block._fields)
    )
    lengths = {key: len(listed) for key, listed in block.zip.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise ConfigError(f"sweep.zip: keys that step together need as many values each: {told}")
    for key in block.grid.keys() & block.zip.keys():
        raise ConfigError(f"sweep: {key} is both in grid and in zip")
    return block


def keys(blocks: Sequence[Block]) -> list[str]:
    """The swept keys, in order of appearance."""
    return list(dict.fromkeys(key for block in blocks for part in block for key in part))


def override(blocks: Sequence[Block], changes: Mapping[str, Values]) -> list[Block]:
    """The blocks with other values for some keys; what they do not sweep yet joins each grid.

    Raises ConfigError for a zipped key, whose partners would be left without a step.
    """
    for key in changes:
        if any(key in block.zip for block in blocks):
            raise ConfigError(f"{key} steps together with others (sweep.zip): change it in YAML")
    return [Block({**block.grid, **changes}, block.zip) for block in blocks]


def on_top(blocks: Sequence[Block], overrides: Sequence[str]) -> tuple[list[str], list[Block]]:
    """Plain overrides, and the blocks with the values of those that are swept, here or there."""
    plain, swept = split(overrides)
    known = set(keys(blocks))
    for text in plain:
        key, _, single = text.partition("=")
        if key in known:
            swept[key] = values(key, single)
    return [text for text in plain if text.partition("=")[0] not in known], override(blocks, swept)


def settings(block: Block) -> list[Setting]:
    """The settings of a block in order: zipped steps slowest, the last grid key fastest."""
    return [
        {**step, **dict(zip(block.grid, combination, strict=True))}
        for step in _steps(block.zip)
        for combination in itertools.product(*block.grid.values())
    ]


def _steps(zipped: Mapping[str, Values]) -> list[Setting]:
    if not zipped:
        return [{}]
    return [dict(zip(zipped, step, strict=True)) for step in zip(*zipped.values(), strict=True)]
