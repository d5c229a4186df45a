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
    block = krylov.orthonormalize(_cold(operator, key, size, dtype, policy))
    return Track(block, zero, zero, zero)


def _cold(
    operator: Operator, key: jax.Array, size: int, dtype: DTypeLike, policy: Policy
) -> jax.Array:
    """The top k Ritz vectors [P, k] of Lanczos from a random vector."""
    draws = jax.random.normal(key, (size, 1 + policy.k), dtype)
    tridiagonal = krylov.lanczos(operator, draws[:, 0], min(policy.depth, size))
    _, rotation = jnp.linalg.eigh(tridiagonal.matrix)
    top = tridiagonal.basis @ rotation[:, ::-1][:, : policy.k]
    block = jnp.pad(top, ((0, 0), (0, policy.k - top.shape[1])))
    # A Krylov space that ended early leaves zeros: random vectors stand in for them.
    return block + draws[:, 1:] * jnp.finfo(dtype).eps


def follow(
    operator: Operator, key: jax.Array, track: Track, policy: Policy
) -> tuple[Track, Ritz, jax.Array]:
    """One measurement: the memory, the pairs [k], and the products that it cost."""
    size, k = track.vectors.shape
    if policy.room >= size:
        return _exact(operator, track)
    # As wide as it will get, with columns of zeros, so that one compiled product serves all rounds.
    pairs = jax.tree.map(
        lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, policy.room - k)]),
        krylov.top_eigenpairs(operator, track.vectors, extensions=0),
    )
    loop = pairs, jnp.int32(k)
    if policy.tolerance is None:
        pairs, products = lax.fori_loop(
            0, policy.extensions, lambda _, loop: _tighten(operator, loop), loop
        )
    else:
        pairs, products = _converge(operator, key, loop, policy, policy.tolerance)
    pairs = Ritz(pairs.vectors[:, :k], pairs.images[:, :k], pairs.values[:k])
    track = track._replace(vectors=pairs.vectors, measured=track.measured + 1)
    if policy.check_every is not None:
        due = track.measured % policy.check_every == 0
        check = partial(_check, operator, key, policy)
        track, pairs, products = when(due, check, (track, pairs, products))
    return track, pairs, products


Loop = tuple[Ritz, jax.Array]  # pairs, products spent


def _tighten(operator: Operator, loop: Loop) -> Loop:
    """One product, of the first pair's residual."""
    pairs, products = loop
    return krylov.extend(operator, pairs, krylov.residual_block(pairs)[:, :1]), products + 1


def _exact(operator: Operator, track: Track) -> tuple[Track, Ritz, jax.Array]:
    """All eigenpairs, where a measurement would cost as many products."""
    size, k = track.vectors.shape
    matrix = curvature.dense(operator, size, track.vectors.dtype)
    pairs = krylov.rayleigh_ritz(jnp.eye(size, dtype=matrix.dtype), matrix, k)
    track = track._replace(vectors=pairs.vectors, measured=track.measured + 1)
    return track, pairs, jnp.full((), size, jnp.int32)


def _converge(
    operator: Operator, key: jax.Array, loop: Loop, policy: Policy, tolerance: float
) -> Loop:
    """Go on until θ₁ meets the tolerance and a random block does not raise it.

    More than the k pairs are kept from round to round: the others hold what the last residuals
    brought, which is what makes a restarted method converge like an unrestarted one.
    """
    k, size = policy.k, loop[0].vectors.shape[0]
    least, most = k + policy.extensions, k + policy.extensions + policy.rounds

    def loose(loop: Loop) -> jax.Array:
        pairs, products = loop
        wanted = pairs.error > tolerance * jnp.abs(pairs.values[0])
        return (products < least) | (wanted & (products < most))

    def probe(loop: Loop) -> Loop:
        pairs, products = loop
        draw = jax.random.normal(jax.random.fold_in(key, products), (size, k), pairs.values.dtype)
        return krylov.extend(operator, pairs, draw), products + k

    def again(state: tuple[Loop, jax.Array, jax.Array]) -> tuple[Loop, jax.Array, jax.Array]:
        loop, before, _ = state
        loop = lax.while_loop(loose, partial(_tighten, operator), loop)
        found = loop[0].values[0]
        raised = (found - before > tolerance * jnp.abs(found)) & (loop[1] < most)
        return when(raised, probe, loop), found, raised

    start = loop, jnp.full((), -jnp.inf, loop[0].values.dtype), jnp.ones((), bool)
    loop, *_ = lax.while_loop(lambda state: state[2], again, start)
    return loop


def _check(
    operator: Operator, key: jax.Array, policy: Policy, loop: tuple[Track, Ritz, jax.Array]
) -> tuple[Track, Ritz, jax.Array]:
    """A cold run: counted, and put in the block's place if it found a larger eigenvalue."""
    track, pairs, products = loop
    size, _ = track.vectors.shape
    block = _cold(operator, key, size, track.vectors.dtype, policy)
    found = krylov.top_eigenpairs(operator, block, extensions=0)
    missed = found.values[0] - pairs.values[0] > MISS * jnp.abs(pairs.values[0])
    pairs = trees.select(missed, found, pairs)
    track = track._replace(
        vectors=pairs.vectors,
        checks=track.checks + 1,
        misses=track.misses + missed.astype(jnp.int32),
    )
    return track, pairs, products + min(policy.depth, size) + policy.k
