"""From overrides to jobs: expand a sweep, validate every job, hash it, group by program."""

import hashlib
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from lmech import config as configs
from lmech.config import Config, ConfigError
from lmech.datasets import Data, check
from lmech.seeds import stream_seeds

# Raise it when a change to the code changes a job's numbers beyond rounding: old results are then
# not passed off as new ones. tests/test_golden.py holds the numbers that go with it.
MATHS_VERSION = 1
# The same for what observables say of a training (tests/golden_observables.json).
MEASURES_VERSION = 1

# The parts of a config that decide the training. The rest says what to look at and how to run.
SCIENCE = (
    *("model", "dataset", "loss", "optimizer", "schedule", "parametrization", "precision"),
    *("steps", "batch_size", "microbatch", "stop"),
)
TRAINING_STREAMS = ("init", "batches", "noise")
# Inputs of a program, beside every float of `optimizer`: members of one batch may differ in them.
INPUTS = ("steps", "stop", "schedule", "parametrization")
OURS = ("lmech", "optax", "flax", "jax")


@dataclass(frozen=True)
class Job:
    """One resolved config; ``overrides`` are the swept keys and their values in this job."""

    id: str
    config: Config
    overrides: Mapping[str, Any]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of SHA-256 of the canonical JSON."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:12]


@cache
def _source(target: str) -> str | None:
    """Checksum of the file that defines a user's ``_target_`` (None: ours or a library's)."""
    defined = inspect.unwrap(get_method(target))
    module = getattr(defined, "__module__", "")
    if module.partition(".")[0] in OURS and not module.startswith("lmech.experiments."):
        return None
    file = inspect.getsourcefile(defined)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def _targets(node: Any) -> list[str]:
    if not isinstance(node, dict):
        return []
    own = [node["_target_"]] if "_target_" in node else []
    return own + [target for value in node.values() for target in _targets(value)]


@lru_cache(maxsize=2)
def _load(dataset: str) -> Data:
    data = instantiate(json.loads(dataset))
    check(data)
    return data


def load_data(config: Config) -> Data:
    """The dataset's arrays as its factory gives them. Raises ConfigError if it cannot."""
    try:
        return _load(_canonical(config["dataset"]))
    except Exception as error:
        raise ConfigError(f"dataset: {innermost(error)}") from error


def innermost(error: BaseException) -> str:
    """The message of what a target raised, out of Hydra's wrapping."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def one_line(error: BaseException) -> str:
    """First line of the message; with its type, unless that is the ValueError of a bad value."""
    first = (innermost(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, ValueError) and first else f"{type(error).__name__}: {first}"


@cache
def _data_checksum(dataset: str) -> str:
    total = hashlib.sha256()
    for split in _load(dataset):
        for array in split:
            total.update(f"{array.shape}{array.dtype}".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def job_id(config: Config) -> str:
    """Identity of a training: config, maths version, data, and the source of a user's code."""
    science = {key: config[key] for key in SCIENCE}
    streams = stream_seeds(config["seed"], config["seeds"])
    science["seeds"] = {stream: streams[stream] for stream in TRAINING_STREAMS}
    rules = [column for column, threshold in config["stop"].items() if threshold is not None]
    science["watched"] = {name: config["observables"][name] for name in rules}
    load_data(config)
    sources = {target: _source(target) for target in _targets(science)}
    return digest(
        {
            "maths": MATHS_VERSION,
            "science": science,
            "data": _data_checksum(_canonical(config["dataset"])),
            "sources": {target: source for target, source in sources.items() if source},
        }
    )


def observable_ids(config: Config) -> dict[str, str]:
    """Identity of each observable: its config, our version of it, its seed, a user's source."""
    probes = stream_seeds(config["seed"], config["seeds"])["probes"]
    return {
        name: digest(
            [MEASURES_VERSION, node, probes, [_source(target) for target in _targets(node)]]
        )
        for name, node in config["observables"].items()
    }


def program_key(config: Config) -> str:
    """Equal for jobs that share a compiled program: the config without the program's inputs."""
    rates = {k: "input" if isinstance(v, float) else v for k, v in config["optimizer"].items()}
    static = {key: config[key] for key in SCIENCE if key not in INPUTS}
    extra = {"observables": config["observables"], "chunk": config["execution"]}
    return _canonical({**static, **extra, "optimizer": rates})


def split_sweeps(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Plain overrides, and the swept ones (``key=a,b``, ``key=range(4)``) as lists of values."""
    plain, sweeps = [], {}
    for text, override in zip(overrides, configs.parse(overrides), strict=True):
        if override.is_sweep_override():
            try:
                strings = list(override.sweep_string_iterator())
            except HydraException as error:
                raise ConfigError(f"{text!r}: {one_line(error)}") from error
            sweeps[text.partition("=")[0]] = [value(f"x={string}") for string in strings]
        else:
            plain.append(text)
    return plain, sweeps


def value(text: str) -> Any:
    """Value of an override ``key=value``."""
    return configs.parse([text])[0].value()


def expand(overrides: Sequence[str], sweep: Mapping[str, Sequence[Any]]) -> list[Job]:
    """The jobs of a sweep: every combination, first key slowest.

    Hydra composes once per choice of group options; values are set on copies. Every job is
    validated; duplicates are an error. Raises ConfigError.
    """
    for key, values in sweep.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ConfigError(f"sweep of {key}: a list of values is needed, got {values!r}")
    swept_groups = {key: values for key, values in sweep.items() if key in configs.groups()}
    swept_keys = {key: values for key, values in sweep.items() if key not in swept_groups}
    jobs = []
    for choice in _combinations(swept_groups):
        base = configs.compose([*overrides, *(f"{k}={v}" for k, v in choice.items())])
        known = configs.keys(base)
        for key in swept_keys:
            configs.check_key(key, known)
        for setting in _combinations(swept_keys):
            composed = base.copy()
            for key, value in setting.items():
                OmegaConf.update(composed, key, value, force_add=True)
            resolved = configs.resolve(composed)
            swept = {key: {**choice, **setting}[key] for key in sweep}
            jobs.append(Job(job_id(resolved), resolved, swept))
    _no_duplicates(jobs)
    return jobs


def _combinations(sweep: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def _no_duplicates(jobs: Sequence[Job]) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        if job.id in seen:
            raise ConfigError(
                f"two jobs of the sweep are the same: {dict(seen[job.id].overrides)} "
                f"and {dict(job.overrides)}"
            )
        seen[job.id] = job


def group(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs by program, in order of first appearance."""
    programs: dict[str, list[Job]] = {}
    for job in jobs:
        programs.setdefault(program_key(job.config), []).append(job)
    return list(programs.values())


def sweep_id(jobs: Sequence[Job]) -> str:
    """Identity of a sweep: its jobs', in any order."""
    return digest(sorted(job.id for job in jobs))
