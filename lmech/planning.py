"""From overrides to jobs: expand a sweep, validate every job, hash it, group by program."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate

from lmech import config as configs
from lmech import project, snapshots, sweeps, values
from lmech.datasets import Data, Examples, check, integers
from lmech.mistakes import one_line
from lmech.seeds import stream_seeds
from lmech.values import Config, ConfigError

# Raise it when a change to the code changes a job's numbers beyond rounding: old results are then
# not passed off as new ones. tests/test_golden.py holds the numbers that go with it.
MATHS_VERSION = 2
# The same for what observables say of a training (tests/golden_observables.json).
MEASURES_VERSION = 4

# The parts of a config that decide the training. The rest says what to look at and how to run.
SCIENCE = (
    *("model", "dataset", "loss", "optimizer", "schedule", "parametrization", "precision"),
    *("steps", "batch_size", "microbatch", "stop", "label_noise", "data_fraction"),
    *("output_scale", "centred", "linearized", "clip_norm"),
)
# Keys that came later: at null they change no id, and no program.
WHERE_SET = ("rate_unit", "subspace", "task_steps", "task_order", "replay")
# How minibatches are drawn, where there are any, with the values that were the only ones once.
OF_MINIBATCHES = {"batch_repeats": 1, "replacement": False}
TRAINING_STREAMS = ("init", "batches", "noise", "subset")
# What of a config is an input of its program, so that members of one batch may differ in it: all of
# these keys and sections, every float of `optimizer`, and these keys where they are not null.
INPUTS = (
    *("seed", "seeds", "steps", "stop", "schedule", "parametrization", "output_scale"),
    *OF_MINIBATCHES,
)
NULLABLE_INPUTS = (
    *("label_noise", "data_fraction", "clip_norm"),
    *("task_steps", "task_order", "replay"),
)


@dataclass(frozen=True)
class Job:
    """One resolved config; ``overrides`` are the swept keys and their values in this job.

    Of an experiment the config has the name alone: its claims are no part of a job.
    """

    id: str
    config: Config
    overrides: Mapping[str, Any]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of SHA-256 of the canonical JSON."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:12]


@cache
def _source(path: str, target: str) -> str | None:
    """Checksum of a user's ``_target_`` (None: ours or a library's).

    It is of the file that defines it and of what that imports from the user's own folder.
    """
    file = values.signature(path, target).source
    if file is None:
        return None
    read = [part.read_bytes() for part in project.imported(Path(file))]
    return hashlib.sha256(b"".join(read)).hexdigest()


def sources(node: Any, path: str) -> list[tuple[str, str | None]]:
    """Each ``_target_`` of a section, in lists too, and its checksum."""
    if isinstance(node, list):
        return [pair for item in node for pair in sources(item, path)]
    if not isinstance(node, dict):
        return []
    target = node.get("_target_")
    own = [] if target is None else [(target, _source(path, target))]
    return own + [pair for key in node for pair in sources(node[key], f"{path}.{key}")]


@lru_cache(maxsize=2)
def _load(dataset: str) -> Data:
    data = instantiate(json.loads(dataset))
    check(data)
    return data


@lru_cache(maxsize=2)
def _in_precision(dataset: str, dtype: str) -> Data:
    """One copy, however many groups of jobs look at it."""

    def cast(split: Examples) -> Examples:
        def own(a: Any) -> Any:
            return a if a is None or integers(a) else a.astype(dtype, copy=False)

        return Examples(own(split.x), own(split.y))

    data = _load(dataset)
    test = None if data.test is None else cast(data.test)
    tasks = data.tasks
    if tasks is not None:
        tasks = tasks._replace(train=cast(tasks.train), test=cast(tasks.test))
    return data._replace(train=cast(data.train), test=test, tasks=tasks)


def load_data(config: Config) -> Data:
    """The dataset's arrays in the config's precision. Raises ConfigError if there are none."""
    try:
        return _in_precision(_canonical(config["dataset"]), config["precision"]["dtype"])
    except Exception as error:
        raise ConfigError(f"dataset: {one_line(error)}") from error


@cache
def _data_checksum(dataset: str) -> str:
    total = hashlib.sha256()
    data = _load(dataset)
    several = [] if data.tasks is None else [data.tasks.train, data.tasks.test]
    for split in [*data.splits.values(), *several]:
        for array in (a for a in (split.x, split.y) if a is not None):
            total.update(f"{array.shape}{array.dtype}".encode())
            total.update(np.ascontiguousarray(array).data)
    if data.outputs is not None:
        total.update(f"{data.outputs} outputs".encode())
    return total.hexdigest()


def forget() -> None:
    """Look at data and sources anew: in a notebook they may change between two commands."""
    for remembered in (_source, _load, _in_precision, _data_checksum):
        remembered.cache_clear()


def job_id(config: Config) -> str:
    """Identity of a training: config, maths version, data, and the source of a user's code."""
    return digest(identity(config))


def identity(config: Config) -> dict[str, Any]:
    """What a training's id hashes: of a snapshot that it starts from, the file's bytes."""
    science = {key: config[key] for key in SCIENCE}
    if config["batch_size"] is not None:  # at their usual values these keys change no id
        unusual = {key: config.get(key, usual) for key, usual in OF_MINIBATCHES.items()}
        science |= {key: own for key, own in unusual.items() if own != OF_MINIBATCHES[key]}
    science |= _where_set(config)
    streams = stream_seeds(config["seed"], config["seeds"])
    probing = ("probes",) if "rate_unit" in science else ()  # the unit is a measurement
    science["seeds"] = {stream: streams[stream] for stream in (*TRAINING_STREAMS, *probing)}
    rules = {column: t for column, t in config["stop"].items() if t is not None}
    # A rule that is not set changes no id; the first two have always been there.
    science["stop"] = {"train_loss": None, "train_accuracy": None, **rules}
    science["watched"] = {name: config["observables"][name] for name in rules}
    start = snapshots.starting_point(config)
    code = [pair for key in science for pair in sources(science[key], key)]
    load_data(config)
    return {
        "maths": MATHS_VERSION,
        "science": science,
        "data": _data_checksum(_canonical(config["dataset"])),
        "sources": {target: source for target, source in code if source},
        **({} if start is None else {"starting weights": snapshots.checksum(start)}),
    }


def _where_set(config: Config) -> dict[str, Any]:
    return {key: config[key] for key in WHERE_SET if config.get(key) is not None}


def whole_id(job: Job) -> str:
    """Identity of a job's files: of its training, and of each observable."""
    return whole([job.id, observable_ids(job.config)], job.config)


def whole(identities: Sequence[Any], config: Config) -> str:
    """The same from a job's id and those of its observables by name."""
    return digest([*identities, _execution(config)])


def _execution(config: Config) -> dict[str, Any]:
    """What of the way to run is a part of the program; how often it saves is not."""
    execution = config["execution"]
    shared = {"share": "examples"} if execution.get("share") == "examples" else {}
    return {**{key: execution[key] for key in ("mode", "devices", "chunk")}, **shared}


def observable_ids(config: Config) -> dict[str, str]:
    """Identity of each observable: its config, our version of it, its seed, a user's source."""
    probes = stream_seeds(config["seed"], config["seeds"])["probes"]
    return {
        name: digest(
            [MEASURES_VERSION, node, probes, [s for _, s in sources(node, f"observables.{name}")]]
        )
        for name, node in config["observables"].items()
    }


def input_keys(config: Config) -> list[str]:
    """The dotted keys of this config whose values are inputs of its program."""
    whole = [path for section in INPUTS for path in _settable(config[section], section)]
    floats = [f"optimizer.{k}" for k, v in config["optimizer"].items() if isinstance(v, float)]
    return [*whole, *floats, *(key for key in NULLABLE_INPUTS if config.get(key) is not None)]


def _settable(node: Any, path: str) -> list[str]:
    """The keys at and below the path that have a value."""
    if not isinstance(node, dict):
        return [path]
    inner = {key: value for key, value in node.items() if key != "_target_"}
    return [leaf for key, value in inner.items() for leaf in _settable(value, f"{path}.{key}")]


def static(config: Config) -> Config:
    """What a program is built from: the config without its inputs."""
    science = {key: config[key] for key in SCIENCE if key not in INPUTS}
    kept = {**science, **_where_set(config)}
    kept |= {"observables": config["observables"], "execution": _execution(config)}
    for key in input_keys(config):
        if key.partition(".")[0] in kept:
            own = values.select(kept, key)
            length = len(own) if key == "task_order" else None  # is its inputs' shape
            kept = values.with_leaf(kept, key, "input" if length is None else ["input"] * length)
    return kept


def program_key(config: Config) -> str:
    """Equal for jobs that share a compiled program."""
    return _canonical(static(config))


def group_id(config: Config) -> str:
    """Identity of the program."""
    return digest(program_key(config))


def expand(overrides: Sequence[str], sweep: Any) -> list[Job]:
    """The jobs of a sweep (see ``sweeps``; an empty one is a single job), in order.

    Hydra composes once per choice of group options; values are set on copies. Raises ConfigError,
    also where one block has a job twice; a job that an earlier block has is left out.
    """
    blocks = sweeps.parse(sweep)
    swept = sweeps.keys(blocks)
    _check_alike(blocks)
    composed = _composer(overrides)
    jobs: dict[str, Job] = {}
    for block in blocks:
        own: dict[str, Job] = {}
        for chosen in sweeps.settings(block):
            config = composed(chosen)
            shown = {key: chosen.get(key, values.select(config, key)) for key in swept}
            job = job_of(config, shown)
            if job.id in own:
                raise ConfigError(_the_same(own[job.id].overrides, shown))
            own[job.id] = job
        jobs |= {job: own[job] for job in own if job not in jobs}
    _check_snapshots(jobs.values())
    return list(jobs.values())


# What a sweep has one value of: of a job's own there would be no use.
_EXECUTION = ("devices", "share", "processes", "lanes", "save_every", "compile_cache")
OF_A_SWEEP = (
    *("output", "name", "objective", "rerun", "on_failure", "logger"),
    *(f"execution.{key}" for key in _EXECUTION),
)


def _check_alike(blocks: Sequence[sweeps.Block]) -> None:
    """Raise ConfigError for a key with several values that all jobs of a sweep share."""
    for key in sweeps.keys(blocks):
        found = [part[key] for block in blocks for part in block if key in part]
        several = {_canonical(value) for values in found for value in values}
        if len(several) > 1 and (key in OF_A_SWEEP or key.startswith("logger.")):
            raise ConfigError(
                f"{key} is the same for all jobs of a sweep, and has {len(several)} values: "
                "choose one, or give the command once for each"
            )


def _the_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What two settings that make the same job differ in, and why that is no difference."""
    differ = [key for key in one if one[key] != other[key]]
    why = f"{', '.join(differ)} changes no training" if differ else "a value is there twice"
    return f"two jobs of the sweep are the same: {dict(one)} and {dict(other)}: {why}"


def _check_snapshots(jobs: Collection[Job]) -> None:
    """Raise ConfigError for a snapshot after the end of every job."""
    end = max((job.config["steps"] for job in jobs), default=0)
    beyond = sorted({step for job in jobs for step in job.config["snapshots"] if step > end})
    if beyond:
        raise ConfigError(
            f"snapshots={beyond}: steps={end}, so there is no such step (the last weights are kept "
            "in any case)"
        )


def each(lists: Sequence[Sequence[str]], fixed: Collection[str] = ()) -> list[Job]:
    """The job of each list of overrides, in order; composed as ``expand`` does.

    Keys that are not ``fixed`` count as swept. Raises ConfigError.
    """
    composed = _composer(())
    jobs = []
    for chosen in map(setting, lists):
        config = composed(chosen)
        shown = {key: value for key, value in chosen.items() if key not in fixed}
        jobs.append(job_of(config, shown))
    return jobs


def job_of(config: Config, overrides: Mapping[str, Any]) -> Job:
    """The job of a resolved config."""
    name = (config["experiment"] or {}).get("name")
    return Job(job_id(config), {**config, "experiment": name, "sweep": None}, overrides)


def multirun(overrides: Sequence[str]) -> list[Job]:
    """The jobs of a command line: what it sweeps, over the chosen ``sweep`` or the experiment's.

    Raises ConfigError.
    """
    chosen = [text for text in overrides if text.partition("=")[0] in configs.NOT_OF_A_JOB]
    node = configs.plain(configs.compose(chosen)) if chosen else {}
    blocks = sweeps.parse(node.get("sweep") or (node.get("experiment") or {}).get("sweep"))
    return expand(*sweeps.on_top(blocks, overrides))


def setting(overrides: Sequence[str]) -> sweeps.Setting:
    """Key → value of overrides; an option is the text that names it."""
    return {
        parsed.key_or_group: text.partition("=")[2]
        if configs.decides(parsed.key_or_group)
        else parsed.value()
        for text, parsed in zip(overrides, configs.parse(overrides), strict=True)
    }


def _composer(overrides: Sequence[str]) -> Callable[[sweeps.Setting], Config]:
    """``setting → config``, composed once per choice of group options (and targets)."""

    @cache
    def template(choice: tuple[str, ...]) -> configs.Template:
        return configs.Template(configs.compose([*overrides, *choice]))

    def composed(setting: sweeps.Setting) -> Config:
        chosen = [key for key in setting if configs.decides(key)]
        rest = {key: value for key, value in setting.items() if key not in chosen}
        return template(tuple(f"{key}={setting[key]}" for key in chosen)).with_values(rest)

    return composed


def group(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs by program, in order of first appearance."""
    programs: dict[str, list[Job]] = {}
    for job in jobs:
        programs.setdefault(program_key(job.config), []).append(job)
    return list(programs.values())


def sweep_id(jobs: Sequence[Job]) -> str:
    """Identity of a sweep: its jobs', in any order."""
    return digest(sorted(job.id for job in jobs))


def folder(jobs: Sequence[Job]) -> Path:
    """Where the sweep's results go: ``<output>/<name>/<sweep id>``."""
    first = jobs[0].config
    return Path(first["output"]) / (first["experiment"] or first["name"]) / sweep_id(jobs)
