"""Neural collapse: the geometry of the last features and of the classifier on them."""

import jax
import numpy as np

from lmech import datasets, sampling
from lmech.datasets import Data, Examples
from lmech.numerics import features, trees
from lmech.observables import Count, Observable, State, Values, memoryless, training_examples
from lmech.problem import has_labels


def neural_collapse(
    layer: str | None = None,
    readout: str = "readout/kernel",
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """NC1 to NC4 on the training set (Papyan, Han & Donoho 2020); all are 0 at full collapse.

    h are the features [D] that the readout sees, μ_c the mean of class c, μ the mean of the μ_c,
    M [C, D] the centred class means μ_c − μ, W [D, C] the readout:

    - ``nc1`` tr(Σ_W Σ_B⁺) / C, Σ_W = mean over examples of (h − μ_c)(h − μ_c)ᵀ, Σ_B = MᵀM / C;
    - ``nc2_equinorm`` std_c‖M_c‖ / mean_c‖M_c‖;
    - ``nc2_equiangularity`` mean over pairs c ≠ c' of |cos(M_c, M_c') + 1/(C − 1)|;
    - ``nc3`` ‖Wᵀ/‖W‖_F − M/‖M‖_F‖_F², self-duality;
    - ``nc4`` fraction of examples that the outputs give another class than the nearest μ_c does.

    Classes count equally in μ and Σ_B, examples in Σ_W. ``layer`` names the features (None: the
    last layer before the outputs), averaged over positions if they are [N, H, W, D]; ``readout``
    names W. Not a number where a class has no example among those that data_fraction leaves.

    Raises ValueError for real targets, a label a position, one class, a class without examples, an
    unknown layer or tensor, and features that the readout cannot take.
    """

    def measure(state: State) -> Values:
        chosen, h, outputs, classifier = _seen(
            "neural_collapse", state, layer, readout, examples, microbatch
        )
        return features.neural_collapse(h, chosen.y, outputs, classifier, chosen.weight)

    return memoryless(measure)._replace(
        suits=lambda data: _all_classes("neural_collapse", data, examples)
    )


def class_geometry(
    layer: str | None = None,
    readout: str = "readout/kernel",
    examples: Count | None = None,
    microbatch: Count | None = None,
) -> Observable:
    """Inner products of the class means and of the readout's vectors, on the training set.

    h are the features [D] that the readout sees, μ_c the mean of class c, not centred, w_c [D] the
    readout's column of class c, as it is trained (without a forward multiplier):

    - ``means`` [C, C]: μ_c·μ_c', their Gram matrix;
    - ``readout`` [C, C]: w_c·w_c';
    - ``cross`` [C, C]: w_c·μ_c', the outputs of a readout without biases at the class means;
    - ``within`` [C]: the mean of ‖h − μ_c‖² over class c.

    Lengths, angles, centred means and self-duality, class by class, follow from these: what
    theories of unbalanced classes predict (Dang et al. 2023; Kini et al. 2024). Matrices are
    recorded row by row. ``layer``, ``readout``, empty classes and errors: as in
    ``neural_collapse``.
    """

    def measure(state: State) -> Values:
        chosen, h, _, classifier = _seen(
            "class_geometry", state, layer, readout, examples, microbatch
        )
        return features.class_geometry(h, chosen.y, classifier, chosen.weight)

    return memoryless(measure)._replace(
        suits=lambda data: _all_classes("class_geometry", data, examples)
    )


def _seen(
    name: str,
    state: State,
    layer: str | None,
    readout: str,
    examples: int | None,
    microbatch: int | None,
) -> tuple[Examples, jax.Array, jax.Array, jax.Array]:
    """Examples, their features [N, D], the outputs [N, C] and the classifier [D, C].

    Raises ValueError, in the ``name`` of an observable, where there are no such things.
    """
    chosen = training_examples(state, examples)
    if not has_labels(chosen):
        raise ValueError(
            f"{name} needs class labels, and this dataset has real targets: leave "
            f"{name} out of the observables"
        )
    if chosen.y.ndim > 1:
        raise ValueError(
            f"{name} needs one class an example, and this dataset has a label a "
            f"position: leave {name} out of the observables"
        )

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        layers = state.problem.activations(state.params, x)
        h = layers[_features(name, list(layers), layer)]
        h = h.mean(axis=tuple(range(1, h.ndim - 1)))
        return h, state.problem.apply(state.params, x)

    h, outputs = features.in_microbatches(forward, chosen.x, microbatch or state.microbatch)
    classifier = _tensor(name, state, readout)
    if outputs.shape[-1] < 2:
        raise ValueError(f"{name} needs two classes, and there is one")
    if classifier.shape != (h.shape[-1], outputs.shape[-1]):
        raise ValueError(
            f"{name} compares features [{h.shape[-1]}] and {outputs.shape[-1]} "
            f"outputs with {readout} {list(classifier.shape)}: set "
            "layer to what that tensor takes"
        )
    return chosen, h, outputs, classifier


def _all_classes(name: str, data: Data, count: int | None) -> None:
    """Raise ValueError where a class has no example among those that are looked at."""
    y = data.train.y
    if not datasets.integers(y) or y.ndim > 1:
        return  # which measure refuses
    if count is not None and count < len(y):
        y = y[sampling.probed(len(y))[:count]]
    missing = np.setdiff1d(np.arange(datasets.outputs(data)), y)
    if len(missing):
        raise ValueError(
            f"{name} needs examples of every class, and of class {missing[0]} there is "
            f"none among {len(y)}: take more examples, or leave out {name}"
        )


def _features(name: str, layers: list[str], wanted: str | None) -> str:
    """The layer of that name, or the last before the outputs."""
    if wanted is None and len(layers) >= 2:
        return layers[-2]
    if wanted in layers:
        return str(wanted)
    known = ", ".join(layers) or "none that it tells of (a linearized model has none)"
    missing = f"layer {wanted!r}" if wanted else "layer before the outputs"
    raise ValueError(f"{name} finds no {missing}: the model's layers are {known}")


def _tensor(name: str, state: State, path: str) -> jax.Array:
    tensors = trees.named_leaves(state.params)
    if path not in tensors:
        raise ValueError(
            f"{name} finds no tensor {path!r}: set readout to one of {', '.join(tensors)}"
        )
    return tensors[path]
