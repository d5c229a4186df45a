"""Plasticity and the stability gap: what is measured of a run, and a tiny problem's own numbers."""

import numpy as np
import pandas as pd
import pytest
from problems import train

from experiments import plasticity_and_stability_gap as experiment
from lmech import claims, config, planning, reproducing
from lmech.collecting import Run

NAME = "plasticity_and_stability_gap"
MLP = {"width": 8, "depth": 2, "activation": "relu"}


def metrics(columns, steps):
    """A frame with a value where a column has one, by step."""
    frame = pd.DataFrame({"step": range(steps + 1)})
    for name, values in columns.items():
        frame[name] = [values.get(step) for step in range(steps + 1)]
    return frame


def sequence(losses, seed=0, order=None, model=None, optimizer="optax.adam", rate=0.01, **starts):
    """A run of ten steps a task that ends with these losses."""
    steps, numbers = 10 * len(losses), range(len(losses))
    columns = {
        "train_loss": {10 * k + 9: losses[k] for k in numbers} | {steps: 99.0},
        "dead_units": {10 * k: starts.get("dead", [0.0] * 9)[k] for k in numbers} | {steps: 0.0},
        "sharpness": {10 * k: starts.get("sharpness", [1.0] * 9)[k] for k in numbers},
    }
    config = {
        "seed": seed,
        "steps": steps,
        "task_steps": 10,
        "task_order": list(order or numbers),
        "dataset": {"count": 3},
        "model": model or MLP,
        "optimizer": {"_target_": optimizer, "learning_rate": rate},
    }
    job = f"{len(losses)}{order}{model}{optimizer}{rate}{seed}"
    return Run(job, {}, config, {"status": "done"}, metrics(columns, steps))


def switch(accuracies, angle=2, seed=0, replay=0.5):
    """A run whose accuracy on the first task is as given, from four steps before the switch on."""
    pairs = {step: [value, 0.9] for step, value in enumerate(accuracies)}
    config = {
        "seed": seed,
        "steps": len(accuracies) - 1,
        "task_steps": 4,
        "task_order": [0, angle],
        "replay": replay,
        "dataset": {"angles": [0.0, 10.0, 45.0, 90.0]},
        "model": MLP,
        "optimizer": {"_target_": "optax.sgd", "learning_rate": 0.1},
    }
    frame = metrics({"test_tasks_accuracy": pairs}, config["steps"])
    return Run(f"gap{angle}{seed}{replay}", {}, config, {"status": "done"}, frame)


DIP = [0.1, 0.5, 0.7, 0.8, 0.9, 0.8, 0.6, 0.7, 0.85]


def only(frame, row):
    (found,) = frame[frame["row"] == row].to_dict("records")
    return found


def test_a_sequences_losses_are_those_before_the_last_update_on_each_task():
    found = only(experiment.measure([sequence([0.1, 0.2, 0.8], dead=[0, 0.25, 0.5])]), "sequence")
    assert [found[name] for name in ("first", "last", "growth", "dead")] == [0.1, 0.8, 8.0, 0.5]
    assert (found["net"], found["tasks"]) == ("relu", "new")


def test_nets_and_kinds_of_tasks_are_told_apart():
    runs = [
        sequence([0.1, 0.2], model={**MLP, "norm": "layer"}),
        sequence([0.1, 0.2], optimizer="optax.sgd"),
        sequence([0.1, 0.2], model={**MLP, "activation": "gelu"}),
        sequence([0.1, 0.2], order=[0, 0]),
        sequence([0.3], order=[2, 2]),
    ]
    rows = experiment.measure(runs)[:5]
    assert rows["net"].tolist() == ["layer norm", "gd", "gelu", "relu", "relu"]
    assert rows["tasks"].tolist() == ["new"] * 3 + ["same", "fresh"]


def test_a_fresh_nets_loss_is_compared_with_the_first_task_of_the_same_net_rate_and_seed():
    runs = [sequence([0.1, 0.9]), sequence([0.5, 0.9], rate=0.02), sequence([0.4, 0.9], seed=1)]
    fresh = [sequence([0.2], order=[1, 1], rate=0.02), sequence([0.2], order=[1, 1], seed=1)]
    rows = experiment.measure([*runs, *fresh])
    assert rows["of_first"].dropna().tolist() == pytest.approx([0.4, 0.5])
    alone = experiment.measure(fresh)
    assert alone["of_first"].isna().all()


def test_rank_correlations_are_over_the_plain_nets_tasks_but_the_first():
    relu = sequence([9, 0.1, 0.2], dead=[1, 0.1, 0.2], sharpness=[9, 5, 4])
    gelu = sequence(
        [9, 0.3, 0.4], model={**MLP, "activation": "gelu"}, dead=[1, 0.3, 0.4], sharpness=[9, 3, 2]
    )
    normed = sequence([1, 9, 1], model={**MLP, "norm": "layer"}, sharpness=[1, 2, 3])
    found = only(experiment.measure([relu, gelu, normed]), "correlation")
    assert found["dead_correlation"] == pytest.approx(1)
    assert found["sharpness_correlation"] == pytest.approx(-1)
    assert found["sharpness_ahead"] == pytest.approx(0)
    constant = only(experiment.measure([sequence([0.1, 0.2, 0.3])]), "correlation")
    assert np.isnan(constant["dead_correlation"])


def test_lambda_1_at_later_starts_is_told_in_units_of_the_first():
    run = sequence([1, 1, 1, 1], sharpness=[2, 4, 8, 10])
    assert only(experiment.measure([run]), "sequence")["sharpness"] == 4


def test_adam_is_compared_with_gradient_descent_at_the_smaller_rate_of_each():
    gd = [sequence([0.1, 0.2, 0.4], optimizer="optax.sgd", rate=rate) for rate in (0.5, 1.0)]
    worse = sequence([0.1, 9, 9], rate=0.02)
    rows = experiment.measure([worse, gd[1], gd[0], sequence([0.1, 0.3, 0.6])])
    assert only(rows, "optimizers")["adam_over_gd"] == pytest.approx(1.5)


def test_the_drop_is_to_the_least_after_the_switch_and_the_ends_see_what_is_left_of_it():
    found = only(experiment.measure([switch(DIP)]), "switch")
    assert found["before"] == pytest.approx(90)
    assert found["drop"] == pytest.approx(30)
    assert found["at"] == 2
    assert found["unrecovered"] == pytest.approx(5)
    assert found["seen"] == pytest.approx(5 / 30)
    assert found["angle"] == 45


def test_a_rise_is_no_drop():
    found = only(experiment.measure([switch([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])]), "switch")
    assert found["drop"] == pytest.approx(-10)
    assert np.isnan(found["seen"])


def test_angles_are_ordered_by_their_drops_seed_by_seed_under_replay():
    def runs(seed, drops):
        starts = [*DIP[:5]]
        return [
            switch([*starts, 0.9 - drop, 0.9], angle, seed)
            for angle, drop in zip((0, 1, 2, 3), drops, strict=True)
        ]

    rows = experiment.measure(
        [*runs(0, [0, 0.1, 0.2, 0.3]), *runs(1, [0.3, 0.2, 0.1, 0]), switch(DIP, 3, 0, replay=0.0)]
    )
    trends = rows[rows["row"] == "trend"]
    assert trends["order_of_angles"].tolist() == pytest.approx([1, -1])
    assert trends["seeds"].tolist() == [[0], [1]]


def test_a_run_that_diverged_leaves_claims_undetermined():
    listed = reproducing.load(NAME, "default", []).claims
    for run in (sequence([0.1, 0.2]), switch(DIP)):
        rows = experiment.measure([run._replace(result={"status": "diverged"})])
        assert len(rows) == 1
        for claim in listed:
            wanted = claim.where.get("row") == rows["row"][0]
            verdict = claims.judge(claim, rows)["verdict"]
            assert verdict == "undetermined" or not wanted


def test_the_figure_has_its_panels_and_without_such_runs_is_plain():
    runs = [sequence([0.1, 0.2, 0.3]), sequence([0.3], order=[2, 2]), switch(DIP)]
    fig = experiment.figure(runs, experiment.measure(runs))
    assert len(fig.axes) == 4
    plain = runs[0]._replace(config={**runs[0].config, "observables": ["train_loss"]})
    assert len(experiment.figure([plain], experiment.measure([plain])).axes) == 1


def test_the_default_is_five_programs():
    jobs = planning.multirun([f"experiment={NAME}"])
    assert len(planning.group(jobs)) == 5


SMALL = [
    *("loss=cross_entropy", "model.activation=relu", "model.width=16", "observables=[loss,tasks]"),
    *("observables.train_loss.every=1", "observables.test_loss.every=100"),
    *("observables.test_tasks.every=1", "observables.train_tasks.every=100"),
]


def trained(configs):
    """The runs of configs that share a program."""
    recorder, _ = train(configs)
    return [
        Run(str(place), {}, one, {"status": "done"}, recorder.table(place).to_pandas())
        for place, one in enumerate(configs)
    ]


@pytest.mark.usefixtures("x64")
def test_a_tiny_net_forgets_turned_digits_for_some_steps_and_the_same_digits_not():
    words = [
        *("dataset=rotated_digits", "dataset.angles=[0,90]", "dataset.dataset.train_size=500"),
        *("optimizer=momentum", "optimizer.learning_rate=0.05", "batch_size=50", "replay=0.5"),
        *("task_steps=100", "steps=160"),
    ]
    orders = ([0, 0], [0, 1])
    rows = experiment.measure(
        trained([config_of(*SMALL, *words, f"task_order={order}") for order in orders])
    )
    same, turned = rows[rows["row"] == "switch"].to_dict("records")
    assert same["drop"] < 6
    assert turned["drop"] > 10
    assert turned["unrecovered"] < turned["drop"] / 2


def config_of(*words):
    return config.resolve(config.compose(list(words)))
