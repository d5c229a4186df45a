"""Loss, accuracy, learning rate."""

from typing import Literal

import jax.numpy as jnp

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


def learning_rate() -> Observable:
    """η of the step that comes next: the peak rate times the schedule, in the run's own unit of it.

    The parametrization's factors by tensor are not in it. After a run's last step it is that one's.
    """
    return memoryless(lambda state: {"": state.hyperparameters["learning_rate"]})
