"""Optimizers: any factory of an optax transformation, with its numbers as inputs.

optax does the work. What is ours is only that every float of the config enters the compiled
program as data, so a sweep over learning rates, momenta or decays shares one program.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.flatten_util import ravel_pytree

from lmech import mistakes
from lmech.numerics import trees
from lmech.tables import Family

Tree = Any
Hyperparameters = Mapping[str, jax.Array]


class Stability(NamedTuple):
    """When the update is stable on a quadratic: λ₁(P^-½HP^-½) ≤ ``threshold``.

    ``preconditioner`` P is a tree like the parameters: the update is −ηP⁻¹m, m what the optimizer
    keeps of the gradients. P is held fixed in this, so it must vary slowly beside m and be larger
    than 0 everywhere. Where it is neither (sign momentum and Lion divide by |m|) there is no rule.

    A rule is a function ``(arguments, state, params) → Stability``: the factory's arguments by
    name, defaults and this step's learning rate among them; the optax state *after* this step's
    gradient, with the P that this update divides by; the parameters before it.
    """

    preconditioner: Tree
    threshold: jax.Array


StabilityRule = Callable[[Mapping[str, Any], Any, Tree], Stability]


class Preconditioning(NamedTuple):
    """An optimizer w ← w − P(ν)⁻¹g whose ν follows squares of the gradient, as a process in time.

    In steps, dν/dt = ``rate`` · (``pool``(E[g²]) − ν), for flows that go the optimizer's way.
    """

    preconditioner: Callable[[jax.Array], jax.Array]
    """ν [P] ↦ P [P], the learning rate in it."""
    start: jax.Array
    """ν [P], as the optimizer's state has it."""
    rate: jax.Array
    pool: Callable[[jax.Array], jax.Array]
    """Squares by entry [P] ↦ what ν takes of them [P]."""


PreconditioningRule = Callable[[Mapping[str, Any], Any, Tree], Preconditioning]


class Growth(NamedTuple):
    """How the update of a tensor scales, by its shape.

    - ``family(shape)``: as the gradient (``"sgd"``), entrywise O(1) whatever the gradient
      (``"adam"``), orthogonalised (``"muon"``).
    - ``built_in(shape)``: a factor that the optimizer gives it of its own (1 but for muon).
    """

    family: Callable[[tuple[int, ...]], Family]
    built_in: Callable[[tuple[int, ...]], float] = lambda _: 1.0


def _muon_factor(shape: tuple[int, ...]) -> float:
    """Optax's muon multiplies by √max(1, fan_out / fan_in)."""
    return max(1.0, shape[1] / shape[0]) ** 0.5 if len(shape) == 2 else 1.0


AS_GRADIENT = Growth(lambda _: "sgd")
ENTRYWISE = Growth(lambda _: "adam")
# optax's muon hands what is no matrix to AdamW.
ORTHOGONAL = Growth(lambda shape: "muon" if len(shape) == 2 else "adam", _muon_factor)


class Optimizer(NamedTuple):
    """``transformation(hyperparameters)``, and its stability rule (None: it has none, as muon)."""

    transformation: Callable[[Hyperparameters], optax.GradientTransformation]
    stability: Callable[[Hyperparameters, Any, Tree], Stability] | None
    growth: Growth | None = None
    """How its updates scale (None: it does not say)."""
    preconditioning: Callable[[Hyperparameters, Any, Tree], Preconditioning] | None = None
    """Its update as that of preconditioned gradient descent (None: it is no such thing)."""


CLIP = "clip_norm"
"""The hyper-parameter that is no optimizer's: the largest global norm of a gradient."""


def clipped(gradient: Tree, hyperparameters: Hyperparameters) -> Tree:
    """The gradient, shortened to ``clip_norm`` where it is longer and there is one."""
    if CLIP not in hyperparameters:
        return gradient
    clip = optax.clip_by_global_norm(hyperparameters[CLIP])
    return clip.update(gradient, clip.init(gradient))[0]


def ema_momentum(learning_rate: Any, beta: Any) -> optax.GradientTransformation:
    """M ← βm + (1 − β)g, w ← w − ηm, from m = 0 without bias correction."""
    return optax.chain(optax.ema(beta, debias=False), optax.scale_by_learning_rate(learning_rate))


def general_momentum(
    learning_rate: Any, momentum: float, dampening: float, nesterov: float
) -> optax.GradientTransformation:
    """M ← βm + (1 − τ)g, w ← w − η(νg + (νβ + 1 − ν)m), from m = 0; β, τ and ν are numbers.

    One program for gradient descent (β = τ = ν = 0), Polyak's momentum (τ = ν = 0), Nesterov's
    (ν = 1, τ = 0) and the averaged one (τ = β, ν = 0): PyTorch's SGD, whose ``nesterov`` is a flag.
    """
    own = nesterov * momentum + 1 - nesterov

    def update(updates: Tree, state: optax.TraceState, _: Tree = None) -> tuple[Tree, Any]:
        def kept(g: jax.Array, m: jax.Array) -> jax.Array:
            return momentum * m + (1 - dampening) * g

        def step(g: jax.Array, m: jax.Array) -> jax.Array:
            return -learning_rate * (nesterov * g + own * m)

        trace = jax.tree.map(kept, updates, state.trace)
        return jax.tree.map(step, updates, trace), optax.TraceState(trace)

    return optax.GradientTransformation(optax.trace(0.0).init, update)


def l2_momentum(
    learning_rate: Any, momentum: Any, weight_decay: Any
) -> optax.GradientTransformation:
    """M ← βm + g + λw, w ← w − ηm: heavy ball on L + ½λ‖w‖² (PyTorch's SGD with weight decay).

    L2 regularization, which AdamW's decay beside the gradient is not (Loshchilov & Hutter 2019).
    """
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(decay, optax.sgd(learning_rate, momentum))


def orthogonal_adamw(
    learning_rate: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any
) -> optax.GradientTransformation:
    """AdamW on what is left of each tensor's gradient orthogonal to the tensor: ⊥Grad.

    g − (g·w / w·w) w: along w a gradient of cross-entropy only scales the logits (Prieto et al.
    2025, "Grokking at the edge of numerical stability").
    """

    def orthogonal(g: jax.Array, w: jax.Array) -> jax.Array:
        square = jnp.sum(w * w)
        along = jnp.sum(g * w) / jnp.where(square > 0, square, 1)
        return g - along * w

    def update(updates: Tree, params: Tree) -> Tree:
        return jax.tree.map(orthogonal, updates, params)

    adamw = optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)
    return optax.chain(optax.stateless(update), adamw)


def fixed_norm_adamw(
    learning_rate: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any, norm: float
) -> optax.GradientTransformation:
    """AdamW, then all weights together scaled to the norm: w ← norm · (w + u) / ‖w + u‖.

    The constraint of Liu et al. 2023, "Omnigrok". It holds under learning-rate multipliers of 1.
    """

    def update(updates: Tree, params: Tree) -> Tree:
        moved = optax.apply_updates(params, updates)
        factor = norm / jnp.sqrt(trees.squared_norm(moved))
        return jax.tree.map(lambda w, there: factor * there - w, params, moved)

    adamw = optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)
    return optax.chain(adamw, optax.stateless(update))


class ScalarRMSPropState(NamedTuple):
    """ν, the average of ‖g‖²."""

    nu: jax.Array


def scalar_rmsprop(learning_rate: Any, decay: Any, eps: Any = 1e-8) -> optax.GradientTransformation:
    """ν ← βν + (1 − β)‖g‖² from 0, w ← w − ηg/√(ν + ε): RMSProp of the gradient's norm.

    "Scalar RMSProp" of Cohen et al. 2025, "Understanding optimization in deep learning with central
    flows".
    """

    def init(params: Tree) -> ScalarRMSPropState:
        return ScalarRMSPropState(jnp.zeros((), jax.tree.leaves(params)[0].dtype))

    def update(updates: Tree, state: ScalarRMSPropState, _: Tree = None) -> tuple[Tree, Any]:
        nu = decay * state.nu + (1 - decay) * trees.squared_norm(updates)
        moved = jax.tree.map(lambda g: -learning_rate * g / jnp.sqrt(nu + eps), updates)
        return moved, ScalarRMSPropState(nu)

    return optax.GradientTransformation(init, update)


def _find(state: Any, kind: type) -> Any:
    """The part of an optax state that is a ``kind``."""
    parts = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return next(part for part in parts if isinstance(part, kind))


def _ones(params: Tree) -> Tree:
    return jax.tree.map(jnp.ones_like, params)


def _heavy_ball(arguments: Mapping[str, Any]) -> Any:
    """η times the threshold under m ← βm + g: (2 + 2β), or (2 + 2β)/(1 + 2β) with Nesterov's step.

    Cohen et al. 2021, appendix B: where the iteration's eigenvalue passes −1.
    """
    beta = arguments.get("momentum")
    beta = 0.0 if beta is None else beta
    return (2 + 2 * beta) / (1 + 2 * beta if arguments.get("nesterov") else 1)


def _sgd(arguments: Mapping[str, Any], _: Any, params: Tree) -> Stability:
    return Stability(_ones(params), _heavy_ball(arguments) / arguments["learning_rate"])


def _general(arguments: Mapping[str, Any], _: Any, params: Tree) -> Stability:
    """(2 + 2β)/(η(ν(1 + β) + (1 − τ)(νβ + 1 − ν))): where the iteration's eigenvalue passes −1."""
    beta, tau, nu = (arguments[name] for name in ("momentum", "dampening", "nesterov"))
    share = nu * (1 + beta) + (1 - tau) * (nu * beta + 1 - nu)
    return Stability(_ones(params), (2 + 2 * beta) / (arguments["learning_rate"] * share))


def _l2(arguments: Mapping[str, Any], _: Any, params: Tree) -> Stability:
    """The decay adds λ to every eigenvalue of H (where the parametrization decays all alike)."""
    threshold = _heavy_ball(arguments) / arguments["learning_rate"] - arguments["weight_decay"]
    return Stability(_ones(params), threshold)


def _ema(arguments: Mapping[str, Any], _: Any, params: Tree) -> Stability:
    beta = arguments["beta"]
    threshold = (2 + 2 * beta) / ((1 - beta) * arguments["learning_rate"])
    return Stability(_ones(params), threshold)


def _adam(arguments: Mapping[str, Any], state: Any, _: Tree) -> Stability:
    """P = (1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε): m is the raw first moment (Cohen et al. 2022, eq. 2).

    A decay λw applied beside the momentum (AdamW) takes its part of the room: with P frozen the
    iteration's eigenvalue passes −1 at (2 + 2β₁)(1 − ηλ/2)/((1 − β₁)η).
    """
    b1, b2, eps = arguments["b1"], arguments["b2"], arguments["eps"]
    root = arguments.get("eps_root", 0.0)
    eta, decay = arguments["learning_rate"], arguments.get("weight_decay", 0.0)
    adam = _find(state, optax.ScaleByAdamState)
    first, second = (1 - b**adam.count for b in (b1, b2))
    preconditioner = jax.tree.map(lambda v: first * (jnp.sqrt(v / second + root) + eps), adam.nu)
    return Stability(preconditioner, (2 + 2 * b1) * (1 - eta * decay / 2) / ((1 - b1) * eta))


def _rmsprop(arguments: Mapping[str, Any], state: Any, _: Tree) -> Stability:
    """P = √(ν + ε), not bias-corrected."""
    nu = _find(state, optax.ScaleByRmsState).nu
    preconditioner = jax.tree.map(lambda v: jnp.sqrt(v + arguments["eps"]), nu)
    return Stability(preconditioner, _heavy_ball(arguments) / arguments["learning_rate"])


def _adagrad(arguments: Mapping[str, Any], state: Any, _: Tree) -> Stability:
    """P = √(Σg² + ε), the sum starting at ``initial_accumulator_value``."""
    total = _find(state, optax.ScaleByRssState).sum_of_squares
    preconditioner = jax.tree.map(lambda v: jnp.sqrt(v + arguments["eps"]), total)
    return Stability(preconditioner, 2 / arguments["learning_rate"])


def _scalar_rmsprop(arguments: Mapping[str, Any], state: Any, params: Tree) -> Stability:
    """P = √(ν + ε), the same for all entries."""
    root = jnp.sqrt(_find(state, ScalarRMSPropState).nu + arguments["eps"])
    preconditioner = jax.tree.map(lambda w: jnp.full_like(w, root), params)
    return Stability(preconditioner, 2 / arguments["learning_rate"])


def _constant(arguments: Mapping[str, Any], _: Any, params: Tree) -> Preconditioning:
    """Gradient descent: P = 1/η."""
    if arguments["momentum"] is not None:
        raise ValueError("momentum makes it another process than preconditioned gradient descent")
    flat = ravel_pytree(params)[0]
    eta, zero = arguments["learning_rate"], jnp.zeros((), flat.dtype)
    return Preconditioning(
        lambda nu: jnp.full_like(nu, 1 / eta), jnp.zeros_like(flat), zero, lambda squares: squares
    )


def _entrywise(arguments: Mapping[str, Any], state: Any, _: Tree) -> Preconditioning:
    """RMSProp: P = √(ν + ε)/η, ν entry by entry."""
    if arguments["momentum"] is not None:
        raise ValueError("momentum makes it another process than preconditioned gradient descent")
    eta, decay, eps = (arguments[name] for name in ("learning_rate", "decay", "eps"))
    nu = ravel_pytree(_find(state, optax.ScaleByRmsState).nu)[0]
    return Preconditioning(
        lambda nu: jnp.sqrt(nu + eps) / eta, nu, (1 - decay) / decay, lambda squares: squares
    )


def _pooled(arguments: Mapping[str, Any], state: Any, params: Tree) -> Preconditioning:
    """Scalar RMSProp: P = √(ν + ε)/η, ν of the norm."""
    eta, decay, eps = (arguments[name] for name in ("learning_rate", "decay", "eps"))
    nu = jnp.full_like(ravel_pytree(params)[0], _find(state, ScalarRMSPropState).nu)
    return Preconditioning(
        lambda nu: jnp.sqrt(nu + eps) / eta,
        nu,
        (1 - decay) / decay,
        lambda squares: jnp.full_like(squares, squares.sum()),
    )


# A factory of one's own says its kind as an attribute: ``my_optimizer.growth = ENTRYWISE``.
GROWTH: dict[Any, Growth] = {
    optax.sgd: AS_GRADIENT,
    ema_momentum: AS_GRADIENT,
    general_momentum: AS_GRADIENT,
    l2_momentum: AS_GRADIENT,
    optax.adam: ENTRYWISE,
    optax.adamw: ENTRYWISE,
    optax.rmsprop: ENTRYWISE,
    optax.adagrad: ENTRYWISE,
    optax.lion: ENTRYWISE,
    optax.sign_sgd: ENTRYWISE,
    orthogonal_adamw: ENTRYWISE,
    fixed_norm_adamw: ENTRYWISE,
    optax.contrib.muon: ORTHOGONAL,
}
# A factory of one's own declares its rule as an attribute: ``my_optimizer.stability = rule``.
RULES: dict[Any, StabilityRule] = {
    optax.sgd: _sgd,
    ema_momentum: _ema,
    general_momentum: _general,
    l2_momentum: _l2,
    optax.adam: _adam,
    optax.adamw: _adam,
    optax.rmsprop: _rmsprop,
    optax.adagrad: _adagrad,
    scalar_rmsprop: _scalar_rmsprop,
}
# ``my_optimizer.preconditioning = rule``; there are flows for these.
PRECONDITIONING: dict[Any, PreconditioningRule] = {
    optax.sgd: _constant,
    optax.rmsprop: _entrywise,
    scalar_rmsprop: _pooled,
}
# Flags that the rules above do not describe: set otherwise than by default, there is no threshold.
UNDESCRIBED: dict[Any, tuple[str, ...]] = {
    optax.adam: ("nesterov",),
    optax.adamw: ("nesterov", "mask"),
    optax.rmsprop: ("centered", "eps_in_sqrt", "bias_correction"),
}


def optimizer(factory: Callable[..., optax.GradientTransformation], **static: Any) -> Optimizer:
    """``hyperparameters ↦ factory(**static, **hyperparameters)``, called inside the program.

    This is what ``optax.inject_hyperparams`` does at each update, without its copy of the
    hyper-parameters in the optimizer's state: here they are inputs of the program, once.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is not parameter.empty
    }
    flags = UNDESCRIBED.get(factory, ())
    as_described = all(static.get(flag, defaults[flag]) == defaults[flag] for flag in flags)

    def own(name: str, rules: Mapping[Any, Any]) -> Any:
        return getattr(factory, name, rules.get(factory)) if as_described else None

    def transformation(hyperparameters: Hyperparameters) -> optax.GradientTransformation:
        own = {name: value for name, value in hyperparameters.items() if name != CLIP}
        made = factory(**static, **own)
        if not isinstance(made, optax.GradientTransformation):
            told = mistakes.described(made)
            raise ValueError(f"the optimizer's factory returned {told}, no optax transformation")
        return made

    def described(rule: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """The rule, of the hyper-parameters that this optimizer has."""
        if rule is None:
            return None
        return lambda hyperparameters, state, params: rule(
            {**defaults, **static, **hyperparameters}, state, params
        )

    return Optimizer(
        transformation,
        stability=described(own("stability", RULES)),
        growth=getattr(factory, "growth", GROWTH.get(factory)),
        preconditioning=described(own("preconditioning", PRECONDITIONING)),
    )
