"""The tangent kernel of the outputs, and the layers' representations."""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge

from lmech import seeds
from lmech.datasets import Examples
from lmech.losses import targets
from lmech.numerics import features, kernels, lapack, tracking
from lmech.numerics.kernels import Reduction
from lmech.numerics.krylov import Operator
from lmech.numerics.tracking import Policy
from lmech.observables import (
    Count,
    Memory,
    Observable,
    State,
    Values,
    all_counting,
    training_examples,
)
from lmech.problem import count, masked

NonNegative = Annotated[int, Ge(0)]


def _probes(state: State, count: int | None, least: int, name: str) -> Examples:
    """The training examples that an observable looks at, at least so many."""
    probes = training_examples(state, count)
    if len(probes.x) < least:
        raise ValueError(
            f"{name} was given {len(probes.x)} training examples and needs at least {least}: "
            f"raise observables.{name}.examples"
        )
    return probes


class _Kernels(NamedTuple):
    """The kernel at step 0, and that of the last measurement."""

    first: jax.Array
    last: jax.Array
    step: jax.Array


def ntk(
    examples: Count | None = 100,
    reduction: Reduction = "trace",
    k: Count = 10,
    block: Count | None = None,
) -> Observable:
    """The empirical neural tangent kernel Θ = J C Jᵀ on N training examples, formed.

    C are the learning-rate multipliers. ``reduction`` says which kernel K is looked at: ``trace``
    (1/C) Σ_c Θ_cc [N, N], ``sum_logits`` Σ_cc' Θ_cc' [N, N] or ``full`` Θ [N·C, N·C]. Of
    sequences each position counts as an example: N is then their number times T.

    Columns: λ₁ of K/N and ``eigenvalues`` [k], the largest eigenvalues in descending order: under
    squared error those of Θ/N are the Gauss–Newton matrix's, in the units of the sharpness (if C is
    1). ``trace`` tr K/N; ``effective_rank`` of all eigenvalues (Roy & Vetterli 2007).
    ``alignment`` ⟨K, T⟩/(‖K‖‖T‖) with the target kernel T = YYᵀ (vec(Y)vec(Y)ᵀ if full; labels are
    one-hot), ``alignment_centred`` with both centred over the examples, each output on its own
    (not a number for one example). ``distance`` 1 − cos(K, K₀) to the kernel at step 0 (Fort et al.
    2020), ``change`` ‖K − K₀‖/‖K₀‖, and ``velocity``, the distance to the last measurement's K over
    the steps since, not a number at the first.

    ``block`` examples' gradients are alive at a time, twice (None: at most 512 MiB). Where batch
    norm works on groups, ``examples`` is a multiple of the group.

    Raises ValueError if there are fewer examples, none, or fewer than k rows, and for all of a
    training set of which only some count.
    """

    def probes(state: State) -> Examples:
        return all_counting("ntk", state, _probes(state, examples, 1, "ntk"))

    def kernel(state: State) -> jax.Array:
        x = probes(state).x
        apply, rates = state.problem.apply, state.scales.learning_rate
        return kernels.empirical_ntk(apply, state.params, x, reduction, rates, block)

    def init(state: State) -> Memory:
        K = kernel(state)
        if k > len(K):
            raise ValueError(f"the kernel has {len(K)} eigenvalues: lower k ({k})")
        return _Kernels(K, K, state.step)

    def measure(state: State, memory: _Kernels) -> tuple[Memory, Values]:
        K, (x, y, _) = kernel(state), probes(state)
        f = state.problem.apply(state.params, x)
        Y = targets(y, f).reshape(-1, f.shape[-1])
        eigenvalues = lapack.eigvalsh(K)[::-1] / len(Y)
        steps = (state.step - memory.step).astype(K.dtype)
        moved = kernels.kernel_distance(K, memory.last)
        return _Kernels(memory.first, K, state.step), {
            "": eigenvalues[0],
            "eigenvalues": eigenvalues[:k],
            "trace": jnp.trace(K) / len(Y),
            "effective_rank": features.effective_rank(eigenvalues),
            "alignment": kernels.alignment(K, Y),
            "alignment_centred": kernels.centred_alignment(K, Y),
            "distance": kernels.kernel_distance(K, memory.first),
            "change": kernels.relative_change(K, memory.first),
            "velocity": jnp.where(steps > 0, moved / steps, jnp.asarray(jnp.nan, K.dtype)),
        }

    return Observable(init, measure)


def ntk_top(
    k: Count = 4,
    extensions: NonNegative = 3,
    check_every: Count | None = None,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """λ₁, …, λ_k of Θ/N, Θ = J C Jᵀ [N·C, N·C] on N training examples, through products with Θ.

    Of sequences each position counts as an example: N is then their number times T.

    Under squared error these are the largest eigenvalues of the Gauss–Newton matrix JᵀJ/N (if C is
    1). The tracker of ``sharpness`` in function space: its memory is a warm block [N·C, k], and a
    measurement costs k + ``extensions`` products, each a backward and a forward pass over the
    examples; ``check_every`` so many measurements comes a run from a random vector.

    Columns: λ₁, ``eigenvalues`` [k] in descending order, ``residuals`` ‖Θv/N − θv‖ [k] and
    ``residual``, the first of them, ``gap`` λ₁ − λ₂, ``products`` spent, and with ``check_every``
    the ``checks`` and ``misses`` of ``sharpness``. λ₁ is a lower bound, at most ‖r‖²/gap below the
    eigenvalue that it approximates. ``microbatch`` (examples) bounds the memory.

    Raises ValueError if there are fewer examples, none, or if k exceeds N·C.
    """
    policy = Policy(k, extensions, check_every=check_every)

    def probes(state: State) -> Examples:
        return _probes(state, examples, 1, "ntk_top")

    def operator(state: State) -> Operator:
        chosen, rates = probes(state), state.scales.learning_rate
        size = microbatch or state.microbatch
        product = kernels.ntk_products(state.problem.apply, state.params, chosen.x, rates, size)
        outputs = jax.eval_shape(state.problem.apply, state.params, chosen.x).shape
        positions = math.prod(outputs[1:-1])

        def counting(block: jax.Array) -> jax.Array:
            """The block [K, …] with 0 for the outputs of examples that do not count."""
            by_example = block.T.reshape(len(chosen.x), -1)
            return masked(chosen, by_example).reshape(block.T.shape).T

        if chosen.weight is None:
            return lambda block: product(block) / (len(chosen.x) * positions)
        return lambda block: counting(product(counting(block))) / (count(chosen) * positions)

    def init(state: State) -> Memory:
        outputs = jax.eval_shape(state.problem.apply, state.params, probes(state).x)
        if k > outputs.size:
            raise ValueError(f"the kernel has {outputs.size} eigenvalues: lower k ({k})")
        key = seeds.key(state.seeds, "probes")
        return tracking.start(operator(state), key, outputs.size, outputs.dtype, policy)

    def measure(state: State, track: Memory) -> tuple[Memory, Values]:
        key = jax.random.fold_in(seeds.key(state.seeds, "probes"), state.step + 1)
        track, pairs, products = tracking.follow(operator(state), key, track, policy)
        return track, tracking.columns(track, pairs, products, policy)

    return Observable(init, measure, warm=True)


def cka(examples: Count | None = 200) -> Observable:
    """Linear CKA between the representations of N training examples (Kornblith et al. 2019).

    A representation is what one of the L layers puts out, flattened: the layers in the order of the
    forward pass, affine maps and nonlinearities each their own, the outputs last. Columns: the CKA
    of every pair of layers [L, L] (a table stores it row by row), and ``initial`` [L], each layer's
    with itself at step 0. In [0, 1]; not a number for a layer that puts out the same for every
    example. The memory is the layers' Gram matrices [L, N, N].

    Raises ValueError for fewer than two examples, for all of a training set of which only some
    count, and for a model that tells no activations.
    """

    def grams(state: State) -> jax.Array:
        x = all_counting("cka", state, _probes(state, examples, 2, "cka")).x
        layers = state.problem.activations(state.params, x)
        if not layers:
            raise ValueError(
                "cka compares the layers' outputs, and this model does not tell them: leave cka "
                "out of the observables"
            )
        return jnp.stack([kernels.centred_gram(layer) for layer in layers.values()])

    def measure(state: State, first: Memory) -> tuple[Memory, Values]:
        now = grams(state)
        return first, {
            "": jnp.einsum("anm,bnm->ab", now, now),
            "initial": jnp.einsum("anm,anm->a", now, first),
        }

    return Observable(grams, measure)
