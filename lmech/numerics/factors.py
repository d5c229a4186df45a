"""Gradients of an example's outputs, where a dense layer's stay the outer products that they are.

A layer z = aW that meets one vector a per example has ∂f/∂W = a ⊗ ∂f/∂z, so the gradients of two
outputs have the inner product (a·a′)(∂f/∂z · ∂f′/∂z): two numbers from fan-in and fan-out entries
in place of one from their product (*structured derivatives*, Novak et al. 2022, "Fast finite width
neural tangent kernel"). Which parameters are such a W is read off the jaxpr of one example; all
others are differentiated as any function is: a convolution's, one that is used twice or meets
several vectors (a sequence's positions, a group's examples), one inside a loop, a checkpoint or a
function with a rule of its own. No model needs a word about it. A rule for derivatives may not
close over the parameters: JAX says so where one does.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, Literal, jaxpr_as_fun

Tree = Any
Name = int
"""Of a value that a program computes."""
SAME_ENTRIES = ("reshape", "squeeze", "transpose", "expand_dims", "copy")


class Factored(NamedTuple):
    """Gradients [N·R, S·p] by a weight of p = i·o entries, each row an outer product or S of them.

    Row (n, r) holds the S gradients ``inputs[n] ⊗ slopes[n·R + r, s]``.
    """

    inputs: jax.Array
    """[N, i]"""
    slopes: jax.Array
    """[N·R, S·o]"""


def inner_products(a: Any, b: Any) -> jax.Array:
    """A Bᵀ [M, M'] of gradients [M, p] and [M', p], both factored or neither."""
    if not isinstance(a, Factored):
        return a @ b.T
    slopes, inputs = a.slopes @ b.slopes.T, a.inputs @ b.inputs.T
    each = slopes.reshape(len(a.inputs), -1, len(b.inputs), len(slopes.T) // len(b.inputs))
    return (each * inputs[:, None, :, None]).reshape(slopes.shape)


class _Call(NamedTuple):
    """An operation, and the values that it takes and gives."""

    equation: Any
    run: Callable[[Sequence[Any]], Sequence[Any]]
    given: tuple[Name, ...]
    made: tuple[Name, ...]


class _Program(NamedTuple):
    """A jaxpr without the calls of jitted functions: their operations stand in their place."""

    calls: list[_Call]
    constants: dict[Name, Any]
    inputs: tuple[Name, ...]
    output: Name


class _Weight(NamedTuple):
    """A parameter that enters through one product with one vector."""

    call: int
    """Which of the program's."""
    vector: Name
    factors: tuple[tuple[Name | None, int], ...]
    """Scalars, with a power of 1 or −1, that it was multiplied by before; None: −1 itself."""


class Derivative(NamedTuple):
    """That of f(params, x) [G, R, S] by the parameters, for G examples that interact; read once."""

    program: _Program
    weights: dict[int, _Weight]
    """By the parameter's place among the leaves."""
    output: Any
    """The shape of what f gives."""

    @property
    def kept_bytes(self) -> int:
        """Of all values that depend on x: what differentiating keeps of the G examples, at most."""
        moving, total = {self.program.inputs[-1]}, 0
        for call in self.program.calls:
            if moving.intersection(call.given):
                moving.update(call.made)
                shapes = [var.aval for var in call.equation.outvars]
                total += sum(shape.size * shape.dtype.itemsize for shape in shapes)
        return total

    def at(self, params: Tree, x: jax.Array) -> Tree:
        """A tree like ``params``: of a weight a pair (vector [i], ∂f/∂z [G, R, S, …]).

        Of any other parameter ∂f/∂w [G, R, S, …].
        """
        leaves, shape = jax.tree.flatten(params)
        plain = {place: leaf for place, leaf in enumerate(leaves) if place not in self.weights}
        nudges = {place: jnp.zeros_like(self._product(place)) for place in self.weights}

        def outputs(plain: Tree, nudges: Tree) -> tuple[jax.Array, dict[int, jax.Array]]:
            given = [plain.get(place, leaf) for place, leaf in enumerate(leaves)]
            return self._run([*given, x], nudges)

        (direct, slopes), vectors = jax.jacrev(outputs, argnums=(0, 1), has_aux=True)(plain, nudges)
        found = direct | {place: Factored(vectors[place], slopes[place]) for place in vectors}
        return jax.tree.unflatten(shape, [found[place] for place in range(len(leaves))])

    def _product(self, place: int) -> Any:
        """The shape of what a weight's product gives."""
        (out,) = self.program.calls[self.weights[place].call].equation.outvars
        return out.aval

    def _run(
        self, given: Sequence[Any], nudges: dict[int, jax.Array]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """The output with each nudge added to its weight's product, and those products' vectors."""
        known = self.program.constants | dict(zip(self.program.inputs, given, strict=True))
        added: dict[int, list[jax.Array]] = {}  # two weights may meet in one product
        for place, weight in self.weights.items():
            added.setdefault(weight.call, []).append(nudges[place])
        for index, call in enumerate(self.program.calls):
            values = call.run([known[name] for name in call.given])
            if index in added:
                values = [sum(added[index], start=values[0])]
            known.update(zip(call.made, values, strict=True))
        vectors = {}
        for place, (_, vector, factors) in self.weights.items():
            scale = math.prod(
                -1 if name is None else known[name] ** power for name, power in factors
            )
            own = jnp.reshape(known[vector], -1).astype(self._product(place).dtype)
            vectors[place] = own * scale
        return known[self.program.output], vectors


def derivative(f: Callable[[Tree, jax.Array], jax.Array], params: Tree, x: jax.Array) -> Derivative:
    """The derivative of f(params, x) [G, R, S] by the parameters, for x [G, …] of that shape."""
    closed, output = jax.make_jaxpr(f, return_shape=True)(params, x)
    program = _flat(closed)
    places = program.inputs[: len(jax.tree.leaves(params))]
    return Derivative(program, dict(_weights(program, places)), output)


def _flat(closed: ClosedJaxpr) -> _Program:
    names, calls, constants = count(), [], {}

    def named(value: Any) -> Name:
        constants[name := next(names)] = value
        return name

    def walk(closed: ClosedJaxpr, given: Sequence[Name]) -> list[Name]:
        known = dict(zip(closed.jaxpr.invars, given, strict=True))
        known.update(zip(closed.jaxpr.constvars, map(named, closed.consts), strict=True))

        def of(atom: Any) -> Name:
            return named(atom.val) if isinstance(atom, Literal) else known[atom]

        for equation in closed.jaxpr.eqns:
            taken = tuple(of(atom) for atom in equation.invars)
            if equation.primitive.name == "jit":
                inner = walk(equation.params["jaxpr"], taken)
                known.update(zip(equation.outvars, inner, strict=True))
                continue
            made = {var: next(names) for var in equation.outvars if not isinstance(var, DropVar)}
            known.update(made)
            run = _alone(closed.jaxpr, equation)
            calls.append(_Call(equation, run, taken, tuple(made.values())))
        return [of(atom) for atom in closed.jaxpr.outvars]

    inputs = tuple(next(names) for _ in closed.jaxpr.invars)
    (output,) = walk(closed, inputs)
    return _Program(calls, constants, inputs, output)


def _alone(jaxpr: Jaxpr, equation: Any) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The operation as a function of all its operands."""
    places = {v: i for i, v in enumerate(equation.invars) if not isinstance(v, Literal)}
    single = jaxpr.replace(
        constvars=[],
        invars=[*places],
        outvars=[var for var in equation.outvars if not isinstance(var, DropVar)],
        eqns=[equation],
        effects=equation.effects,
    )
    function = jaxpr_as_fun(ClosedJaxpr(single, []))
    return lambda values: function(*(values[place] for place in places.values()))


def _weights(program: _Program, places: Sequence[Name]) -> Iterator[tuple[int, _Weight]]:
    """Each parameter that is used once, in a product with one vector.

    Before it may be reshaped, multiplied by scalars, and have something added to it.
    """
    uses = Counter(name for call in program.calls for name in call.given)
    uses[program.output] += 1
    user = {name: index for index, call in enumerate(program.calls) for name in call.given}
    for place, name in enumerate(places):
        factors: tuple[tuple[Name | None, int], ...] = ()
        while uses[name] == 1 and name in user:
            index = user[name]
            equation, _, given, made = program.calls[index]
            side = given.index(name)
            if _with_a_vector(equation, side):
                yield place, _Weight(index, given[1 - side], factors)
                break
            if (more := _factor(equation, side, given)) is None:
                break
            factors += more
            (name,) = made  # noqa: PLW2901 - followed to where it is used


def _with_a_vector(equation: Any, side: int) -> bool:
    """Whether it is a product whose other operand has no axis but those that are summed over."""
    if equation.primitive.name != "dot_general":
        return False
    summed, together = equation.params["dimension_numbers"]
    shape = equation.invars[1 - side].aval.shape
    free = math.prod(size for axis, size in enumerate(shape) if axis not in summed[1 - side])
    return free == 1 and len(summed[side]) > 0 and not any(together)


def _factor(
    equation: Any, side: int, given: Sequence[Name]
) -> tuple[tuple[Name | None, int], ...] | None:
    """The scalars that an operation multiplies its operand by; None: something else may happen."""
    operation, other = equation.primitive.name, equation.invars[1 - side : 2 - side]
    if equation.invars[side].aval.size != equation.outvars[0].aval.size:
        return None
    if operation in SAME_ENTRIES or operation == "add" or (operation == "sub" and side == 0):
        return ()
    if operation in ("neg", "sub"):
        return ((None, 1),)
    if not other or other[0].aval.shape:
        return None
    powers = {("mul", 0): 1, ("mul", 1): 1, ("div", 0): -1}
    power = powers.get((operation, side))
    return None if power is None else ((given[1 - side], power),)
