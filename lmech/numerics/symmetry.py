"""Which units of a network may change places: read off the program that computes its outputs.

Every axis of every array in a function's jaxpr gets a label; an operation that reads two axes entry
by entry (a sum of arrays, a contraction) makes their labels one. A permutation of all axes of a
label at once then commutes with each operation, so it leaves the outputs as they are if neither
outputs nor inputs have the label. An operation that is not known here ties its axes to their order:
symmetries may be missed, and none is made up. No model needs a word about it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from lmech.numerics import trees

Labels = list[int]
ORDERED = 0
"""The label of axes whose order matters."""


class Units(NamedTuple):
    """Axes that are permuted together: channels of a layer, heads, the residual stream."""

    size: int
    axes: tuple[tuple[str, int], ...]
    """(path of a tensor, axis)."""


def units(apply: Callable[[Any, Any], Any], params: Any, x: Any) -> list[Units]:
    """The groups of axes of ``params`` whose common permutation leaves ``apply(params, x)`` as is.

    Arguments may be arrays or their shapes; nothing is computed. In the order of the leaves.
    Raises ValueError where there is none.
    """
    closed = jax.make_jaxpr(apply)(params, x)
    labels = _Labels()
    named = trees.named_leaves(params)
    own = [labels.fresh(leaf.shape) for leaf in named.values()]
    inputs = [labels.ordered(leaf.shape) for leaf in jax.tree.leaves(x)]
    for out in _through(labels, closed, [*own, *inputs]):
        labels.order(out)
    found: dict[int, list[tuple[str, int]]] = {}
    for (path, leaf), marks in zip(named.items(), own, strict=True):
        for axis, mark in enumerate(marks):
            if leaf.shape[axis] > 1 and labels.root(mark) != labels.root(ORDERED):
                found.setdefault(labels.root(mark), []).append((path, axis))
    if not found:
        raise ValueError("no units of this model may change places: its outputs tell all apart")
    return [Units(named[axes[0][0]].shape[axes[0][1]], tuple(axes)) for axes in found.values()]


class _Labels:
    """Labels of axes, some of which turn out to be one."""

    def __init__(self) -> None:
        self._parent = [ORDERED]

    def fresh(self, shape: Sequence[int]) -> Labels:
        first = len(self._parent)
        self._parent += range(first, first + len(shape))
        return list(range(first, first + len(shape)))

    def ordered(self, shape: Sequence[int]) -> Labels:
        return [ORDERED] * len(shape)

    def root(self, label: int) -> int:
        while self._parent[label] != label:
            label = self._parent[label]
        return label

    def unite(self, one: int, other: int) -> None:
        roots = sorted((self.root(one), self.root(other)))
        self._parent[roots[1]] = roots[0]

    def order(self, labels: Labels) -> None:
        for label in labels:
            self.unite(ORDERED, label)


def _through(labels: _Labels, closed: ClosedJaxpr, given: Sequence[Labels]) -> list[Labels]:
    """The labels of a program's outputs, from those of its inputs."""
    constants = [labels.ordered(np.shape(constant)) for constant in closed.consts]
    return _of_jaxpr(labels, closed.jaxpr, [*constants, *given])


def _of_jaxpr(labels: _Labels, jaxpr: Jaxpr, given: Sequence[Labels]) -> list[Labels]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

    def of(atom: Any) -> Labels:
        return labels.ordered(np.shape(atom.val)) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        rule = RULES.get(equation.primitive.name, _unknown)
        outs = rule(labels, equation, [of(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, outs, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


# ------------------------------------------------------------------ what each operation does


def _shapes(atoms: Sequence[Any]) -> list[tuple[int, ...]]:
    return [atom.aval.shape for atom in atoms]


def _unknown(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    for own in given:
        labels.order(own)
    return [labels.ordered(shape) for shape in _shapes(equation.outvars)]


def _entrywise(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    """Each axis is that of every operand, of which scalars have none."""
    out = labels.fresh(equation.outvars[0].aval.shape)
    for own in given:
        for mark, place in zip(own, out, strict=False):
            labels.unite(mark, place)
    return [out]


def _call(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    inner = next(v for v in equation.params.values() if isinstance(v, Jaxpr | ClosedJaxpr))
    if isinstance(inner, Jaxpr):
        return _of_jaxpr(labels, inner, given)
    return _through(labels, inner, given)


def _dot(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    left, right = given
    (left_summed, right_summed), (left_batch, right_batch) = equation.params["dimension_numbers"]
    pairs = zip([*left_summed, *left_batch], [*right_summed, *right_batch], strict=True)
    for one, other in pairs:
        labels.unite(left[one], right[other])
    free = [mark for axis, mark in enumerate(left) if axis not in (*left_summed, *left_batch)]
    others = [mark for axis, mark in enumerate(right) if axis not in (*right_summed, *right_batch)]
    return [[*(left[axis] for axis in left_batch), *free, *others]]


def _convolution(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    """Channels are summed over as in a product; positions keep their order."""
    numbers, (image, kernel) = equation.params["dimension_numbers"], given
    if max(equation.params[key] for key in ("feature_group_count", "batch_group_count")) > 1:
        return _unknown(labels, equation, given)
    labels.unite(image[numbers.lhs_spec[1]], kernel[numbers.rhs_spec[1]])
    for axis in numbers.lhs_spec[2:]:
        labels.order([image[axis]])
    for axis in numbers.rhs_spec[2:]:
        labels.order([kernel[axis]])
    out = labels.ordered(equation.outvars[0].aval.shape)
    out[numbers.out_spec[0]] = image[numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = kernel[numbers.rhs_spec[0]]
    return [out]


def _transpose(_: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    return [[given[0][axis] for axis in equation.params["permutation"]]]


def _broadcast(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    """A new axis has equal entries, whose order is free."""
    (before,), (after,) = _shapes(equation.invars[:1]), _shapes(equation.outvars)
    out = labels.fresh(after)
    for axis, place in enumerate(equation.params["broadcast_dimensions"]):
        if before[axis] == after[place]:
            out[place] = given[0][axis]
    return [out]


def _reshape(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    """Axes that go through whole keep their labels; what is cut or merged is tied to its order."""
    (before,), (after,) = _shapes(equation.invars[:1]), _shapes(equation.outvars)
    out = labels.fresh(after)
    old = [axis for axis, size in enumerate(before) if size > 1]
    new = [axis for axis, size in enumerate(after) if size > 1]
    while old and new:
        ours, theirs = [old.pop(0)], [new.pop(0)]
        while (sizes := _products(before, ours, after, theirs))[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                ours.append(old.pop(0))
            else:
                theirs.append(new.pop(0))
        if len(ours) == len(theirs) == 1:
            out[theirs[0]] = given[0][ours[0]]
        else:
            labels.order([given[0][axis] for axis in ours] + [out[axis] for axis in theirs])
    return [out]


def _products(
    before: Sequence[int], ours: Sequence[int], after: Sequence[int], theirs: Sequence[int]
) -> tuple[int, int]:
    return math.prod(before[axis] for axis in ours), math.prod(after[axis] for axis in theirs)


def _without(name: str) -> Callable[..., list[Labels]]:
    """Axes go: summed over (the order of what is summed is free), or of size 1."""

    def rule(_: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
        gone = equation.params[name]
        left = [mark for axis, mark in enumerate(given[0]) if axis not in gone]
        return [left for _ in equation.outvars]

    return rule


def _same_size(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    """A slice, or padding: an axis whose size changes is tied to its order."""
    (before,), (after,) = _shapes(equation.invars[:1]), _shapes(equation.outvars)
    labels.order([m for m, a, b in zip(given[0], before, after, strict=True) if a != b])
    return [given[0]]


def _window(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    """Pooling: axes whose window is 1 entry wide keep their labels."""
    for axis, width in enumerate(equation.params["window_dimensions"]):
        if width > 1:
            labels.order([given[0][axis]])
    return _same_size(labels, equation, given)


def _concatenation(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    for own in given:
        labels.order([own[equation.params["dimension"]]])
    return _entrywise(labels, equation, given)


def _pieces(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    labels.order([given[0][equation.params["axis"]]])
    return [given[0] for _ in equation.outvars]


def _counting(labels: _Labels, equation: Any, _: list[Labels]) -> list[Labels]:
    out = labels.fresh(equation.outvars[0].aval.shape)
    labels.order([out[equation.params["dimension"]]])
    return [out]


def _gather(labels: _Labels, equation: Any, given: list[Labels]) -> list[Labels]:
    """Rows of a table: the axes that are taken whole keep their labels."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, out = equation.invars[0].aval.shape, labels.ordered(equation.outvars[0].aval.shape)
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [axis for axis in range(len(shape)) if axis not in gone]
    for axis, place in zip(whole, numbers.offset_dims, strict=True):
        if sizes[axis] == shape[axis]:
            out[place] = given[0][axis]
    labels.order([m for m, n, all_of in zip(given[0], sizes, shape, strict=True) if n != all_of])
    labels.order(given[1])
    return [out]


_ENTRYWISE = """
    abs add add_any and cbrt ceil clamp convert_element_type copy cos cosh div eq erf erf_inv erfc
    exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not
    or pow real rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor
"""
_CALLS = "jit pjit closed_call core_call custom_jvp_call custom_vjp_call checkpoint remat2"
_REDUCTIONS = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or"
RULES: dict[str, Callable[[_Labels, Any, list[Labels]], list[Labels]]] = {
    **dict.fromkeys(_ENTRYWISE.split(), _entrywise),
    **dict.fromkeys(_CALLS.split(), _call),
    **dict.fromkeys(_REDUCTIONS.split(), _without("axes")),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenation,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "gather": _gather,
    "iota": _counting,
    "pad": _same_size,
    "reduce_window_max": _window,
    "reduce_window_sum": _window,
    "reshape": _reshape,
    "slice": _same_size,
    "split": _pieces,
    "squeeze": _without("dimensions"),
    "transpose": _transpose,
}
