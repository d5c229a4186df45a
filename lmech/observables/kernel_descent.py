"""Beside a run, gradient descent with a kernel that does not change."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, MinLen
from pydantic import FiniteFloat
from typing_extensions import TypedDict  # pydantic cannot check typing's before Python 3.12

from lmech.losses import targets
from lmech.numerics import kernel_descent as descent
from lmech.numerics import kernels, trees
from lmech.numerics.infinite_width import mlp_kernels
from lmech.numerics.kernel_descent import Spectrum
from lmech.observables import Count, Memory, Observable, State, Values, only_descent
from lmech.problem import Problem

Variances = Annotated[list[Annotated[FiniteFloat, Ge(0)]], MinLen(1)]


class Wide(TypedDict):
    """An infinitely wide fully connected net: the arguments of ``mlp_kernels``."""

    activation: str
    weight_variances: Variances
    bias_variances: Variances | None


class _Start(NamedTuple):
    """At step 0: weights, outputs on both splits, and the kernel's spectrum on the training set.

    ``across`` [K, N]: the infinite net's kernel of test and training inputs.
    ``error``: how far the net's own kernel is from it.
    """

    params: Any
    train: jax.Array
    test: jax.Array | None
    modes: Spectrum
    across: jax.Array | None
    error: jax.Array | None


def kernel_descent(k: Count = 4, infinite: Wide | None = None) -> Observable:
    """How far full-batch gradient descent on squared error is from that with a fixed kernel.

    The kernel Θ is the net's own at step 0, J C Jᵀ of all its outputs [N·C, N·C] (C: the
    learning-rate multipliers), which is its linearization there (Lee et al. 2019); or, with
    ``infinite``, the closed form of infinitely wide fully connected nets, ``mlp_kernels``, the same
    for each output. From the outputs f₀ of this net, at a constant rate η:

        f_t(X) = y + (1 − ηΘ/N)^t (f₀(X) − y),
        f_t(x) = f₀(x) − Θ(x, X) (1 − (1 − ηΘ/N)^t) Θ⁻¹ (f₀(X) − y).

    Columns: the root mean square of the outputs' difference on the training set and, as ``test``,
    on the test set, if there is one; ``moved`` and ``test_moved``, that of f_t − f₀ by the kernel;
    ``eigenvalues`` λ [k] of Θ/N, the largest, in descending order, and ``edge`` ηλ₁ (stable below
    2); ``modes``, the net's residual along their eigenvectors, u_i·(f − y)/√N [k], and
    ``modes_predicted``, the kernel's, (1 − ηλ_i)^t of the first (of C outputs, [k, C], with
    ``infinite``). With ``infinite`` also ``error``, ‖Θ₀ − Θ‖_F/‖Θ‖_F of the net's own kernel (its
    mean over the outputs) on the training set.

    Predictions are not a number once the learning rate has changed. Forms Θ of the whole training
    set and all its eigenvectors: for small ones, in float64.

    Raises ValueError for another loss, for an optimizer with a state (momentum, Adam), for
    minibatches, for sequences, for a training set of which only some examples count, and if k
    exceeds the number of eigenvalues.
    """

    def init(state: State) -> Memory:
        _check(state)
        train, test = _outputs(state)
        if train.ndim != 2:
            raise ValueError("kernel_descent takes outputs [N, C], and a sequence's are [N, T, C]")
        x, examples = state.data.train.x, len(train)
        own = _own_kernel(state, "full" if infinite is None else "trace")
        theta, across, error = own, None, None
        if infinite is not None:
            theta = mlp_kernels(*(_flat(x),) * 2, **infinite).ntk
            error = kernels.relative_change(own, theta)
            if state.data.test is not None:
                across = mlp_kernels(_flat(state.data.test.x), _flat(x), **infinite).ntk
        if k > len(theta):
            raise ValueError(f"the kernel has {len(theta)} eigenvalues: lower k ({k})")
        modes = descent.spectrum(theta, examples)
        return _Start(state.params, train, test, modes, across, error)

    def measure(state: State, start: _Start) -> tuple[Memory, Values]:
        y, rows = targets(state.data.train.y, start.train), len(start.modes.eigenvalues)
        n, rate = len(y), state.hyperparameters["learning_rate"]
        train, test = _outputs(state)
        first = (start.train - y).reshape(rows, -1)
        left = descent.residuals(start.modes, first, rate, state.step)
        known = jnp.where(_constant(state, rate), 1, jnp.nan).astype(y.dtype)
        predicted = y + known * left.reshape(y.shape)
        values = {
            "": _rms(train - predicted),
            "moved": _rms(predicted - start.train),
            "eigenvalues": start.modes.eigenvalues[:k],
            "edge": rate * start.modes.eigenvalues[0],
            "modes": _along(start.modes, (train - y).reshape(rows, -1), k) / n**0.5,
            "modes_predicted": _along(start.modes, known * left, k) / n**0.5,
        }
        if test is not None and start.test is not None:
            c = descent.coefficients(start.modes, first, rate, state.step, n)
            moved = -known * _reached(state, start, c)
            values["test"] = _rms(test - start.test - moved)
            values["test_moved"] = _rms(moved)
        if start.error is not None:
            values["error"] = start.error
        return start, values

    return Observable(init, measure)


def _check(state: State) -> None:
    """Raise ValueError for a training of which the kernel is not the whole story."""
    only_descent("kernel_descent", state)
    if state.data.train.weight is not None:
        raise ValueError("kernel_descent takes the whole training set: data_fraction=null")
    if not _squared(state.problem):
        raise ValueError("kernel_descent is of squared error, ½|f − y|² an example: loss=mse")


def _squared(problem: Problem) -> bool:
    """Whether the loss of an output f is ½|f − y|², by its slopes at a few f."""
    with jax.ensure_compile_time_eval():
        f = jnp.asarray([[-2.0], [0.5], [3.0]], jnp.float32)
        y = jnp.ones_like(f)
        slopes = jax.grad(lambda f: problem.loss(f, y).sum())(f)
        return bool(jnp.allclose(slopes, f - y))


def _own_kernel(state: State, reduction: kernels.Reduction) -> jax.Array:
    rates = state.scales.learning_rate
    x = state.data.train.x
    return kernels.empirical_ntk(state.problem.apply, state.params, x, reduction, rates)


def _outputs(state: State) -> tuple[jax.Array, jax.Array | None]:
    """On the training and the test set."""
    test = state.data.test
    apply: Callable[[jax.Array], jax.Array] = lambda x: state.problem.apply(state.params, x)  # noqa: E731
    return apply(state.data.train.x), None if test is None else apply(test.x)


def _reached(state: State, start: _Start, c: jax.Array) -> jax.Array:
    """Θ(x, X) c at the test inputs [K, C]: by the kernel, or of the net's own by J C (Jᵀc)."""
    if start.across is not None:
        return start.across @ c
    x, test, rates = state.data.train.x, state.data.test, state.scales.learning_rate
    _, back = jax.vjp(lambda params: state.problem.apply(params, x), start.params)
    direction = trees.multiply(rates, back(c.reshape(start.train.shape))[0])

    def outputs(params: Any) -> jax.Array:
        return state.problem.apply(params, test.x if test is not None else x)

    return jax.jvp(outputs, (start.params,), (direction,))[1]


def _constant(state: State, rate: jax.Array) -> jax.Array:
    """Whether the rates so far add up to this one's: no schedule has changed it."""
    steps = state.step.astype(rate.dtype)
    return jnp.isclose(state.time, rate * steps, rtol=1e-3, atol=0)


def _along(modes: Spectrum, residual: jax.Array, k: int) -> jax.Array:
    """[k], or [k, S] for several functions of one kernel."""
    along = modes.vectors[:k] @ residual
    return along[:, 0] if along.shape[1] == 1 else along


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def _rms(difference: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(difference).mean())
