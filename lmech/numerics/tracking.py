"""Following the top eigenpairs of an operator that drifts: a warm block, checked from cold."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from lmech.numerics import curvature, krylov, trees
from lmech.numerics.control import when
from lmech.numerics.krylov import Operator, Ritz

# A cold check that finds more than this share above θ₁ has found a larger eigenvalue.
MISS = 1e-3


class Policy(NamedTuple):
    """How much a measurement spends.

    ``k`` pairs are followed: Rayleigh–Ritz on the last measurement's block V (k products), then
    ``extensions`` times on that space and its first pair's residual Hv₁ − θ₁v₁ (a product each): a
    Lanczos run restarted with V, which knows the neighbours that λ₁ might swap with. At equal cost
    it is closer to λ₁ than a block Krylov step of all k residuals, and says less of λ₂, …, λ_k.
    With a ``tolerance`` it goes on until ‖r₁‖²/gap ≤ tolerance · |θ₁| and k random vectors do not
    raise θ₁ by more than that, at most ``rounds`` rounds. A cold run, ``depth`` Lanczos steps from
    a random vector, makes the first block, and with ``check_every`` n each n-th measurement's.
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
        return self.k + max(self.extensions, 0 if self.tolerance is None else 2 * self.k)


class Track(NamedTuple):
    """Memory of a tracker: the last Ritz vectors [P, k], and counts."""

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
    return Track(_cold(operator, key, size, dtype, policy).vectors, zero, zero, zero)


def _cold(operator: Operator, key: jax.Array, size: int, dtype: DTypeLike, policy: Policy) -> Ritz:
    """The top k pairs from nothing: Lanczos from a random vector."""
    draws = jax.random.normal(key, (size, 1 + policy.k), dtype)
    tridiagonal = krylov.lanczos(operator, draws[:, 0], min(policy.depth, size))
    _, rotation = jnp.linalg.eigh(tridiagonal.matrix)
    top = tridiagonal.basis @ rotation[:, ::-1][:, : policy.k]
    block = jnp.pad(top, ((0, 0), (0, policy.k - top.shape[1])))
    # A Krylov space that ended early leaves zeros: random vectors stand in for them.
    noise = draws[:, 1:] * jnp.finfo(dtype).eps
    return krylov.top_eigenpairs(operator, block + noise, extensions=0)


def follow(
    operator: Operator, key: jax.Array, track: Track, policy: Policy
) -> tuple[Track, Ritz, jax.Array]:
    """One measurement: the memory, the pairs [k], and the products that it cost."""
    size, k = track.vectors.shape
    if policy.room >= size:
        return _exact(operator, track)
    pairs = krylov.top_eigenpairs(operator, track.vectors, extensions=0)
    for _ in range(policy.extensions):
        pairs = _tighten(operator, pairs, len(pairs.values) + 1)
    products = jnp.full((), k + policy.extensions, jnp.int32)
    if policy.tolerance is not None:
        pairs, spent = _converge(operator, key, pairs, policy, policy.tolerance)
        products += spent
    pairs = _first(pairs, k)
    track = track._replace(vectors=pairs.vectors, measured=track.measured + 1)
    if policy.check_every is not None:
        due = track.measured % policy.check_every == 0
        check = partial(_check, operator, key, policy)
        track, pairs, products = when(due, check, (track, pairs, products))
    return track, pairs, products


def _first(pairs: Ritz, k: int) -> Ritz:
    return Ritz(pairs.vectors[:, :k], pairs.images[:, :k], pairs.values[:k])


def _tighten(operator: Operator, pairs: Ritz, keep: int) -> Ritz:
    """One product, of the first pair's residual."""
    return krylov.extend(operator, pairs, krylov.residual_block(pairs)[:, :1], keep)


def _exact(operator: Operator, track: Track) -> tuple[Track, Ritz, jax.Array]:
    """All eigenpairs, where a measurement would cost as many products."""
    size, k = track.vectors.shape
    matrix = curvature.dense(operator, size, track.vectors.dtype)
    pairs = krylov.rayleigh_ritz(jnp.eye(size, dtype=matrix.dtype), matrix, k)
    track = track._replace(vectors=pairs.vectors, measured=track.measured + 1)
    return track, pairs, jnp.full((), size, jnp.int32)


def _converge(
    operator: Operator, key: jax.Array, pairs: Ritz, policy: Policy, tolerance: float
) -> tuple[Ritz, jax.Array]:
    """Go on until θ₁ meets the tolerance and a random block does not raise it; products spent.

    Twice k pairs are kept from round to round: the second half holds what the last residuals
    brought, which is what makes a restarted method converge like an unrestarted one.
    """
    k, (size, have) = policy.k, pairs.vectors.shape
    wide = 2 * k
    most = policy.rounds

    def loose(loop: tuple[Ritz, jax.Array]) -> jax.Array:
        pairs, spent = loop
        return (pairs.error > tolerance * jnp.abs(pairs.values[0])) & (spent < most)

    def tighten(loop: tuple[Ritz, jax.Array]) -> tuple[Ritz, jax.Array]:
        pairs, spent = loop
        return _tighten(operator, pairs, wide), spent + 1

    def probed(pairs: Ritz, spent: jax.Array) -> tuple[Ritz, jax.Array]:
        draw = jax.random.normal(jax.random.fold_in(key, spent), (size, k), pairs.vectors.dtype)
        return krylov.extend(operator, pairs, draw, wide), spent + k

    def again(loop: tuple[Ritz, jax.Array, jax.Array]) -> tuple[Ritz, jax.Array, jax.Array]:
        before, spent, _ = loop
        pairs, spent = lax.while_loop(loose, tighten, probed(before, spent))
        rise = pairs.values[0] - before.values[0]
        return pairs, spent, rise > tolerance * jnp.abs(pairs.values[0])

    def raised(loop: tuple[Ritz, jax.Array, jax.Array]) -> jax.Array:
        return loop[2] & (loop[1] < most)

    spent = jnp.zeros((), jnp.int32)
    # A block as wide as the loop's from the start: shapes are fixed.
    for extra in range(have, wide):
        pairs, spent = _tighten(operator, pairs, extra + 1), spent + 1
    pairs = _first(pairs, wide)
    pairs, spent = lax.while_loop(loose, tighten, (pairs, spent))
    pairs, spent, _ = lax.while_loop(raised, again, (pairs, spent, jnp.ones((), bool)))
    return pairs, spent


def _check(
    operator: Operator, key: jax.Array, policy: Policy, loop: tuple[Track, Ritz, jax.Array]
) -> tuple[Track, Ritz, jax.Array]:
    """A cold run: counted, and put in the block's place if it found a larger eigenvalue."""
    track, pairs, products = loop
    size, _ = track.vectors.shape
    found = _cold(operator, key, size, track.vectors.dtype, policy)
    missed = found.values[0] - pairs.values[0] > MISS * jnp.abs(pairs.values[0])
    pairs = trees.select(missed, found, pairs)
    track = track._replace(
        vectors=pairs.vectors,
        checks=track.checks + 1,
        misses=track.misses + missed.astype(jnp.int32),
    )
    return track, pairs, products + min(policy.depth, size) + policy.k
