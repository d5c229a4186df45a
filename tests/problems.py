"""Small problems that the tests share."""

import dataclasses
from typing import Any

import jax
import numpy as np

from lmech import building, config, engine, member
from lmech.engine import End
from lmech.lanes import Record
from lmech.numerics import krylov
from lmech.numerics.krylov import Operator, Ritz
from lmech.observables import Observable, State
from lmech.recorder import Recorder
from lmech.values import Config

# Observables of any model, dataset and optimizer: the others refuse some.
SPECIAL = (
    *("attention_logits", "progress_measures", "central_flow", "discretization_drift"),
    *("kernel_descent", "outlier_overlap", "tasks"),
)
PRESETS = [name for name in config.groups()["observables"] if name not in SPECIAL]
SMALL = ("model.width=8", "dataset.train_size=60", "steps=12", "observables=[loss]")


def job(*overrides: str) -> Config:
    """A resolved config: a narrow net on 60 digits for 12 steps, unless overridden."""
    chosen = [o for o in overrides if o.startswith("experiment=")]
    return config.resolve(
        config.compose([*chosen, *SMALL, *(o for o in overrides if o not in chosen)])
    )


def train(configs: list[Config], **replacements: Any) -> tuple[Recorder, End]:
    """Train the jobs as one batch; ``replacements`` go into the program."""
    batch = building.build(configs)
    batch = batch._replace(program=dataclasses.replace(batch.program, **replacements))
    recorder, ends = Recorder(len(configs)), []
    for event in engine.train(*batch):
        if isinstance(event, End):
            ends.append(event)
        elif isinstance(event, Record):
            recorder.add(event)
    return recorder, in_order(ends)


def in_order(ends: list[End]) -> End:
    """One end of all members, by their number."""
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *ends)
    return jax.tree.map(lambda leaf: leaf[np.argsort(whole.members)], whole)


def state(*overrides: str) -> State:
    """What an observable sees of the job ``job(*overrides)`` at step 0."""
    batch = building.build([job(*overrides)])
    inputs = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[0]), batch.inputs)
    return member.initial_state(batch.program, inputs, jax.device_put(batch.data))


def measured(observable: Observable, state: State, times: int = 1) -> dict[str, np.ndarray]:
    """What the observable gives after so many measurements at the same point."""

    def at(params: Any) -> State:
        return state._replace(params=params)

    memory = jax.jit(lambda params: observable.init(at(params)))(state.params)
    measure = jax.jit(lambda params, memory: observable.measure(at(params), memory))
    for _ in range(times):
        memory, values = measure(state.params, memory)
    return {name: np.asarray(value) for name, value in values.items()}


def block_krylov(operator: Operator, block: jax.Array, extensions: int) -> Ritz:
    """Rayleigh–Ritz on span(V, HV, …, H^e V) of a block V [K, P]."""
    k = len(block)
    space = krylov.span(operator, block, k * (1 + extensions))
    for i in range(extensions):
        pairs = krylov.best(space, k)
        residuals = pairs.images - pairs.values[:, None] * pairs.vectors
        space = krylov.grow(operator, space, residuals, k * (1 + i))
    return krylov.best(space, k)


def column(recorder: Recorder, member: int, name: str) -> dict[int, Any]:
    """A member's column by step, where it was recorded."""
    table = recorder.table(member).to_pydict()
    pairs = zip(table["step"], table[name], strict=True)
    return {step: np.asarray(value) for step, value in pairs if value is not None}
