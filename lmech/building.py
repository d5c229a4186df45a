"""From resolved configs to what the engine takes: a program, its inputs and its data."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from hydra.utils import instantiate

from lmech import (
    checking,
    datasets,
    engine,
    member,
    mistakes,
    modelling,
    optimizers,
    planning,
    programs,
    sampling,
    seeds,
    snapshots,
)
from lmech.datasets import Data, Examples, Stream
from lmech.disk import read_weights
from lmech.inputs import NEVER, Course, Inputs, Room, Rows, Stop
from lmech.member import Carry, Feed, Mode, Program
from lmech.numerics import trees
from lmech.observables import Memory, Observable
from lmech.problem import Params
from lmech.schedules import Schedule
from lmech.values import Config, ConfigError


class Setup(NamedTuple):
    """Arguments of ``engine.train`` for jobs that share a program."""

    program: Program
    inputs: Inputs
    data: Data
    rates: Callable[[np.ndarray], np.ndarray]
    batches: Callable[[np.ndarray], np.ndarray | Examples] | None
    params: Params | None = None
    """Where the members start [M, …], if some start at a snapshot."""

    def feed(self, step: int) -> Feed:
        """What the host gives one step, [M, …]."""
        at = np.asarray([step])
        batches = None if self.batches is None else self.batches(at)
        return Feed(self.rates(at)[:, 0], jax.tree.map(lambda array: array[:, 0], batches))

    def state_shapes(self) -> tuple[Carry, dict[str, Memory]]:
        """Shapes of the members' state and the observables' memories."""
        return programs.state_shapes(self.program, self.inputs, self.data, self.feed(0))

    def argument_shapes(self) -> dict[str, tuple[Any, ...]]:
        """Shapes of the arguments of the program's functions, by name."""
        shapes = self.state_shapes()
        return programs.argument_shapes(self.program, self.inputs, self.data, self.feed(0), shapes)


def load_data(config: Config) -> Data:
    """The dataset's arrays in the config's precision. Raises ConfigError for an impossible one."""
    data = planning.load_data(config)
    n = len(data.train.x)
    for key in ("batch_size", "microbatch"):
        drawn_anew = key == "batch_size" and (config.get("replacement") or data.stream)
        if config[key] is not None and config[key] > n and not drawn_anew:
            raise ConfigError(f"{key}={config[key]}, but there are {n} training examples: lower it")
    checking.targets(config, data)
    checking.tasks(config, data)
    checking.stream(config, data)
    return data


def _hyperparameters(config: Config) -> dict[str, float]:
    clip = {optimizers.CLIP: config["clip_norm"]} if config["clip_norm"] is not None else {}
    return clip | {k: v for k, v in config["optimizer"].items() if isinstance(v, float)}


OBSERVABLE = "an lmech.observables.Observable"


class Extent(NamedTuple):
    """What the jobs of a group need at most: it fixes the shapes of their program."""

    longest: int
    """The largest horizon."""
    room: Room | None
    """For the training examples that count."""


def extent(configs: Sequence[Config], data: Data) -> Extent:
    """Of these jobs."""
    fractions = [c["data_fraction"] for c in configs if c["data_fraction"] is not None]
    counts = [sampling.count(len(data.train.x), fraction) for fraction in fractions]
    room = Room(min(counts), max(counts)) if counts else None
    return Extent(max(config["steps"] for config in configs), room)


def build_program(config: Config, data: Data, extent: Extent) -> Program:
    """The static part, shared by all jobs of a group."""
    observables, every = {}, {}
    for name, node in config["observables"].items():
        every[name] = node["every"]
        rest = {key: value for key, value in node.items() if key != "every"}
        observables[name] = instantiate(rest)
        place, target = f"observables.{name}", node["_target_"]
        mistakes.expect(observables[name], Observable, place, target, OBSERVABLE)
    execution = config["execution"]
    return Program(
        problem=modelling.build_problem(config, data),
        optimizer=modelling.build_optimizer(config),
        observables=observables,
        every=every,
        batch_size=config["batch_size"],
        microbatch=config["microbatch"],
        capacity=engine.chunk_capacity(every, extent.longest, execution["chunk"]),
        mode=usual_mode() if execution["mode"] == "auto" else execution["mode"],
        **_shares(config, data),
        room=extent.room,
        centred=config["centred"],
        linearized=config["linearized"],
        subspace=config.get("subspace"),
        rate_unit=_rate_unit(config.get("rate_unit")),  # older manifests have none
    )


def _rate_unit(node: Config | None) -> Observable | None:
    if node is None:
        return None
    unit = instantiate(node)
    mistakes.expect(unit, Observable, "rate_unit", node["_target_"], OBSERVABLE)
    return unit


def usual_mode() -> Mode:
    """What is mostly faster: members in turn on a CPU, side by side elsewhere."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


def _shares(config: Config, data: Data) -> dict[str, int]:
    """How many devices share the lanes, or the examples of a step. Raises ConfigError."""
    execution = config["execution"]
    devices = _devices(execution["devices"] or (execution.get("processes") and jax.device_count()))
    if execution.get("share", "members") == "members" or devices == 1:
        return {"devices": devices}
    size = config["batch_size"] or len(data.train.x)
    if size % devices:
        raise ConfigError(
            f"execution.share=examples: {size} examples a step are no multiple of {devices} devices"
        )
    if config["microbatch"] is not None:
        raise ConfigError(
            f"execution.share=examples: each of {devices} devices has its part of a step's "
            "examples in one piece; set microbatch=null"
        )
    return {"spread": devices}


def _devices(asked: int | None) -> int:
    there = jax.device_count()
    if asked is None:
        return 1 if jax.default_backend() == "cpu" else there
    if asked > there:
        raise ConfigError(f"execution.devices={asked}, but there are {there}: lower it")
    return asked


def _streams(config: Config) -> dict[str, int]:
    return seeds.stream_seeds(config["seed"], config["seeds"])


def chosen_examples(config: Config, data: Data) -> np.ndarray | None:
    """Indices of the training examples that count (None: all). Raises ConfigError."""
    fraction, size = config["data_fraction"], config["batch_size"]
    if fraction is None and data.test is None:
        raise ConfigError(
            "this dataset has no test split of its own, it is what data_fraction leaves: set it"
        )
    if fraction is None:
        return None
    chosen = sampling.subset(_streams(config)["subset"], len(data.train.x), fraction)
    if size is not None and size > len(chosen) and not config.get("replacement"):
        raise ConfigError(
            f"batch_size={size}, but data_fraction={fraction} keeps {len(chosen)} training examples"
        )
    if data.test is None and len(chosen) == len(data.train.x):
        raise ConfigError(f"data_fraction={fraction} leaves nothing to test on: lower it")
    return chosen


def _rows(chosen: np.ndarray | None, n: int, room: Room | None) -> Rows | None:
    if chosen is None or room is None:
        return None
    counts, order = np.isin(np.arange(n), chosen), sampling.probed(n)
    chosen, left = order[counts[order]], np.flatnonzero(~counts)
    own, others = np.zeros(room.most), np.zeros(n - room.fewest)
    own[: len(chosen)], others[: len(left)] = chosen, left
    return Rows(own, others, len(chosen))


def noisy_targets(config: Config, data: Data) -> np.ndarray | None:
    """The training targets with label noise (None: without). Raises ConfigError.

    Of a dataset of several tasks [K, N, …], each with noise of its own.
    """
    level, seed = config["label_noise"], _streams(config)["noise"]
    if level is None:
        return None
    draw = partial(sampling.noisy, seed, level=level, classes=datasets.outputs(data))
    try:
        if data.tasks is None:
            return draw(data.train.y)
        own = (datasets.of_task(data, task).train.y for task in range(data.tasks.number))
        return np.stack([draw(y, draw=task) for task, y in enumerate(own)])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_inputs(
    configs: Sequence[Config],
    data: Data,
    chosen: Sequence[np.ndarray | None],
    room: Room | None,
) -> Inputs:
    """What differs between the jobs, stacked: leaves [M] in the parameters' precision."""
    dtype, n = configs[0]["precision"]["dtype"], len(data.train.x)

    def stack(trees: Sequence[Any], dtype: str) -> Any:
        with np.errstate(over="ignore"):  # check says so of what counts
            return jax.tree.map(lambda *leaves: np.asarray(leaves, dtype), *trees)

    def threshold(key: str) -> np.ndarray:
        values = [config["stop"].get(key) for config in configs]  # older manifests lack some
        never = getattr(NEVER, key)
        return np.asarray([never if value is None else value for value in values], dtype)

    return Inputs(
        seeds=stack([_streams(c) for c in configs], "uint32"),
        hyperparameters=stack([_hyperparameters(c) for c in configs], dtype),
        scales=stack(modelling.scales_of(configs, data), dtype),
        horizon=np.asarray([c["steps"] for c in configs], "int32"),
        stop=Stop(*map(threshold, Stop._fields)),
        targets=stack([noisy_targets(c, data) for c in configs], data.train.y.dtype),
        rows=stack([_rows(own, n, room) for own in chosen], "int32"),
        course=stack([course(c, data.tasks) for c in configs], "int32"),
    )


def course(config: Config, tasks: datasets.Tasks | None) -> Course | None:
    """The tasks that a job goes through (None: its data stay)."""
    if tasks is None:
        return None
    order = config.get("task_order") or np.arange(tasks.number)
    return Course(np.asarray(order), config["task_steps"])


def _called(configs: Sequence[Config], section: str) -> list[Any]:
    """What each job's section makes; equal ones are made once."""
    made: dict[str, Any] = {}
    nodes = [(planning.digest(config[section]), config[section]) for config in configs]
    return [made[k] if k in made else made.setdefault(k, instantiate(node)) for k, node in nodes]


def learning_rates(configs: Sequence[Config]) -> Callable[[np.ndarray], np.ndarray]:
    """``steps [S] → rates [M, S]``: each job's peak rate times its schedule.

    After a job's last step its rate stays what it was there.
    """
    schedules = _called(configs, "schedule")
    dtype = configs[0]["precision"]["dtype"]

    def factors(config: Config, schedule: Schedule, steps: np.ndarray) -> np.ndarray:
        with mistakes.of("schedule, a function (steps [S], horizon) → factors [S]"):
            found = schedule(np.minimum(steps, config["steps"] - 1), config["steps"])
            if np.shape(found) != steps.shape:
                raise ValueError(f"it gave {list(np.shape(found))} for {len(steps)} steps")
            return found

    def rates(steps: np.ndarray) -> np.ndarray:
        rows = [
            config["optimizer"]["learning_rate"] * factors(config, schedule, steps)
            for config, schedule in zip(configs, schedules, strict=True)
        ]
        with np.errstate(over="ignore"):  # see check
            return np.asarray(rows, dtype)

    return rates


def minibatches(
    configs: Sequence[Config],
    examples: int,
    chosen: Sequence[np.ndarray | None],
    tasks: datasets.Tasks | None = None,
) -> Callable[[np.ndarray], np.ndarray] | None:
    """``steps [S] → indices [M, S, B]`` into the member's own, or None for full-batch training.

    Where there are tasks, into all of theirs (``datasets.take_of_tasks``). After a job's last step
    it is the minibatch that the next one would have had, of the same task.
    """
    size = configs[0]["batch_size"]
    if size is None:
        return None

    def drawn(config: Config, rows: np.ndarray | None, steps: np.ndarray) -> np.ndarray:
        count = examples if rows is None else len(rows)
        stream, steps = _streams(config)["batches"], np.minimum(steps, config["steps"])
        draw = sampling.independent if config.get("replacement") else sampling.minibatches
        own, repeats = partial(draw, stream), config.get("batch_repeats", 1)
        there = course(config, tasks)
        if there is None:
            return own(steps // repeats, count, size)
        begun = np.minimum(steps, config["steps"] - 1) // there.steps
        places = np.minimum(begun, len(there.order) - 1)
        old = int((config.get("replay") or 0) * size)
        mix = sampling.Mix(stream, there.order, count, size, old)
        return sampling.of_tasks(own, mix, steps // repeats, places)

    members = list(zip(configs, chosen, strict=True))
    return lambda steps: np.stack([drawn(config, rows, steps) for config, rows in members])


def fresh_batches(configs: Sequence[Config], stream: Stream) -> Callable[[np.ndarray], Examples]:
    """``steps [S] → Examples [M, S, B, …]`` that nobody has seen before, of each job's own seed."""
    dtype, size = configs[0]["precision"]["dtype"], configs[0]["batch_size"]

    def drawn(config: Config, steps: np.ndarray) -> Examples:
        steps = np.minimum(steps, config["steps"]) // config.get("batch_repeats", 1)
        return sampling.fresh(stream, _streams(config)["batches"], steps, size)

    def batches(steps: np.ndarray) -> Examples:
        own = [drawn(config, steps) for config in configs]
        x, y = (np.stack(arrays) for arrays in zip(*((one.x, one.y) for one in own), strict=True))
        return Examples(*(a if datasets.integers(a) else a.astype(dtype) for a in (x, y)))

    return batches


def _batches(
    configs: Sequence[Config], data: Data, chosen: Sequence[np.ndarray | None]
) -> Callable[[np.ndarray], np.ndarray | Examples] | None:
    if data.stream is not None:
        return fresh_batches(configs, data.stream)
    return minibatches(configs, len(data.train.x), chosen, data.tasks)


def build(
    configs: Sequence[Config], program: Program | None = None, whole: Extent | None = None
) -> Setup:
    """Everything the engine takes for jobs of one group, whose program may be there already.

    ``whole`` is the group's extent (None: these jobs').
    """
    first, data = configs[0], load_data(configs[0])
    chosen = [chosen_examples(config, data) for config in configs]
    if program is None:
        program = build_program(first, data, whole or extent(configs, data))
        if program.room:
            checking.no_interaction(program.problem, data)
        checking.shapes(program.problem, data)
        checking.subspaces(configs, modelling.scales_of(configs, data), program.problem)
    inputs = build_inputs(configs, data, chosen, program.room)
    return Setup(
        program=program,
        inputs=inputs,
        data=data._replace(outputs=None, stream=None),  # model and feed; a program takes arrays
        rates=learning_rates(configs),
        batches=_batches(configs, data, chosen),
        params=starting_points(configs, program, inputs),
    )


def starting_points(configs: Sequence[Config], program: Program, inputs: Inputs) -> Params | None:
    """The members' weights at step 0 [M, …]; None if each draws its own.

    Raises ConfigError where those of a snapshot are not of this model.
    """
    files = [snapshots.starting_point(config) for config in configs]
    if not any(files):
        return None
    drawn = None if all(files) else programs.whole_weights(program, inputs)
    shapes = modelling.shapes_of(program.problem)
    rows = []
    for place, (config, file) in enumerate(zip(configs, files, strict=True)):
        try:
            rows.append(trees.take(drawn, place) if file is None else kept_weights(file, shapes))
        except ValueError as error:
            raise ConfigError(f"init_from={config['init_from']}: {error}") from error
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def kept_weights(file: Path, shapes: Params) -> Params:
    """The parameters that were kept in a file, in the precision of ``shapes``.

    Raises ValueError with the first tensor that has another shape here, or is on one side alone.
    """
    there = read_weights(file)
    here = trees.named_leaves(shapes)
    for name in [*here, *there]:
        known = [list(side[name].shape) if name in side else None for side in (there, here)]
        if known[0] != known[1]:
            told = ["no such tensor" if shape is None else str(shape) for shape in known]
            raise ValueError(f"{name} is {told[0]} in {file}, and {told[1]} in this model")
    leaves = [np.asarray(there[name], leaf.dtype) for name, leaf in here.items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def check(setup: Setup) -> None:
    """Trace every function of the program, compiling nothing.

    What an observable or a model cannot do on this problem is then known before anything is
    written. Raises what they raise (ValueError with a message for the user).
    """
    checking.learning_rates(setup.rates, int(setup.inputs.horizon.max()))
    for name, observable in setup.program.observables.items():
        with mistakes.of(f"observables.{name}"):
            observable.suits(setup.data)
    jax.eval_shape(
        lambda inputs, data: member.first_measurements(setup.program, inputs, data),
        jax.tree.map(lambda a: a[0], setup.inputs),
        setup.data,
    )
