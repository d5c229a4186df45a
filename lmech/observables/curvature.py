"""Extreme eigenvalues of the training loss's curvature, followed along a run.

All of these are one tracker (``numerics.tracking``) on one operator (``observables.matrices``).
Columns that they share: the observable's own is λ₁ (or what is made of it), ``eigenvalues`` [k],
``residuals`` ‖Hv − θv‖ [k], ``residual`` (the first pair's), ``gap`` θ₁ − θ₂, ``products`` spent
and, with ``check_every``, ``checks`` made from cold so far and ``misses``, how many of them found a
larger eigenvalue than the block held. λ₁ is a lower bound: at most ‖r‖²/gap below the eigenvalue
that it approximates.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt

from lmech import seeds
from lmech.numerics import curvature, tracking
from lmech.numerics.curvature import Operator
from lmech.numerics.krylov import Ritz
from lmech.numerics.tracking import Policy, Track
from lmech.observables import Count, Memory, Observable, State, Values, matrices, next_update
from lmech.observables.matrices import By, Matrix, flat, parts

Tolerance = Annotated[float, Gt(0)]
NonNegative = Annotated[int, Ge(0)]
End = Literal["largest", "smallest"]
END = get_args(End)
EXTENSIONS = 3


def started(operator: Operator, state: State, size: int, policy: Policy, salt: int = 0) -> Track:
    """A tracker's memory, from a cold run on the operator. Raises ValueError for k > ``size``."""
    key = jax.random.fold_in(seeds.key(state.seeds, "probes"), salt)
    return tracking.start(operator, key, size, flat(state.params).dtype, policy)


def followed(
    operator: Operator, state: State, track: Track, policy: Policy, salt: int = 0
) -> tuple[Track, Ritz, jax.Array]:
    """A measurement of the operator: the memory, its top pairs, the products that it cost."""
    key = jax.random.fold_in(seeds.key(state.seeds, "probes"), salt)
    return tracking.follow(operator, jax.random.fold_in(key, state.step + 1), track, policy)


def sharpness(
    matrix: Matrix = "hessian",
    end: End = "largest",
    k: Count = 4,
    extensions: NonNegative = EXTENSIONS,
    tolerance: Tolerance | None = None,
    check_every: Count | None = None,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """λ₁ ≥ … ≥ λ_k of the Hessian of the mean training loss; the sharpness is λ₁.

    ``matrix``: of the Gauss–Newton matrix, the empirical Fisher or H − G instead. ``end``: smallest
    gives λ_min ≤ … from below. A measurement costs k + ``extensions`` products (see
    ``tracking.Policy``), or P where that is no more. At the edge of stability the top eigenvalues
    lie within a few per cent and swap places: one warm vector follows the wrong one, and a block of
    4 does not care. ``tolerance`` goes on until ‖r‖²/gap ≤ tolerance · λ₁ and random vectors do not
    raise it. ``check_every``: so many measurements apart, a Lanczos run from a random vector.
    ``microbatch`` (examples) bounds the memory, ``examples`` takes a fixed subset.

    Raises ValueError if k exceeds the number of parameters.
    """
    policy = Policy(k, extensions, tolerance, check_every=check_every)

    def operator(state: State) -> Operator:
        chosen = matrices.operator(state, matrix, examples, microbatch)
        return chosen if end == "largest" else curvature.negative(chosen)

    def init(state: State) -> Memory:
        return started(operator(state), state, flat(state.params).size, policy)

    def measure(state: State, track: Memory) -> tuple[Memory, Values]:
        track, pairs, products = followed(operator(state), state, track, policy)
        values = tracking.columns(track, pairs, products, policy)
        if end == "smallest":
            values |= {"": -values[""], "eigenvalues": -values["eigenvalues"]}
        return track, values

    return Observable(init, measure, warm=True)


def effective_sharpness(
    matrix: Matrix = "hessian",
    k: Count = 4,
    extensions: NonNegative = EXTENSIONS,
    tolerance: Tolerance | None = None,
    check_every: Count | None = None,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """λ₁(C^½P^-½ H P^-½C^½) over the optimizer's own stability threshold: at 1 the edge is reached.

    P is what this step's update divides by (its optimizer state after this step's gradient), C the
    parametrization's learning rates per tensor. Thresholds at learning rate η: gradient descent
    2/η, heavy ball (2 + 2β)/η, Nesterov (2 + 2β)/((1 + 2β)η), averaged momentum and Adam
    (2 + 2β₁)/((1 − β₁)η) (Cohen et al. 2021, appendix B; Cohen et al. 2022). Further columns:
    ``eigenvalue`` (before the division), ``threshold``. The optimizer's weight decay is not in H.

    Raises ValueError for an optimizer without a threshold, and if k exceeds the parameters.
    """
    policy = Policy(k, extensions, tolerance, check_every=check_every)

    def operator(state: State) -> tuple[Operator, jax.Array]:
        if state.optimizer.stability is None:
            raise ValueError(
                "effective_sharpness needs an optimizer with a stability threshold, and this one "
                "states none: leave effective_sharpness out of the observables"
            )
        _, optimizer_state = next_update(state)
        preconditioner, threshold = state.optimizer.stability(
            state.hyperparameters, optimizer_state, state.params
        )
        rates = state.scales.learning_rate
        if state.scales.epsilon is not None:  # P is that of the gradient that the optimizer sees
            rates = jax.tree.map(jnp.divide, rates, state.scales.epsilon)
        scale = jax.tree.map(lambda c, p: jnp.sqrt(c / p), rates, preconditioner)
        chosen = matrices.operator(state, matrix, examples, microbatch)
        return curvature.congruent(chosen, flat(scale)), threshold

    def init(state: State) -> Memory:
        return started(operator(state)[0], state, flat(state.params).size, policy)

    def measure(state: State, track: Memory) -> tuple[Memory, Values]:
        chosen, threshold = operator(state)
        track, pairs, products = followed(chosen, state, track, policy)
        values = tracking.columns(track, pairs, products, policy)
        effective = {"": values[""] / threshold, "eigenvalue": values[""], "threshold": threshold}
        return track, values | effective

    return Observable(init, measure, needs="optimizer", warm=True)


def layer_sharpness(
    matrix: Matrix = "hessian",
    by: By = "layer",
    k: Count = 2,
    extensions: NonNegative = EXTENSIONS,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """λ₁ of each diagonal block of the Hessian: a layer's (or tensor's) parameters, others held.

    One column a block, named after it; the observable's own is the largest of them, a lower bound
    of the sharpness (Cauchy interlacing). Blocks of fewer than k parameters are measured in full.
    """

    def each(state: State) -> dict[str, tuple[Operator, int]]:
        leaves = jax.tree.leaves(state.params)
        return {
            name: (
                matrices.operator(state, matrix, examples, microbatch, part=places),
                sum(leaves[i].size for i in places),
            )
            for name, places in parts(state.params, by).items()
        }

    def policy(size: int) -> Policy:
        return Policy(min(k, size), extensions)

    def init(state: State) -> Memory:
        return {
            name: started(operator, state, size, policy(size), salt)
            for salt, (name, (operator, size)) in enumerate(each(state).items())
        }

    def measure(state: State, tracks: Memory) -> tuple[Memory, Values]:
        updated, values = {}, {}
        for salt, (name, (operator, size)) in enumerate(each(state).items()):
            updated[name], pairs, _ = followed(operator, state, tracks[name], policy(size), salt)
            values[name] = pairs.values[0]
        return updated, {"": jnp.stack(list(values.values())).max(), **values}

    return Observable(init, measure, warm=True)


class TopPairs(NamedTuple):
    """A tracker of the Hessian's top eigenpairs, for observables that need the eigenvectors.

    ``start(state) → track``, ``follow(state, track) → (track, pairs, products)``.
    """

    start: Callable[[State], Track]
    follow: Callable[[State, Track], tuple[Track, Ritz, jax.Array]]


def top_pairs(
    k: int,
    extensions: int = EXTENSIONS,
    examples: int | None = None,
    microbatch: int | None = None,
    end: End = "largest",
) -> TopPairs:
    """The k pairs at one end; at the smallest end the values are those of −H."""
    policy, salt = Policy(k, extensions), END.index(end)

    def operator(state: State) -> Operator:
        chosen = matrices.operator(state, "hessian", examples, microbatch)
        return chosen if end == "largest" else curvature.negative(chosen)

    def start(state: State) -> Track:
        return started(operator(state), state, flat(state.params).size, policy, salt)

    def follow(state: State, track: Track) -> tuple[Track, Ritz, jax.Array]:
        return followed(operator(state), state, track, policy, salt)

    return TopPairs(start, follow)
