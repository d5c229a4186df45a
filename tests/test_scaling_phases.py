"""Theory, envelope and measurements on curves that are known; the setting against brute force."""

import jax
import numpy as np
import pandas as pd
import pytest
from lmech.experiments.scaling_phases import fronts, parts, theory
from problems import measured

from experiments import scaling_phases
from lmech import building, claims, config, member, reproducing
from lmech.collecting import Run
from lmech.config import compose

PHASES = {"Ia": (1.0, 0.25), "II": (1.0, 0.75), "III": (0.75, 1.25), "IVa": (0.35, 1.0)}
SIZES = np.round(24 * 2 ** (np.arange(9) / 2))
STEPS = np.unique(np.round(10 ** np.linspace(0, 6, 61)))

# The exponents of d* and P* as the paper states them, by phase.
STATED = {
    "Ia": lambda a, b: (1 / (2 * a + 1), -(2 * a + 2 * b - 1) / (2 * a + 1)),
    "II": lambda a, b: (b / (a + b), -(2 * a + 2 * b - 1) / (2 * (a + b))),
    "III": lambda a, _: (1 / 2, -(4 * a - 1) / (4 * a)),
    "IVa": lambda a, _: (1 / 2, -a),
}


@pytest.mark.parametrize("alpha", [0.32, 0.35, 0.48, 0.55, 0.7, 1.0, 1.6])
@pytest.mark.parametrize("beta", [0.2, 0.4, 0.52, 0.8, 1.3, 2.0])
def test_balancing_the_terms_gives_the_exponents_that_the_paper_states(alpha, beta):
    name = theory.phase(alpha, beta)
    assert (name in STATED) == (alpha > 1 / 2 or beta > 1 / 2)
    if name in STATED:
        found = theory.compute_optimal(alpha, beta)
        np.testing.assert_allclose(found, STATED[name](alpha, beta), atol=1e-12)


def test_the_settings_lie_in_their_phases_and_what_has_no_theory_is_refused():
    assert {theory.phase(*powers): powers for powers in PHASES.values()} == PHASES
    assert theory.phase(0, 1) == theory.ISOTROPIC
    assert theory.phase(0.4, 0.3) is None
    for alpha, beta in ((0.2, 1.0), (0.3, 0.2)):
        with pytest.raises(ValueError, match="no such terms"):
            theory.compute_optimal(alpha, beta)


def law(a, b, sizes=SIZES):
    """P = d^-a + r^-b: at d* = (a f^b / b)^{1/(a + b)}, P* ~ f^{-ab/(a + b)}."""
    return sizes[:, None] ** -a + STEPS**-b


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 1.0), (0.7, 1.3)])
def test_the_envelope_of_a_known_law_has_its_best_size_loss_and_exponents(a, b):
    front = fronts.envelope(SIZES, STEPS, law(a, b))
    best = (a / b * front.compute**b) ** (1 / (a + b))
    # The parabola of half octaves, and chords between steps: a few percent.
    np.testing.assert_allclose(front.size, best, rtol=0.05)
    exact = best**-a + (front.compute / best) ** -b
    np.testing.assert_allclose(front.loss, exact, rtol=0.02)
    size, loss, decades = fronts.exponents(front)
    assert size == pytest.approx(b / (a + b), abs=0.01)
    assert loss == pytest.approx(-a * b / (a + b), abs=0.01)
    assert decades > 1


def test_without_an_optimum_inside_there_are_no_exponents():
    front = fronts.envelope(SIZES, STEPS, np.tile(STEPS**-0.5, (9, 1)))  # the smallest is best
    assert len(front.compute) == 0
    assert np.isnan(fronts.exponents(front)[:2]).all()


def test_the_decline_is_the_slope_of_the_best_loss_whoever_has_it():
    assert fronts.decline(SIZES, STEPS, np.ones((9, len(STEPS))), 3) == pytest.approx(0, abs=1e-12)
    falls = np.tile(STEPS**-0.5, (9, 1))
    assert fronts.decline(SIZES, STEPS, falls, 3) == pytest.approx(-0.5, abs=0.01)


def state(*words):
    own = ["experiment=scaling_phases", "model.width=3", "dataset.dimension=7", *words]
    batch = building.build([config.resolve(compose(own))])
    inputs = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[0]), batch.inputs)
    return member.initial_state(batch.program, inputs, jax.device_put(batch.data))


@pytest.mark.usefixtures("x64")
def test_the_expected_loss_is_the_mean_of_simulated_runs_on_the_inputs_themselves():
    """20,000 runs of 12 steps with x ~ N(0, j^-2α), y = Σ j^-β x_j: within 4 standard errors."""
    alpha, beta, runs = 0.7, 0.6, 20_000
    at = state(f"dataset.alpha={alpha}", f"dataset.beta={beta}")
    W = np.asarray(at.params["features"]) / 3**0.5
    j, generator = np.arange(1, 8.0), np.random.default_rng(0)
    trace = (j ** (-2 * alpha) * (W**2).sum(axis=1)).sum()
    assert measured(parts.feature_variance(), at)[""] == pytest.approx(trace, rel=1e-10)
    at.hyperparameters["learning_rate"] = jax.numpy.asarray(0.5 / trace)
    theta, losses = np.zeros((runs, 3)), []
    for _ in range(12):
        off = theta @ W.T - j**-beta
        losses.append((off**2 @ j ** (-2 * alpha)) / 2)
        x = generator.standard_normal((runs, 7)) * j**-alpha
        phi = x @ W
        error = (phi * theta).sum(axis=1) - x @ j**-beta
        theta = theta - 0.5 / trace * phi * error[:, None]
    means, errors = np.mean(losses, axis=1), np.std(losses, axis=1) / runs**0.5
    for step in (0, 3, 11):
        now = at._replace(step=jax.numpy.int32(step))
        memory = parts.expected_loss().init(at)
        _, found = parts.expected_loss().measure(now, memory)
        assert abs(found[""] - means[step]) <= 4 * errors[step] + 1e-12
        assert (found["noiseless"] < means[step] - 4 * errors[step]) == (step > 0)


@pytest.mark.usefixtures("x64")
def test_the_curves_of_other_draws_are_those_of_runs_with_these_features():
    at = state("seed=5")
    one = measured(parts.loss_curves(draws=3, decades=2, per_decade=4), at)
    assert one[""].shape == (3, len(one["steps"]))
    np.testing.assert_array_equal(one["steps"], [1, 2, 3, 6, 10, 18, 32, 56, 100])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 3), 1)  # probes; the 2nd draw
    drawn = at._replace(params={**at.params, "features": parts.draw(key, (7, 3), "float64")})
    own = measured(parts.feature_variance(), drawn)[""]
    at_rate = measured(parts.feature_variance(), at)[""] * at.hyperparameters["learning_rate"]
    drawn.hyperparameters["learning_rate"] = at_rate / own
    memory = parts.expected_loss().init(drawn)
    for column, step in ((0, 1), (4, 10), (8, 100)):
        now = drawn._replace(step=jax.numpy.int32(step))
        found = parts.expected_loss().measure(now, memory)[1][""]
        assert one[""][1, column] == pytest.approx(float(found), rel=1e-9)


@pytest.mark.usefixtures("x64")
def test_other_data_are_refused():
    with pytest.raises(ValueError, match="test_size=null"):
        building.check(
            building.build([config.resolve(compose(["experiment=scaling_phases",
                "model.width=3", "dataset.dimension=7", "dataset.test_size=5"]))])
        )  # fmt: skip


def run(name, width, seed, steps=1, ratio=1.0):
    """A run whose loss curves are a law of the phase's exponents, or one of SGD."""
    alpha, beta = (0.0, 1.0) if name == "isotropic" else PHASES[name]
    settings = {
        "steps": steps,
        "seed": seed,
        "model": {"width": width},
        "dataset": {"alpha": alpha, "beta": beta},
    }
    if name == "isotropic":
        curve = np.full(len(STEPS), 0.4)
    else:
        x, p = theory.compute_optimal(alpha, beta)
        curve = law(-p / x, -p / (1 - x), np.array([width]))[0]
    metrics = pd.DataFrame({"step": [0, steps], "test_loss": [1.0, 0.5 * ratio]})
    metrics["expected_loss"], metrics["expected_loss_noiseless"] = [1.0, 0.5], [1.0, 0.35]
    metrics["loss_curves"] = [np.tile(curve, 2)] * 2
    metrics["loss_curves_steps"] = [STEPS] * 2
    return Run(f"{name} {width} {seed} {steps}", {}, settings, {"status": "done"}, metrics)


def everything():
    names, sizes = [*PHASES, "isotropic"], SIZES.astype(int)
    curves = [run(n, int(d), s) for n in names for d in sizes for s in (0, 1, 2)]
    noise = 0.01 * np.random.default_rng(0).standard_normal((4, 2, 24))
    return curves + [
        run(n, d, s, 4000, 1 + noise[i, j, s])
        for i, n in enumerate(PHASES)
        for j, d in enumerate((24, 96))
        for s in range(24)
    ]


def test_measurements_of_known_laws_and_every_claim_has_its_rows(monkeypatch):
    for name in ("_data_checksum", "load_data"):
        monkeypatch.setattr(reproducing.planning, name, lambda _: "any")
    runs = everything()
    table = scaling_phases.measure(runs)
    found = table[(table["kind"] == "phase") & (table["phase"] != "isotropic")]
    assert len(found) == 4
    for row in found.to_dict("records"):
        assert abs(row["size_error"]) < 0.02
        assert abs(row["loss_error"]) < 0.02
        assert row["size_low"] == pytest.approx(row["size"])  # draws that do not differ
        assert len(row["jobs"]) == 27
    orders = table[table["kind"] == "order"]
    assert orders["gap"].to_list() == pytest.approx([1 / 14] * 3, abs=0.03)  # 1/2 less 3/7
    experiment = reproducing.load("scaling_phases", "default", [])
    verdicts = {}
    for claim in experiment.claims:
        judged = claims.judge(claim, table)
        assert judged["verdict"] == ("holds" if claim.expected == "open" else claim.expected)
        verdicts[claim.claim] = len(judged["values"])
    assert list(verdicts.values()) == [12, 2, 1, 1, 3, 12, 3, 3, 8, 8, 8]
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(jobs) == 4 * 9 * 3 + 4 * 3 + 4 * 2 * 24
    assert len(reproducing.planning.group(jobs)) == 40
    figure = scaling_phases.figure(runs, table)
    assert len(figure.axes) == 9


def test_sgd_that_is_off_deviates_and_a_diverged_run_leaves_its_row_without_a_number():
    off = [run("II", 24, s, 4000, 1.1 + 0.01 * (-1) ** s) for s in range(10)]
    (row,) = scaling_phases.measure(off).to_dict("records")
    assert row["ratio"] == pytest.approx(1.1)
    assert row["error"] == pytest.approx(0.01 / 3)  # of ten ±0.01: 0.01 √(10/9) / √10
    assert row["deviation"] == pytest.approx(30)
    assert row["noiseless_ratio"] == pytest.approx(1.1 / 0.7)
    off[0] = off[0]._replace(result={"status": "diverged"})
    assert np.isnan(scaling_phases.measure(off)["ratio"]).all()
    assert scaling_phases.figure(off, scaling_phases.measure(off)) is None
