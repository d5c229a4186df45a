"""Loss, accuracy, learning rate."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lmech.datasets import of_task
from lmech.observables import Observable, State, Values, memoryless
from lmech.problem import Evaluation, evaluate, has_labels

Split = Literal["train", "test"]


def _evaluation(state: State, split: Split) -> Evaluation:
    """The step's own forward pass if it saw the whole split, else one of ours."""
    if split == "train" and state.batch_size is None and state.evaluation is not None:
        return state.evaluation
    return evaluate(state.problem, state.params, getattr(state.data, split), state.microbatch)


def loss(split: Split = "train") -> Observable:
    """Mean loss (1/N) Σᵢ ℓ(f(xᵢ), yᵢ) over the split; a scalar, in the loss's own unit.

    Of sequences, that of a token: ℓ is the mean over the positions.
    """

    def measure(state: State) -> Values:
        return {"": _evaluation(state, split).loss}

    return memoryless(measure)


def accuracy(split: Split = "train") -> Observable:
    """Fraction of the split's labels that have the largest output; a scalar in [0, 1].

    Raises ValueError for a dataset with real targets.
    """

    def measure(state: State) -> Values:
        if not has_labels(getattr(state.data, split)):
            raise ValueError(
                f"{split}_accuracy needs class labels, and this dataset has real targets: "
                "leave accuracy out of the observables, as in observables=[loss,sharpness]"
            )
        return {"": jnp.asarray(_evaluation(state, split).accuracy)}

    return memoryless(measure)


def by_task(split: Split = "test") -> Observable:
    """``loss`` and ``accuracy`` (of labels), means over each task that the run goes through.

    Vectors [L] in the order of training: a task that comes twice is there twice. Raises ValueError
    for a run without tasks.
    """

    def measure(state: State) -> Values:
        if state.data.tasks is None:
            raise ValueError("it tells tasks apart, and this run has none: set task_steps")

        def one(task: jax.Array) -> Evaluation:
            examples = getattr(of_task(state.data, task), split)
            return evaluate(state.problem, state.params, examples, state.microbatch)

        found = lax.map(one, jnp.asarray(state.data.tasks.order))
        values = {"loss": found.loss, "accuracy": found.accuracy}
        return {name: value for name, value in values.items() if value is not None}

    return memoryless(measure)


def learning_rate() -> Observable:
    """η of the step that comes next: the peak rate times the schedule, in the run's own unit of it.

    The parametrization's factors by tensor are not in it. After a run's last step it is that one's.
    """
    return memoryless(lambda state: {"": state.hyperparameters["learning_rate"]})
