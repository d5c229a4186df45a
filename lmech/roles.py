"""Roles of a model's tensors, from their shapes at several widths, never from their names.

An axis is one of width if its size changes with the model's width (the idea of the ``mup`` package,
Yang et al. 2022). One that has the same size by chance does not.
"""

import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lmech.models.declared import Declared, matches
from lmech.numerics import trees
from lmech.optimizers import Growth
from lmech.tables import Role

Shape = tuple[int, ...]
PROBE = 4
"""Times the base width: where shapes and spreads are compared with those of the base."""


class Model(NamedTuple):
    """What a parametrization may look at: the job's model, and the same at other widths.

    - ``shapes``: of the parameters, a tree like them whose leaves are ``jax.ShapeDtypeStruct``:
      ``leaf.shape``, ``leaf.ndim``, ``leaf.size``, no values.
    - ``width``, ``depth``: the model's own; None where it has no such key.
    - ``shapes_at(width)``: ``shapes`` at another width (None: the model's own).
    - ``spread_at(width)``: root mean square of each tensor of the model's own init at that width, a
      tree of floats, over several draws. ``spread_at(model.width)`` is that of this job, also where
      the model has no width; a tensor that starts at 0 has 0.
    - ``declared``: what the model says of its tensors beside their shapes.
    - ``growth``: how the optimizer's updates scale; None if it does not say.
      ``growth.family(leaf.shape)`` is ``"sgd"``, ``"adam"`` or ``"muon"``;
      ``lmech.parametrization.known(growth)`` raises where it is None.
    - ``learning_rate``: the peak.
    """

    shapes: Any
    width: int | None
    depth: int | None
    shapes_at: Callable[[int | None], Any]
    spread_at: Callable[[int | None], Any]
    declared: Declared
    growth: Growth | None
    learning_rate: float


class Tensor(NamedTuple):
    """One tensor of a model, and how it grows."""

    path: str
    shape: Shape
    role: Role
    width: float
    """n: how many times its width axis is that of the base model (1 without such an axis)."""
    base: Shape
    """Its shape at the base width."""
    depth: float
    """How many times the depth is that of the base model, for one on a residual branch; else 1."""
    ends_branch: bool
    head: float
    """How many times a head's width is that of the base model, for what scales attention; else 1"""
    own: float
    """e, where the model's own init is ∝ width^-e."""


def tensors(model: Model, base_width: int, base_depth: int | None) -> list[Tensor]:
    """The model's tensors in the order of the leaves.

    Raises ValueError for a model without ``width`` (or ``depth``, where there is a base), and for
    a tensor whose role its shapes cannot tell.
    """
    if model.width is None:
        raise ValueError("a model needs a parameter `width` to be parametrized by it")
    if base_depth is not None and model.depth is None:
        raise ValueError("parametrization.base_depth is set, and the model has no `depth`")
    declared = model.declared
    here, base, wide = (
        {path: tuple(leaf.shape) for path, leaf in trees.named_leaves(tree).items()}
        for tree in (model.shapes, model.shapes_at(base_width), model.shapes_at(PROBE * base_width))
    )
    if base == wide and base:
        raise ValueError(
            f"no tensor of this model grows with `width` ({model.width}): a parametrization by "
            "width has nothing to act on; let the model use it, or set parametrization=sp"
        )
    narrow, broad = (
        trees.named_leaves(model.spread_at(width)) for width in (base_width, PROBE * base_width)
    )
    other: dict[str, float] = dict.fromkeys(typing.get_args(Role), 1.0)
    other["output"] = model.width / base_width  # a constant beside a tied embedding
    deep = 1.0 if base_depth is None or model.depth is None else model.depth / base_depth
    found = []
    for path, shape in here.items():
        role, axes = role_of(path, base[path], wide[path], declared)
        on_branch = matches(path, declared.branches)
        scales = matches(path, declared.attention) and len(shape) > 1
        found.append(
            Tensor(
                path=path,
                shape=shape,
                role=role,
                width=_times(shape, base[path], axes) if axes else other[role],
                base=base[path],
                depth=deep if on_branch else 1.0,
                ends_branch=matches(path, declared.branch_ends),
                head=shape[-1] / base[path][-1] if scales else 1.0,
                own=exponent(path, float(narrow[path]), float(broad[path])),
            )
        )
    return found


def _times(shape: Shape, base: Shape, axes: list[int]) -> float:
    return math.prod(shape[axis] / base[axis] for axis in axes)


def role_of(path: str, base: Shape, wide: Shape, declared: Declared) -> tuple[Role, list[int]]:
    """A tensor's role from its shapes at two widths, and the axes that its width is measured by.

    The axes of width among those that are summed over and the others: none → some is ``input``,
    some → some ``hidden``, some → none ``output``; without axes that are summed over ``vector``
    (norms, biases); without axes of width ``fixed``. Raises ValueError, with the path, where
    the axes that are summed over are not known.
    """
    changed = {axis for axis, sizes in enumerate(zip(base, wide, strict=True)) if len({*sizes}) > 1}
    if matches(path, declared.outputs):
        return "output", sorted(changed)
    if matches(path, declared.constants):
        return "constant", []
    if not changed:
        return "fixed", []
    summed = set(_summed(path, len(base), changed, declared.fan_in))
    into, out = sorted(changed & summed), sorted(changed - summed)
    if not summed:
        return "vector", out[:1]
    if not into:
        return "input", out
    return ("hidden", into) if out else ("output", into)


def _summed(
    path: str, ndim: int, changed: set[int], fan_in: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """The axes that a tensor's input is summed over."""
    for pattern, axes in fan_in.items():
        if matches(path, (pattern,)):
            return axes
    if changed - {ndim - 1, ndim - 2}:
        raise ValueError(
            f"parameter {path} has {ndim} axes, of which {sorted(changed)} grow with the width: "
            "which of them its input is summed over, the model has to say in `declared.fan_in`"
        )
    return tuple(range(ndim - 1))


def exponent(path: str, base: float, wide: float) -> float:
    """The e of an init ∝ width^-e, a multiple of ½, from its spreads at widths 1 : 4.

    A tensor that starts at zero has none, 0. Raises ValueError where no multiple of ½ is near.
    """
    if base == 0 or wide == 0:
        return 0.0
    measured = math.log(base / wide) / math.log(PROBE)
    nearest = round(2 * measured) / 2
    if abs(measured - nearest) > 0.15:
        raise ValueError(
            f"the initial spread of {path} goes as width^{-measured:.2f}, "
            "and no multiple of 1/2 is near"
        )
    return nearest
