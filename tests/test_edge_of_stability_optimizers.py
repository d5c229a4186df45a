"""Edge of stability of every optimizer: the lanes are what they say, and so are the quantities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from problems import job, train
from scipy.optimize import linprog

from experiments import edge_of_stability_optimizers as experiment
from lmech import claims, optimizers, planning, reproducing
from lmech.collecting import Run
from lmech.datasets.gaussian import gaussian

pytestmark = pytest.mark.usefixtures("x64")

FLOAT64 = ("steps=40", "precision=float64")


GENERAL = {
    "_target_": "lmech.optimizers.general_momentum",
    "momentum": 0.9,
    "dampening": 0.0,
    "nesterov": 0.0,
}


def trained(*overrides):
    """The weights after 40 steps."""
    _, end = train([job(*FLOAT64, *overrides)])
    weights = [np.asarray(leaf[0]) for leaf in jax.tree.leaves(end.params)]
    return np.concatenate([leaf.ravel() for leaf in weights])


def test_polyak_is_averaged_momentum_at_the_rate_over_one_minus_beta():
    """A trajectory identity: both buffers start at 0, m_ema = (1 − β) m at every step."""
    beta, rate = 0.9, 0.02
    polyak = ["optimizer=momentum", f"optimizer.momentum={beta}"]
    there = trained(*polyak, f"optimizer.learning_rate={rate}")
    averaged = ["optimizer=ema_momentum", f"optimizer.beta={beta}"]
    same = trained(*averaged, f"optimizer.learning_rate={rate / (1 - beta)}")
    np.testing.assert_allclose(same, there, rtol=0, atol=1e-12 * np.abs(there).max())
    other = trained(*polyak, f"optimizer.learning_rate={1.001 * rate}")
    assert np.abs(other - there).max() > 1e-6 * np.abs(there).max()  # the bound would see 0.1 %


@pytest.mark.parametrize(
    ("own", "preset"),
    [
        (["optimizer.nesterov=1.0"], ["optimizer=nesterov"]),
        (["optimizer.dampening=0.9"], ["optimizer=ema_momentum"]),
    ],
)
def test_the_general_momentum_has_the_others_trajectories(own, preset):
    there = trained(*preset, "optimizer.learning_rate=0.02")
    same = trained("optimizer=general_momentum", *own, "optimizer.learning_rate=0.02")
    np.testing.assert_allclose(same, there, rtol=0, atol=1e-12 * np.abs(there).max())


def test_their_thresholds_are_then_the_same():
    arguments = {"momentum": 0.9, "beta": 0.9, "learning_rate": 0.02}
    polyak = optimizers.RULES[optax.sgd](arguments, None, {"w": jnp.ones(2)})
    arguments["learning_rate"] /= 1 - 0.9
    averaged = optimizers.RULES[optimizers.ema_momentum](arguments, None, {"w": jnp.ones(2)})
    np.testing.assert_allclose([polyak.threshold, averaged.threshold], 3.8 / 0.02, rtol=1e-12)


@pytest.mark.parametrize(
    ("lane", "preset"),
    [
        (["optimizer=momentum", "optimizer.momentum=0.0"], ["optimizer=gd"]),
        (["optimizer=general_momentum"], ["optimizer=momentum"]),
        (["optimizer=adamw", "optimizer.weight_decay=0.0"], ["optimizer=adam"]),
    ],
)
def test_a_lane_without_momentum_or_decay_is_the_plain_optimizer_bit_for_bit(lane, preset):
    rate = "optimizer.learning_rate=0.01"
    np.testing.assert_array_equal(trained(*lane, rate), trained(*preset, rate))


def run(r, loss, sharpness=None, warmup=0, nonfinite_at=None, seed=0, **optimizer):
    steps = len(loss) - 1
    section = {**GENERAL, "learning_rate": 0.1, "momentum": 0.0, **optimizer}
    config = {
        "seed": seed,
        "steps": steps,
        "optimizer": section,
        "loss": {"_target_": "lmech.losses.mse"},
        "schedule": {"warmup": warmup},
        "label_noise": 0.2,
        "model": {"depth": 3},
    }
    metrics = pd.DataFrame({"step": range(steps + 1), "batch_loss": loss})
    metrics["effective_sharpness"] = r
    metrics["effective_sharpness_eigenvalue"] = 20 * metrics["effective_sharpness"]
    if sharpness is not None:
        metrics["sharpness"] = sharpness
    return Run(f"{seed}", {}, config, {"nonfinite_at": nonfinite_at, "steps": steps}, metrics)


LOSS = [1.0, 0.9, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.1]


def test_quantities_of_a_written_out_run():
    r = [2.0, 0.5, 0.8, 1.1, 1.0, 1.2, 0.9, np.nan, 0.4]
    (row,) = experiment.measure([run(r, LOSS, sharpness=[3, *5 * [6.0], 6, 6, 6])]).to_dict(
        "records"
    )
    assert row["crossing"] == 3  # the start at 2 is none
    assert row["crossing_share"] == 3 / 8
    assert row["growth"] == 2
    assert row["window"] == pytest.approx(np.mean([1.1, 1.0, 1.2, 0.9]))
    assert row["second_half"] == pytest.approx(np.mean([1.0, 1.2, 0.9, 0.4]))
    assert (row["initial"], row["final"]) == (2.0, 0.4)
    assert np.isnan(row["warm"])


def test_under_a_warm_up_the_window_ends_with_it():
    r = [0.1, 0.5, 0.8, 1.1, 1.0, 1.2, 0.9, 0.9, 0.4]
    (row,) = experiment.measure([run(r, LOSS, warmup=5)]).to_dict("records")
    assert row["warm"] == pytest.approx(1.1)
    assert row["warm_fall"] == pytest.approx(1.2 / 1.1)


def test_a_run_that_never_crosses_has_no_window_and_one_that_diverges_no_number():
    (row,) = experiment.measure([run(np.linspace(0.1, 0.9, 9), LOSS)]).to_dict("records")
    assert row["crossing"] == row["crossing_share"] == np.inf
    assert np.isnan(row["window"])
    assert row["growth"] == pytest.approx(9)
    (row,) = experiment.measure([run(np.ones(9), LOSS, nonfinite_at=8)]).to_dict("records")
    assert np.isnan([row[name] for name in ("initial", "crossing", "second_half")]).all()


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({**GENERAL, "momentum": 0.0}, ("gd", 0.0)),
        (GENERAL, ("polyak", 0.9)),
        ({**GENERAL, "nesterov": 1.0}, ("nesterov", 0.9)),
        ({**GENERAL, "dampening": 0.9}, ("ema", 0.9)),
        ({"_target_": "optax.rmsprop"}, ("rmsprop", 0.0)),
        ({"_target_": "optax.adagrad"}, ("adagrad", 0.0)),
        ({"_target_": "optax.adamw", "b1": 0.5}, ("adam", 0.5)),
    ],
)
def test_optimizers_are_told_apart(section, expected):
    assert experiment.identified(section) == expected
    assert expected in experiment.NAMES


@pytest.fixture
def unread(monkeypatch):
    """Planning without a look at the data."""
    for name in ("_data_checksum", "load_data"):
        monkeypatch.setattr(planning, name, lambda _: "any")


def expanded(scale="default"):
    loaded = reproducing.load("edge_of_stability_optimizers", scale, [])
    return loaded, planning.expand(loaded.overrides, loaded.sweep)


@pytest.mark.slow
@pytest.mark.usefixtures("unread")
def test_every_claim_selects_rows_and_names_a_quantity():
    for scale in ("default", "paper"):
        loaded, jobs = expanded(scale)
        rows = pd.DataFrame([experiment.labels(Run("", {}, one.config, {}, None)) for one in jobs])
        quantities = set(experiment.measure([run(np.ones(9), LOSS)]))
        for claim in loaded.claims:
            assert len(claims._selected(rows, claim.where)), claim.claim
            assert claim.quantity in quantities
        expected = {claim.expected for claim in loaded.claims}
        assert expected == ({"open"} if scale == "paper" else {"holds", "fails", "open"})


@pytest.mark.usefixtures("unread")
def test_learning_rates_seeds_momenta_decays_and_warm_ups_are_lanes():
    _, jobs = expanded()
    assert len(planning.group(jobs)) == 11
    assert {one.config["seed"] for one in jobs} == {0, 1, 2}
    names = {experiment.identified(one.config["optimizer"]) for one in jobs}
    assert names == set(experiment.NAMES)


@pytest.mark.usefixtures("unread")
def test_the_logistic_controls_labels_are_separable_and_the_noisy_ones_are_not():
    """A linear programme: is there W with (W_y − W_c)·x ≥ 1 for all examples and c ≠ y?"""
    _, jobs = expanded()
    sets = {
        one.config["label_noise"]: one.config["dataset"]
        for one in jobs
        if one.config["model"]["depth"] == 0 and one.config["dataset"]["labels"] == "linear"
    }
    assert sorted(sets) == [0.0, 0.5]
    arguments = {key: value for key, value in sets[0.0].items() if key != "_target_"}
    data = gaussian(**arguments).train
    assert separable(data.x, data.y, arguments["classes"])
    noisy = np.random.default_rng(0).integers(5, size=len(data.y))
    wrong = np.where(np.arange(len(noisy)) % 2, noisy, data.y)
    assert not separable(data.x, wrong, arguments["classes"])


def separable(x, y, classes):
    one_hot, x = np.eye(classes), np.c_[x, np.ones(len(x))]
    differences = one_hot[y][:, None] - one_hot[None]  # [N, C, C]
    rows = np.einsum("nck,nd->nckd", differences, x)[one_hot[y] == 0]
    rows = rows.reshape(len(rows), -1)
    found = linprog(np.zeros(rows.shape[1]), -rows, -np.ones(len(rows)), bounds=(None, None))
    return found.status == 0


@pytest.mark.usefixtures("unread")
def test_the_figure_has_a_panel_for_each_optimizer_and_the_threshold_in_each():
    _, jobs = expanded()
    runs = []
    for number, one in enumerate(jobs):
        at = np.arange(0, 41, 10)
        metrics = pd.DataFrame({"step": at, "effective_sharpness": 0.3 * at / 10})
        runs.append(Run(str(number), dict(one.overrides), one.config, {"status": "done"}, metrics))
    drawn = experiment.figure(runs, pd.DataFrame())
    assert [axis.get_title() for axis in drawn.axes[:9]] == list(experiment.NAMES.values())
    for axis in drawn.axes:
        dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert [set(line.get_ydata()) for line in dashed] == [{1}]
