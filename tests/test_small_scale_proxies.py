"""The small transformers' measurements on curves whose crossings and slopes are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import small_scale_proxies as proxies
from lmech import claims, reproducing
from lmech.collecting import Run

RATES = 3e-4 * 2.0 ** np.arange(13)
START, BEST = 4.2, 2.4


def run(rate, loss, qk_norm=False, z_loss=0.0, seed=0, attention=1.0, log_z=25.0):
    steps = 40
    config = {
        "model": {"qk_norm": qk_norm},
        "loss": {"z_loss": z_loss},
        "optimizer": {"learning_rate": rate},
        "steps": steps,
        "seed": seed,
    }
    batch_loss = np.where(np.arange(steps) < steps - proxies.LAST, 99.0, loss)
    batch_loss[0] = START
    metrics = pd.DataFrame({"step": np.arange(steps + 1), "batch_loss": [*batch_loss, np.nan]})
    for name, value in {"attention_logits": attention, "logits_log_partition": log_z}.items():
        metrics[name] = np.where(metrics["step"] == steps, value, np.nan)
    status = "done" if loss <= START else "diverged"
    name = f"{qk_norm} {z_loss} {rate} {seed}"
    return Run(name, {}, config, {"status": status, "steps": steps}, metrics)


def curve(kink, seeds=(0,), growth=0.0, fall=0.0, **arm):
    """Best loss up to 2^kink and 0.4 nats an octave more beyond; logits are powers of the rate."""
    return [
        run(
            rate,
            BEST + 0.4 * max(np.log2(rate) - kink, 0) + 0.01 * abs(np.log2(rate / RATES[1])),
            seed=seed,
            attention=100 * rate**growth,
            log_z=25 * rate**fall,
            **arm,
        )
        for rate in RATES
        for seed in seeds
    ]


def row(table, arm, over="plain"):
    (found,) = table[(table["arm"] == arm) & (table["over"] == over)].to_dict("records")
    return found


def test_the_loss_is_that_of_the_last_steps_and_of_the_first():
    frame = proxies.losses([run(0.1, 2.5)])
    assert frame["loss"].tolist() == pytest.approx([START, 2.5])
    assert frame["step"].tolist() == [0, 40]
    assert frame["attention"].iloc[1] == 1.0


def test_a_remedy_that_moves_the_rise_by_two_octaves_gains_two():
    table = proxies.measure([*curve(-6.0, growth=1.5), *curve(-4.0, qk_norm=True, growth=0.25)])
    assert table["arm"].tolist() == ["plain", "qk-norm"]
    own = row(table, "qk-norm")
    assert own["octaves_gained"] == pytest.approx(2.0, abs=0.06)  # the bowl's own slope
    assert own["sensitivity_ratio"] < 1
    assert own["attention_growth"] == pytest.approx(0.25)
    plain = row(table, "plain")
    assert (plain["octaves_gained"], plain["sensitivity_ratio"], plain["log_z"]) == (0, 1, 1)
    assert plain["attention_growth"] == pytest.approx(1.5)
    log10_rate = plain["lost_at"] * np.log10(2)
    assert plain["attention_lost"] == pytest.approx(2 + 1.5 * log10_rate)
    assert len(plain["jobs"]) == 13
    assert len(own["jobs"]) == 26


def test_each_seed_and_pair_has_its_row_and_both_stands_beside_qk_norm_too():
    arms = [(False, 0.0), (True, 0.0), (False, 1e-4), (True, 1e-4)]
    runs = [r for qk, z in arms for r in curve(-6.0, (0, 1), qk_norm=qk, z_loss=z)]
    table = proxies.measure(runs)
    pairs = list(zip(table["arm"], table["over"], strict=True))
    assert pairs == [pair for pair in proxies.PAIRS for _ in (0, 1)]
    assert table["seed"].tolist() == [0, 1] * len(proxies.PAIRS)
    assert table["octaves_gained"].abs().max() == 0


def test_the_sensitivity_is_wortsmans_over_the_papers_rates_alone():
    """Mean of min(loss, loss at the start) − best over 3e-4 … 0.3072, whatever comes after."""
    losses = [2.6, 2.5, 2.4, 2.4, 2.4, 2.4, 2.5, 2.9, 3.5, 4.0, 50.0, 60.0, np.nan]
    table = proxies.measure([run(*one) for one in zip(RATES, losses, strict=True)])
    clipped = np.minimum(losses[:11], START)
    assert row(table, "plain")["sensitivity"] == pytest.approx(clipped.mean() - 2.4)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ([3.0, 2.0, 2.0, 3.0], 2.5),  # the low side, too slow, is not lost
        ([2.0, 2.0, np.inf, np.inf], 1.0),
        ([2.4, 2.0, 2.2, 2.4], np.inf),
        ([3.0, 2.8, 2.9, 3.0], 1.0),  # never below the level: lost at its best
    ],
)
def test_a_net_is_lost_where_the_line_past_its_best_rate_crosses_the_level(loss, expected):
    assert proxies.crossing(np.arange(4.0), np.array(loss), 2.5) == expected


def test_a_net_that_is_never_lost_has_no_finite_rate_nor_logit_there():
    table = proxies.measure([*curve(-6.0), *curve(9.0, qk_norm=True)])
    own = row(table, "qk-norm")
    assert own["octaves_gained"] == np.inf
    assert np.isnan(own["attention_lost"])


def test_log_z_is_compared_where_neither_net_is_lost():
    table = proxies.measure([*curve(-6.0, fall=0.5), *curve(-6.0, z_loss=1e-4, fall=0.5)])
    own = row(table, "z-loss")
    assert own["log_z"] == pytest.approx(1.0)
    assert own["log_z_growth"] == pytest.approx(0.5)


def entropy(values):
    p = np.unique(values, return_counts=True)[1] / len(values)
    return -(p * np.log(p)).sum()


def test_the_entropies_are_those_of_the_training_text(data_folder):
    text = np.fromfile(Path(data_folder) / "tinyshakespeare/input.txt", np.uint8)[:1_003_854]
    alone, pairs = entropy(text), entropy(256 * text[:-1].astype(np.int32) + text[1:])
    assert [alone, pairs - alone] == pytest.approx([proxies.UNIGRAM, proxies.BIGRAM], abs=1e-3)


def test_every_claim_selects_what_is_swept_and_the_grid_is_the_papers():
    experiment = reproducing.load("small_scale_proxies", "default", [])
    measured = set(proxies.measure(curve(-6.0)))
    for claim in experiment.claims:
        assert isinstance(claim, claims.Claim)
        assert (claim.where["arm"], claim.where.get("over", "plain")) in proxies.PAIRS
        assert claim.quantity in measured
    (decided,) = [claim for claim in experiment.claims if claim.expected != "open"]
    assert (decided.quantity, decided.interval) == ("octaves_gained", (1, None))


def test_the_default_scale_is_four_programs_and_its_rates_are_octaves(monkeypatch):
    monkeypatch.setattr(reproducing.planning, "_data_checksum", lambda _: "any")
    experiment = reproducing.load("small_scale_proxies", "default", [])
    jobs = reproducing.planning.expand(experiment.overrides, experiment.sweep)
    assert len(reproducing.planning.group(jobs)) == 4
    assert len(jobs) == 4 * 13 * 3
    rates = sorted({job.config["optimizer"]["learning_rate"] for job in jobs})
    assert rates == pytest.approx(RATES)
    assert sum(rate <= proxies.HIGHEST for rate in rates) == 11
