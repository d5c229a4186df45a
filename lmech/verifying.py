"""Golden numbers beside our own: a 701-parameter net whose curvature is known to 8 digits."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from lmech import engine, losses, member, optimizers, paths
from lmech.datasets import Data
from lmech.datasets.chebyshev import chebyshev
from lmech.inputs import NEVER, Inputs
from lmech.models.mlp import MLP
from lmech.numerics import curvature, kernels, trees
from lmech.numerics.precision import numerics
from lmech.parametrization import complete, unscaled
from lmech.problem import Params, Problem, loss_and_gradient, total_loss
from lmech.seeds import STREAMS

TOLERANCE = 1e-8
WIDTHS = (30, 20)


class Row(NamedTuple):
    """One comparison."""

    quantity: str
    golden: float
    ours: float

    @property
    def agrees(self) -> bool:
        """Within 1e-8, relative (absolute below 1)."""
        return abs(self.ours - self.golden) <= TOLERANCE * max(1.0, abs(self.golden))


def golden() -> dict[str, Any]:
    """The golden file: problem, initial parameters, numbers at the start and along GD."""
    return json.loads((paths.package() / "golden" / "chebyshev.json").read_text(encoding="utf-8"))


def golden_params(theta: list[float]) -> Params:
    """The flat golden parameters (per layer: W [out, in] row-major, then b) as ours."""
    flat, params, fan_in = np.asarray(theta), {}, 1
    for name, size in zip(("hidden_1", "hidden_2", "readout"), (*WIDTHS, 1), strict=True):
        weights, bias, flat = np.split(flat, [fan_in * size, (fan_in + 1) * size])
        params[name] = {"kernel": weights.reshape(size, fan_in).T, "bias": bias}
        fan_in = size
    return params


def golden_problem() -> Problem:
    """The tanh net 1-30-20-1 under ½ mean squared error, in float64."""
    model = MLP(WIDTHS, 1, "tanh", bias=True, weights="normal_fan_in")
    return Problem(
        init=lambda key: model.init(key, jnp.zeros((1, 1), jnp.float64))["params"],
        apply=lambda params, x: model.apply({"params": params}, x),
        loss=losses.mse(),
    )


def loss_gradient_hessian(params: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, ‖∇L‖ and the dense Hessian [P, P]: the operator applied to every basis vector."""
    problem, examples = golden_problem(), golden_data().train
    evaluation, gradient = loss_and_gradient(problem, params, examples, None)
    w, _ = ravel_pytree(params)
    operator = curvature.hessian(total_loss(problem), params, examples)
    norm = jnp.sqrt(trees.squared_norm(gradient))
    return evaluation.loss, norm, operator(jnp.eye(w.size, dtype=w.dtype))


def golden_data() -> Data:
    """T_6 at 20 points."""
    return chebyshev(degree=6, train_size=20)


def descend(theta: list[float], rate: float, steps: Sequence[int]) -> Params:
    """The engine's gradient descent from the golden parameters, a member for each of ``steps``.

    Each member ends at its own horizon: leaves [len(steps), …] are w at those steps.
    """
    members = len(steps)
    program = member.Program(
        problem=golden_problem(),
        optimizer=optimizers.optimizer(optax.sgd),
        observables={},
        every={},
        batch_size=None,
        microbatch=None,
        capacity=100,
        mode="map",
    )
    params = golden_params(theta)
    inputs = Inputs(
        seeds=_repeated(dict.fromkeys(STREAMS, 0), members, "uint32"),
        hyperparameters=_repeated({"learning_rate": rate}, members, "float64"),
        scales=_repeated(complete(unscaled(params)), members, "float64"),
        horizon=np.asarray(steps, "int32"),
        stop=_repeated(NEVER, members, "float64"),
    )

    def rates(at: np.ndarray) -> np.ndarray:
        return np.full((members, len(at)), rate)

    start = _repeated(params, members, "float64")
    events = engine.train(program, inputs, golden_data(), rates, params=start)
    return next(event.params for event in events if isinstance(event, engine.End))


def _repeated(tree: Any, members: int, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: np.stack([np.asarray(leaf, dtype)] * members), tree)


def _eigenvalues(matrix: jax.Array) -> np.ndarray:
    """Of a symmetric matrix, descending."""
    return np.linalg.eigvalsh(np.asarray(matrix))[::-1]


def _along(run: dict[str, Any], theta: list[float]) -> Iterator[Row]:
    """Loss, gradient norm and top three Hessian eigenvalues at the run's steps."""
    ends = descend(theta, run["lr"], [int(step) for step in run["steps"]])
    measure = jax.jit(loss_gradient_hessian)
    for place, (step, gold) in enumerate(run["steps"].items()):
        loss, norm, hessian = measure(jax.tree.map(lambda leaf, i=place: leaf[i], ends))
        yield Row(f"loss, step {step}", gold["loss"], float(loss))
        yield Row(f"‖∇L‖, step {step}", gold["grad_norm"], float(norm))
        for k, (value, ours) in enumerate(
            zip(gold["hessian_top3"], _eigenvalues(hessian)[:3], strict=True)
        ):
            yield Row(f"λ_{k + 1}, step {step}", value, float(ours))


def _at_start(start: dict[str, Any]) -> Iterator[Row]:
    """Curvature and kernel of the initial parameters."""
    params, examples = golden_params(start["theta"]), golden_data().train
    hessian = jax.jit(loss_gradient_hessian)(params)[2]
    eigenvalues = _eigenvalues(hessian)
    for k, value in enumerate(start["hessian_top5"]):
        yield Row(f"λ_{k + 1}", value, float(eigenvalues[k]))
    yield Row("smallest eigenvalue", start["hessian_min"], float(eigenvalues[-1]))
    yield Row("tr H", start["hessian_trace"], float(jnp.trace(hessian)))
    yield Row("‖H‖²_F", start["hessian_fro2"], float(jnp.sum(hessian**2)))
    kernel = kernels.empirical_ntk(golden_problem().apply, params, examples.x)
    for k, value in enumerate(start["ntk_top3_over_n"]):
        ours = _eigenvalues(kernel)[k] / len(examples.x)
        yield Row(f"NTK eigenvalue {k + 1} / n", value, float(ours))
    y = jnp.asarray(examples.y[:, 0])
    aligned, centred = kernels.alignment(kernel, y), kernels.centred_alignment(kernel, y)
    yield Row("tr NTK", start["ntk_trace"], float(jnp.trace(kernel)))
    yield Row("NTK–target alignment", start["ntk_alignment_y"], float(aligned))
    yield Row("the same, centred", start["ntk_centered_alignment_y"], float(centred))


def compare() -> list[Row]:
    """Every golden number beside ours."""
    known = golden()
    theta = known["init"]["theta"]
    with numerics():
        rows = list(_at_start(known["init"]))
        for run in known["runs"]:
            rows += _along(run, theta)
    return rows
