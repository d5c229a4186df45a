"""The measurements on curves that are known, the setting against its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from lmech.experiments.ntk_limit import parts
from problems import measured

from experiments import ntk_limit
from lmech import building, claims, config, member, reproducing
from lmech.collecting import Run
from lmech.numerics import kernels
from lmech.numerics.infinite_width import mlp_kernels

WIDTHS = (32, 64, 128, 256, 512)
RATE, EIGENVALUES = 0.5, np.array([0.2, 0.1, 0.05])


def state(*overrides):
    words = [
        "experiment=ntk_limit",
        "dataset.dimension=10",
        "dataset.train_size=6",
        "dataset.test_size=3",
        *overrides,
    ]
    batch = building.build([config.resolve(config.compose(words))])
    inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch.inputs)
    return member.initial_state(batch.program, inputs, jax.device_put(batch.data))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("width", [16, 2048])
def test_the_setting_is_jacots_net_whose_kernel_has_the_closed_form(width):
    """N(0, 1) entries, 1/√fan_in before every sum: Θ by hand, and within 5/√n of the infinite."""
    at = state(f"model.width={width}")
    x = np.asarray(at.data.train.x)
    first, second, last = (
        np.asarray(at.params[name]["kernel"]) for name in ("hidden_1", "hidden_2", "readout")
    )
    h = x @ first / np.sqrt(10)
    phi, slope = jax.lax.erf(h), 2 / np.sqrt(np.pi) * np.exp(-(h**2))
    g = phi @ second / np.sqrt(width)
    psi, back = jax.lax.erf(g), 2 / np.sqrt(np.pi) * np.exp(-(g**2)) * last[:, 0]
    np.testing.assert_allclose(
        at.problem.apply(at.params, x), psi @ last / np.sqrt(width), rtol=1e-10
    )
    below = back @ second.T / np.sqrt(width) * slope
    by_hand = (psi @ psi.T + (back @ back.T) * (phi @ phi.T) / width) / width
    by_hand += (below @ below.T) / width * (x @ x.T) / 10
    found = measured(parts.tangent_kernel(), at)
    np.testing.assert_allclose(found["entries"], by_hand, rtol=1e-10)
    assert found[""] == 0
    exact = mlp_kernels(x, x, "erf", (1, 1, 1)).ntk
    assert 0 < kernels.relative_change(found["entries"], exact) < 5 / width**0.5
    for entries in (first, second) if width > 16 else ():
        assert entries.std() == pytest.approx(1, abs=5 / np.sqrt(2 * entries.size))


@pytest.mark.usefixtures("x64")
def test_at_the_base_width_both_parametrizations_are_the_same_net_and_training():
    ntk, mup = (state(f"parametrization={name}", "model.width=16") for name in ("ntk", "mup"))
    x = ntk.data.train.x
    np.testing.assert_allclose(
        ntk.problem.apply(ntk.params, x), mup.problem.apply(mup.params, x), rtol=1e-12
    )
    np.testing.assert_allclose(
        *(measured(parts.tangent_kernel(), at)["entries"] for at in (ntk, mup))
    )


@pytest.mark.usefixtures("x64")
def test_the_change_of_the_kernel_is_relative_to_its_start():
    at = state("model.width=16")
    moved = at._replace(params=jax.tree.map(lambda leaf: 1.1 * leaf, at.params))
    first = parts.tangent_kernel().init(at)
    _, values = parts.tangent_kernel().measure(moved, first)
    now = np.asarray(values["entries"])
    assert now.shape == (6, 6)
    expected = np.linalg.norm(now - first) / np.linalg.norm(first)
    assert values[""] == pytest.approx(expected) != 0


def run(width, seed=0, arm="ntk", alpha=1.0, linearized=False, power=-1.0, noise=0.0, steps=200):
    """A run whose kernel and outputs are off by powers of the width, and rates by ``noise``."""
    at = np.arange(0, steps + 1, 5) if steps > 1 else np.array([0, 1])
    predicted = (1 - RATE * EIGENVALUES) ** at[:, None]
    own = (1 - RATE * EIGENVALUES) ** (at[:, None] * (1 + noise))
    draw = np.random.default_rng([width, seed]).normal(size=(6, 6))
    entries = np.eye(6) + draw / np.sqrt(width)
    off = 4.0 * width**power * (at > 0)
    metrics = pd.DataFrame({"step": at, "tangent_kernel": 2 * off, "kernel_descent": off})
    metrics["tangent_kernel_entries"] = [entries.ravel()] * len(at)
    metrics["kernel_descent_test"], metrics["kernel_descent_test_moved"] = off, 2.0
    metrics["infinite_descent_test"], metrics["infinite_descent_test_moved"] = width**-0.5, 0.5
    metrics["infinite_descent_error"] = 3 * width**-0.5
    metrics["kernel_descent_modes"] = list(own)
    metrics["kernel_descent_modes_predicted"] = list(predicted)
    metrics["kernel_descent_eigenvalues"] = [EIGENVALUES] * len(at)
    settings = {
        "seed": seed,
        "steps": steps,
        "model": {"width": width},
        "output_scale": alpha,
        "linearized": linearized,
        "optimizer": {"learning_rate": RATE},
        "parametrization": {"base_width": 16},
    }
    name = f"{arm} {alpha} {width} {seed} {linearized} {steps}"
    overrides = {"parametrization": arm}
    return Run(name, overrides, settings, {"status": "done", "steps": steps}, metrics)


def rows(table, kind, **where):
    chosen = (table[list(where)] == pd.Series(where)).all(axis=1) & (table["row"] == kind)
    return table[chosen].to_dict("records")


def test_slopes_and_values_of_known_powers():
    runs = [
        run(w, s, arm, power=p)
        for w in WIDTHS
        for s in (0, 1)
        for arm, p in (("ntk", -1), ("mup", 0))
    ]
    table = ntk_limit.measure(runs)
    for arm, power in (("ntk", -1), ("mup", 0)):
        found = rows(table, "slopes", parametrization=arm)
        assert [row["seed"] for row in found] == [0, 1]
        for row in found:
            assert row["change"] == pytest.approx(power, abs=1e-12)
            assert row["linear"] == pytest.approx(power, abs=1e-12)
            assert (row["infinite"], row["error"]) == pytest.approx((-0.5, -0.5))
    (widest,) = rows(table, "run", parametrization="ntk", width=512, seed=1)
    assert widest["change"] == pytest.approx(8 / 512)
    assert widest["linear"] == pytest.approx(2 / 512)
    assert widest["infinite"] == pytest.approx(2 / 512**0.5)
    assert widest["deviation"] == pytest.approx(4 / 512)


def test_the_rate_is_read_off_early_decay_and_the_modes_error_from_all_of_it():
    (exact, off) = (
        ntk_limit.measure([run(32), run(32, 1, noise=0.2)]).query("row == 'run'").to_dict("records")
    )
    assert exact["rate_error"] == pytest.approx(0, abs=1e-12)
    assert exact["mode_error"] == 0
    assert off["rate_error"] == pytest.approx(0.2)
    worst = max(
        np.linalg.norm((1 - RATE * EIGENVALUES) ** t - (1 - RATE * EIGENVALUES) ** (1.2 * t))
        for t in range(0, 201, 5)
    )
    assert off["mode_error"] == pytest.approx(worst / 3**0.5)


def test_the_spread_over_seeds_is_the_noise_that_was_put_in():
    """Unit matrix plus N(0, 1/n): √(1/n) over √(1/6 + …); short runs count, other arms do not."""
    runs = [run(w, s, steps=1) for w in WIDTHS for s in range(40)]
    others = [run(w, s, "mup", power=0) for w in WIDTHS for s in range(2)]
    table = ntk_limit.measure([*runs, *others])
    (whole,) = rows(table, "spread", width=0)
    assert whole["spread_slope"] == pytest.approx(-0.5, abs=0.05)
    assert whole["seeds"] == list(range(40))
    (one,) = rows(table, "spread", width=128)
    expected = 128**-0.5 / (1 / 6 + 1 / (40 * 128)) ** 0.5
    assert one["spread"] == pytest.approx(expected, rel=0.1)  # 4 errors of 36 · 39 draws: 8 %
    assert len(rows(table, "run", parametrization="ntk")) == 0


def test_runs_of_one_net_are_paired_and_compared():
    """NTK at α = ¼ and μP at α = 1 have outputs of one scale at 16 times the base width."""
    table = ntk_limit.measure(
        [
            run(w, s, arm, a)
            for w in WIDTHS
            for s in (0, 1)
            for arm, a in (("ntk", 0.25), ("mup", 1.0))
        ]
        + [run(256, 2, "ntk", 0.25), run(256, 2, "mup", power=-0.5)]
    )
    found = rows(table, "pair")
    assert [(row["width"], row["seed"]) for row in found] == [(256, 0), (256, 1), (256, 2)]
    assert [row["difference"] for row in found] == pytest.approx([0, 0, 15 / 16])
    assert found[0]["jobs"] == ["ntk 0.25 256 0 False 200", "mup 1.0 256 0 False 200"]


def test_the_error_of_the_first_kernels_is_a_root_mean_square_over_seeds():
    runs = [run(w, s, steps=1) for w in (64, 256) for s in (0, 1)]
    runs[0].metrics["infinite_descent_error"] = 0.5
    table = ntk_limit.measure(runs)
    (one,) = rows(table, "spread", width=64)
    assert one["error_rms"] == pytest.approx(np.sqrt((0.25 + 9 / 64) / 2))
    assert one["error_scaled"] == pytest.approx(8 * one["error_rms"])


def test_a_run_that_is_not_complete_measures_nothing():
    broken = run(32)._replace(result={"status": "diverged", "steps": 200})
    (found,) = rows(ntk_limit.measure([broken, run(64)]), "run", width=32)
    assert np.isnan(found["change"])
    assert all(
        np.isnan(row["change"]) for row in rows(ntk_limit.measure([broken, run(64)]), "slopes")
    )


def test_every_claim_selects_rows_of_its_kind_and_few_programs_are_compiled(monkeypatch):
    for name in ("_data_checksum", "load_data"):
        monkeypatch.setattr(reproducing.planning, name, lambda _: "any")
    experiment = reproducing.load("ntk_limit", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(reproducing.planning.group(jobs)) == 6
    runs = [
        run(
            job.config["model"]["width"],
            job.config["seed"],
            job.overrides["parametrization"],
            job.config["output_scale"],
            job.config["linearized"],
            steps=job.config["steps"],
        )
        for job in jobs
    ]
    table = ntk_limit.measure(runs)
    for claim in experiment.claims:
        judged, chosen = claims.judge(claim, table), pd.Series(True, table.index)
        for key, value in claim.where.items():
            chosen &= table[key].isin(value if isinstance(value, list) else [value])
        assert judged["verdict"] != "undetermined", claim.claim
        assert len(judged["values"]) == chosen.sum() > 0, claim.claim
    assert len(ntk_limit.figure(runs, table).axes) == 4


def test_one_seed_or_one_arm_leaves_its_claims_undetermined_and_a_figure():
    experiment = reproducing.load("ntk_limit", "default", [])
    for runs in ([run(w, alpha=a) for w in WIDTHS for a in (1.0, 0.25)],
                 [run(w, s, "mup", 0.25, power=0) for w in WIDTHS for s in (0, 1)],
                 [run(w, s, steps=1) for w in WIDTHS for s in (0, 1)]):  # fmt: skip
        table = ntk_limit.measure(runs)
        verdicts = [claims.judge(claim, table)["verdict"] for claim in experiment.claims]
        assert "undetermined" in verdicts
        assert ntk_limit.figure(runs, table)
