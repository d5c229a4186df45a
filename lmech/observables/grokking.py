"""Progress measures of addition modulo p: what the logits know of a + b (Nanda et al. 2023).

For p odd, functions of c ∈ Z_p have the orthonormal basis 1/√p, √(2/p) cos(2πkc/p),
√(2/p) sin(2πkc/p), k = 1 … (p − 1)/2: a frequency k is a pair of waves.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lmech.numerics import trees
from lmech.observables import Count, Observable, State, Values, memoryless
from lmech.problem import count, masked


def waves(p: int) -> np.ndarray:
    """[1 + (p − 1)/2, 2, p]: the constant (and a row of zeros), then each frequency's two waves.

    Raises ValueError for an even p, whose last frequency has one wave.
    """
    if p % 2 == 0:
        raise ValueError(f"Fourier measures need an odd number of residues, and there are {p}")
    angles = 2 * np.pi / p * np.outer(np.arange(p // 2 + 1), np.arange(p))
    both = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.sqrt(2 / p)
    both[0, 0] = 1 / np.sqrt(p)
    return both


def gini(values: jax.Array) -> jax.Array:
    """Σᵢⱼ |vᵢ − vⱼ| / (2n Σ v) of n values ≥ 0: 0 if all are equal, 1 − 1/n for a single one."""
    n = values.shape[0]
    rank = 2 * jnp.arange(1, n + 1, dtype=values.dtype) - n - 1
    return jnp.sum(rank * jnp.sort(values)) / (n * jnp.sum(values))


def fourier_concentration(tensor: str = "embedding") -> Observable:
    """Gini coefficient of the norms of an embedding's frequencies, over k = 1 … (p − 1)/2.

    Of the rows E_0 … E_{p−1} of the tensor of that path; frequency k has norm (|Σ_c cos E_c|² +
    |Σ_c sin E_c|²)^½ with the orthonormal waves. Near 0 at random, towards 1 where few frequencies
    are used. Raises ValueError if there is no such tensor.
    """

    def measure(state: State) -> Values:
        known = trees.named_leaves(state.params)
        if tensor not in known:
            raise ValueError(f"no tensor {tensor} in this model: it has {', '.join(known)}")
        p = jax.eval_shape(state.problem.apply, state.params, state.data.train.x).shape[-1]
        table = known[tensor][:p]
        parts = jnp.tensordot(jnp.asarray(waves(p), table.dtype), table, 1)
        return {"": gini(jnp.sqrt(jnp.sum(jnp.square(parts[1:]), axis=(1, 2))))}

    return memoryless(measure)


def progress_measures(frequencies: list[Count] | None = None, most: Count = 5) -> Observable:
    """Restricted and excluded loss of addition mod p: tokens "a b =", labels a + b.

    Of the logits F_c(a, b) on all p² pairs, the part that is a function of a + b alone is the mean
    over the pairs of the same sum; its waves of the key frequencies, as functions of a + b mod p,
    are K_c(a + b). Key are ``frequencies``, or the ``most`` that have most power in F now.

    ``restricted_loss``: the loss on the test pairs of K plus the mean of F over all pairs.
    ``excluded_loss``: that on the training pairs of F − K. ``key_share``: Σ K² / Σ (F − mean F)².
    Raises ValueError for other inputs than pairs of tokens.
    """

    def measure(state: State) -> Values:
        x = state.data.train.x
        if x.ndim != 2 or x.shape[1] != 3 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError("progress_measures take pairs of tokens: dataset=modular")
        outputs = jax.eval_shape(state.problem.apply, state.params, x)
        p = outputs.shape[-1]
        a, b = (axis.ravel() for axis in np.meshgrid(np.arange(p), np.arange(p), indexing="ij"))
        pairs = np.stack([a, b, np.full_like(a, p)], axis=1).astype(np.int32)
        logits = state.problem.apply(state.params, jnp.asarray(pairs))
        mean = logits.mean(axis=0, keepdims=True)
        sums = jnp.asarray((a + b) % p)
        by_sum = jax.ops.segment_sum(logits, sums, num_segments=p) / p
        key = key_part(by_sum, frequencies, most)[sums]

        def loss(split: str, outputs: jax.Array) -> jax.Array:
            own = state.data.splits[split]
            values = state.problem.loss(outputs, sums)[own.x[:, 0] * p + own.x[:, 1]]
            return masked(own, values).sum() / count(own)

        values = {
            "restricted_loss": loss("test", key + mean),
            "excluded_loss": loss("train", logits - key),
        }
        return {**values, "key_share": jnp.sum(key**2) / jnp.sum((logits - mean) ** 2)}

    return memoryless(measure)


def key_part(by_sum: jax.Array, frequencies: list[int] | None, most: int) -> jax.Array:
    """The key frequencies' part of functions of the residues, [p, C], along the first axis."""
    basis = jnp.asarray(waves(by_sum.shape[0]), by_sum.dtype)
    parts = jnp.tensordot(basis, by_sum, 1).at[0].set(0)  # [frequency, 2, C]
    power = jnp.sum(jnp.square(parts), axis=(1, 2))
    if frequencies is None:
        kept = jnp.zeros_like(power).at[jax.lax.top_k(power, most)[1]].set(1)
    else:
        kept = jnp.zeros_like(power).at[np.asarray(frequencies)].set(1)
    return jnp.tensordot(basis, kept[:, None, None] * parts, ((0, 1), (0, 1)))
