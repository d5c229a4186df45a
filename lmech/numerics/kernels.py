"""Tangent kernels and what is read off them."""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from lmech.numerics import factors, trees
from lmech.numerics.factors import Derivative, Factored
from lmech.numerics.features import in_microbatches
from lmech.numerics.krylov import Operator

Tree = Any
Apply = Callable[[Tree, jax.Array], jax.Array]  # (params, inputs [N, …]) -> outputs [N, …, C]
Reduction = Literal["full", "trace", "sum_logits"]

# Outputs [N, C] or [N, T, C] -> [N, R, S]: R rows an example, each a sum over S functions.
REDUCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "full": lambda f: f.reshape(len(f), -1, 1),
    "trace": lambda f: f.reshape(len(f), -1, f.shape[-1]) / math.sqrt(f.shape[-1]),
    "sum_logits": lambda f: f.sum(axis=-1).reshape(len(f), -1, 1),
}
BLOCK_BYTES = (
    2**29
)  # of gradients kept, what differentiating needs, two blocks' products, at a time


def empirical_ntk(
    apply: Apply,
    params: Tree,
    x: jax.Array,
    reduction: Reduction = "full",
    rates: Tree | None = None,
    block: int | None = None,
    group: int | None = None,
) -> jax.Array:
    """Θ = J C Jᵀ, J the Jacobian of the N × C outputs in the P parameters (Jacot et al. 2018).

    ``rates``, a tree of scalars like ``params``, is the diagonal C of learning-rate multipliers
    (None: all 1), so gradient flow is ḟ = −Θ ∂L/∂f. ``reduction`` says what of it is formed:

    - ``full``: Θ [N·C, N·C], rows in the order (example, output);
    - ``trace``: (1/C) Σ_c Θ_cc [N, N], the mean over the outputs of each one's own kernel;
    - ``sum_logits``: Σ_cc' Θ_cc' [N, N], the kernel of the function Σ_c f_c.

    Of sequences, outputs [N, T, C], each position counts as an example: [N·T·C, N·T·C] and
    [N·T, N·T], rows in the order (example, position, output).

    Only two blocks of ``block`` examples' gradients are alive at a time, contracted tensor by
    tensor (None: so many that each, and all those products, take at most 512 MiB). A block's
    gradients are computed once a pair of blocks, or once where those of all examples take no more
    than that (and no ``block`` is asked for). A dense layer's gradients stay outer products
    (``factors``): the contraction is some N²(i + o) multiplications for ``sum_logits``, N²(i + Co)
    for ``trace`` and N²(i + C²o) for ``full``. Of another tensor, of p entries, it is N²p, CN²p and
    C²N²p (half of it where there are many blocks). ``group`` is the number of consecutive examples
    that interact (None: ``interacting``); groups are differentiated on their own, each of their
    outputs through the whole group.

    Raises ValueError for no examples, and if ``group`` does not divide N and ``block``.
    """
    n = len(x)
    if n == 0:
        raise ValueError("a kernel needs at least one example, and there are none")
    group = group or interacting(apply, params, x)

    def outputs(params: Tree, x: jax.Array) -> jax.Array:
        return REDUCTIONS[reduction](apply(params, x))

    derivative = factors.derivative(outputs, params, x[:group])
    one, rows = jax.eval_shape(derivative.at, params, x[:group]), derivative.output.shape[1]
    # XLA sums the tensors' products in one pass, for which all of them are there at once.
    entry = len(jax.tree.leaves(params)) * max(leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
    size = _block(n, group, block, _bytes(one) // group, rows * math.sqrt(entry))
    if size == n or (block is None and n * _bytes(one) <= group * BLOCK_BYTES):
        whole = jacobian(derivative, params, x, group)
        if size == n:
            return contract(whole, whole, rates)
        gradients = partial(_part, whole, n, size)
    else:
        gradients = partial(_gradients, derivative, params, x, group, size)
    starts = jnp.minimum(jnp.arange(0, n, size), n - size)  # the last block overlaps the one before
    kernel = jnp.zeros((n * rows, n * rows), jnp.result_type(*jax.tree.leaves(params)))
    return _in_pairs(gradients, starts, rows, kernel, rates)


def _gradients(
    derivative: Derivative, params: Tree, x: jax.Array, group: int, size: int, start: jax.Array
) -> Tree:
    """The gradients of ``size`` examples from ``start`` on."""
    return jacobian(derivative, params, lax.dynamic_slice_in_dim(x, start, size), group)


def _part(whole: Tree, n: int, size: int, start: jax.Array) -> Tree:
    """The gradients of ``size`` of the n examples, of those of all."""

    def rows(leaf: jax.Array) -> jax.Array:  # one an example, an output or a group
        return lax.dynamic_slice_in_dim(leaf, start * len(leaf) // n, size * len(leaf) // n)

    return jax.tree.map(rows, whole)


def _in_pairs(
    gradients: Callable[[jax.Array], Tree],
    starts: jax.Array,
    rows: int,
    kernel: jax.Array,
    rates: Tree | None,
) -> jax.Array:
    """The kernel, written into ``kernel`` pair by pair of the blocks that start at ``starts``."""

    def put(kernel: jax.Array, i: jax.Array, j: jax.Array, entries: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(kernel, entries, (starts[i] * rows, starts[j] * rows))

    def line(i: jax.Array, kernel: jax.Array) -> jax.Array:
        first = gradients(starts[i])

        def pair(j: jax.Array, kernel: jax.Array) -> jax.Array:
            entries = contract(first, gradients(starts[j]), rates)
            return put(put(kernel, i, j, entries), j, i, entries.T)

        kernel = put(kernel, i, i, contract(first, first, rates))
        return lax.fori_loop(i + 1, len(starts), pair, kernel)

    return lax.fori_loop(0, len(starts), line, kernel)


def interacting(apply: Apply, params: Tree, x: jax.Array) -> int:
    """The fewest consecutive examples, a divisor of N, that ``apply`` takes on their own.

    1 where examples do not interact. A model whose examples do says so by a ValueError for what is
    no multiple of its group, as batch norm over groups does; one that mixes any number of examples
    is not recognised. Raises what the model raises for all N.
    """
    n = len(x)
    for size in (size for size in range(1, n) if n % size == 0):
        try:
            jax.eval_shape(apply, params, x[:size])
        except ValueError:
            continue
        return size
    jax.eval_shape(apply, params, x)
    return n


def _bytes(tree: Tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _block(n: int, group: int, block: int | None, example_bytes: int, side: float) -> int:
    """Examples a block: a multiple of the group, as asked for or as the budget allows.

    Each takes ``example_bytes``, and ``side`` times its number is the root of what products take.
    Blocks are of a size, which leaves the least to compute twice.
    """
    if block is None:
        fit = min(BLOCK_BYTES // example_bytes, int(math.sqrt(BLOCK_BYTES) / side))
        groups = -(-n // group)
        block = group * -(-groups // -(-groups // max(1, fit // group)))
    if n % group or (block < n and block % group):
        raise ValueError(
            f"examples interact in groups of {group}: their number ({n}) and the kernel's block "
            f"({block}) must be multiples of {group}"
        )
    return min(n, block)


def jacobian(derivative: Derivative, params: Tree, x: jax.Array, group: int = 1) -> Tree:
    """J of outputs [N, R, S] as a tree with leaves [N·R, S·p], p the size of the tensor.

    A leaf is Factored where the tensor meets one vector. ``group`` consecutive examples, as many as
    the derivative is of, are differentiated on their own, as many groups side by side as fit into
    512 MiB with what backpropagation keeps of them.
    """
    n = len(x)
    groups = x.reshape(n // group, group, *x.shape[1:])
    made = jax.eval_shape(derivative.at, params, groups[0])
    outputs = derivative.output.size
    size = max(1, BLOCK_BYTES // (outputs * derivative.kept_bytes + _bytes(made)))
    one = partial(derivative.at, params)
    each = jax.vmap(one)(groups) if size >= len(groups) else lax.map(one, groups, batch_size=size)

    def rows(leaf: jax.Array) -> jax.Array:  # [N/G, G, R, S, …]
        return leaf.reshape(n * leaf.shape[2], -1)

    def whole(leaf: Factored | jax.Array) -> Factored | jax.Array:
        if isinstance(leaf, Factored):
            return Factored(leaf.inputs, rows(leaf.slopes))
        return rows(leaf)

    return jax.tree.map(whole, each, is_leaf=_factored)


def _factored(leaf: Any) -> bool:
    return isinstance(leaf, Factored)


def contract(a: Tree, b: Tree, rates: Tree | None = None) -> jax.Array:
    """Σ over the tensors of C · A Bᵀ, from leaves [M, p] and [M', p] to [M, M']."""
    parts = jax.tree.map(factors.inner_products, a, b, is_leaf=_factored)
    if rates is not None:
        parts = trees.multiply(rates, parts)
    return reduce(jnp.add, jax.tree.leaves(parts))


def ntk_products(
    apply: Apply,
    params: Tree,
    x: jax.Array,
    rates: Tree | None = None,
    microbatch: int | None = None,
) -> Operator:
    """U ↦ Θ U for a block of rows U [K, N·C] (sequences: N·T·C), with Θ = J C Jᵀ never formed.

    JᵀU by reverse mode, summed over the microbatches, then J (C JᵀU) by forward mode: K passes
    each way over all examples, and memory for K copies of the parameters beside a microbatch.
    Where examples interact, ``microbatch`` is a multiple of the group.
    """
    shape = jax.eval_shape(apply, params, x).shape

    def product(U: jax.Array) -> jax.Array:
        def pull(batch: tuple[jax.Array, jax.Array]) -> Tree:
            inputs, cotangents = batch
            _, vjp = jax.vjp(lambda params: apply(params, inputs), params)
            return jax.vmap(lambda u: vjp(u)[0], in_axes=-1)(cotangents)

        def push(inputs: jax.Array) -> jax.Array:
            _, jvp = jax.linearize(lambda params: apply(params, inputs), params)
            return jax.vmap(jvp, out_axes=-1)(directions)

        by_example = jnp.moveaxis(U.reshape(len(U), *shape), 0, -1)
        directions = trees.accumulate(pull, (x, by_example), microbatch)
        if rates is not None:
            directions = trees.multiply(rates, directions)
        return jnp.moveaxis(in_microbatches(push, x, microbatch), -1, 0).reshape(U.shape)

    return product


def alignment(kernel: jax.Array, y: jax.Array) -> jax.Array:
    """⟨K, T⟩ / (‖K‖_F ‖T‖_F) ∈ [−1, 1] with the target kernel T of y, [N] or [N, C].

    T = YYᵀ for a kernel [N, N] of the examples, vec(Y) vec(Y)ᵀ for one [N·C, N·C] of all outputs
    (in the order of its rows). Cristianini et al. 2001, "On kernel-target alignment".
    """
    Y = y.reshape(len(kernel), -1)
    return jnp.vdot(Y, kernel @ Y) / (jnp.linalg.norm(kernel) * jnp.linalg.norm(Y.T @ Y))


def centred(kernel: jax.Array, examples: int | None = None) -> jax.Array:
    """H K H, H = I − 11ᵀ/N: the kernel of features whose mean over the N examples is removed.

    A kernel [N·C, N·C] of all outputs takes ``examples`` = N, and each output's features lose a
    mean of their own: H ⊗ I_C in place of H.
    """
    n = examples or len(kernel)
    entries = kernel.reshape(n, len(kernel) // n, n, -1)
    entries = entries - entries.mean(axis=0, keepdims=True)
    return (entries - entries.mean(axis=2, keepdims=True)).reshape(kernel.shape)


def centred_alignment(kernel: jax.Array, y: jax.Array) -> jax.Array:
    """Alignment of the centred kernel with the centred targets (Cortes et al. 2012)."""
    return alignment(centred(kernel, len(y)), y - y.mean(axis=0, keepdims=True))


def kernel_distance(K: jax.Array, L: jax.Array) -> jax.Array:
    """1 − ⟨K, L⟩/(‖K‖_F ‖L‖_F) (Fort et al. 2020), 0 for kernels equal up to scale.

    Computed as ½ ‖K/‖K‖ − L/‖L‖‖², which is the same and does not cancel.
    """
    difference = K / jnp.linalg.norm(K) - L / jnp.linalg.norm(L)
    return jnp.vdot(difference, difference) / 2


def relative_change(K: jax.Array, K0: jax.Array) -> jax.Array:
    """‖K − K₀‖_F / ‖K₀‖_F."""
    return jnp.linalg.norm(K - K0) / jnp.linalg.norm(K0)


def centred_gram(features: jax.Array) -> jax.Array:
    """H X Xᵀ H / ‖H X Xᵀ H‖_F [N, N] of features X [N, …]; of two, linear CKA is the dot product.

    ‖Yᵀ X‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F), columns centred: 1 for features that are equal up to rotation,
    scale and shift. Not a number if either does not vary (Kornblith et al. 2019).
    """
    X = features.reshape(len(features), -1)
    X = X - X.mean(axis=0, keepdims=True)
    gram = X @ X.T
    return gram / jnp.linalg.norm(gram)
