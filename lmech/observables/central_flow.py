"""The central flow: where an optimizer at the edge of stability goes on average in time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lmech.numerics import complementarity, curvature, trees
from lmech.numerics.krylov import Ritz
from lmech.numerics.tracking import Policy, Track
from lmech.observables import Count, Memory, Observable, State, Values, matrices
from lmech.observables.curvature import EXTENSIONS, NonNegative, followed, started
from lmech.observables.matrices import flat, unravel
from lmech.optimizers import CLIP, Preconditioning
from lmech.problem import Params, count, loss_and_gradient, total_loss

CRITICAL = 2.0
"""P⁻¹H's eigenvalue where w ← w − P⁻¹g stops being stable."""


class _Flow(NamedTuple):
    """Where the flow is: weights and averaged squares [P], the oscillation, and its time Ση.

    ``spread`` [k, k] is X: the iterates are spread around w with the covariance Σ = UXUᵀ, U [k, P]
    the top eigenvectors of P⁻¹H with UᵀPU = 1. ``pairs`` are those of P^-½HP^-½.
    """

    w: jax.Array
    nu: jax.Array
    spread: jax.Array
    time: jax.Array
    track: Track
    pairs: Ritz


def central_flow(
    k: Count = 3,
    substeps: Count = 4,
    start: NonNegative = 0,
    most_steps: Count = 1000,
    extensions: NonNegative = EXTENSIONS,
    microbatch: Count | None = None,
) -> Observable:
    """The central flow beside the run (Cohen et al. 2025), and what it predicts of time averages.

    dw/dt = −P⁻¹[∇L(w) + ½∇⟨H(w), Σ⟩], and dν/dt = r[pool(∇L² + diag(HΣH)) − ν] where P is made of
    squares of the gradient. Σ ⪰ 0 is the covariance of the oscillation. It lies in the critical
    eigenvectors of P⁻¹H, and is what just keeps their eigenvalues at or below 2: a semidefinite
    complementarity problem of the top ``k`` (``numerics.complementarity``), which takes in each
    substep the room that they have left; so nothing is to be set as "nearly critical", and before
    the edge Σ = 0 and this is (preconditioned) gradient flow. Euler's method, ``substeps`` for each
    of the run's steps. A time is Ση, so schedules are followed; at one learning rate, t is steps.

    For gradient descent without momentum, RMSProp and scalar RMSProp, full batch. The flow leaves
    the run at the first measurement at or after ``start`` (RMSProp's first ν are far from what it
    averages). A measurement goes ``most_steps`` of the run's steps ahead at most; where they are
    too few, this value and all later ones are not a number.

    Columns: ‖w_run − w_flow‖, ``loss`` L(w), ``mean_loss`` L + ½⟨H, Σ⟩ and
    ``mean_squared_gradient`` |∇L|² + ⟨H², Σ⟩, which predict the run's averages in time,
    ``eigenvalues`` [k] of P⁻¹H over 2 (at 1 the edge is reached), and ``variance`` tr Σ.

    Raises ValueError for an optimizer that is no preconditioned gradient descent, for minibatches,
    and if k exceeds the parameters.
    """
    policy = Policy(k, extensions)

    def looked_at(state: State, flow: _Flow, own: Preconditioning) -> _Flow:
        """The flow with the eigenvectors of where it is."""
        here = _operator(state, flow.w, own.preconditioner(flow.nu), microbatch)
        track, pairs, _ = followed(here, state, flow.track, policy)
        return flow._replace(track=track, pairs=pairs)

    def begun(state: State, track: Track | None) -> _Flow:
        """The flow, at the run's own point."""
        w, own = flat(state.params), _process(state)
        here = _operator(state, w, own.preconditioner(own.start), microbatch)
        track = started(here, state, w.size, policy) if track is None else track
        track, pairs, _ = followed(here, state, track, policy)
        return _Flow(w, own.start, jnp.zeros((k, k), w.dtype), state.time, track, pairs)

    def init(state: State) -> Memory:
        return begun(state, None), jnp.zeros((), bool)

    def advance(state: State, own: Preconditioning, flow: _Flow) -> _Flow:
        eta = state.hyperparameters["learning_rate"]
        remaining = (state.time - flow.time) / eta
        last = remaining <= 1.001 / substeps  # no substep for what rounding leaves over
        dt = jnp.where(last, remaining, 1 / substeps).astype(flow.w.dtype)
        moved = _euler(_at(state, flow.w), own, flow, dt, microbatch)
        time = jnp.where(last, state.time, flow.time + dt * eta)
        return looked_at(state, moved._replace(time=time), own)

    def measure(state: State, memory: Memory) -> tuple[Memory, Values]:
        flow, lost = memory
        own = _process(state)
        flow = trees.select(state.step <= start, begun(state, flow.track), flow)

        def behind(loop: tuple[_Flow, jax.Array]) -> jax.Array:
            return (loop[0].time < state.time) & (loop[1] < most_steps * substeps)

        def onwards(loop: tuple[_Flow, jax.Array]) -> tuple[_Flow, jax.Array]:
            return advance(state, own, loop[0]), loop[1] + 1

        flow, _ = lax.while_loop(behind, onwards, (flow, jnp.int32(0)))
        lost |= ~(flow.time >= state.time) | ~jnp.isfinite(flow.w).all()
        unknown = lost | (state.step < start)
        apart = jnp.sqrt(jnp.square(flat(state.params) - flow.w).sum())
        values = {"": apart, **_columns(_at(state, flow.w), own, flow, microbatch)}
        return (flow, lost), jax.tree.map(lambda v: jnp.where(unknown, jnp.nan, v), values)

    return Observable(init, measure, needs="path")


def _process(state: State) -> Preconditioning:
    """The optimizer's, with the parametrization's learning rates in P. Raises ValueError."""
    clips = CLIP in state.hyperparameters
    if state.optimizer.preconditioning is None or state.batch_size is not None or clips:
        raise ValueError(
            "central_flow describes full-batch gradient descent, RMSProp and scalar RMSProp: "
            "choose one of these with batch_size=null and clip_norm=null, or leave it out"
        )
    own = state.optimizer.preconditioning(
        state.hyperparameters, state.optimizer_state, state.params
    )

    def by_entry(scalars: Params) -> jax.Array:
        return flat(jax.tree.map(lambda s, w: jnp.full_like(w, s), scalars, state.params))

    rate, epsilon = by_entry(state.scales.learning_rate), state.scales.epsilon
    seen = jnp.ones_like(rate) if epsilon is None else by_entry(epsilon)
    return own._replace(
        preconditioner=lambda nu: own.preconditioner(nu) * seen / rate,
        pool=lambda squares: own.pool(squares / seen**2),
    )


def _at(state: State, w: jax.Array) -> State:
    params = unravel(state.params)(w)
    return state._replace(params=params, evaluation=None, gradient=None)


def _operator(
    state: State, w: jax.Array, p: jax.Array, microbatch: int | None
) -> curvature.Operator:
    """V ↦ P^-½HP^-½V, H at w."""
    hessian = matrices.operator(_at(state, w), "hessian", None, microbatch)
    return curvature.congruent(hessian, 1 / jnp.sqrt(p))


def _euler(
    state: State, own: Preconditioning, flow: _Flow, dt: jax.Array, microbatch: int | None
) -> _Flow:
    """A substep of ``dt`` steps: Σ from the complementarity problem, then w and ν."""
    p = own.preconditioner(flow.nu)
    u = flow.pairs.vectors / jnp.sqrt(p)[None]
    hu = p[None] * u * flow.pairs.values[:, None]
    size = microbatch or state.microbatch
    g = flat(loss_and_gradient(state.problem, state.params, state.data.train, size)[1])
    slopes = _slopes(state, u, microbatch)

    def growth(nu_rate: jax.Array) -> jax.Array:
        """2UᵀṖU of a rate of ν: how fast the edge itself moves."""
        p_rate = jax.jvp(own.preconditioner, (flow.nu,), (nu_rate,))[1]
        return CRITICAL * (u * p_rate[None]) @ u.T

    # Of ν, what each entry of X adds. pool is linear, so symmetric entries may be pooled alone.
    shares = own.rate * jax.vmap(jax.vmap(own.pool))(hu[:, None] * hu[None])
    room = jnp.diag(flow.pairs.values - CRITICAL) / dt
    free = -jnp.einsum("ijp,p->ij", slopes, g / p)
    nu_free = own.rate * (own.pool(g * g) - flow.nu)
    push = 0.5 * jnp.einsum("ijp,klp->ijkl", slopes, slopes / p[None, None])
    push += jnp.moveaxis(jax.vmap(jax.vmap(growth))(shares), (0, 1), (2, 3))
    push = (push + jnp.moveaxis(push, (0, 1), (2, 3))) / 2  # equal but for the pairs' residuals
    spread = complementarity.solve(push, room + free - growth(nu_free))
    drift = g + 0.5 * jnp.einsum("kl,klp->p", spread, slopes)
    nu_rate = nu_free + jnp.einsum("kl,klp->p", spread, shares)
    return flow._replace(w=flow.w - dt * drift / p, nu=flow.nu + dt * nu_rate, spread=spread)


def _slopes(state: State, u: jax.Array, microbatch: int | None) -> jax.Array:
    """∇(uᵢᵀHuⱼ) [k, k, P]."""
    k = len(u)
    rows, columns = np.triu_indices(k)
    train = state.data.train

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        total, size = total_loss(state.problem), microbatch or state.microbatch
        i, j = pair
        return curvature.gradient_of_curvature(
            total, state.params, train, u[i], u[j], size, count(train)
        )

    upper = lax.map(one, (rows, columns))
    both = jnp.zeros((k, k, u.shape[1]), u.dtype).at[rows, columns].set(upper)
    return both.at[columns, rows].set(upper)


def _columns(state: State, own: Preconditioning, flow: _Flow, microbatch: int | None) -> Values:
    """What the flow says at its point; ⟨H, Σ⟩ and ⟨H², Σ⟩ from HU = PUΛ."""
    p = own.preconditioner(flow.nu)
    u = flow.pairs.vectors / jnp.sqrt(p)[None]
    hu = p[None] * u * flow.pairs.values[:, None]
    evaluation, gradient = loss_and_gradient(
        state.problem, state.params, state.data.train, microbatch or state.microbatch
    )
    raised = jnp.vdot(flow.spread, jnp.diag(flow.pairs.values))
    return {
        "loss": evaluation.loss,
        "mean_loss": evaluation.loss + raised / 2,
        "mean_squared_gradient": trees.squared_norm(gradient) + jnp.vdot(flow.spread, hu @ hu.T),
        "eigenvalues": flow.pairs.values / CRITICAL,
        "variance": jnp.vdot(flow.spread, u @ u.T),
    }
