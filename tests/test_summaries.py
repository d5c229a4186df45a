"""Summaries of collected frames, on closed forms."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmech.summaries import (
    delay,
    drift,
    final,
    first_crossing,
    learning_rate_sensitivity,
    optimum,
    regret,
    sensitivity,
)
from lmech.values import ConfigError

RATES = 2.0 ** np.arange(-6, 3)
NAN, INF = np.nan, np.inf


def frame(loss, rates=RATES, seeds=(0,), widths=(64,), start=9.0):
    """Two recorded steps a job: ``start``, then loss(log2 rate, seed, width); a NaN diverged."""
    rows = []
    for width in widths:
        for rate in rates:
            for seed in seeds:
                end = loss(np.log2(rate), seed, width)
                status = "done" if np.isfinite(end) else "diverged"
                job = f"{width}-{rate}-{seed}"
                labels = {"sweep": "s", "job": job, "rate": rate, "width": width, "seed": seed}
                labels["status"] = status
                rows += [
                    {**labels, "step": 0, "loss": start},
                    {**labels, "step": 5, "loss": end},
                ]
    return pd.DataFrame(rows)


def bowl(u, *_):
    return 1 + (u + 1.3) ** 2


def one(table):
    (row,) = table.to_dict("records")
    return row


def test_the_final_value_is_the_last_that_was_recorded():
    table = pd.DataFrame(
        {
            "sweep": "s",
            "job": ["a", "a", "a", "b", "b", "c"],
            "seed": [0, 0, 0, 1, 1, 2],
            "step": [2, 0, 1, 0, 1, 0],
            "loss": [NAN, 3.0, 2.0, 5.0, 4.0, NAN],
        }
    )
    last = final(table, "loss")
    assert list(last) == ["sweep", "job", "seed", "step", "loss"]
    assert last["job"].tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(last["loss"], [2, 4, NAN])
    np.testing.assert_array_equal(last["step"], [1, 1, NAN])


@given(st.floats(-4.4, 0.4), st.floats(0.01, 100), st.floats(-5, 5))
def test_a_parabola_in_log2_is_found_exactly(center, curvature, floor):
    found = one(optimum(frame(lambda u, *_: floor + curvature * (u - center) ** 2), "rate", "loss"))
    assert found["optimum"] == pytest.approx(2**center, rel=1e-6)
    assert found["position"] == "inside"
    assert found["low"] < found["optimum"] < found["high"]


def test_an_uneven_grid_does_not_shift_the_optimum():
    found = one(optimum(frame(bowl, rates=2.0 ** np.array([-5, -1.5, -0.5, 2])), "rate", "loss"))
    assert found["optimum"] == pytest.approx(2**-1.3)


def test_a_grid_with_zero_is_on_a_linear_scale():
    table = frame(bowl).assign(decay=lambda t: np.log2(t["rate"]) + 6)
    found = one(optimum(table[["sweep", "job", "decay", "step", "loss"]], "decay", "loss"))
    assert found["optimum"] == pytest.approx(6 - 1.3)


def test_the_best_to_maximise_is_the_best_of_the_negative():
    table = frame(bowl).assign(score=lambda t: -t["loss"])
    best = one(optimum(table, "rate", "score", goal="max"))
    assert best["score"] == -one(optimum(table, "rate", "loss"))["loss"]
    assert best["optimum"] == pytest.approx(2**-1.3)


@pytest.mark.parametrize(("slope", "edge"), [(1, "low edge"), (-1, "high edge")])
def test_an_optimum_at_the_edge_of_the_grid_is_undetermined(slope, edge):
    found = one(optimum(frame(lambda u, *_: slope * u, seeds=(0, 1)), "rate", "loss"))
    assert (found["position"], found["interval"]) == (edge, "none")
    assert found["best"] == (RATES[0] if slope > 0 else RATES[-1])
    assert np.isnan([found["optimum"], found["low"], found["high"]]).all()


def test_with_one_seed_the_interval_is_the_grids_spacing_and_says_so():
    found = one(optimum(frame(bowl), "rate", "loss"))
    assert (found["low"], found["high"], found["interval"]) == (0.25, 1.0, "grid")


def test_the_bootstrap_covers_the_seeds_optima_and_is_the_same_every_time():
    table = frame(lambda u, seed, _: (u + 2 + 0.2 * (seed - 1)) ** 2, seeds=(0, 1, 2))
    found = one(optimum(table, "rate", "loss"))
    assert found["interval"] == "bootstrap"
    assert np.log2([found["low"], found["optimum"], found["high"]]) == pytest.approx(
        [-2.2, -2, -1.8]
    )
    assert found == one(optimum(table, "rate", "loss"))
    narrow = one(optimum(table, "rate", "loss", level=0.5))
    assert found["low"] < narrow["low"] < narrow["high"] < found["high"]


def test_seeds_that_agree_have_an_interval_of_no_width():
    found = one(optimum(frame(bowl, seeds=(0, 1, 2)), "rate", "loss"))
    assert found["low"] == found["optimum"] == found["high"]


def test_resamples_at_the_edge_open_the_interval():
    def loss(u, seed, _):
        return (u - 1.6 * seed) ** 2  # seed 1 alone has its best at u = 2, the edge

    found = one(optimum(frame(loss, seeds=(0, 1)), "rate", "loss"))
    assert found["position"] == "inside"
    assert found["high"] == INF
    assert found["low"] == pytest.approx(1.0)


def diverging(u, *_):
    return (u - 1) ** 2 if u < 0.5 else NAN


def test_a_diverged_run_is_the_worst_and_never_dropped():
    found = one(optimum(frame(diverging), "rate", "loss"))
    assert (found["best"], found["optimum"], found["position"]) == (1.0, 1.0, "inside")
    assert (found["low"], found["high"], found["interval"]) == (0.5, 2.0, "grid")
    assert (found["diverged"], found["missing"], found["seeds"]) == (2, 0, 1)


def test_a_run_that_diverged_with_a_low_finite_loss_is_still_the_worst():
    table = frame(bowl)
    table.loc[table["rate"] == 0.5, "status"] = "diverged"
    assert one(optimum(table, "rate", "loss"))["best"] == 0.25
    assert one(optimum(table.drop(columns="status"), "rate", "loss"))["best"] == 0.5


def test_one_diverged_seed_spoils_the_mean_and_not_the_median():
    def loss(u, seed, _):
        return NAN if u == -1 and seed == 2 else bowl(u)

    table = frame(loss, seeds=(0, 1, 2))
    assert one(optimum(table, "rate", "loss"))["best"] == 0.25
    assert one(optimum(table, "rate", "loss", average="median"))["best"] == 0.5


def test_a_group_that_diverged_everywhere_has_no_optimum():
    found = one(optimum(frame(lambda *_: NAN, seeds=(0, 1)), "rate", "loss"))
    assert (found["position"], found["interval"], found["diverged"]) == ("diverged", "none", 18)
    assert np.isnan([found["best"], found["optimum"], found["loss"]]).all()


def test_a_missing_run_is_counted_and_is_not_divergence():
    table = frame(bowl, seeds=(0, 1))
    table = table[table["job"] != "64-0.5-1"]
    found = one(optimum(table, "rate", "loss"))
    assert (found["missing"], found["diverged"], found["best"]) == (1, 0, 0.5)


def test_groups_keep_their_order_and_may_be_null_or_lists():
    table = frame(bowl, widths=(64, 16))
    table["width"] = table["width"].map({64: None, 16: [8, 16]})
    assert optimum(table, "rate", "loss", by="width")["width"].tolist() == [None, (8, 16)]


def test_a_job_of_two_sweeps_counts_once_and_two_jobs_in_one_place_are_an_error():
    table = frame(bowl)
    twice = pd.concat([table, table.assign(sweep="t")])
    assert one(optimum(twice, "rate", "loss")) == one(optimum(table, "rate", "loss"))
    with pytest.raises(ConfigError, match=r"two jobs have rate=.*seed=0: add to `by`"):
        optimum(frame(bowl, widths=(64, 16)), "rate", "loss")


def shifted(u, seed, width):
    """Best at 2^-2 for width 16 and 2^-4 for width 64, seeds apart by a constant."""
    return (u + {16: 2, 64: 4}[width]) ** 2 + seed


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.25])
def test_the_drift_is_the_slope_of_log_optimum_against_log_width(slope):
    def moving(u, seed, width):
        return (u + 2 - slope * np.log2(width / 64)) ** 2 + seed

    table = frame(moving, seeds=(0, 1, 2), widths=(256, 64, 128))
    found = one(drift(table, "rate", "loss", "width"))
    for name in ("drift", "low", "high"):
        assert found[name] == pytest.approx(slope, abs=1e-12)
    for name in ("octaves", "octaves_low", "octaves_high"):
        assert found[name] == pytest.approx(2 * slope, abs=1e-12)
    assert (found["position"], found["points"]) == ("inside", 3)


def test_the_interval_of_a_drift_is_that_of_independent_seeds():
    """Optima scatter by ± d at each of two widths: the slope's extremes are ± 2d apart."""

    def scattered(u, seed, width):
        return (u + 2 - 0.3 * (seed if width == 64 else -seed)) ** 2

    table = frame(scattered, seeds=(-1, 1), widths=(64, 128))
    found = one(drift(table, "rate", "loss", "width"))
    assert found["drift"] == pytest.approx(0, abs=1e-12)
    assert [found["low"], found["high"]] == pytest.approx([-0.6, 0.6])


def test_a_drift_is_not_known_where_an_optimum_is_at_the_edge():
    table = frame(lambda u, _, width: (u + width / 32) ** 2, seeds=(0, 1), widths=(64, 128, 256))
    found = one(drift(table, "rate", "loss", "width"))
    assert found["position"] == "low edge"
    assert np.isnan([found["drift"], found["low"], found["octaves"]]).all()


def test_regret_is_what_the_references_best_loses():
    table = frame(shifted, widths=(16, 64), seeds=(0, 1, 2))
    lost = regret(table, "rate", "loss", "width", {"width": 16})
    assert lost["regret"].tolist() == [0, 4]
    assert lost["x_reference"].tolist() == [0.25, 0.25]
    assert lost["best"].tolist() == [0.25, 2.0**-4]
    np.testing.assert_allclose(lost[["low", "high"]], [[0, 0], [4, 4]])


def test_the_interval_of_a_regret_is_the_seeds_own():
    def loss(u, seed, width):
        return (u + 2 + (width == 64) * (1 + 0.2 * seed)) ** 2

    table = frame(loss, widths=(16, 64), seeds=(0, 1, 2))
    lost = regret(table, "rate", "loss", "width", {"width": 16}).iloc[1]
    # At u = −2 seed k's loss is (1 + 0.2 k)²; at u = −3, the best point, (0.2 k)².
    each = [(1 + 0.2 * k) ** 2 - (0.2 * k) ** 2 for k in range(3)]
    assert lost["regret"] == pytest.approx(np.mean(each))
    assert [lost["low"], lost["high"]] == pytest.approx([min(each), max(each)])


def test_each_group_has_the_reference_that_is_otherwise_like_it():
    table = pd.concat(
        [
            frame(shifted, widths=(16, 64)).assign(form="a"),
            frame(lambda u, *_: (u + 1) ** 2, widths=(16, 64)).assign(form="b"),
        ]
    )
    table["job"] += table["form"]
    table.insert(0, "kind", table.pop("form"))
    lost = regret(table, "rate", "loss", ["kind", "width"], {"width": 16})
    assert lost["regret"].tolist() == [0, 4, 0, 0]
    with pytest.raises(ConfigError, match=r"no group.*32"):
        regret(table, "rate", "loss", ["kind", "width"], {"width": 32})


def test_the_regret_is_infinite_where_the_references_best_diverges():
    def loss(u, _, width):
        return NAN if width == 64 and u >= -2 else shifted(u, 0, width)

    table = frame(loss, widths=(16, 64), seeds=(0, 1))
    lost = regret(table, "rate", "loss", "width", {"width": 16})
    assert lost["regret"].tolist() == [0, INF]
    assert lost["low"].tolist() == [0, INF]
    absent = table[(table["width"] == 16) | (table["rate"] != 0.25)]
    assert np.isnan(regret(absent, "rate", "loss", "width", {"width": 16})["regret"][1])


@given(st.floats(0.1, 5))
def test_the_sensitivity_of_a_wedge_is_twice_its_tolerance(tolerance):
    table = frame(lambda u, *_: abs(u + 2), rates=2.0 ** np.arange(-8, 5))
    wide = one(sensitivity(table, "rate", "loss", tolerance))
    assert wide["octaves"] == pytest.approx(2 * tolerance)
    assert np.log2([wide["low"], wide["high"]]) == pytest.approx([-2 - tolerance, -2 + tolerance])
    assert wide["censored"] == ""


def test_a_relative_tolerance_is_a_share_of_the_best():
    table = frame(lambda u, *_: 2 + abs(u + 2))
    wide = one(sensitivity(table, "rate", "loss", 0.5, relative=True))
    assert wide["octaves"] == pytest.approx(2)
    score = table.assign(score=-table["loss"])
    same = one(sensitivity(score, "rate", "score", 0.5, relative=True, goal="max"))
    assert same["octaves"] == wide["octaves"]


@pytest.mark.parametrize(
    ("center", "censored", "octaves"), [(-2, "", 7), (-3, "low", 6.5), (-1, "high", 6.5)]
)
def test_a_width_that_reaches_the_edge_of_the_grid_is_censored(center, censored, octaves):
    wide = one(sensitivity(frame(lambda u, *_: abs(u - center)), "rate", "loss", 3.5))
    assert wide["censored"] == censored
    assert wide["octaves"] == pytest.approx(octaves)
    wide = one(sensitivity(frame(lambda u, *_: abs(u - center)), "rate", "loss", 9))
    assert (wide["censored"], wide["low"], wide["high"]) == ("both", RATES[0], RATES[-1])


def test_a_region_ends_at_the_last_point_before_a_diverged_one():
    wide = one(sensitivity(frame(diverging), "rate", "loss", 1.5))
    assert (wide["high"], wide["censored"]) == (1.0, "")


def test_wortsmans_sensitivity_clips_at_the_initial_loss():
    losses = {-2: 3.0, -1: 1.0, 0: 20.0, 1: NAN}
    table = frame(lambda u, *_: losses[u], rates=2.0 ** np.arange(-2, 2), start=9.0)
    found = one(learning_rate_sensitivity(table, "rate", "loss"))
    assert found["sensitivity"] == np.mean([3, 1, 9, 9]) - 1
    assert (found["best"], found["loss"], found["diverged"]) == (0.5, 1.0, 1)
    with pytest.raises(ConfigError, match="loss at step 0 is needed, and 4 jobs have none"):
        learning_rate_sensitivity(table[table["step"] > 0], "rate", "loss")


def test_wortsmans_sensitivity_averages_the_seeds_after_the_clipping():
    """E over rates of min(ℓ, ℓ₀) − ℓ*: a seed that explodes counts as its initial loss."""
    ends = {(-1, 0): 1.0, (-1, 1): 3.0, (0, 0): 5.0, (0, 1): 200.0}
    table = frame(lambda u, seed, _: ends[u, seed], rates=[0.5, 1.0], seeds=(0, 1), start=9.0)
    found = one(learning_rate_sensitivity(table, "rate", "loss"))
    assert found["sensitivity"] == np.mean([(1 + 3) / 2, (5 + 9) / 2]) - 2


def crossing_frame():
    steps = np.arange(5)
    jobs = {"falls": 4.0 - steps, "stays": 4.0 + 0 * steps, "begins": steps - 1.0}
    parts = [
        pd.DataFrame({"job": job, "step": 10 * steps, "loss": loss}) for job, loss in jobs.items()
    ]
    never = pd.DataFrame({"job": "never", "step": [0], "loss": [NAN]})
    return pd.concat([*parts, never], ignore_index=True)


def test_the_first_crossing_is_the_first_recorded_step_there_and_never_is_censored():
    table = crossing_frame()
    table.loc[table["step"] == 20, "loss"] = NAN
    below = first_crossing(table, "loss", 2.0)
    assert below["job"].tolist() == ["falls", "stays", "begins", "never"]
    np.testing.assert_array_equal(below["step"], [30, NAN, 0, NAN])
    np.testing.assert_array_equal(below["censored_at"], [NAN, 40, NAN, NAN])
    above = first_crossing(table, "loss", 1.5, "above")
    np.testing.assert_array_equal(above["step"], [0, 0, 30, NAN])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda t: final(t, "los"), "no column 'los'; did you mean 'loss'"),
        (lambda t: final(t.drop(columns="job"), "loss"), "a frame of lmech.collect"),
        (lambda t: optimum(t, "rat", "loss"), "no key 'rat'; did you mean 'rate'"),
        (lambda t: optimum(t, "rate", "loss", by="with"), "no key 'with'"),
        (lambda t: optimum(t, "status", "loss"), "x=status: each job needs a number"),
        (lambda t: optimum(t, "rate", "loss", goal="mim"), "no goal 'mim'; did you mean 'min'"),
        (lambda t: optimum(t, "rate", "loss", average="mode"), "no average 'mode'"),
        (lambda t: optimum(t.assign(v=[[1]] * len(t)), "rate", "v"), "v is no number"),
        (lambda t: first_crossing(t, "loss", 1, "under"), "no direction 'under'"),
        (lambda t: regret(t, "rate", "loss", "width", {"wid": 1}), "no reference 'wid'"),
        (lambda t: sensitivity(t.assign(seed=0, rate=-t["rate"]), "rate", "loss", 1), "octaves"),
    ],
)
def test_a_mistake_is_one_line(call, told):
    with pytest.raises(ConfigError, match=told) as error:
        call(frame(bowl))
    assert "\n" not in str(error.value)


def accuracies(**jobs):
    """Training accuracy is recorded at every step of (0, 10, …, 50), test's at every other one."""
    rows = [
        {"job": job, "step": 10 * i, "train_accuracy": train[i], "test_accuracy": test}
        for job, (train, tests) in jobs.items()
        for i, test in enumerate(value for own in tests for value in (own, NAN))
    ]
    return pd.DataFrame(rows)


LATE = [0.1, 1.0, 1.0, 1.0, 1.0, 1.0]
DELAYS = accuracies(
    grokked=(LATE, [0.1, 0.2, 1.0]),
    censored=(LATE, [0.1, 0.2, 0.3]),
    at_once=([0.1, 0.5, 1.0, 1.0, 1.0, 1.0], [0.1, 0.99, 1.0]),
    never=([0.1] * 6, [0.1, 0.1, 0.1]),
    first_the_test=([0.1] * 6, [0.1, 0.1, 1.0]),
    from_the_start=([1.0] * 6, [0.1, 1.0, 1.0]),
    lost_again=([0.1, 1.0, 0.5, 1.0, 1.0, 1.0], [0.1, 1.0, 0.2]),
)


@pytest.mark.parametrize(
    ("job", "memorised", "generalised", "ratio", "censored"),
    [
        ("grokked", 10, 40, 4, NAN),
        ("censored", 10, NAN, INF, 40),
        ("at_once", 20, 20, 1, NAN),
        ("never", NAN, NAN, NAN, 40),
        ("first_the_test", NAN, 40, NAN, NAN),
        ("from_the_start", 0, 20, NAN, NAN),
        ("lost_again", 10, 20, 2, NAN),
    ],
)
def test_the_delay_is_the_ratio_of_first_crossings(job, memorised, generalised, ratio, censored):
    table = delay(DELAYS)
    assert list(table) == ["job", "memorised_at", "generalised_at", "ratio", "censored_at"]
    row = table.set_index("job").loc[job].to_numpy()
    np.testing.assert_array_equal(row, [memorised, generalised, ratio, censored])


def test_a_delay_of_losses_is_below_their_threshold():
    errors = DELAYS.assign(
        train_loss=1 - DELAYS["train_accuracy"], test_loss=1 - DELAYS["test_accuracy"]
    )
    own = delay(errors, "train_loss", "test_loss", 0.01, "below")
    assert own.loc[own["job"] == "grokked", "ratio"].tolist() == [4]
    with pytest.raises(ConfigError, match="test_losses"):
        delay(errors, "train_loss", "test_losses")
