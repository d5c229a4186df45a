"""The sharpness experiment's measurements on curves whose crossings and growths are known."""

import numpy as np
import pandas as pd
import pytest

from experiments import lr_transfer_sharpness
from lmech import claims, reproducing
from lmech.collecting import Run

WIDTHS = (64, 128, 256)
STEPS = np.arange(0, 101, 10)


def run(slope, width, parametrization="mup", seed=0, change=1.0, status="done"):
    """Effective sharpness ½ + slope · step."""
    config = {"model": {"width": width}, "optimizer": {"learning_rate": 0.1}, "seed": seed}
    sharpness = 0.5 + slope * STEPS
    columns = {"step": STEPS, "effective_sharpness": sharpness}
    metrics = pd.DataFrame(columns | {"ntk_change": np.where(STEPS % 50 == 0, change, np.nan)})
    name = f"{parametrization} {width} {seed}"
    return Run(name, {"parametrization": parametrization}, config, {"status": status}, metrics)


def measured(*runs):
    (row,) = lr_transfer_sharpness.measure(runs).to_dict("records")
    return row


@pytest.mark.parametrize("step", [5.0, 33.0, 60.0, 99.0])
def test_the_crossing_lies_between_the_measurements_where_the_line_is_at_the_edge(step):
    found = lr_transfer_sharpness.points([run(0.5 / step, 64)])
    assert found["crossing"].item() == pytest.approx(step)


def test_who_starts_above_the_edge_crosses_at_once():
    assert lr_transfer_sharpness.crossing(pd.Series([1.5, 0.5, 2.0], index=[0, 10, 20])) == 0


def test_the_first_crossing_counts():
    values = pd.Series([0.5, 1.5, 0.5, 1.5], index=[0, 10, 20, 30])
    assert lr_transfer_sharpness.crossing(values) == pytest.approx(5)


def test_crossings_are_compared_from_width_to_width():
    row = measured(*(run(0.5 / step, n) for n, step in zip(WIDTHS, (20, 30, 90), strict=True)))
    assert row["crossing"] == pytest.approx(90)
    assert row["crossing_spread"] == pytest.approx(4.5)
    assert (row["crossing_least"], row["crossing_most"]) == pytest.approx((1.5, 3.0))
    assert row["crossing_last"] == pytest.approx(3.0)


def test_widths_are_ordered_by_size_whatever_the_order_of_the_runs():
    runs = [run(0.5 / step, n) for n, step in ((256, 90), (64, 20), (128, 30))]
    assert measured(*runs)["crossing_least"] == pytest.approx(1.5)


def test_a_width_that_never_crosses_is_infinitely_late():
    row = measured(run(0.05, 64), run(0.01, 128), run(0.001, 256))
    assert row["crossing_spread"] == row["crossing"] == np.inf
    assert row["crossing_least"] == pytest.approx(5)


def test_two_widths_that_never_cross_are_not_compared():
    assert np.isnan(measured(run(0.01, 64), run(0.0, 128), run(0.0, 256))["crossing_least"])


def test_one_seed_that_never_crosses_makes_its_width_infinitely_late():
    runs = [run(0.01, n, seed=seed) for n in (64, 128) for seed in (0, 1)]
    runs += [run(0.01, 256, seed=0), run(0.0, 256, seed=1)]
    assert measured(*runs)["crossing"] == np.inf


def test_growth_is_the_seeds_mean_of_last_over_first():
    """½ + slope · 100 over ½: 2 and 4 at width 64, 4 and 6 at 128."""
    runs = [run(0.005, 64, seed=0), run(0.015, 64, seed=1)]
    runs += [run(0.015, 128, seed=0), run(0.025, 128, seed=1)]
    row = measured(*runs)
    assert row["growth"] == pytest.approx(5.0)
    assert row["growth_last"] == pytest.approx(5 / 3)
    assert row["seeds"] == [0, 1]
    assert len(row["jobs"]) == 4


def test_the_kernels_change_is_that_at_the_end():
    row = measured(*(run(0.001, n, change=64 / n) for n in WIDTHS))
    assert row["kernel_change"] == pytest.approx(0.25)
    assert (row["kernel_change_most"], row["kernel_change_last"]) == pytest.approx((0.5, 0.5))


def test_corrections_that_fall_as_the_width_settle_and_a_power_law_does_not():
    """8 exp(−x/n) has log ratios x/2n, halved by each doubling; n has log 2 each time."""
    widths = (64, 128, 256, 512)
    inverse = measured(*(run(0.001, n, change=8 * np.exp(-10 / n)) for n in widths))
    power = measured(*(run(0.001, n, change=n) for n in widths))
    assert inverse["kernel_change_settles"] == pytest.approx(0.25)
    assert power["kernel_change_settles"] == pytest.approx(1.0)


def test_a_run_that_diverged_has_no_growth():
    row = measured(run(0.01, 64), run(0.01, 128, status="diverged"))
    assert np.isnan([row["growth"], row["growth_most"], row["kernel_change"]]).all()


def test_parametrizations_are_rows_of_their_own():
    runs = [run(0.01, n, name) for name in ("mup", "ntk") for n in WIDTHS]
    found = lr_transfer_sharpness.measure(runs)
    assert found["parametrization"].tolist() == ["mup", "ntk"]


def test_every_claim_selects_what_is_swept():
    experiment = reproducing.load("lr_transfer_sharpness", "default", [])
    swept = {
        (name, rate)
        for block in experiment.sweep
        for name in block.grid["parametrization"]
        for rate in block.grid["optimizer.learning_rate"]
    }
    columns = set(measured(*(run(0.01, n) for n in WIDTHS)))
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        assert (claim.where["parametrization"], claim.where["rate"]) in swept
        assert claim.quantity in columns


def test_nets_have_seeds_of_their_own_on_three_data_sets_in_a_program_a_width_each():
    """Parametrizations, rates, horizons and the nets' seeds share one."""
    experiment = reproducing.load("lr_transfer_sharpness", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    seeds = {(job.config["seed"], job.config["dataset"]["data_seed"]) for job in jobs}
    assert len({net for net, _ in seeds}) == len(seeds) >= 3
    assert len({data for _, data in seeds}) == 3
    assert len(reproducing.planning.group(jobs)) == 3 * 4


def test_figure_has_a_row_a_rate():
    runs = [run(0.01, n, name) for name in ("mup", "ntk") for n in WIDTHS]
    fig = lr_transfer_sharpness.figure(runs, pd.DataFrame())
    assert len(fig.axes) == 3
