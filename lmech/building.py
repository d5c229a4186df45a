"""From resolved configs to what the engine takes: a program, its inputs and its data."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hydra.utils import get_method, instantiate
from jax import lax

from lmech import (
    datasets,
    engine,
    member,
    optimizers,
    planning,
    programs,
    sampling,
    seeds,
    snapshots,
)
from lmech.config import Config, ConfigError
from lmech.datasets import Data
from lmech.disk import read_weights
from lmech.member import Carry, Feed, Inputs, Mode, Program, Stop
from lmech.models.declared import Declared
from lmech.numerics import kernels, trees
from lmech.observables import Memory
from lmech.parametrization import Scales, complete, with_constants, with_output
from lmech.problem import Params, Problem
from lmech.roles import Model


class Batch(NamedTuple):
    """Arguments of ``engine.train`` for jobs that share a program."""

    program: Program
    inputs: Inputs
    data: Data
    rates: Callable[[np.ndarray], np.ndarray]
    batches: Callable[[np.ndarray], np.ndarray] | None
    params: Params | None = None
    """Where the members start [M, …], if some start at a snapshot."""

    def feed(self, step: int) -> Feed:
        """What the host gives one step, [M, …]."""
        at = np.asarray([step])
        batch = None if self.batches is None else self.batches(at)[:, 0]
        return Feed(self.rates(at)[:, 0], batch)

    def state_shapes(self) -> tuple[Carry, dict[str, Memory]]:
        """Shapes of the members' state and the observables' memories."""
        return programs.state_shapes(self.program, self.inputs, self.data, self.feed(0))

    def argument_shapes(self) -> dict[str, tuple[Any, ...]]:
        """Shapes of the arguments of the program's functions, by name."""
        shapes = self.state_shapes()
        return programs.argument_shapes(self.program, self.inputs, self.data, self.feed(0), shapes)


def load_data(config: Config) -> Data:
    """The dataset's arrays in the config's precision. Raises ConfigError for an impossible one."""
    dtype = config["precision"]["dtype"]
    data = planning.load_data(config)
    n = len(data.train.x)
    for key in ("batch_size", "microbatch"):
        if config[key] is not None and config[key] > n:
            raise ConfigError(f"{key}={config[key]}, but there are {n} training examples")

    def cast(array: np.ndarray) -> np.ndarray:
        return array if np.issubdtype(array.dtype, np.integer) else array.astype(dtype)

    return data._replace(**jax.tree.map(cast, data.splits))


def _module(config: Config, data: Data) -> Any:
    """The model for this data."""
    factory = get_method(config["model"]["_target_"])
    takes_outputs = "outputs" in inspect.signature(factory).parameters
    given = {"outputs": datasets.outputs(data)} if takes_outputs else {}
    return instantiate(config["model"], **given)


def build_problem(config: Config, data: Data) -> Problem:
    """The model on this data: init, apply, loss."""
    model = _module(config, data)
    example = jax.ShapeDtypeStruct((1, *data.train.x.shape[1:]), data.train.x.dtype)

    def init(key: jax.Array) -> Any:
        params = model.init(key, jnp.zeros(example.shape, example.dtype))["params"]
        # Inputs that are tokens do not tell a model in which precision its weights should be.
        return jax.tree.map(lambda leaf: leaf.astype(config["precision"]["dtype"]), params)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x)

    def activations(params: Any, x: jax.Array) -> dict[str, Any]:
        _, captured = model.apply(
            {"params": params}, x, capture_intermediates=True, mutable=["intermediates"]
        )
        return _layers(captured["intermediates"])

    return Problem(init, apply, instantiate(config["loss"]), activations)


def shapes_of(problem: Problem) -> Params:
    """Shapes of the problem's parameters; nothing compiles."""
    return jax.eval_shape(lambda: problem.init(jax.random.key(0)))


def scales_of(configs: Sequence[Config], data: Data) -> list[Scales]:
    """Each job's parametrization as trees; equal ones are made once."""
    made: dict[str, Scales] = {}

    def one(config: Config) -> Scales:
        parts = ("model", "parametrization", "optimizer", "output_scale")
        key = planning.digest([config[part] for part in parts])
        if key not in made:
            model = model_of(config, data)
            scales = complete(instantiate(config["parametrization"])(model))
            scales = with_constants(scales, model)
            made[key] = with_output(scales, model.growth, model.shapes, config["output_scale"])
        return made[key]

    return [one(config) for config in configs]


def model_of(config: Config, data: Data) -> Model:
    """What a parametrization may look at."""
    section = config["model"]
    width, depth = (section.get(key) for key in ("width", "depth"))

    def at(width: int | None) -> Problem:
        sized = section if width is None else {**section, "width": width}
        return build_problem({**config, "model": sized}, data)

    def shapes_at(width: int | None) -> Any:
        return _remembered(_shapes, width, lambda: shapes_of(at(width)))

    def _remembered(memo: dict[str, Any], width: int | None, make: Callable[[], Any]) -> Any:
        inputs = [*data.train.x.shape[1:], datasets.outputs(data), config["precision"]["dtype"]]
        key = planning.digest([section, width, *inputs])
        return memo[key] if key in memo else memo.setdefault(key, make())

    return Model(
        shapes=shapes_at(width),
        width=width,
        depth=depth,
        shapes_at=shapes_at,
        spread_at=lambda width: _remembered(_spreads, width, lambda: _spread(at(width))),
        declared=getattr(_module(config, data), "declared", Declared()),
        growth=_optimizer(config).growth,
        learning_rate=config["optimizer"]["learning_rate"],
    )


_shapes: dict[str, Any] = {}  # by model and width: the same for all jobs of a process
_spreads: dict[str, Any] = {}
FEW = 4096
"""A tensor of fewer entries is drawn more often, for its spread."""
DRAWS = 64


def _spread(problem: Problem) -> Any:
    """Root mean square of each tensor of a model's own init, over several draws of small ones."""
    shapes = trees.named_leaves(shapes_of(problem))
    few = [path for path, leaf in shapes.items() if leaf.size < FEW]

    def squares(key: jax.Array) -> dict[str, jax.Array]:
        drawn = trees.named_leaves(problem.init(key))
        return {path: jnp.mean(jnp.square(leaf)) for path, leaf in drawn.items()}

    def of_few(key: jax.Array) -> dict[str, jax.Array]:
        found = squares(key)
        return {path: found[path] for path in few}  # the others are not drawn

    once = jax.jit(lambda: squares(jax.random.key(0)))()
    keys = jax.jit(lambda: lax.map(of_few, jax.random.split(jax.random.key(1), DRAWS)))()
    often = {path: values.mean() for path, values in keys.items()}
    roots = {path: float(value) ** 0.5 for path, value in {**once, **often}.items()}
    return jax.tree.unflatten(jax.tree.structure(shapes_of(problem)), list(roots.values()))


def _layers(captured: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Flax's tree of captured outputs, ``{"hidden_1": {"__call__": (h,)}}``, by path."""
    layers: dict[str, Any] = {}
    for name, node in captured.items():
        if name == "__call__":
            continue
        here = f"{path}/{name}".lstrip("/")
        layers |= _layers(node, here)
        if "__call__" in node:
            layers[here] = node["__call__"][0]
    return layers


def _hyperparameters(config: Config) -> dict[str, float]:
    clip = {optimizers.CLIP: config["clip_norm"]} if config["clip_norm"] is not None else {}
    return clip | {k: v for k, v in config["optimizer"].items() if isinstance(v, float)}


def _optimizer(config: Config) -> optimizers.Optimizer:
    node = config["optimizer"]
    static = {k: v for k, v in node.items() if k != "_target_" and not isinstance(v, float)}
    return optimizers.optimizer(get_method(node["_target_"]), **static)


def build_program(config: Config, data: Data, longest: int, subset: int | None = None) -> Program:
    """The static part, shared by all jobs of a group.

    ``longest`` is their largest horizon, ``subset`` the least number of examples that count.
    """
    observables, every = {}, {}
    for name, node in config["observables"].items():
        every[name] = node["every"]
        rest = {key: value for key, value in node.items() if key != "every"}
        observables[name] = instantiate(rest)
    execution = config["execution"]
    return Program(
        problem=build_problem(config, data),
        optimizer=_optimizer(config),
        observables=observables,
        every=every,
        batch_size=config["batch_size"],
        microbatch=config["microbatch"],
        capacity=engine.chunk_capacity(every, longest, execution["chunk"]),
        mode=usual_mode() if execution["mode"] == "auto" else execution["mode"],
        devices=_devices(execution["devices"]),
        subset=subset,
        centred=config["centred"],
    )


def usual_mode() -> Mode:
    """What is mostly faster: members in turn on a CPU, side by side elsewhere."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


def _devices(asked: int | None) -> int:
    there = jax.device_count()
    if asked is None:
        return 1 if jax.default_backend() == "cpu" else there
    if asked > there:
        raise ConfigError(f"execution.devices={asked}, but there are {there}")
    return asked


def _streams(config: Config) -> dict[str, int]:
    return seeds.stream_seeds(config["seed"], config["seeds"])


def chosen_examples(config: Config, data: Data) -> np.ndarray | None:
    """Indices of the training examples that count (None: all). Raises ConfigError."""
    fraction, size = config["data_fraction"], config["batch_size"]
    if fraction is None:
        return None
    chosen = sampling.subset(_streams(config)["subset"], len(data.train.x), fraction)
    if size is not None and size > len(chosen):
        raise ConfigError(
            f"batch_size={size}, but data_fraction={fraction} keeps {len(chosen)} training examples"
        )
    return chosen


def _weights(chosen: np.ndarray | None, n: int) -> np.ndarray | None:
    return None if chosen is None else np.isin(np.arange(n), chosen)


def noisy_targets(config: Config, data: Data) -> np.ndarray | None:
    """The training targets with label noise (None: without). Raises ConfigError."""
    level, y = config["label_noise"], data.train.y
    if level is None:
        return None
    try:
        return sampling.noisy(_streams(config)["noise"], y, level, datasets.outputs(data))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _refuse_interaction(problem: Problem, data: Data) -> None:
    """Raise ConfigError for a model that does not take each example on its own."""
    params = shapes_of(problem)
    if kernels.interacting(problem.apply, params, data.train.x) > 1:
        raise ConfigError(
            "data_fraction leaves examples out, and in this model they interact: set "
            "data_fraction=null or model.norm_group=null"
        )


def build_inputs(
    configs: Sequence[Config], data: Data, chosen: Sequence[np.ndarray | None]
) -> Inputs:
    """What differs between the jobs, stacked: leaves [M] in the parameters' precision."""
    dtype = configs[0]["precision"]["dtype"]

    def stack(trees: Sequence[Any], dtype: str) -> Any:
        return jax.tree.map(lambda *leaves: np.asarray(leaves, dtype), *trees)

    def threshold(key: str, never: float) -> np.ndarray:
        values = [config["stop"][key] for config in configs]
        return np.asarray([never if value is None else value for value in values], dtype)

    return Inputs(
        seeds=stack([_streams(c) for c in configs], "uint32"),
        hyperparameters=stack([_hyperparameters(c) for c in configs], dtype),
        scales=stack(scales_of(configs, data), dtype),
        horizon=np.asarray([c["steps"] for c in configs], "int32"),
        stop=Stop(threshold("train_loss", -np.inf), threshold("train_accuracy", np.inf)),
        targets=stack([noisy_targets(c, data) for c in configs], data.train.y.dtype),
        weights=stack([_weights(rows, len(data.train.x)) for rows in chosen], dtype),
    )


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

    def rates(steps: np.ndarray) -> np.ndarray:
        rows = [
            config["optimizer"]["learning_rate"]
            * schedule(np.minimum(steps, config["steps"] - 1), config["steps"])
            for config, schedule in zip(configs, schedules, strict=True)
        ]
        return np.asarray(rows, dtype)

    return rates


def minibatches(
    configs: Sequence[Config], examples: int, chosen: Sequence[np.ndarray | None]
) -> Callable[[np.ndarray], np.ndarray] | None:
    """``steps [S] → indices [M, S, B]`` among the chosen, or None for full-batch training.

    After a job's last step its minibatch stays that one.
    """
    size = configs[0]["batch_size"]
    if size is None:
        return None

    def drawn(config: Config, rows: np.ndarray | None, steps: np.ndarray) -> np.ndarray:
        count = examples if rows is None else len(rows)
        stream, steps = _streams(config)["batches"], np.minimum(steps, config["steps"] - 1)
        indices = sampling.minibatches(stream, steps, count, size)
        return indices if rows is None else rows[indices]

    members = list(zip(configs, chosen, strict=True))
    return lambda steps: np.stack([drawn(config, rows, steps) for config, rows in members])


def build(
    configs: Sequence[Config], program: Program | None = None, longest: int | None = None
) -> Batch:
    """Everything the engine takes for jobs of one group, whose program may be there already.

    ``longest`` is the group's largest horizon (None: these jobs').
    """
    first, data = configs[0], load_data(configs[0])
    chosen = [chosen_examples(config, data) for config in configs]
    if program is None:
        sizes = [len(rows) for rows in chosen if rows is not None]
        longest = longest or max(config["steps"] for config in configs)
        program = build_program(first, data, longest, min(sizes, default=None))
        if sizes:
            _refuse_interaction(program.problem, data)
    inputs = build_inputs(configs, data, chosen)
    return Batch(
        program=program,
        inputs=inputs,
        data=data._replace(outputs=None),  # the model has it; a program takes arrays
        rates=learning_rates(configs),
        batches=minibatches(configs, len(data.train.x), chosen),
        params=starting_points(configs, program, inputs),
    )


def starting_points(configs: Sequence[Config], program: Program, inputs: Inputs) -> Params | None:
    """The members' weights at step 0 [M, …]; None if each draws its own.

    Raises ConfigError where those of a snapshot are not of this model.
    """
    files = [snapshots.starting_point(config) for config in configs]
    if not any(files):
        return None
    drawn = None if all(files) else programs.initial_weights(program, inputs)
    shapes = shapes_of(program.problem)
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


def check(batch: Batch) -> None:
    """Trace every function of the program, compiling nothing.

    What an observable or a model cannot do on this problem is then known before anything is
    written. Raises what they raise (ValueError with a message for the user).
    """
    jax.eval_shape(
        lambda inputs, data: member.first_measurements(batch.program, inputs, data),
        jax.tree.map(lambda a: a[0], batch.inputs),
        batch.data,
    )
