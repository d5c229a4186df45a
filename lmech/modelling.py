"""From a config to its model on the data, and to what its parametrization makes of it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from hydra.utils import get_method, instantiate
from jax import lax

from lmech import datasets, optimizers, planning
from lmech.datasets import Data
from lmech.mistakes import described, expect
from lmech.models.declared import Declared
from lmech.numerics import trees
from lmech.parametrization import Scales, complete, with_constants, with_output
from lmech.problem import Params, Problem
from lmech.roles import Model
from lmech.values import Config


def _module(config: Config, data: Data) -> Any:
    """The model for this data."""
    factory = get_method(config["model"]["_target_"])
    takes_outputs = "outputs" in inspect.signature(factory).parameters
    given = {"outputs": datasets.outputs(data)} if takes_outputs else {}
    model = instantiate(config["model"], **given)
    expect(model, nn.Module, "model", config["model"]["_target_"], "a flax module")
    return model


def build_problem(config: Config, data: Data) -> Problem:
    """The model on this data: init, apply, loss."""
    model = _module(config, data)
    example = jax.ShapeDtypeStruct((1, *data.train.x.shape[1:]), data.train.x.dtype)

    loss = instantiate(config["loss"])
    what = "a function (outputs, targets) → one value an example"
    expect(loss, Callable, "loss", config["loss"]["_target_"], what)

    def init(key: jax.Array) -> Any:
        params = _parameters(model.init(key, jnp.zeros(example.shape, example.dtype)))
        # Inputs that are tokens do not tell a model in which precision its weights should be.
        return jax.tree.map(lambda leaf: leaf.astype(config["precision"]["dtype"]), params)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x)

    def activations(params: Any, x: jax.Array) -> dict[str, Any]:
        _, captured = model.apply(
            {"params": params}, x, capture_intermediates=True, mutable=["intermediates"]
        )
        return _layers(captured["intermediates"])

    return Problem(init, apply, loss, activations)


def _parameters(variables: Mapping[str, Any]) -> Any:
    """A flax model's, where that is all it has. Raises ValueError."""
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            f"the model keeps {', '.join(others)} beside its parameters, and is to be a function "
            "of them and the inputs alone: for batch norm see lmech.models.layers.BatchNorm"
        )
    if "params" not in variables:
        raise ValueError("the model has no parameters, so there is nothing to train")
    return variables["params"]


def shapes_of(problem: Problem) -> Params:
    """Shapes of the problem's parameters; nothing compiles."""
    return jax.eval_shape(lambda: problem.init(jax.random.key(0)))


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


def build_optimizer(config: Config) -> optimizers.Optimizer:
    """The section's optimizer; its floats are hyperparameters, given later."""
    node = config["optimizer"]
    static = {k: v for k, v in node.items() if k != "_target_" and not isinstance(v, float)}
    return optimizers.optimizer(get_method(node["_target_"]), **static)


def scales_of(configs: Sequence[Config], data: Data) -> list[Scales]:
    """The parametrization, as trees, of each job of a group; equal ones are made once."""

    def one(config: Config) -> Scales:
        model, section = model_of(config, data), "parametrization"
        rule = _remembered(_rules, _own(config, section), lambda: instantiate(config[section]))
        target = config[section]["_target_"]
        what = "a function from lmech.roles.Model to lmech.parametrization.Scales"
        expect(rule, Callable, section, target, what)
        own = rule(model)
        if not isinstance(own, Scales):
            raise ValueError(f"{section}._target_={target}: it made {described(own)}, no Scales")
        scales = with_constants(own, model)
        scales = with_output(scales, model.growth, model.shapes, config["output_scale"])
        return complete(scales)

    interface = _interface(configs[0], data)  # which looks at every label

    def key(config: Config) -> list[Any]:
        sections = [_own(config, part) for part in ("model", "parametrization", "optimizer")]
        return [*sections, config["output_scale"], interface]

    return [_remembered(_scales, key(config), partial(one, config)) for config in configs]


def _own(config: Config, section: str) -> Any:
    """A section, and the checksums of a user's code in it."""
    return [config[section], planning.sources(config[section], section)]


def _interface(config: Config, data: Data) -> list[Any]:
    """What decides a model's shapes beside its own section."""
    return [*data.train.x.shape[1:], datasets.outputs(data), config["precision"]["dtype"]]


def _remembered(memo: dict[str, Any], key: Any, make: Callable[[], Any]) -> Any:
    place = planning.digest(key)
    return memo[place] if place in memo else memo.setdefault(place, make())


def _declaration(module: Any) -> Declared:
    declared: Declared = getattr(module, "declared", Declared())
    return declared


def model_of(config: Config, data: Data) -> Model:
    """What a parametrization may look at."""
    section = config["model"]
    width, depth = (section.get(key) for key in ("width", "depth"))

    def at(width: int | None) -> Problem:
        sized = section if width is None else {**section, "width": width}
        return build_problem({**config, "model": sized}, data)

    def remembered(memo: dict[str, Any], width: int | None, make: Callable[[], Any]) -> Any:
        return _remembered(memo, [_own(config, "model"), width, _interface(config, data)], make)

    def shapes_at(width: int | None) -> Any:
        return remembered(_shapes, width, lambda: shapes_of(at(width)))

    return Model(
        shapes=shapes_at(width),
        width=width,
        depth=depth,
        shapes_at=shapes_at,
        spread_at=lambda width: remembered(_spreads, width, lambda: _spread(at(width))),
        declared=remembered(_declared, width, lambda: _declaration(_module(config, data))),
        growth=build_optimizer(config).growth,
        learning_rate=config["optimizer"]["learning_rate"],
    )


# By what decides them: the same for all jobs of a process.
_scales: dict[str, Any] = {}
_shapes: dict[str, Any] = {}
_spreads: dict[str, Any] = {}
_declared: dict[str, Any] = {}
_rules: dict[str, Any] = {}
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
