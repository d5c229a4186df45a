"""Learning rates in units of what is measured at the start: c/λ₀."""

import jax
import numpy as np
import pytest
from problems import column, job, state, train

from lmech import building, engine, planning
from lmech.cli import main
from lmech.collecting import collect
from lmech.engine import End
from lmech.lanes import Saved
from lmech.values import ConfigError

pytestmark = pytest.mark.usefixtures("x64")
F64 = ("precision=float64", "observables=[loss,learning_rate,sharpness]", "steps=20")
EVERY = ("observables.learning_rate.every=5", "observables.sharpness.every=5")
UNIT = (*F64, *EVERY, "rate_unit=inverse_sharpness")


def dense_sharpness(*overrides):
    """λ₁ at the start, of the whole Hessian."""
    here = state(*overrides)
    flat, unravel = jax.flatten_util.ravel_pytree(here.params)

    def loss(w):
        outputs = here.problem.apply(unravel(w), here.data.train.x)
        return here.problem.loss(outputs, here.data.train.y).mean()

    return float(np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(flat))[-1])


@pytest.mark.slow
def test_the_rate_is_c_over_the_largest_eigenvalue_of_the_whole_hessian():
    few = ("model.width=3", *UNIT)
    recorder, _ = train([job(*few, "optimizer.learning_rate=1.5")])
    rates = column(recorder, 0, "learning_rate")
    assert list(rates) == [0, 5, 10, 15, 20]
    lambda_0 = dense_sharpness("model.width=3", *F64)
    np.testing.assert_allclose(list(rates.values()), 1.5 / lambda_0, rtol=2e-4)  # the tolerance


@pytest.mark.slow
def test_the_run_is_that_at_the_absolute_rate():
    recorder, end = train([job(*UNIT, "optimizer.learning_rate=1.5")])
    eta = float(column(recorder, 0, "learning_rate")[0])
    absolute, other = train([job(*F64, *EVERY, f"optimizer.learning_rate={eta!r}")])
    assert recorder.table(0).equals(absolute.table(0))
    for one, two in zip(jax.tree.leaves(end.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_schedule_acts_on_top():
    recorder, _ = train([job(*UNIT, "schedule=linear", "observables.learning_rate.every=1")])
    rates = np.array(list(column(recorder, 0, "learning_rate").values()))
    plain, _ = train([job(*F64, "schedule=linear", "observables.learning_rate.every=1")])
    factors = np.array(list(column(plain, 0, "learning_rate").values()))
    np.testing.assert_allclose(rates / rates[0], factors / factors[0], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gd", "momentum", "nesterov", "ema_momentum"])
def test_at_the_stability_threshold_a_quadratic_is_just_stable(optimizer):
    """Squared loss of a linearized net is a quadratic: below 1 it falls, above it grows."""
    words = [
        *("linearized=true", f"optimizer={optimizer}", "precision=float64"),
        *("observables=[loss]", "rate_unit=stability_threshold", "steps=1000"),
    ]
    jobs = [job(*words, f"optimizer.learning_rate={c}") for c in (0.99, 1.02)]
    recorder, _ = train(jobs)
    below, above = (np.array(list(column(recorder, m, "train_loss").values())) for m in (0, 1))
    assert below[-1] < below[0]
    assert above[-1] > 100 * above[0]


@pytest.mark.slow
def test_rates_in_a_unit_are_inputs_of_one_program():
    groups = planning.group(planning.expand([*UNIT], {"optimizer.learning_rate": [0.5, 1.0, 1.9]}))
    assert [len(group) for group in groups] == [3]
    recorder, _ = train(
        [
            job(*UNIT, f"optimizer.learning_rate={c}", f"seed={s}")
            for c, s in [(1, 0), (2, 0), (1, 1)]
        ]
    )
    rates = [float(column(recorder, member, "learning_rate")[0]) for member in range(3)]
    np.testing.assert_allclose(rates[1], 2 * rates[0], rtol=1e-12)
    assert abs(rates[2] / rates[0] - 1) > 1e-3  # a seed has its own λ₀


@pytest.mark.slow
def test_the_unit_is_kept_in_the_state():
    batch = building.build([job(*UNIT, f"optimizer.learning_rate={c}") for c in (1.0, 1.9)])
    events = list(engine.train(*batch, save=lambda: True))
    ends = [event for event in events if isinstance(event, End)]
    halfway = [event for event in events if isinstance(event, Saved)][1]
    changed = halfway._replace(carry=halfway.carry._replace(unit=0 * halfway.carry.unit))
    resumed, stuck = (
        [event for event in engine.train(*batch, saved=saved) if isinstance(event, End)]
        for saved in (halfway, changed)
    )
    for whole, again in zip(*(jax.tree.leaves(e[-1].params) for e in (ends, resumed)), strict=True):
        np.testing.assert_array_equal(whole, again)
    leaves = (jax.tree.leaves(side) for side in (stuck[-1].params, halfway.carry.params))
    assert all(np.array_equal(*pair) for pair in zip(*leaves, strict=True))  # at a unit of 0


def test_it_is_part_of_what_the_job_is_only_where_it_is_set():
    plain, unit = job("seeds.probes=1"), job("seeds.probes=1", "rate_unit=inverse_sharpness")
    older = {key: value for key, value in plain.items() if key != "rate_unit"}
    assert planning.job_id(plain) == planning.job_id(older)
    assert planning.job_id(plain) == planning.job_id(job("seeds.probes=2"))
    ids = {
        planning.job_id(unit),
        planning.job_id(job("seeds.probes=2", "rate_unit=inverse_sharpness")),
        planning.job_id(job("seeds.probes=1", "rate_unit=inverse_sharpness", "rate_unit.k=2")),
        planning.job_id(plain),
    }
    assert len(ids) == 4


def test_a_decay_that_takes_the_rate_as_given_is_refused():
    with pytest.raises(ConfigError, match="known at step 0 only"):
        job(
            "rate_unit=inverse_sharpness",
            "parametrization=mup",
            "parametrization.weight_decay=independent",
        )


def test_an_observable_without_a_single_number_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["dataset.train_size=60", "model.width=8", "steps=5", "rate_unit=inverse_sharpness"]
    bad = "rate_unit={_target_: lmech.observables.gradients.layer_updates}"
    assert main([*words[:3], bad]) == 2
    assert "rate_unit" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_measured_later_knows_the_unit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        *("dataset.train_size=60", "model.width=8", "steps=20", "logger=none", "snapshots=[0,10]"),
        *("rate_unit=inverse_sharpness", "optimizer.learning_rate=1.5"),
    ]
    assert (
        main(
            [
                *words,
                "name=one",
                "observables=[loss,learning_rate]",
                "observables.learning_rate.every=10",
            ]
        )
        == 0
    )
    assert main([*words, "output=other", "observables=[loss]"]) == 0
    assert main(["measure", "other", "observables=[learning_rate]"]) == 0
    during, after = (
        collect(name, ["learning_rate"]).dropna().set_index("step")["learning_rate"]
        for name in ("outputs", "other")
    )
    assert list(after.index) == [0, 10, 20]
    np.testing.assert_allclose(after, during, rtol=1e-6)
