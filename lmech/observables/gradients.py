"""Weights, updates and gradients: of the loss, of single examples, and in the input."""

import jax
import jax.numpy as jnp

from lmech.datasets import Examples
from lmech.numerics import trees
from lmech.observables import (
    Count,
    Memory,
    Observable,
    State,
    Values,
    available,
    gradient,
    memoryless,
    next_update,
    training_examples,
)
from lmech.problem import Params, count, masked, total_loss


def _norms(params: Params) -> Values:
    """Euclidean norm of all entries (""), and of each tensor by its path with "_" for "/"."""
    tensors = trees.named_leaves(params)
    return {
        "": jnp.sqrt(trees.squared_norm(params)),
        **{path.replace("/", "_"): jnp.sqrt(trees.squared_norm(w)) for path, w in tensors.items()},
    }


def _with_relative(norms: Values, reference: Values) -> Values:
    """The norms, and the norms over their references as ``relative`` and ``relative_<tensor>``."""
    relative = {
        f"relative_{name}".rstrip("_"): value / reference[name] for name, value in norms.items()
    }
    return {**norms, **relative}


def weight_norm() -> Observable:
    """‖w‖ of all parameters, and ``<tensor>`` of each: its path with "_" for "/"."""
    return memoryless(lambda state: _norms(state.params))


def weight_distance() -> Observable:
    """‖w − w₀‖ from the weights at step 0, which are the memory.

    Columns: of all parameters, and ``<tensor>`` of each; ``relative`` ‖w − w₀‖ / ‖w₀‖ and
    ``relative_<tensor>`` (infinite for a tensor that starts at 0, not a number while it is there).
    Relative distances far below 1 mark lazy training (Chizat et al. 2019).
    """

    def measure(state: State, first: Memory) -> tuple[Memory, Values]:
        moved = jax.tree.map(jnp.subtract, state.params, first)
        return first, _with_relative(_norms(moved), _norms(first))

    return Observable(lambda state: state.params, measure)


def update_norm() -> Observable:
    """‖w_{t+1} − w_t‖ of the update that comes next, with its optimizer, rate and multipliers.

    Columns: of all parameters, and ``<tensor>`` of each; ``relative`` ‖Δw‖ / ‖w‖ and
    ``relative_<tensor>``, the angle by which weights of fixed norm turn in a step (Kosson et al.
    2024); infinite for a tensor at 0. With a ``batch_size`` the update is that of the step's own
    minibatch.
    """

    def measure(state: State) -> Values:
        return _with_relative(_norms(next_update(state)[0]), _norms(state.params))

    return memoryless(measure, needs="optimizer")


def gradient_norm() -> Observable:
    """‖∇L‖ of the whole training set's mean loss, and ``<tensor>`` of each: path, "_" for "/".

    Where the step has that gradient (full batch, ``every: 1``) it costs nothing.
    """
    return memoryless(lambda state: _norms(gradient(state)))


def gradient_noise(examples: Count | None = None, microbatch: Count | None = 64) -> Observable:
    """The simple noise scale B = tr Σ / |G|², in examples (McCandlish et al. 2018, eq. 2.9).

    G is the gradient of the whole training set's mean loss and Σ the covariance over its N
    examples of their gradients gᵢ (a sequence is one example, so B·T is in tokens). A minibatch far
    below B is mostly noise. Exact for ``examples: null``: tr Σ = meanᵢ‖gᵢ‖² − ‖ḡ‖², G = ḡ. On a
    probe set of n of the N examples, with s² = (meanᵢ‖gᵢ‖² − ‖ḡ‖²) n/(n − 1), both are unbiased
    (their ratio is not):
    tr Σ = s² (1 − 1/N) and |G|² = ‖ḡ‖² − s² (1/n − 1/N), which noise can make negative.

    Columns: B, ``trace`` tr Σ, ``signal`` |G|². ``microbatch`` gradients are in memory at a time
    (null: the run's microbatch, or all). The gradients are in the parameters as they are: no
    multiplier or preconditioner enters.

    Raises ValueError for a model whose examples interact (batch norm) and for fewer than 2.
    """

    def measure(state: State) -> Values:
        chosen = _several("gradient_noise", state, examples)
        n, N = count(chosen), count(state.data.train)

        def sums(batch: Examples) -> Values:
            gradients = _gradients(state, batch)
            squares = jax.vmap(trees.squared_norm)(gradients).sum()
            return {"gradient": _sum(gradients), "squares": squares}

        total = trees.accumulate(sums, chosen, microbatch or state.microbatch)
        mean = trees.divide(total, n)
        signal = trees.squared_norm(mean["gradient"])
        variance = (mean["squares"] - signal) * (n / (n - 1))
        trace, signal = variance * (1 - 1 / N), signal - variance * (1 / n - 1 / N)
        return {"": trace / signal, "trace": trace, "signal": signal}

    return memoryless(measure)


def gradient_coherence(examples: Count | None = None, microbatch: Count | None = 64) -> Observable:
    """Mean cosine between the gradients gᵢ of two different examples (Fort et al. 2019).

    (‖Σᵢ gᵢ/‖gᵢ‖‖² − n) / (n(n − 1)), the cosine stiffness over all pairs; from −1/(n − 1) to 1 for
    gradients that all agree. Examples whose gradient is 0 have no direction and are left out; not
    a number where fewer than two are left. Also ``ratio`` ‖ḡ‖² / meanᵢ‖gᵢ‖², from 1/n for
    orthogonal gradients of one length to 1 (Chatterjee & Zielinski 2020).

    ``microbatch`` gradients are in memory at a time (null: the run's microbatch, or all).

    Raises ValueError for a model whose examples interact (batch norm) and for fewer than 2.
    """

    def measure(state: State) -> Values:
        chosen = _several("gradient_coherence", state, examples)

        def sums(batch: Examples) -> Values:
            gradients = _gradients(state, batch)
            squares = jax.vmap(trees.squared_norm)(gradients)
            inverse = jnp.where(squares > 0, jax.lax.rsqrt(squares), jnp.zeros_like(squares))
            directions = jax.vmap(lambda g, a: jax.tree.map(lambda leaf: a * leaf, g))
            return {
                "gradient": _sum(gradients),
                "direction": _sum(directions(gradients, inverse)),
                "squares": squares.sum(),
                "moving": (squares > 0).sum(dtype=squares.dtype),
            }

        total = trees.accumulate(sums, chosen, microbatch or state.microbatch)
        n, moving = count(chosen), total["moving"]
        cosines = trees.squared_norm(total["direction"]) - moving
        return {
            "": cosines / (moving * (moving - 1)),
            "ratio": trees.squared_norm(total["gradient"]) / (n * total["squares"]),
        }

    return memoryless(measure)


def input_jacobian(examples: Count | None = None, microbatch: Count | None = 64) -> Observable:
    """Mean over the probe set of ‖∂f/∂x‖_F, the outputs' sensitivity to the input.

    Novak et al. 2018 take it of the class probabilities and at test points; here f are the outputs
    and the points are training examples. In units of outputs per unit of input, pixels as the
    dataset's transforms leave them. ``microbatch`` Jacobians [outputs, inputs] are in memory at a
    time (null: the run's microbatch, or all).

    Raises ValueError for integer inputs and for a model whose examples interact (batch norm).
    """

    def measure(state: State) -> Values:
        chosen = training_examples(state, examples)._replace(y=None)
        x = chosen.x
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise ValueError(
                f"input_jacobian differentiates in the inputs, and this dataset's are {x.dtype}: "
                "leave input_jacobian out of the observables"
            )
        _alone("input_jacobian", state)

        def f(x: jax.Array) -> jax.Array:
            return state.problem.apply(state.params, x[None])[0]

        outputs = jax.eval_shape(f, x[0])
        jacobian = jax.jacrev(f) if outputs.size <= x[0].size else jax.jacfwd(f)

        def sums(batch: Examples) -> jax.Array:
            norms = jnp.sqrt(jax.vmap(trees.squared_norm)(jax.vmap(jacobian)(batch.x)))
            return masked(batch, norms).sum()

        total = trees.accumulate(sums, chosen, microbatch or state.microbatch)
        return {"": total / count(chosen)}

    return memoryless(measure)


def _alone(name: str, state: State) -> None:
    """Raise ValueError if the model takes the training set, but not one example of it."""
    x = state.data.train.x
    try:
        jax.eval_shape(state.problem.apply, state.params, x[:1])
    except ValueError as error:
        jax.eval_shape(state.problem.apply, state.params, x)
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{name} needs the model on one example alone, and here examples interact: leave "
            f"{name} out of the observables, or set model.norm_group=null ({reason})"
        ) from error


def _several(name: str, state: State, number: int | None) -> Examples:
    """The probe set, where the model takes its examples alone and there are two."""
    _alone(name, state)
    chosen = training_examples(state, number)
    if min(len(chosen.x), available(state)) < 2:
        raise ValueError(
            f"{name} compares examples, and there is one: set observables.{name}.examples to 2 or "
            "more, or raise data_fraction"
        )
    return chosen


def _gradients(state: State, batch: Examples) -> Params:
    """The gradient of each example's loss: leaves [B, …]."""
    loss = total_loss(state.problem)

    def one(example: Examples) -> Params:
        return jax.grad(loss)(state.params, jax.tree.map(lambda array: array[None], example))

    return jax.vmap(one)(batch)


def _sum(gradients: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.sum(axis=0), gradients)
