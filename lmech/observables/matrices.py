"""The curvature matrices of a run's training loss, chosen by name."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.flatten_util import ravel_pytree

from lmech.datasets import Examples
from lmech.numerics import curvature
from lmech.numerics.curvature import Operator
from lmech.observables import State, training_examples
from lmech.problem import Params, count, masked

Matrix = Literal["hessian", "gauss_newton", "empirical_fisher", "residual"]
"""H; G, which is the Fisher information for both losses (without a z-loss; of sequences, a token's:
the mean over positions); (1/n)Σgᵢgᵢᵀ, gᵢ an example's gradient (a whole sequence's); H − G."""
By = Literal["layer", "tensor"]


def operator(
    state: State,
    kind: Matrix = "hessian",
    examples: int | None = None,
    microbatch: int | None = None,
    part: tuple[int, ...] | None = None,
) -> Operator:
    """The operator V ↦ MV on blocks [K, P], M of the mean loss over (a subset of) the training set.

    ``part``: the tensors (by their place among the tree's leaves) whose diagonal block it is.
    """
    problem, chosen = state.problem, training_examples(state, examples)
    params, whole = _part(state.params, part)
    size, n = microbatch or state.microbatch, count(chosen)

    def outputs(params: Params, batch: Examples) -> Any:
        return problem.apply(whole(params), batch.x)

    def output_loss(f: Any, batch: Examples) -> jax.Array:
        return masked(batch, problem.loss(f, batch.y)).sum()

    def losses(params: Params, batch: Examples) -> jax.Array:
        return masked(batch, problem.loss(outputs(params, batch), batch.y))

    def hessian() -> Operator:
        total = lambda params, batch: losses(params, batch).sum()  # noqa: E731
        return curvature.hessian(total, params, chosen, size, n)

    def gauss_newton() -> Operator:
        return curvature.gauss_newton(outputs, output_loss, params, chosen, size, n)

    table: dict[str, Callable[[], Operator]] = {
        "hessian": hessian,
        "gauss_newton": gauss_newton,
        "empirical_fisher": lambda: curvature.empirical_fisher(losses, params, chosen, size, n),
        "residual": lambda: curvature.difference(hessian(), gauss_newton()),
    }
    return table[kind]()


def _part(
    params: Params, part: tuple[int, ...] | None
) -> tuple[Params, Callable[[Params], Params]]:
    """Some of the leaves, and the function that puts them back among the others."""
    if part is None:
        return params, lambda params: params
    leaves, structure = jax.tree.flatten(params)

    def whole(chosen: Params) -> Params:
        new = dict(zip(part, chosen, strict=True))
        return jax.tree.unflatten(structure, [new.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in part], whole


def parts(params: Params, by: By) -> dict[str, tuple[int, ...]]:
    """The places of each layer's (a top-level entry's) or each tensor's leaves, by name."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    depth = 1 if by == "layer" else None
    places: dict[str, tuple[int, ...]] = {}
    for i, path in enumerate(paths):
        name = jax.tree_util.keystr(path[:depth], simple=True, separator="_")
        places[name] = (*places.get(name, ()), i)
    return places


def flat(tree: Any) -> jax.Array:
    """A tree like the parameters as one vector [P]."""
    return ravel_pytree(tree)[0]


def unravel(params: Params) -> Callable[[jax.Array], Params]:
    """The inverse of ``flat``."""
    return ravel_pytree(params)[1]
