"""Mode connectivity: from pairs to what is claimed of them, and the setting."""

import numpy as np
import pandas as pd
import pytest

from experiments import mode_connectivity
from lmech import claims, config, pairs, planning, reproducing
from lmech.collecting import Run

BARRIERS = {"naive": 1.0, "matched": 0.1, "random": 0.9}


def run(job, width, seed, others, activation="relu", scale=1.0):
    position = np.linspace(0, 1, 3)

    def line(height):
        own = {f"{split}_loss_barrier": scale * height for split in ("test", "train")}
        own |= {f"{split}_accuracy_midpoint": scale * height / 10 for split in ("test", "train")}
        return {**own, "output_change": height * 1e-7, "position": position, "test_loss": position}

    found = {name: line(height) for name, height in BARRIERS.items()}
    found["curvature"] = {"deficit": -0.4 * scale, "curvature": -0.1 * scale, "kinks": -0.3 * scale}
    layers = {"hidden_1": 0.4, "hidden_2": 0.2, "readout": 0.1, "all": 0.3}
    found["layers"] = {f"{layer}_test_loss": cost * scale for layer, cost in layers.items()}
    tables = {
        name: pd.DataFrame([{"other": other, "step": 5, **own} for other in others])
        if others
        else pd.DataFrame({"other": []})
        for name, own in found.items()
    }
    settings = {"seed": seed, "model": {"width": width, "activation": activation}}
    settings["observables"] = {"test_loss": {}}
    return Run(job, {}, settings, {"status": "done"}, pd.DataFrame(), tables)


def made():
    return [
        run("a", 16, 0, ["b", "c"]),
        run("b", 16, 1, ["c"]),
        run("c", 16, 2, []),
        run("d", 32, 0, ["e"], scale=0.5),
        run("e", 32, 1, []),
        run("f", 16, 0, ["g"], activation="gelu"),
        run("g", 16, 1, [], activation="gelu"),
    ]


def test_a_row_is_a_pair_with_its_jobs_seeds_and_quotients():
    rows = mode_connectivity.measure(made())
    found = rows[rows["row"] == "pair"]
    assert found["jobs"].tolist() == [["a", "b"], ["a", "c"], ["b", "c"], ["d", "e"], ["f", "g"]]
    assert found["seeds"].tolist() == [[0, 1], [0, 2], [1, 2], [0, 1], [0, 1]]
    assert found["matched_test_ratio"].to_numpy() == pytest.approx(0.1)
    assert found["random_train_ratio"].to_numpy() == pytest.approx(0.9)
    assert found["kinks"].to_numpy() == pytest.approx(0.75)
    assert found["layer_ratio"].to_numpy() == pytest.approx(0.75)
    assert found["output_change"].to_numpy() == pytest.approx(9e-8)


def test_the_trend_is_of_means_over_the_pairs_of_a_width():
    rows = mode_connectivity.measure(made())
    (trend,) = rows[rows["row"] == "trend"].to_dict("records")
    assert (trend["activation"], trend["seeds"]) == ("relu", [0, 1, 2])
    assert [trend[f"{name}_growth"] for name in BARRIERS] == pytest.approx([0.5] * 3)


def test_without_pairs_and_beside_a_diverged_run_claims_are_undetermined():
    listed = reproducing.load("mode_connectivity", "default", []).claims
    losses = pd.DataFrame({"step": [0, 1], "test_loss": [2.0, 1.0]})
    alone = [run("a", 512, 0, [])._replace(pairs={}, metrics=losses)]
    diverged = [run("z", 512, 0, [])._replace(result={"status": "diverged"})]
    pair = [run("a", 512, 0, ["b"]), run("b", 512, 1, [])]
    for runs in (alone, [*pair, *diverged]):
        rows = mode_connectivity.measure(runs)
        assert claims.judge(listed[1], rows)["verdict"] == "undetermined"
    assert mode_connectivity.figure(alone, mode_connectivity.measure(alone)) is not None


def test_the_claims_are_judged_of_the_rows_that_they_name():
    experiment = reproducing.load("mode_connectivity", "default", [])
    rows = mode_connectivity.measure(
        [run("a", 512, 0, ["b"], scale=0.4), run("b", 512, 1, []), *made()]
    )
    verdicts = {one.claim: claims.judge(one, rows)["verdict"] for one in experiment.claims}
    assert verdicts["matched, the barrier is 0.15 or less"] == "holds"
    assert (
        verdicts["control: a random permutation removes three quarters of the barrier"] == "fails"
    )
    assert verdicts["they lose 2 points or less"] == "holds"
    smooth = "the midpoint of a smooth net's line is known from the curvature along it"
    assert verdicts[smooth] == "fails"
    assert "undetermined" not in verdicts.values()


def test_a_pair_is_two_seeds_and_a_program_one_width():
    jobs = planning.expand(["experiment=mode_connectivity"], experiment_sweep())
    assert len(jobs) == 21
    assert len({planning.group_id(job.config) for job in jobs}) == 7
    listed = config.plain(config.compose(["experiment=mode_connectivity"]))["experiment"]
    found = {one.name: one for one in pairs.parse(listed["comparisons"])}
    assert {one.between for one in found.values()} == {("seed",)}
    assert [found[name].node["align"] for name in BARRIERS] == ["none", "weights", "random"]


def experiment_sweep():
    return reproducing.load("mode_connectivity", "default", []).sweep


def test_the_figure_has_a_legend_in_each_panel_and_a_line_a_pair():
    runs = made()
    figure = mode_connectivity.figure(runs, mode_connectivity.measure(runs))
    line, *rest = figure.axes
    assert all(axis.get_legend() for axis in (line, *rest))
    assert len(line.get_lines()) == 3  # of the one pair at the largest width
