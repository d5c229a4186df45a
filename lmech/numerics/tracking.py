"""Following the top eigenpairs of an operator that drifts: a warm block, checked from cold."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from lmech.numerics import krylov, lapack, trees
from lmech.numerics.control import when
from lmech.numerics.krylov import Operator, Ritz, Space

# A cold check that finds more than this share above θ₁ has found a larger eigenvalue.
MISS = 1e-3


class Policy(NamedTuple):
    """How much a measurement spends.

    ``k`` pairs are followed: Rayleigh–Ritz on the last measurement's block V (k products), then
    ``extensions`` times on that space and its first pair's residual Hv₁ − θ₁v₁ (a product each): a
    Lanczos run restarted with V, which knows the neighbours that λ₁ might swap with. At equal cost
    it is closer to λ₁ than a block Krylov step of all k residuals, and says less of λ₂, …, λ_k.
    With a ``tolerance`` it goes on until ‖r₁‖²/gap ≤ tolerance · |θ₁| and k random vectors do not
    raise θ₁ by more than that, for about ``rounds`` products at most. A cold run, ``depth`` Lanczos
    steps from a random vector, makes the first block, and with ``check_every`` n each n-th
    measurement's.
    """

    k: int
    extensions: int
    tolerance: float | None = None
    rounds: int = 60
    depth: int = 40
    check_every: int | None = None

    @property
    def room(self) -> int:
        """Largest dimension of the space that a measurement works in."""
        return max(self.k + self.extensions, 0 if self.tolerance is None else 3 * self.k)


class Track(NamedTuple):
    """Memory of a tracker: the last Ritz vectors [k, P], and counts."""

    vectors: jax.Array
    measured: jax.Array
    checks: jax.Array
    misses: jax.Array


def start(operator: Operator, key: jax.Array, size: int, dtype: DTypeLike, policy: Policy) -> Track:
    """The top Ritz vectors of a cold Lanczos run.

    Raises ValueError if k exceeds the number of parameters.
    """
    if policy.k > size:
        raise ValueError(
            f"k={policy.k} eigenpairs are asked of a matrix of {size} parameters: lower k"
        )
    zero = jnp.zeros((), jnp.int32)
    block = krylov.orthonormalize(_cold(operator, key, size, dtype, policy))
    return Track(block, zero, zero, zero)


def _cold(
    operator: Operator, key: jax.Array, size: int, dtype: DTypeLike, policy: Policy
) -> jax.Array:
    """The top k Ritz vectors [k, P] of Lanczos from a random vector."""
    draws = jax.random.normal(key, (1 + policy.k, size), dtype)
    tridiagonal = krylov.lanczos(operator, draws[0], min(policy.depth, size))
    _, rotation = lapack.eigh(tridiagonal.matrix)
    top = rotation.T[::-1][: policy.k] @ tridiagonal.basis
    block = jnp.pad(top, ((0, policy.k - len(top)), (0, 0)))
    # A Krylov space that ended early leaves zeros: random vectors stand in for them.
    return block + draws[1:] * jnp.finfo(dtype).eps


class Progress(NamedTuple):
    """A measurement on its way: the space, the rows of it that are taken, the products spent."""

    space: Space
    taken: jax.Array
    products: jax.Array


def follow(
    operator: Operator, key: jax.Array, track: Track, policy: Policy
) -> tuple[Track, Ritz, jax.Array]:
    """One measurement: the memory, the pairs [k], and the products that it cost."""
    k, size = track.vectors.shape
    if policy.room >= size:
        return _exact(operator, track)
    space = krylov.span(operator, track.vectors, policy.room)
    progress = Progress(space, jnp.int32(k), jnp.int32(k))
    if policy.tolerance is None:
        progress = lax.fori_loop(
            0, policy.extensions, lambda _, at: _tightened(operator, at), progress
        )
    else:
        progress = _converged(operator, key, progress, policy, policy.tolerance)
    pairs, products = krylov.best(progress.space, k), progress.products
    track = track._replace(vectors=pairs.vectors, measured=track.measured + 1)
    if policy.check_every is not None:
        due = track.measured % policy.check_every == 0
        check = partial(_check, operator, key, policy)
        track, pairs, products = when(due, check, (track, pairs, products))
    return track, pairs, products


def columns(track: Track, pairs: Ritz, products: jax.Array, policy: Policy) -> dict[str, jax.Array]:
    """What a measurement says, by column; "" is θ₁."""
    values = {
        "": pairs.values[0],
        "eigenvalues": pairs.values,
        "residual": pairs.residuals[0],
        "residuals": pairs.residuals,
        "gap": pairs.gap,
        "products": products,
    }
    if policy.check_every is not None:
        values |= {"checks": track.checks, "misses": track.misses}
    return values


def _tightened(operator: Operator, at: Progress) -> Progress:
    """One product, of the first pair's residual."""
    residual, _ = krylov.first_residual(at.space)
    space = krylov.grow(operator, at.space, residual, at.taken)
    return Progress(space, at.taken + 1, at.products + 1)


def _exact(operator: Operator, track: Track) -> tuple[Track, Ritz, jax.Array]:
    """All eigenpairs, where a measurement would cost as many products."""
    k, size = track.vectors.shape
    everything = jnp.eye(size, dtype=track.vectors.dtype)
    pairs = krylov.best(krylov.span(operator, everything, size), k)
    track = track._replace(vectors=pairs.vectors, measured=track.measured + 1)
    return track, pairs, jnp.full((), size, jnp.int32)


def _converged(
    operator: Operator, key: jax.Array, at: Progress, policy: Policy, tolerance: float
) -> Progress:
    """Go on until θ₁ meets the tolerance and a random block does not raise it.

    When the room is full, the best pairs are kept and k rows freed. More than k are kept: the
    others hold what the last residuals brought, which is what makes a restarted method converge
    like an unrestarted one.
    """
    k, size, room = policy.k, at.space.basis.shape[1], policy.room
    least, most = k + policy.extensions, k + policy.extensions + policy.rounds

    def with_room(at: Progress, rows: int) -> Progress:
        freed = lambda at: at._replace(  # noqa: E731
            space=krylov.restarted(at.space, room - k), taken=jnp.int32(room - k)
        )
        return when(at.taken + rows > room, freed, at)

    def loose(at: Progress) -> jax.Array:
        residual, values = krylov.first_residual(at.space)
        error = jnp.square(residual).sum()
        wanted = error > tolerance * jnp.abs(values[0]) * (values[0] - values[1])
        return (at.products < least) | (wanted & (at.products < most))

    def probed(at: Progress) -> Progress:
        at = with_room(at, k)
        key_here = jax.random.fold_in(key, at.products)
        draw = jax.random.normal(key_here, (k, size), at.space.basis.dtype)
        space = krylov.grow(operator, at.space, draw, at.taken)
        return Progress(space, at.taken + k, at.products + k)

    def again(state: tuple[Progress, jax.Array, jax.Array]) -> tuple:
        at, before, _ = state
        at = lax.while_loop(loose, lambda at: _tightened(operator, with_room(at, 1)), at)
        found = krylov.first_residual(at.space)[1][0]
        raised = (found - before > tolerance * jnp.abs(found)) & (at.products < most)
        return when(raised, probed, at), found, raised

    never = jnp.full((), -jnp.inf, at.space.basis.dtype)
    at, *_ = lax.while_loop(lambda state: state[2], again, (at, never, jnp.ones((), bool)))
    return at


def _check(
    operator: Operator,
    key: jax.Array,
    policy: Policy,
    measured: tuple[Track, Ritz, jax.Array],
) -> tuple[Track, Ritz, jax.Array]:
    """A cold run: counted, and put in the block's place if it found a larger eigenvalue."""
    track, pairs, products = measured
    k, size = track.vectors.shape
    block = _cold(operator, key, size, track.vectors.dtype, policy)
    found = krylov.best(krylov.span(operator, block, k), k)
    missed = found.values[0] - pairs.values[0] > MISS * jnp.abs(pairs.values[0])
    pairs = trees.select(missed, found, pairs)
    track = track._replace(
        vectors=pairs.vectors,
        checks=track.checks + 1,
        misses=track.misses + missed.astype(jnp.int32),
    )
    return track, pairs, products + min(policy.depth, size) + policy.k
