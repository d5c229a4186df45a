"""Curvature along the directions that training takes: the gradient, the update, the batch's own."""

import jax
import jax.numpy as jnp
from jax import lax

from lmech import seeds
from lmech.datasets import Examples, take
from lmech.numerics import trees
from lmech.observables import (
    Count,
    Memory,
    Observable,
    State,
    Values,
    available,
    gradient,
    matrices,
    memoryless,
    next_update,
    training_examples,
)
from lmech.observables.curvature import EXTENSIONS, NonNegative, top_pairs
from lmech.observables.matrices import flat
from lmech.problem import Params, count, evaluate, loss_and_gradient, masked, total_loss


def _quadratic(state: State, direction: jax.Array, microbatch: int | None) -> jax.Array:
    """dᵀHd of the training loss, for d [P]."""
    operator = matrices.operator(state, "hessian", None, microbatch)
    return direction @ operator(direction[None])[0]


def directional_sharpness(microbatch: Count | None = None) -> Observable:
    """uᵀHu/‖u‖² along u, this step's update (Pan & Li 2023); column ``gradient``: gᵀHg/‖g‖².

    Each is an average of H's eigenvalues, so at most λ₁. Not a number where the update is zero.
    """

    def measure(state: State) -> Values:
        update, g = flat(next_update(state)[0]), flat(gradient(state))
        along_update = _quadratic(state, update, microbatch) / (update @ update)
        return {"": along_update, "gradient": _quadratic(state, g, microbatch) / (g @ g)}

    return memoryless(measure, needs="optimizer")


def gradient_alignment(
    k: Count = 4,
    extensions: NonNegative = EXTENSIONS,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """gᵀHg/(‖g‖² ‖H‖): 1 where the gradient lies along the sharpest direction.

    ‖H‖ = max(λ₁, −λ_min), both followed in blocks of k. Column ``overlap`` [k]: the share of the
    gradient in the top 1, …, k eigenvectors, Σ_{j≤i}(vⱼᵀg)²/‖g‖² (Gur-Ari, Roberts & Dyer 2018).
    """
    ends = [top_pairs(k, extensions, examples, microbatch, end) for end in ("largest", "smallest")]

    def init(state: State) -> Memory:
        return [end.start(state) for end in ends]

    def measure(state: State, tracks: Memory) -> tuple[Memory, Values]:
        followed = [end.follow(state, track) for end, track in zip(ends, tracks, strict=True)]
        largest, smallest = (pairs for _, pairs, _ in followed)
        g = flat(_subset_gradient(state, examples))
        operator = matrices.operator(state, "hessian", examples, microbatch)
        quadratic = g @ operator(g[None])[0] / (g @ g)
        norm = jnp.maximum(largest.values[0], smallest.values[0])
        overlap = jnp.cumsum(jnp.square(largest.vectors @ g)) / (g @ g)
        return [track for track, *_ in followed], {"": quadratic / norm, "overlap": overlap}

    return Observable(init, measure, warm=True)


def _subset_gradient(state: State, examples: int | None) -> Params:
    if examples is None:
        return gradient(state)
    chosen = training_examples(state, examples)
    return loss_and_gradient(state.problem, state.params, chosen, state.microbatch)[1]


def sharpening_rate(
    k: Count = 4, extensions: NonNegative = EXTENSIONS, microbatch: Count | None = None
) -> Observable:
    """dλ₁/dt = −∇λ₁ᵀ C ∇L: how fast gradient flow would raise the sharpness, at this point.

    ∇λ₁ = ∇_w(vᵀH(w)v) at the unit eigenvector v held fixed (Hellmann–Feynman), so this is a third
    derivative of the loss, D³L[v, v, −C∇L]: three nested forward modes. In λ per unit of time
    Ση; positive while sharpening is progressive (Damian, Nichani & Lee 2023 call it α).
    Column ``sharpness``: the λ₁ that it is the rate of.
    """
    tracker = top_pairs(k, extensions, None, microbatch)

    def measure(state: State, track: Memory) -> tuple[Memory, Values]:
        track, pairs, _ = tracker.follow(state, track)
        w, v = flat(state.params), pairs.vectors[0]
        flow = trees.multiply(state.scales.learning_rate, gradient(state))
        rate = _third_derivative(state, w, v, -flat(flow), microbatch)
        return track, {"": rate, "sharpness": pairs.values[0]}

    return Observable(tracker.start, measure, warm=True)


def _third_derivative(
    state: State, w: jax.Array, v: jax.Array, d: jax.Array, microbatch: int | None
) -> jax.Array:
    """D³L(w)[v, v, d] of the mean training loss."""
    total, train = total_loss(state.problem), state.data.train
    unravel = matrices.unravel(state.params)

    def one(batch: Examples) -> jax.Array:
        def loss(w: jax.Array) -> jax.Array:
            return total(unravel(w), batch)

        def second(w: jax.Array) -> jax.Array:
            slope = lambda w: jax.jvp(loss, (w,), (v,))[1]  # noqa: E731
            return jax.jvp(slope, (w,), (v,))[1]

        return jax.jvp(second, (w,), (d,))[1]

    return trees.divide(trees.accumulate(one, train, microbatch or state.microbatch), count(train))


def batch_sharpness(batch_size: Count | None = None, batches: Count = 16) -> Observable:
    """E_B[gᵀHg] / E_B[gᵀg], g and H of the same minibatch B (Andreyev & Beneventano 2024).

    Column ``mean_ratio``: E_B[gᵀHg / gᵀg], another weighting of the same ratios. Over
    ``batches`` disjoint minibatches of the run's own size (or ``batch_size``), drawn anew at each
    measurement; with a full batch, over that one.

    Raises ValueError if the training set does not hold that many minibatches.
    """

    def measure(state: State) -> Values:
        drawn = _minibatches(state, batch_size or state.batch_size, batches)
        total = total_loss(state.problem)

        def ratio(batch: Examples) -> tuple[jax.Array, jax.Array]:
            slope = jax.grad(lambda params: total(params, batch) / count(batch))
            g = slope(state.params)
            _, product = jax.jvp(slope, (state.params,), (g,))
            return flat(g) @ flat(product), trees.squared_norm(g)

        curve, square = lax.map(ratio, drawn)
        return {"": curve.mean() / square.mean(), "mean_ratio": (curve / square).mean()}

    return memoryless(measure)


def _minibatches(state: State, size: int | None, number: int) -> Examples:
    """Disjoint random minibatches, stacked: [number, B, …]."""
    train = state.data.train
    n, most = len(train.x), available(state)
    if size is None or (train.weight is None and size == n):
        return jax.tree.map(lambda array: array[None], train)
    if size * number > most:
        raise ValueError(
            f"batch_sharpness draws {number} disjoint minibatches of {size} examples, and there "
            f"are {most}: lower batches to {most // size}"
        )
    key = jax.random.fold_in(seeds.key(state.seeds, "probes"), state.step)
    # Where an example comes does not depend on how many others there is room for.
    places = masked(train, jax.random.uniform(key, (n,), jnp.float32), jnp.inf)
    order = jnp.argsort(places)
    return take(train, order[: size * number].reshape(number, size))


def critical_learning_rate(doublings: Count = 30, bisections: Count = 12) -> Observable:
    """The rate at which this step's update stops lowering the loss (Kalra & Barkeshli 2024).

    The first zero of L(w + (η′/η)u) − L(w) in η′ that doubling from η (or halving, where η is too
    large already) brackets, then bisection: to a relative 2^-``bisections``. On a quadratic with
    plain gradient descent it is 2‖g‖²/gᵀHg ≥ 2/λ₁. Infinite if ``doublings`` find no rise, not a
    number if the update is zero. Costs a forward pass a trial. Column ``ratio``: over η.
    """

    def measure(state: State) -> Values:
        update, _ = next_update(state)
        train, size = state.data.train, state.microbatch
        here = evaluate(state.problem, state.params, train, size).loss

        def rises(scale: jax.Array) -> jax.Array:
            params = jax.tree.map(lambda w, u: w + scale * u, state.params, update)
            loss = evaluate(state.problem, params, train, size).loss
            return ~(loss <= here)  # a loss that overflows has risen

        one = jnp.ones_like(here)
        start_rises = rises(one)
        factor = jnp.where(start_rises, one / 2, one * 2)

        def searching(loop: tuple) -> jax.Array:
            _, rounds, found = loop
            return ~found & (rounds < doublings)

        def search(loop: tuple) -> tuple:
            scale, rounds, _ = loop
            scale = scale * factor
            return scale, rounds + 1, rises(scale) != start_rises

        scale, _, found = lax.while_loop(searching, search, (one, jnp.int32(0), jnp.asarray(False)))
        low = jnp.where(start_rises, scale, scale / 2)

        def bisect(_: int, bracket: tuple) -> tuple:
            low, high = bracket
            middle = (low + high) / 2
            up = rises(middle)
            return jnp.where(up, low, middle), jnp.where(up, middle, high)

        low, high = lax.fori_loop(0, bisections, bisect, (low, low * 2))
        ratio = jnp.where(found, (low + high) / 2, jnp.where(start_rises, 0, jnp.inf))
        ratio = jnp.where(trees.squared_norm(update) > 0, ratio, jnp.nan)
        return {"": ratio * state.hyperparameters["learning_rate"], "ratio": ratio}

    return memoryless(measure, needs="optimizer")
