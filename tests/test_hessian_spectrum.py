"""The closed forms against dense computations, the measurements on spectra that are known."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax.flatten_util import ravel_pytree
from lmech.experiments.hessian_spectrum import parts, theory
from problems import measured

from experiments import hessian_spectrum
from lmech import building, claims, config, member, reproducing
from lmech.collecting import Run
from lmech.observables.spectrum import spectral_density

STEPS = 60
CNN = (
    *("model.kind=linear_cnn", "dataset.classes=2", "dataset.dimension=10", "dataset.spread=1"),
    *("dataset.train_size=60", "loss=mse"),
)


@cache
def state(*overrides):
    words = ["experiment=hessian_spectrum", "dataset.test_size=1", *overrides]
    batch = building.build([config.resolve(config.compose(words))])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.inputs)
    return member.initial_state(batch.program, inputs, jax.device_put(batch.data))


def dense_rank(width, outputs, dimension, kernels=(3, 3), seed=0):
    """Rank of the Hessian of a linear CNN, written out block by block, and the gap behind it.

    W_ct = Σ D_tpij V_poc B_ilo a_jl, D_tpij = 1 where t = p + i + j; with inputs of covariance Σ
    and R = ∂L/∂W, H = JᵀΣJ + ∂²⟨R, W⟩.
    """
    first, second = kernels
    draw = np.random.default_rng(seed).normal
    positions = dimension - first - second + 2
    a = draw(size=(first, width))
    B = draw(size=(second, width, width)) / width
    V = draw(size=(positions, width, outputs)) / width
    t, p, i, j = np.ogrid[:dimension, :positions, :second, :first]
    D = (t == p + i + j).astype(float)
    x = draw(size=(4 * dimension, dimension)) / (4 * dimension) ** 0.5
    covariance = x.T @ x
    residual = np.einsum("tpij,poc,ilo,jl->ct", D, V, B, a) @ covariance
    residual -= draw(size=residual.shape)
    unit, each = np.eye(width), np.eye(outputs)
    jacobian = [
        np.einsum("tpij,poc,ilo->ctjl", D, V, B),
        np.einsum("tpij,poc,jl->ctilo", D, V, a),
        np.einsum("tpij,ilo,jl,ck->ctpok", D, B, a, each),
    ]
    sizes = [a.size, B.size, V.size]
    J = np.concatenate([one.reshape(outputs, dimension, -1) for one in jacobian], axis=-1)
    second_derivatives = {
        (0, 1): np.einsum("tpij,poc,ct,lk->jliko", D, V, residual, unit),
        (0, 2): np.einsum("tpij,ilo,ct->jlpoc", D, B, residual),
        (1, 2): np.einsum("tpij,jl,ct,ok->ilopkc", D, a, residual, unit),
    }
    blocks = [[np.zeros((m, n)) for n in sizes] for m in sizes]
    for (m, n), block in second_derivatives.items():
        blocks[m][n] = block.reshape(sizes[m], sizes[n])
        blocks[n][m] = blocks[m][n].T
    hessian = np.einsum("cta,ts,csb->ab", J, covariance, J, optimize=True) + np.block(blocks)
    values = np.sort(np.abs(np.linalg.eigvalsh(hessian)))[::-1] / np.linalg.norm(hessian, 2)
    rank = int((values > 1e-10).sum())
    return rank, values[rank - 1], values[rank] / (len(values) * np.finfo(float).eps)


@pytest.mark.parametrize(
    "setting",
    [(6, 2, 10), (6, 1, 10), (6, 3, 10), (6, 2, 12), (4, 2, 10), (8, 2, 9, (2, 4))],
    ids=str,
)
def test_the_rank_is_that_of_a_dense_hessian(setting):
    rank, kept, dropped = dense_rank(*setting)
    assert rank == theory.cnn_rank(*setting)
    assert kept > 1e-8
    assert dropped < 1


def test_the_rank_at_ten_inputs_and_two_outputs():
    assert [theory.cnn_rank(m, 2, 10) for m in (3, 6, 12)] == [66, 114, 210]
    assert [theory.cnn_rank(6, c, d) for c, d in ((1, 10), (3, 10), (2, 12))] == [100, 124, 118]


@pytest.mark.usefixtures("x64")
def test_the_linear_cnn_is_two_valid_convolutions_and_a_readout():
    at = state(*CNN, "model.width=5")
    x = np.asarray(at.data.train.x)
    a, b, v = (np.asarray(at.params[n]) for n in ("convolution_1", "convolution_2", "readout"))
    assert a.size + b.size + v.size == 3 * 5**2 + 15 * 5
    kernels = np.zeros((5, 5))  # of both convolutions together: from the input to each channel
    for i in range(3):
        for j in range(3):
            kernels[i + j] += a[j, 0] @ b[i]
    expected = sum(
        np.einsum("nt,to,oc->nc", x[:, p : p + 5], kernels, v[p]) for p in range(v.shape[0])
    )
    np.testing.assert_allclose(at.problem.apply(at.params, x), expected, atol=1e-12)
    values = np.abs(measured(spectral_density(samples=None), at)["nodes"])
    assert (values > 1e-10 * values.max()).sum() == 16 * 5 + 18


@pytest.mark.usefixtures("x64")
def test_the_class_means_curvature_by_definition():
    at = state("model.width=3", "dataset.dimension=4", "dataset.classes=3", "dataset.train_size=24")
    found = measured(parts.class_curvature(), at)
    x, y = map(np.asarray, at.data.train[:2])
    w, unravel = ravel_pytree(at.params)
    jacobian = np.asarray(jax.jacfwd(lambda w: at.problem.apply(unravel(w), x))(w))
    p = np.asarray(jax.nn.softmax(at.problem.apply(at.params, x)))
    curvature = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
    total = 0
    for k in range(3):
        j, m = jacobian[y == k].mean(axis=0), curvature[y == k].mean(axis=0)
        total = total + np.mean(y == k) * j.T @ m @ j
    expected = np.linalg.eigvalsh(total)[::-1][:9]
    np.testing.assert_allclose(found["eigenvalues"], expected, atol=1e-12)
    assert found[""] == found["eigenvalues"][0] > 0


@pytest.mark.usefixtures("x64")
def test_it_is_the_gauss_newton_matrix_where_every_example_is_its_class_mean():
    at = state(
        *("model.width=3", "dataset.dimension=4", "dataset.classes=3"),
        *("dataset.train_size=24", "dataset.spread=0"),
    )
    found = measured(parts.class_curvature(), at)["eigenvalues"]
    whole = measured(spectral_density(matrix="gauss_newton", samples=None), at)["nodes"][::-1]
    np.testing.assert_allclose(found, whole[:9], atol=1e-12)
    assert np.sum(found > 1e-10) == 6  # C(C − 1): ∂²ℓ/∂f² has the null space 1


def test_the_standard_error_is_that_of_random_directions():
    """20,000 draws: the standard deviation of a variance of squares is some 3 %."""
    generator = np.random.default_rng(0)
    values, grid, width, probes = np.linspace(-0.2, 1, 30) ** 3, np.array([0.0, 0.5]), 0.1, 4
    draws = generator.normal(size=(20000, probes, 30)) ** 2
    shares = (draws / draws.sum(axis=-1, keepdims=True)).mean(axis=1)
    estimates = np.stack([theory.smoothed(values, share, grid, width) for share in shares[:5000]])
    expected = theory.standard_error(values, grid, width, probes)
    np.testing.assert_allclose(estimates.std(axis=0), expected, rtol=0.1)
    exact = theory.smoothed(values, np.full(30, 1 / 30), grid, width)
    assert np.all(np.abs(estimates.mean(axis=0) - exact) < 5 * expected / 5000**0.5)


def settings(kind, seed, width, classes, examples, spread, dimension):
    return {
        "seed": seed,
        "steps": STEPS,
        "model": {"kind": kind, "width": width},
        "dataset": {
            "classes": classes,
            "train_size": examples,
            "spread": spread,
            "dimension": dimension,
        },
        "observables": {"spectral_density": {"samples": 2}},
    }


def run(seed=0, width=20, classes=5, examples=150, spread=0.3, first=1.0):
    """(C − 1)² eigenvalues that the classes explain, all others 1e-5 of the first."""
    size, count = 30 * width, (classes - 1) ** 2
    values = np.full(size, 1e-5 * first)
    values[:count] = first * np.linspace(1, 0.2, count)
    overlaps = np.where(np.arange(size) < count, 0.9, 0.01)
    values[-1], overlaps[-1] = 1e-17, 0.9  # of the null space
    metrics = pd.DataFrame({"step": [0, STEPS], "outlier_overlap": [0.5, 0.9]})
    metrics["outlier_overlap_directions"] = classes**2
    metrics["outlier_overlap_eigenvalues"] = [values, values]
    metrics["outlier_overlap_overlaps"] = [overlaps, overlaps]
    metrics["gauss_newton_density_nodes"] = [0.5 * values[::-1], 0.9 * values[::-1]]
    metrics["class_curvature_eigenvalues"] = [np.zeros(classes**2), 0.8 * values[: classes**2]]
    metrics["spectral_density_nodes"] = [np.tile(values, 2)] * 2
    metrics["spectral_density_weights"] = [np.full(2 * size, 1 / (2 * size))] * 2
    own = settings("mlp", seed, width, classes, examples, spread, 30)
    name = f"{width} {classes} {examples} {spread} {seed}"
    return Run(name, {}, own, {"status": "done", "steps": STEPS}, metrics)


def cnn(seed=0, width=6, dimension=10):
    """As many eigenvalues of 1e-3 to 1 as the closed form has, the others 0 but for rounding."""
    size = 3 * width**2 + (3 + 2 * (dimension - 4)) * width
    rank = min(theory.cnn_rank(width, 2, dimension), size)
    values = np.full(size, 1e-17)
    values[:rank] = np.geomspace(1, 1e-3, rank)
    curved = np.where(np.arange(size) < 2 * dimension, 1.0, 0.0)
    metrics = pd.DataFrame({"step": [0, STEPS]})
    metrics["outlier_overlap_eigenvalues"] = [values, values]
    metrics["outlier_overlap_overlaps"] = [values, values]
    metrics["gauss_newton_density_nodes"] = [curved[::-1], curved[::-1]]
    own = settings("linear_cnn", seed, width, 2, 100, 1.0, dimension)
    return Run(f"cnn {width} {dimension} {seed}", {}, own, {"status": "done"}, metrics)


def rows(table, kind, **where):
    chosen = (table[list(where)] == pd.Series(where)).all(axis=1) & (table["kind"] == kind)
    return table[chosen].to_dict("records")


def test_a_known_spectrum_is_measured():
    (row,) = hessian_spectrum.measure([run()]).query("kind == 'run'").to_dict("records")
    assert (row["overlap"], row["overlap_start"]) == (0.9, 0.5)
    assert row["overlap_random"] == pytest.approx(25 / 600)
    assert row["overlap_bulk"] == pytest.approx((583 * 0.01 + 0.9) / 584)
    assert row["outliers"] == row["large"] == 16
    assert row["per_class"] == pytest.approx(16 / 5)
    assert row["per_square"] == 1
    assert (row["small"], row["near_zero"]) == pytest.approx((584 / 600, 584 / 600))
    assert row["gauss_newton"] == pytest.approx(0.1)
    assert row["gauss_newton_start"] == pytest.approx(0.5)
    assert row["class_means"] == pytest.approx(0.2)
    assert row["first_missed"] == 0
    for name in ("density_error", "density_error_large", "density_error_single"):
        assert row[name] < 1e-10  # both "probes" see the spectrum as it is


def test_quadrature_from_random_directions_has_the_error_that_theory_gives_it():
    """Squares of the errors have mean 1, of a single probe's 2, the number of probes."""
    generator, found = np.random.default_rng(0), []
    for seed in range(60):
        one = run(seed, width=3)
        size = len(hessian_spectrum.spectrum(one)[0])
        draws = generator.normal(size=(2, size)) ** 2
        weights = (draws / draws.sum(axis=1, keepdims=True) / 2).ravel()
        one.metrics["spectral_density_weights"] = [weights, weights]
        found.append(one)
    table = hessian_spectrum.measure(found).query("kind == 'run'")
    assert (table["density_error"] ** 2).mean() == pytest.approx(1, abs=0.6)
    assert (table["density_error_large"] ** 2).mean() == pytest.approx(1, abs=0.3)
    assert (table["density_error_single"] ** 2).mean() == pytest.approx(2, abs=1)


def test_runs_of_a_seed_are_compared():
    nets = [run(width=w, first=f) for w, f in ((10, 1.0), (20, 1.0), (40, 1.2))]
    nets += [run(classes=3), run(classes=8), run(examples=600, first=0.8)]
    nets += [run(spread=1.0, first=3.0)]
    table = hessian_spectrum.measure(nets)
    (widths,), (classes,), (data,) = (rows(table, kind) for kind in ("widths", "classes", "data"))
    assert widths["first_change"] == pytest.approx(0.2)
    assert widths["small_rise"] == pytest.approx(16 / 600 - 16 / 1200)
    assert widths["large_growth"] == 1
    assert widths["large_by_weights"] == pytest.approx(1 / 4)
    assert len(widths["jobs"]) == 3
    assert classes["growth"] == 16 - 4
    assert data["first_change"] == pytest.approx(0.25)
    assert data["first_by_spread"] == pytest.approx(3)
    assert len(data["jobs"]) == 3


def test_ranks_are_counted_with_their_gap_and_their_slope_is_fitted():
    table = hessian_spectrum.measure([cnn(width=m) for m in (2, 3, 6, 12)] + [cnn(dimension=12)])
    for m in (3, 6, 12):
        (row,) = rows(table, "cnn", width=m, dimension=10)
        assert row["over_16m"] == row["trained_over_16m"] == 18
        assert row["from_theory"] == 0
        assert row["last_kept"] == pytest.approx(1e-3)
        assert row["first_dropped"] == pytest.approx(1e-17 / (row["weights"] * 2.0**-52))
        assert row["gauss_newton_rank"] == 20
    (two,) = rows(table, "cnn", width=2)
    assert (two["rank"], two["first_dropped"]) == (42, 0)
    (other,) = rows(table, "cnn", dimension=12)
    assert other["from_theory"] == 0
    assert other["over_16m"] == 118 - 96
    (slope,) = rows(table, "slope")
    assert slope["slope"] == pytest.approx(np.log(210 / 114) / np.log(612 / 198))


def everything():
    experiment = reproducing.load("hessian_spectrum", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    runs = []
    for job in jobs:
        seed, model, data = (job.config[key] for key in ("seed", "model", "dataset"))
        if model["kind"] == "mlp":
            more = {"classes": data["classes"], "examples": data["train_size"]}
            runs.append(run(seed, model["width"], **more, spread=data["spread"]))
        else:
            runs.append(cnn(seed, model["width"], data["dimension"]))
    return experiment, jobs, runs


def test_every_claim_selects_rows_of_its_kind():
    experiment, jobs, runs = everything()
    assert len({run.job for run in runs}) == len(jobs)
    table = hessian_spectrum.measure(runs)
    for claim in experiment.claims:
        judged, chosen = claims.judge(claim, table), pd.Series(True, table.index)
        for key, value in claim.where.items():
            chosen &= table[key].isin(value if isinstance(value, list) else [value])
        assert judged["verdict"] != "undetermined", claim.claim
        assert len(judged["values"]) == chosen.sum() > 0, claim.claim
    assert len(hessian_spectrum.figure(runs, table).axes) == 4


def test_what_is_missing_leaves_claims_undetermined_and_a_figure():
    experiment, _, runs = everything()
    broken = [run._replace(result={"status": "diverged"}) for run in runs]
    for some in (runs[:1], runs[:3] + runs[-3:], runs[-1:], broken):
        table = hessian_spectrum.measure(some)
        verdicts = [claims.judge(claim, table)["verdict"] for claim in experiment.claims]
        assert "undetermined" in verdicts
        assert hessian_spectrum.figure(some, table)
