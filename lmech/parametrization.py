"""Parametrizations as data: trees of scalars shaped like the parameters.

A table says, for each role of a tensor, how three things go with the width n (as a multiple of a
base model's): its forward multiplier n^-a, the spread of its initial values n^-b, its learning rate
n^-c, c by how the optimizer's updates scale (Yang & Hu 2021, "abc parametrizations"). One function
turns table and roles into the trees.
"""

import operator
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jax.flatten_util import ravel_pytree
from pydantic import FiniteFloat

from lmech import roles
from lmech.models.declared import matches
from lmech.numerics import subspace, trees
from lmech.optimizers import Growth, Hyperparameters, Optimizer, clipped
from lmech.problem import Params, Problem
from lmech.roles import Model, Tensor
from lmech.tables import SHIFTED, Alignment, Factors, Shift, Table, depth_rate, exponents, factor

Tree = Any
Width = Annotated[int, Ge(1)]
Factor = Annotated[FiniteFloat, Ge(0)]


class Scales(NamedTuple):
    """Factors by tensor: trees of floats like the parameters. ``unscaled(shapes)`` has them all 1.

    - ``init``: of the model's own initial values. A standard deviation σ of one's choice is σ over
      ``model.spread_at(model.width)``; a tensor that starts at 0, spread 0, stays there.
    - ``multiplier``: of the weight in the forward pass.
    - ``learning_rate``: of the tensor's whole update.
    - ``decay``: of the weight that the optimizer's decay sees, beside ``learning_rate`` (None: a
      decay goes with the learning rate).
    - ``epsilon``: of the optimizer's ε (None: all 1).
    - ``output``: a scalar, of the model's outputs.
    """

    init: Tree
    multiplier: Tree
    learning_rate: Tree
    decay: Tree = None
    epsilon: Tree = None
    output: Any = 1.0


def unscaled(shapes: Tree) -> Scales:
    """All factors 1, for ``model.shapes``: start from it, and ``_replace`` what is scaled."""
    ones = jax.tree.map(lambda _: 1.0, shapes)
    return Scales(ones, ones, ones)


def complete(scales: Scales) -> Scales:
    """With all its trees."""
    ones = unscaled(scales.multiplier).multiplier
    decay = ones if scales.decay is None else scales.decay
    return scales._replace(decay=decay, epsilon=scales.epsilon or ones)


def with_constants(scales: Scales, model: Model) -> Scales:
    """No learning rate for what the model never trains: a decay would move it all the same."""

    def rate(path: str, rate: Any) -> Any:
        return 0.0 if matches(path, model.declared.constants) else rate

    rates = trees.named_leaves(scales.learning_rate)
    tree = jax.tree.structure(scales.learning_rate)
    return scales._replace(
        learning_rate=jax.tree.unflatten(tree, [rate(path, r) for path, r in rates.items()])
    )


def with_output(scales: Scales, growth: Growth | None, shapes: Tree, scale: float) -> Scales:
    """Outputs times α, and rates such that at the start the function moves as fast as at α = 1.

    A gradient is α times as large, and what an update does to the outputs too: the rates are
    divided by α² (SGD) or α (Adam, muon); α → ∞ is lazy training (Chizat et al. 2019). A decay
    that does not go with the learning rate stays what it is. Raises ValueError for an optimizer
    that does not say how its updates scale.
    """
    if scale == 1:
        return scales
    family = known(growth).family
    slower = jax.tree.map(lambda leaf: scale ** SHIFTED[family(tuple(leaf.shape))], shapes)
    decay = scales.decay
    return scales._replace(
        output=scale,
        learning_rate=jax.tree.map(operator.truediv, scales.learning_rate, slower),
        decay=None if decay is None else jax.tree.map(operator.mul, decay, slower),
    )


def known(growth: Growth | None) -> Growth:
    """What the optimizer says of its updates. Raises ValueError if it says nothing."""
    if growth is None:
        raise ValueError(
            "the optimizer does not say how its updates scale: give its factory an attribute "
            "`growth` (lmech.optimizers.AS_GRADIENT, ENTRYWISE or ORTHOGONAL)"
        )
    return growth


Parametrization = Callable[[Model], Scales]


def standard(
    init_scale: Factor = 1.0,
    initial: Factors | None = None,
    multipliers: Factors | None = None,
    decays: Factors | None = None,
) -> Parametrization:
    """SP: the model's own stated init and one global learning rate.

    ``init_scale`` multiplies all initial values, ``initial`` those of a role; ``multipliers``, by
    role too, the weights in the forward pass, ``decays`` the optimizer's weight decay. What does
    not grow with the width, a readout's bias, keeps 1. Raises ValueError for roles of a model
    without ``width``.
    """

    def scales(model: Model) -> Scales:
        tree, plain = jax.tree.structure(model.shapes), unscaled(model.shapes)
        if initial is None and multipliers is None and decays is None:
            return plain._replace(init=jax.tree.map(lambda _: init_scale, model.shapes))
        known = [tensor.role for tensor in roles.tensors(model, model.width or 1, None)]
        start = [init_scale * factor(initial, role) for role in known]
        forward = [factor(multipliers, role) for role in known]
        own = {"init": start, "multiplier": forward}
        if decays is not None:
            own["decay"] = [factor(decays, role) for role in known]
        return plain._replace(**{k: jax.tree.unflatten(tree, v) for k, v in own.items()})

    return scales


def abc(
    table: Table,
    base_width: Width,
    shift: Shift | None = None,
    alignment: Alignment | None = None,
    base_depth: Width | None = None,
    depth_exponent: FiniteFloat = 0.0,
    attention: FiniteFloat = 0.0,
    weight_decay: Literal["coupled", "width_free", "independent"] = "coupled",
    epsilon: Literal["plain", "scaled"] = "plain",
    init_scale: Factor = 1.0,
    initial: Factors | None = None,
    multipliers: Factors | None = None,
    decays: Factors | None = None,
) -> Parametrization:
    """The parametrization that a table of exponents says, relative to the model at ``base_width``.

    There it is SP, bit for bit. ``shift`` θ writes the same function and the same training another
    way: (a, b, c) → (a + θ, b − θ, c − 2θ) for SGD, c − θ for Adam and muon (Yang & Hu 2021).

    ``alignment`` replaces the table's c by the largest stable rates a layer (Everett et al. 2024):
    see ``exponents``. ``base_depth`` and ``depth_exponent`` α: a residual branch ends in L^-α, and
    its learning rates are ∝ L^(2α−1) (SGD) or L^(α−1) (Adam, muon), L in units of the base depth
    (Yang et al. 2023, α = ½; Dey et al. 2025, α = 1). ``attention``: the logits go as
    head^-attention on top of the model's own (½ turns 1/√d into 1/d).

    ``weight_decay``: ``coupled`` decays at η·C·λ, C the tensor's learning-rate factor;
    ``width_free`` at ηλ; ``independent`` at λ, while the schedule is at its peak. ``epsilon``:
    Adam's ε as it is, or in proportion to the gradient's entries. ``init_scale`` multiplies all
    initial values, ``initial`` those of a role, ``multipliers`` a role's forward multipliers,
    ``decays`` its weight decay.
    """
    chosen = shift or Shift(input=0.0, hidden=0.0, output=0.0)

    def factors(tensor: Tensor, model: Model) -> tuple[float, ...]:
        growth = known(model.growth)
        family = growth.family(tensor.shape)
        found = exponents(table, tensor.role, family, chosen, alignment)
        n, deep = tensor.width, tensor.depth
        multiplier = n**-found.a * tensor.head**-attention * factor(multipliers, tensor.role)
        if tensor.ends_branch:
            multiplier *= deep**-depth_exponent
        start = n ** (tensor.own - found.b) * init_scale * factor(initial, tensor.role)
        rate = n**-found.c * deep ** -depth_rate(family, depth_exponent)
        rate *= growth.built_in(tensor.base) / growth.built_in(tensor.shape)
        scaled = epsilon == "scaled" and family != "sgd"  # whose updates are as the gradient is
        small = n**-found.epsilon * deep**-depth_exponent if scaled else 1.0
        decayed = {
            "coupled": 1.0,
            "width_free": 1 / rate,
            "independent": 1 / (rate * model.learning_rate) if model.learning_rate else 0.0,
        }
        decay = decayed[weight_decay] * factor(decays, tensor.role)
        return start, multiplier, rate, decay, small

    def scales(model: Model) -> Scales:
        rows = [factors(tensor, model) for tensor in roles.tensors(model, base_width, base_depth)]
        tree = jax.tree.structure(model.shapes)
        found = Scales(*(jax.tree.unflatten(tree, column) for column in zip(*rows, strict=True)))
        plain = weight_decay == "coupled" and decays is None
        return found._replace(decay=None) if plain else found

    return scales


def parametrize(
    problem: Problem,
    scales: Scales,
    origin: Params | None = None,
    centred: bool = False,
    linearized: bool = False,
) -> Problem:
    """The problem with the scales in place: multipliers act on weights, so models need no code.

    f(w) = α · apply(multiplier · w, x) and w₀ = init scale · (the model's init). ``centred``:
    less f's value at the ``origin``. ``linearized``: f's first-order expansion there, f(w_o) +
    J(w_o)(w − w_o), J its Jacobian in the weights; such a model tells no activations, since what
    its layers put out is not what its outputs are made of.
    """

    def init(key: jax.Array) -> Params:
        return trees.multiply(scales.init, problem.init(key))

    def scaled(function: Callable[[Params, Any], Any]) -> Callable[[Params, Any], Any]:
        return lambda params, x: function(trees.multiply(scales.multiplier, params), x)

    plain = scaled(problem.apply)

    def apply(params: Params, x: Any) -> Any:
        if linearized:
            moved = jax.tree.map(operator.sub, params, origin)
            start, change = jax.jvp(lambda params: plain(params, x), (origin,), (moved,))
        elif centred:
            start = plain(origin, x)
            change = plain(params, x) - start
        else:
            return scales.output * plain(params, x)
        return scales.output * (change if centred else start + change)

    told = (lambda _params, _x: {}) if linearized else scaled(problem.activations)
    return problem._replace(init=init, apply=apply, activations=told)


COORDINATES = ("subspace", "coordinates")
"""Layer and tensor of the only weights that are trained in a subspace."""
OF_UPDATES = ("learning_rate", "decay", "epsilon")
"""The factors of ``Scales`` that are the update's."""


def coordinates(origin: Params, count: int) -> Params:
    """The parameters of ``restricted`` at the origin: z = 0 [d]."""
    layer, tensor = COORDINATES
    return {layer: {tensor: jnp.zeros_like(ravel_pytree(origin)[0], shape=(count,))}}


def restricted(problem: Problem, origin: Params, key: jax.Array) -> Problem:
    """The problem in a random affine subspace: f(z) = problem's f(w_o + P z), PᵀP = I.

    Li et al. 2018, "Measuring the Intrinsic Dimension of Objective Landscapes". ``key`` draws P.
    ``init`` stays the problem's own, and gives whole weights.
    """
    flat, unravel = ravel_pytree(origin)
    s = subspace.signs(key, flat.size, flat.dtype)
    layer, tensor = COORDINATES

    def within(function: Callable[[Params, Any], Any]) -> Callable[[Params, Any], Any]:
        return lambda z, x: function(unravel(flat + subspace.embedded(z[layer][tensor], s)), x)

    return problem._replace(apply=within(problem.apply), activations=within(problem.activations))


def of_one_tensor(scales: Scales) -> Scales:
    """The scales of the coordinates: what all tensors' updates have in common. See ``uneven``."""
    layer, tensor = COORDINATES

    def common(tree: Tree) -> Tree:
        return None if tree is None else {layer: {tensor: jax.tree.leaves(tree)[0]}}

    one = jax.tree.map(jnp.ones_like, common(scales.learning_rate))
    learning_rate, decay, epsilon = (common(getattr(scales, name)) for name in OF_UPDATES)
    return Scales(one, one, learning_rate, decay, epsilon, scales.output)


def uneven(scales: Scales) -> str | None:
    """Which of the updates' factors differs between tensors, so that no single one has it."""
    for name in OF_UPDATES:
        if len({float(leaf) for leaf in jax.tree.leaves(getattr(scales, name))}) > 1:
            return name
    return None


def descend(
    optimizer: Optimizer,
    hyperparameters: Hyperparameters,
    scales: Scales,
    gradient: Params,
    state: Any,
    params: Params,
) -> tuple[Params, Any]:
    """What one step adds to the parameters, C · (the optimizer's update), and its new state.

    An ε in proportion to s is the same as a gradient divided by s, for an update that does not
    depend on the gradient's scale; a decay d times as large is that of d·w.
    """
    transformation = optimizer.transformation(hyperparameters)
    seen = clipped(gradient, hyperparameters)
    seen = seen if scales.epsilon is None else jax.tree.map(_over, seen, scales.epsilon)
    decayed = params if scales.decay is None else trees.multiply(scales.decay, params)
    updates, state = transformation.update(seen, state, decayed)
    return trees.multiply(scales.learning_rate, updates), state


def _over(leaf: jax.Array, factor: Any) -> jax.Array:
    return leaf / factor
