"""Gradients of an example's outputs, where a dense layer's stay the outer products that they are.

A layer z = aW that meets one vector a per example has ∂f/∂W = a ⊗ ∂f/∂z, so the gradients of two
outputs have the inner product (a·a′)(∂f/∂z · ∂f′/∂z): two numbers from fan-in and fan-out entries
in place of one from their product (*structured derivatives*, Novak et al. 2022, "Fast finite width
neural tangent kernel"). Which parameters are such a W is read off the jaxpr of one example; all
others, a convolution's or one that is used twice, are differentiated as any function is. No model
needs a word about it.
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
CALLS = ("jit", "pjit", "closed_call")
SAME_ENTRIES = ("reshape", "squeeze", "transpose", "expand_dims", "copy")


class Factored(NamedTuple):
    """Gradients [N·R, S·p] by a weight of p = i·o entries, each row an outer product or S of them.

    Row (n, r) holds S gradients ``inputs[n] ⊗ slopes[n·R + r, s]``.
    """

    inputs: jax.Array
    """[N, i]"""
    slopes: jax.Array
    """[N·R, S·o]"""


def products(a: Any, b: Any) -> jax.Array:
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
    outputs: tuple[Name, ...]


class _Weight(NamedTuple):
    """A parameter that enters through one product with one vector."""

    call: int
    """Which of the program's."""
    vector: Name
    scales: tuple[Name, ...]
    """Scalars that it was multiplied by before."""


class Derivative(NamedTuple):
    """What ``jacobian`` needs of a function of (params, x), traced once."""

    program: _Program
    weights: dict[int, _Weight]
    """By the parameter's place among the leaves."""

    def jacobian(self, params: Tree, x: jax.Array) -> Tree:
        """∂f/∂params of one group of examples, f [G, R, S], G = 1 where a weight is factored.

        A tree like ``params`` with leaves [G, R, S, …], or Factored with inputs [i] and slopes
        [G, R, S, …].
        """
        leaves, shape = jax.tree.flatten(params)
        plain = {place: leaf for place, leaf in enumerate(leaves) if place not in self.weights}
        nudges = {place: self._zeros(weight) for place, weight in self.weights.items()}

        def outputs(plain: Tree, nudges: Tree) -> tuple[jax.Array, dict[int, jax.Array]]:
            given = [plain.get(place, leaf) for place, leaf in enumerate(leaves)]
            return self._run([*given, x], nudges)

        (direct, slopes), inputs = jax.jacrev(outputs, argnums=(0, 1), has_aux=True)(plain, nudges)
        found = {**direct, **{place: Factored(inputs[place], slopes[place]) for place in inputs}}
        return jax.tree.unflatten(shape, [found[place] for place in range(len(leaves))])

    def _zeros(self, weight: _Weight) -> jax.Array:
        (out,) = self.program.calls[weight.call].equation.outvars
        return jnp.zeros(out.aval.shape, out.aval.dtype)

    def _run(
        self, given: Sequence[Any], nudges: dict[int, jax.Array]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """The output with each nudge added to its weight's product, and those products' vectors."""
        known = {**self.program.constants, **dict(zip(self.program.inputs, given, strict=True))}
        added = {weight.call: nudges[place] for place, weight in self.weights.items()}
        for index, call in enumerate(self.program.calls):
            values = call.run([known[name] for name in call.given])
            if index in added:
                values = [values[0] + added[index]]
            known.update(zip(call.made, values, strict=True))
        vectors = {
            place: math.prod((known[scale] for scale in scales), start=known[vector].reshape(-1))
            for place, (_, vector, scales) in self.weights.items()
        }
        return known[self.program.outputs[0]], vectors


def derivative(f: Callable[[Tree, jax.Array], jax.Array], params: Tree, x: jax.Array) -> Derivative:
    """The derivative of f(params, x) [G, R, S] by the parameters, for x [G, …] of that shape."""
    program = _flat(jax.make_jaxpr(f)(params, x))
    places = program.inputs[: len(jax.tree.leaves(params))]
    return Derivative(program, dict(_weights(program, places)))


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
            inner = equation.params.get("jaxpr")
            if equation.primitive.name in CALLS and isinstance(inner, ClosedJaxpr):
                known.update(zip(equation.outvars, walk(inner, taken), strict=True))
                continue
            made = {var: next(names) for var in equation.outvars if not isinstance(var, DropVar)}
            known.update(made)
            run = _alone(closed.jaxpr, equation)
            calls.append(_Call(equation, run, taken, tuple(made.values())))
        return [of(atom) for atom in closed.jaxpr.outvars]

    inputs = tuple(next(names) for _ in closed.jaxpr.invars)
    return _Program(calls, constants, inputs, tuple(walk(closed, inputs)))


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
    """Each parameter that is used once, in a product with one vector, maybe scaled before."""
    uses = Counter(name for call in program.calls for name in call.given)
    uses.update(program.outputs)
    user = {name: index for index, call in enumerate(program.calls) for name in call.given}
    for place, name in enumerate(places):
        scales: tuple[Name, ...] = ()
        while uses[name] == 1 and name in user:
            index = user[name]
            equation, _, given, made = program.calls[index]
            side = given.index(name)
            operation = equation.primitive.name
            if operation == "dot_general" and _one_vector(equation, 1 - side):
                yield place, _Weight(index, given[1 - side], scales)
                break
            if operation == "mul" and equation.invars[1 - side].aval.shape == ():
                scales = (*scales, given[1 - side])
            elif operation not in SAME_ENTRIES:
                break
            (name,) = made  # noqa: PLW2901 - followed to where it is used


def _one_vector(equation: Any, side: int) -> bool:
    """Whether the operand of that side has no axis but those that are summed over."""
    summed, together = equation.params["dimension_numbers"]
    shape = equation.invars[side].aval.shape
    free = math.prod(size for axis, size in enumerate(shape) if axis not in summed[side])
    return free == 1 and not any(together)
