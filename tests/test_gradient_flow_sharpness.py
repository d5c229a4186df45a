"""Gradient-flow solutions: closed forms against integration; what is measured of the runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from lmech.experiments.gradient_flow_sharpness import parts
from problems import measured

from experiments import gradient_flow_sharpness
from lmech import building, config, member, reproducing
from lmech.collecting import Run

pytestmark = pytest.mark.usefixtures("x64")


def state(*overrides):
    job = config.resolve(config.compose(["experiment=gradient_flow_sharpness", *overrides]))
    batch = building.build([job])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.inputs)
    return member.initial_state(batch.program, inputs, jax.device_put(batch.data))


SCALAR = ("model.depth=4", "seed=7")
DIAGONAL = ("model.kind=diagonal", "dataset.count=3", "dataset.dimension=6", "seed=7")


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [SCALAR, DIAGONAL])
def test_the_closed_forms_are_where_gradient_flow_ends(overrides):
    at = state(*overrides)
    exact = measured(parts.solution_sharpness(), at)
    integrated = jax.jit(lambda params: parts.integrated(at, params, 0.05, 1e-18, 40000))
    found = integrated(at.params)
    assert found.error < 1e-7  # fourth order: (0.05)⁴ ≈ 6e-6 times what it has at 1
    # A loss of 1e-18 leaves 1e-9 of the residual; the error of RK4 is found.error.
    np.testing.assert_allclose(exact[""], found.sharpness, rtol=1e-7)
    assert exact["error"] == 0
    assert exact[""] != pytest.approx(float(exact["plain"]), rel=1e-2)


@pytest.mark.parametrize(("depth", "seed"), [(6, 1), (2, 7)])  # 2, 7: two weights drawn as equal
def test_scalar_starts_have_the_sharpness_that_is_asked_for(depth, seed):
    at = state(f"model.depth={depth}", "model.ratio=3.0", f"seed={seed}")
    phi = measured(parts.solution_sharpness(), at)[""]
    assert phi == pytest.approx(3 * depth, rel=1e-12)
    weights = np.asarray(at.params["weights"])
    assert 0.8 <= weights.prod() <= 1.2
    assert (weights > 0).all()


def test_the_flow_keeps_the_differences_of_the_squares():
    w = np.array([2.0, 0.7, 1.1])
    phi = parts.of_scalar({"weights": jnp.asarray(w)}, None).sharpness
    (t,) = [
        root.real for root in np.roots(np.poly(-(w**2))  - [0, 0, 0, 1])
        if abs(root.imag) < 1e-12 and root.real > -(w**2).min()
    ]  # fmt: skip
    assert phi == pytest.approx((1 / (w**2 + t)).sum(), rel=1e-12)


def test_plain_sharpness_is_the_hessians_and_one_point_in_one_dimension_has_target_x():
    at = state("model.depth=2")
    w = np.asarray(at.params["weights"])
    cross = 2 * w.prod() - 1
    hessian = np.array([[w[1] ** 2, cross], [cross, w[0] ** 2]])
    assert measured(parts.solution_sharpness(), at)["plain"] == pytest.approx(
        np.linalg.eigvalsh(hessian)[-1], rel=1e-12
    )
    data = parts.points(1, 1, 3)
    np.testing.assert_array_equal(data.train.x, data.train.y)
    np.testing.assert_allclose(np.abs(data.train.x), 1)


def run(phi, plain, loss, rate=0.5, kind="scalar"):
    job = {
        "model": {"kind": kind, "depth": 2},
        "optimizer": {"learning_rate": rate},
        "stop": {"train_loss": 1e-3},
        "seed": 0,
    }
    columns = {"solution": phi, "solution_plain": plain, "train_loss": loss, "solution_error": 0.0}
    metrics = pd.DataFrame({"step": range(3), **columns})
    return Run("a", {}, job, {"status": "done", "steps": 2}, metrics)


def test_increases_are_found_and_runs_grouped_by_their_start():
    found = gradient_flow_sharpness.measure(
        [run([4.2, 4.0, 4.1], [4, 5, 3], [1, 0.5, 1e-4]), run([4.2, 4.1, 4], [5, 4, 3], [1, 2, 3])]
    )
    first, second, group = found.to_dict("records")
    assert first["worst"] == pytest.approx(0.025)
    assert second["worst"] == pytest.approx(4.1 / 4.2 - 1)
    assert (first["converged"], second["converged"]) == (1, 0)
    assert (first["rising"], second["rising"]) == (0, 0)
    assert first["plain_worst"] == pytest.approx(0.25)
    assert second["loss_worst"] == pytest.approx(1)
    assert {first["band"], second["band"]} == {"edge"}
    assert group["final"] == pytest.approx(2.05)
    assert group["converged"] == 0.5


def test_every_claim_selects_what_is_swept():
    experiment = reproducing.load("gradient_flow_sharpness", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    models = [job.config["model"] for job in jobs]
    depths = {model["depth"] for model in models if model["kind"] == "scalar"}
    known = set(gradient_flow_sharpness.measure([run([4.2] * 3, [4] * 3, [1] * 3)]))
    for claim in experiment.claims:
        assert {claim.quantity, *claim.where} <= known
        kinds = claim.where["kind"]
        kinds = kinds if isinstance(kinds, list) else [kinds]
        assert set(kinds) <= {model["kind"] for model in models}
        depth = claim.where.get("depth", [])
        assert set(depth if isinstance(depth, list) else [depth]) <= depths
