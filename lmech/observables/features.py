"""Features: what the layers put out on a fixed probe set, a part of the training set."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import lax
from jax.scipy.special import entr

from lmech.datasets import Examples
from lmech.losses import by_example
from lmech.numerics import features, lapack, trees
from lmech.observables import Count, Memory, Observable, State, Values, memoryless
from lmech.observables import training_examples as probes
from lmech.problem import count, has_labels, masked


def by_layer(state: State, x: jax.Array) -> dict[str, jax.Array]:
    """What each layer puts out for ``x``, by path.

    Raises ValueError for a model that does not tell.
    """
    found = trees.named_leaves(state.problem.activations(state.params, x))
    if not found:
        raise ValueError(
            "this model does not tell what its layers put out (a linearized one has none): leave "
            "what is measured of layers out of the observables, or give its Problem `activations`"
        )
    return found


def activations(examples: Count | None = None, microbatch: Count | None = None) -> Observable:
    """Size of each layer's outputs h, and their change since step 0 (the coordinate check).

    Over the entries of h (examples × units) of each layer, with Δh = h − h₀:

    - ``rms_<layer>``: √mean(h²);
    - ``mean_change_<layer>``: mean |Δh|, and ``rms_change_<layer>``: √mean(Δh²), which a
      parametrization with a width limit that learns features keeps at order 1 in the width
      (Yang et al. 2022, Tensor Programs V, §D.1);
    - ``relative_change_<layer>``: ‖Δh‖ / ‖h₀‖, the lazy-to-rich scale (Chizat et al. 2019).

    A layer's name is its path with "_" for "/"; the outputs are the last layer. The memory is h₀,
    one number an example and unit: lower ``examples`` (None: the training set) where that is much.
    Raises ValueError for a model that does not tell its layers' outputs.
    """

    def init(state: State) -> Memory:
        x = probes(state, examples).x
        return features.in_microbatches(
            lambda x: by_layer(state, x), x, microbatch or state.microbatch
        )

    def measure(state: State, first: Memory) -> tuple[Memory, Values]:
        chosen = probes(state, examples)._replace(y=None)

        def sums(part: tuple[Examples, Memory]) -> dict[str, Values]:
            batch, start = part
            return {
                layer: _sums(masked(batch, h), masked(batch, start[layer]))
                for layer, h in by_layer(state, batch.x).items()
            }

        totals = trees.accumulate(sums, (chosen, first), microbatch or state.microbatch)
        values = {}
        for layer, total in totals.items():
            entries = first[layer].size // len(chosen.x) * count(chosen)
            for name, value in _changes(total, entries).items():
                values[f"{name}_{layer.replace('/', '_')}"] = value
        return first, values

    return Observable(init, measure)


def _sums(h: jax.Array, start: jax.Array) -> Values:
    change = h - start
    return {
        "squares": jnp.square(h).sum(),
        "start": jnp.square(start).sum(),
        "change": jnp.abs(change).sum(),
        "squared_change": jnp.square(change).sum(),
    }


def _changes(total: Values, entries: Any) -> Values:
    return {
        "rms": jnp.sqrt(total["squares"] / entries),
        "mean_change": total["change"] / entries,
        "rms_change": jnp.sqrt(total["squared_change"] / entries),
        "relative_change": jnp.sqrt(total["squared_change"] / total["start"]),
    }


def layer_updates(examples: Count | None = None, microbatch: Count | None = None) -> Observable:
    """What each tensor's own change since step 0 does to its layer: mean |Δ| of what it puts out.

    Of the weights at step 0 with that one tensor as it is now: for a kernel mean |ΔW h₀|, its term
    of the layer's change without what comes from the layers before (Yang et al. 2022; Everett et
    al. 2024). ``activations`` has the whole change. One column a tensor, its path with "_" for "/".
    The memory is w₀, and a measurement costs a forward pass a tensor.

    Raises ValueError for a model that does not tell its layers' outputs.
    """

    def init(state: State) -> Memory:
        by_layer(state, probes(state, examples).x[:1])
        return state.params

    def measure(state: State, start: Memory) -> tuple[Memory, Values]:
        chosen = probes(state, examples)._replace(y=None)
        size = microbatch or state.microbatch
        now, before = (trees.named_leaves(params) for params in (state.params, start))
        tree = jax.tree.structure(start)

        def change(path: str) -> jax.Array:
            layer = path.rpartition("/")[0]
            changed = jax.tree.unflatten(tree, [*(before | {path: now[path]}).values()])

            def total(batch: Examples) -> jax.Array:
                new, old = (
                    by_layer(state._replace(params=params), batch.x)[layer]
                    for params in (changed, start)
                )
                return masked(batch, jnp.abs(new - old).reshape(len(batch.x), -1).mean(1)).sum()

            return trees.accumulate(total, chosen, size) / count(chosen)

        layers = by_layer(state, chosen.x[:1])
        own = [path for path in now if path.rpartition("/")[0] in layers]
        return start, {path.replace("/", "_"): change(path) for path in own}

    return Observable(init, measure)


def activation_layers(name: str, state: State, x: jax.Array) -> dict[str, jax.Array]:
    """Of ``by_layer``, the layers whose name starts with "activation".

    Raises ValueError, in the ``name`` of an observable, for a model that has none.
    """
    layers = by_layer(state, x)
    chosen = {
        path: h for path, h in layers.items() if path.rpartition("/")[2].startswith("activation")
    }
    if not chosen:
        raise ValueError(
            f"{name} looks at the layers whose name starts with 'activation', and this "
            f"model's are {', '.join(layers)}: leave {name} out of the observables"
        )
    return chosen


def dead_units(examples: Count | None = None, microbatch: Count | None = None) -> Observable:
    """Fraction of the units whose activation is the same for every example of the probe set.

    A ReLU unit that is 0 for all is one, and so is a saturated tanh unit that rounds to ±1 for
    all: no example moves it, so it learns nothing (Lu et al. 2020, "Dying ReLU"). A unit is an
    entry of the last axis: of a convolution it is a channel, dead where none of its positions
    varies. Activation layers are those whose name starts with "activation".

    Columns: the fraction of all units, in [0, 1], and ``<layer>`` for each activation layer.
    Raises ValueError for a model that has no such layer.
    """

    def extremes(state: State, batch: Examples) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {
            layer.replace("/", "_"): (
                masked(batch, h, jnp.inf).min(axis=0, keepdims=True),
                masked(batch, h, -jnp.inf).max(axis=0, keepdims=True),
            )
            for layer, h in activation_layers("dead_units", state, batch.x).items()
        }

    def measure(state: State) -> Values:
        found = features.in_microbatches(
            lambda batch: extremes(state, batch),
            probes(state, examples)._replace(y=None),
            microbatch or state.microbatch,
        )
        dead = {name: _constant(low, high) for name, (low, high) in found.items()}
        dtype = next(iter(found.values()))[0].dtype
        fractions = {name: units.mean(dtype=dtype) for name, units in dead.items()}
        return {"": jnp.concatenate(list(dead.values())).mean(dtype=dtype), **fractions}

    return memoryless(measure)


def distinct_units(
    cosine: Annotated[float, Interval(gt=0, le=1)] = 0.98,
    centred: bool = False,
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """How many units of the activation layers are not (nearly) copies of another.

    A unit's feature is its activation over the probe set, of a convolution over all positions. In
    the units' order, one counts if its feature is not 0 and its cosine with each of those that
    counted before it is below ``cosine``. ``centred``: of features less their means, which is
    Pearson's correlation; a feature whose standard deviation is under a thousandth of its root mean
    square then counts as constant, so not at all, and all that rise linearly over the probe set are
    one (after Andriushchenko et al. 2023, whose feature sparsity merges units that correlate by
    0.95 or more).

    Columns: the number in all layers, and ``<layer>``. Raises ValueError for a model that has no
    activation layer.
    """

    def products(state: State, batch: Examples) -> dict[str, jax.Array]:
        """AᵀA [units + 1, units + 1] of A = (features, 1)."""
        layers = activation_layers("distinct_units", state, batch.x)

        def product(h: jax.Array) -> jax.Array:
            one = jnp.ones((*h.shape[:-1], 1), h.dtype)
            rows = masked(batch, jnp.concatenate([h, one], axis=-1)).reshape(-1, h.shape[-1] + 1)
            return rows.T @ rows

        return {layer.replace("/", "_"): product(h) for layer, h in layers.items()}

    def measure(state: State) -> Values:
        chosen = probes(state, examples)._replace(y=None)
        size = microbatch or state.microbatch
        total = trees.accumulate(lambda batch: products(state, batch), chosen, size)
        found = {layer: features.distinct(m, cosine, centred) for layer, m in total.items()}
        return {"": jnp.stack(list(found.values())).sum(), **found}

    return memoryless(measure)


def _constant(low: jax.Array, high: jax.Array) -> jax.Array:
    """Of extremes [microbatches, …, units]: which units have none of their entries vary."""
    still = low.min(axis=0) == high.max(axis=0)
    return still.reshape(-1, still.shape[-1]).all(axis=0)


def logits(examples: Count | None = None, microbatch: Count | None = None) -> Observable:
    """Size and margins of the outputs f over the probe set (of sequences, over all positions).

    Columns: ``norm`` √meanᵢ‖fᵢ‖² and ``max``, the largest |f_c| of all; with two outputs or more
    ``gap``, the mean of the largest minus the second largest; with class labels also ``margin``,
    the mean of f_y − max_{c≠y} f_c, which is negative where the label loses (Bartlett et al. 2017,
    unnormalised), and ``log_partition``, the mean of (log Σ_c exp f_c)², which a z-loss holds down.
    In units of the outputs.
    """

    def measure(state: State) -> Values:
        chosen = probes(state, examples)
        labelled = has_labels(chosen)

        def each(batch: Examples) -> Values:
            f = state.problem.apply(state.params, batch.x)
            size = jnp.abs(f).reshape(len(f), -1).max(axis=1)
            found = {"norm": jnp.square(f).sum(axis=-1), "max": masked(batch, size)}
            if f.shape[-1] >= 2:
                top = lax.top_k(f, 2)[0]
                found["gap"] = top[..., 0] - top[..., 1]
                if labelled:
                    found["margin"] = _margins(f, batch.y)
                    found["log_partition"] = jnp.square(jax.nn.logsumexp(f, axis=-1))
            return {name: by_example(values) for name, values in found.items()}

        found = features.in_microbatches(each, chosen, microbatch or state.microbatch)
        sums = {name: masked(chosen, values).sum() for name, values in found.items()}
        means = trees.divide(sums, count(chosen))
        return {**means, "norm": jnp.sqrt(means["norm"]), "max": found["max"].max()}

    return memoryless(measure)


def _margins(f: jax.Array, y: jax.Array) -> jax.Array:
    own = jax.nn.one_hot(y, f.shape[-1], dtype=bool)
    lowest = jnp.asarray(-jnp.inf, f.dtype)
    return jnp.where(own, f, lowest).max(axis=-1) - jnp.where(own, lowest, f).max(axis=-1)


# One value an example, from a layer [N, heads, T, S] whose path ends so.
ATTENTION: dict[str, Callable[[jax.Array], jax.Array]] = {
    "attention/logits": lambda logits: jnp.abs(logits).reshape(len(logits), -1).max(axis=1),
    "attention/weights": lambda weights: by_example(entr(weights).sum(axis=-1)),
}


def attention_logits(examples: Count | None = None, microbatch: Count | None = None) -> Observable:
    """Size of the attention logits over the probe set, and the entropy of the attention weights.

    Of the layers [N, heads, T, S] whose paths end in ``attention/logits`` and
    ``attention/weights``. Logits that grow make each query read a single position, and training
    unstable (Zhai et al. 2023, "entropy collapse"; Wortsman et al. 2023).

    Columns: the largest |logit| of all, ``<layer>`` that of each, and ``<layer>`` of the weights,
    the mean over examples, heads and queries of −Σ_s w_s ln w_s, in nats. A layer's name is its
    path with "_" for "/". Raises ValueError for a model without such layers.
    """

    def each(state: State, batch: Examples) -> Values:
        layers = by_layer(state, batch.x)
        if not any(name.endswith("attention/logits") for name in layers):
            raise ValueError(
                "attention_logits looks at layers whose path ends in 'attention/logits', and this "
                f"model's are {', '.join(layers)}: leave attention_logits out of the observables"
            )
        return {
            name.replace("/", "_"): read(layer)
            for name, layer in layers.items()
            for end, read in ATTENTION.items()
            if name.endswith(end)
        }

    def measure(state: State) -> Values:
        chosen = probes(state, examples)
        size = microbatch or state.microbatch
        found = features.in_microbatches(lambda batch: each(state, batch), chosen, size)
        found = {name: masked(chosen, values) for name, values in found.items()}
        largest = {name: v.max() for name, v in found.items() if name.endswith("logits")}
        sums = {name: v.sum() for name, v in found.items() if name.endswith("weights")}
        entropies = trees.divide(sums, count(chosen))
        return {"": jnp.stack(list(largest.values())).max(), **largest, **entropies}

    return memoryless(measure)


def effective_rank(examples: Count | None = None, microbatch: Count | None = None) -> Observable:
    """Effective rank of each layer's representation of the probe set (Roy & Vetterli 2007).

    exp(−Σ_k p_k ln p_k), p_k = σ_k / Σσ, with σ the singular values of the layer's outputs as a
    matrix [examples, units]; of a convolution or of sequences [examples × positions, channels].
    Means are not removed. From 1 (all rows parallel) to the number of units; not a number where all
    outputs are 0. The rank of the tangent kernel is another observable.

    Columns: ``<layer>``, its path with "_" for "/". Raises ValueError for a model that does not
    tell its layers' outputs.
    """

    def measure(state: State) -> Values:
        def factors(batch: Examples) -> dict[str, jax.Array]:
            layers = by_layer(state, batch.x)
            return {layer: features.triangular(masked(batch, h)) for layer, h in layers.items()}

        chosen = probes(state, examples)._replace(y=None)
        found = features.in_microbatches(factors, chosen, microbatch or state.microbatch)
        return {
            layer.replace("/", "_"): features.effective_rank(
                lapack.singular_values(features.triangular(factor))
            )
            for layer, factor in found.items()
        }

    return memoryless(measure)
