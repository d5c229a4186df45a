"""Optimizers: any factory of an optax transformation, with its numbers as inputs.

optax does the work. What is ours is only that every float of the config enters the compiled
program as data, so a sweep over learning rates, momenta or decays shares one program.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import optax
from annotated_types import Ge, Interval
from pydantic import FiniteFloat

Hyperparameters = Mapping[str, jax.Array]
Optimizer = Callable[[Hyperparameters], optax.GradientTransformation]

Rate = Annotated[FiniteFloat, Ge(0)]
Fraction = Annotated[FiniteFloat, Interval(ge=0, lt=1)]

# What the hyper-parameters of anyone's factory may be, by the names that optax gives them.
RANGES: dict[str, Any] = {
    "learning_rate": Rate,
    "weight_decay": Rate,
    "eps": Rate,
    "momentum": Fraction | None,
    "decay": Fraction,
    "beta": Fraction,
    "b1": Fraction,
    "b2": Fraction,
    "adam_b1": Fraction,
    "adam_b2": Fraction,
}


def kind(parameter: inspect.Parameter) -> Any:
    """What a factory's parameter may be: by its name, else the type of its default."""
    if parameter.name in RANGES:
        return RANGES[parameter.name]
    default = type(parameter.default)
    return {bool: bool, int: int, float: FiniteFloat}.get(default, Any)


def optimizer(factory: Callable[..., optax.GradientTransformation], **static: Any) -> Optimizer:
    """``hyperparameters ↦ factory(**static, **hyperparameters)``, called inside the program.

    This is what ``optax.inject_hyperparams`` does at each update, without its copy of the
    hyper-parameters in the optimizer's state: here they are inputs of the program, once.
    """
    return lambda hyperparameters: factory(**static, **hyperparameters)
