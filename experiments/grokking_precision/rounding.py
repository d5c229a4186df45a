"""Softmax collapse: how many training examples say nothing, because a logarithm was rounded."""

import jax
import jax.numpy as jnp

from lmech.observables import Observable, State, Values, memoryless
from lmech.problem import count, masked


def rounded_to_zero() -> Observable:
    """Fractions of the training examples, in the run's own precision, and the size of what is left.

    - "" of those whose gradient on the logit of the right class is exactly 0. In float32 a softmax
      probability within 6e-8 of 1 rounds to 1; that of the other classes is still above 0;
    - ``loss`` of those whose loss is exactly 0;
    - ``gradient`` mean over the examples of max_c |∂ℓ/∂f_c|: what still moves the logits.
    """

    def measure(state: State) -> Values:
        train = state.data.train
        outputs = state.problem.apply(state.params, train.x)
        losses, pulled = jax.vjp(lambda f: state.problem.loss(f, train.y), outputs)
        (slopes,) = pulled(jnp.ones_like(losses))
        right = jnp.take_along_axis(slopes, train.y[:, None], axis=1)[:, 0]

        def mean(values: jax.Array) -> jax.Array:
            return masked(train, values.astype(losses.dtype)).sum() / count(train)

        return {
            "": mean(right == 0),
            "loss": mean(losses == 0),
            "gradient": mean(jnp.abs(slopes).max(axis=1)),
        }

    return memoryless(measure)
