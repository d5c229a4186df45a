"""The exact mean loss of one-pass SGD on power-law random features, beside a run and over draws.

Apart from the measurements, since a job's identity has this file's text in it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lmech import seeds
from lmech.datasets import Data
from lmech.models.random_features import draw
from lmech.numerics import one_pass
from lmech.numerics.one_pass import Curve, Moments
from lmech.observables import Count, Memory, Observable, State, Values, memoryless


def _population(state: State) -> tuple[jax.Array, jax.Array]:
    """Standard deviations of the inputs and the target's components D^½b [v], off the test set."""
    x, y, _ = state.data.train if state.data.test is None else state.data.test  # see _suits
    root = jnp.sqrt(jnp.asarray(len(x), x.dtype))
    return jnp.diagonal(x) / root, y[:, 0] / root


def _moments(spread: jax.Array, target: jax.Array, weights: jax.Array) -> Moments:
    """Of the features xW/√d and the target, with the readout at 0."""
    features = spread[:, None] * weights / jnp.sqrt(jnp.asarray(weights.shape[1], spread.dtype))
    return one_pass.moments(features.T @ features, features.T @ target, target @ target)


def _own(state: State) -> Moments:
    return _moments(*_population(state), state.params["features"])


def feature_variance() -> Observable:
    """E|φ|² = tr K of the population: a learning rate in units of its inverse is γ tr K."""
    return memoryless(lambda state: {"": _own(state).eigenvalues.sum()})


def expected_loss() -> Observable:
    """The mean of ½P over one-pass SGD with the run's own W, readout at 0 at the start; exact.

    ``noiseless``: of gradient descent on the population, B → ∞. The loss is the test loss, where
    the test points are the population's (``power_law_regression`` without a ``test_size``).
    """

    def init(state: State) -> tuple[Curve, Curve]:
        of, rate = _own(state), state.hyperparameters["learning_rate"]
        size = 1 if state.batch_size is None else state.batch_size
        return one_pass.sgd(of, rate, size), one_pass.gradient_descent(of, rate)

    def measure(state: State, curves: tuple[Curve, Curve]) -> tuple[Memory, Values]:
        names = ("", "noiseless")
        values = (one_pass.at(curve, state.step[None])[0] / 2 for curve in curves)
        return curves, dict(zip(names, values, strict=True))

    return Observable(init, measure, suits=_suits)


def loss_curves(draws: Count = 8, decades: Count = 6, per_decade: Count = 10) -> Observable:
    """The same mean loss at log-spaced steps, with other W of this size: [draws, T] entries.

    Each W has a key of its own of the stream "probes", and every width's first features are the
    same; the rate is the run's γ tr K over its own trace. ``steps`` [T], from 1 on.
    """
    exponents = np.linspace(0, decades, decades * per_decade + 1)
    steps = np.unique(np.round(10**exponents))

    def init(state: State) -> jax.Array:
        spread, target = _population(state)
        of, rate = _own(state), state.hyperparameters["learning_rate"]
        relative, size = rate * of.eigenvalues.sum(), state.batch_size or 1
        shape, key = state.params["features"].shape, seeds.key(state.seeds, "probes")

        def curve(number: jax.Array) -> jax.Array:
            drawn = draw(jax.random.fold_in(key, number), shape, spread.dtype)
            of = _moments(spread, target, drawn)
            own = one_pass.sgd(of, relative / of.eigenvalues.sum(), size)
            return one_pass.at(own, jnp.asarray(steps)) / 2

        return jax.lax.map(curve, jnp.arange(draws))

    def measure(_: State, curves: jax.Array) -> tuple[Memory, Values]:
        return curves, {"": curves, "steps": jnp.asarray(steps, curves.dtype)}

    return Observable(init, measure, suits=_suits)


def _suits(data: Data) -> None:
    """Raise ValueError unless the test points are the axes, which have the population's moments."""
    x = data.train.x if data.test is None else data.test.x
    square = data.test is not None and x.ndim == 2 and x.shape[0] == x.shape[1]
    if not square or np.count_nonzero(x - np.diag(np.diagonal(x))):
        raise ValueError("needs dataset=power_law_regression with test_size=null")
