"""What the docs say of extensions beyond the files that they show whole."""

import re
from inspect import getdoc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lmech import building, checking, claims, config, modelling, planning
from lmech.cli import main
from lmech.collecting import Run
from lmech.models.declared import Declared
from lmech.numerics import trees
from lmech.observables import Observable, State
from lmech.optimizers import Growth, Stability
from lmech.parametrization import Scales
from lmech.roles import Model

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SHORT = ["experiment=staircase", "steps=3", "logger=none", "observables=[participation]"]


def scales(*words):
    """Model and factors of a job, the trees flat."""
    job = planning.expand([*SHORT, *words], {})[0].config
    with checking.tracing(job):
        data = building.load_data(job)
        model, (found,) = modelling.model_of(job, data), modelling.scales_of([job], data)
        spread = trees.named_leaves(model.spread_at(model.width))
    leaves = {path: leaf.shape for path, leaf in trees.named_leaves(model.shapes).items()}
    init, rate = trees.named_leaves(found.init), trees.named_leaves(found.learning_rate)
    return leaves, {path: init[path] * spread[path] for path in init}, rate


@pytest.mark.parametrize(
    "kind", [State, Run, Model, Scales, Declared, Observable, Stability, Growth]
)
def test_help_describes_every_field_of_what_users_handle(kind):
    told = set(re.findall(r"``(\w+)", getdoc(kind)))
    assert set(kind._fields) - told == set()


@pytest.mark.usefixtures("own")
def test_the_parametrization_in_code_starts_with_the_spectral_norms_that_it_says():
    shapes, deviations, _ = scales("parametrization=spectral", "model.width=16")
    assert shapes["gate/kernel"] == (10, 16)
    for path, shape in shapes.items():
        if len(shape) == 1:
            assert deviations[path] == 0
        else:
            into, out = shape
            expected = (out**0.5 + into**0.5) * deviations[path]  # of a Gaussian matrix
            assert expected == pytest.approx((out / into) ** 0.5)
    drawn = np.random.default_rng(0).normal(size=(400, 900))
    assert np.linalg.norm(drawn, 2) == pytest.approx(400**0.5 + 900**0.5, rel=0.03)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("optimizer", ["decayed_momentum", "adam", "muon"])
def test_the_rates_of_the_spectral_condition_go_with_the_width_as_mups(optimizer):
    def rates(name, width):
        base = ["parametrization.base_width=16"] if name == "mup" else []
        words = [f"parametrization={name}", f"optimizer={optimizer}", f"model.width={width}"]
        return scales(*words, *base)[2]

    narrow, wide = (rates("spectral", width) for width in (16, 64))
    ratio = {path: wide[path] / narrow[path] for path in wide}
    assert ratio == pytest.approx(rates("mup", 64))


def test_the_parametrization_in_code_runs(own):
    assert main([*SHORT, "model.width=4", "parametrization=spectral"]) == 0
    (found,) = own.glob("outputs/*/*/*/metrics.parquet")
    assert pd.read_parquet(found)["participation"].notna().any()


def test_sp_and_mup_are_one_net_at_the_smallest_width_of_the_documented_sweep(own):
    text = (DOCS / "parametrizations.md").read_text(encoding="utf-8")
    file = own / "conf/sweep/sp_and_mup.yaml"
    assert f"`conf/sweep/sp_and_mup.yaml`:\n\n```yaml\n{file.read_text()}```" in text
    narrow = scales("parametrization=mup", "parametrization.base_width=16", "model.width=16")
    assert narrow == scales("parametrization=sp", "model.width=16")
    wide = scales("parametrization=mup", "parametrization.base_width=16", "model.width=64")
    assert wide != scales("parametrization=sp", "model.width=64")


def test_base_width_is_that_of_the_docs_in_every_preset():
    presets = [
        config.compose([f"parametrization={name}"]).parametrization
        for name in config.groups()["parametrization"]
    ]
    found = {preset.get("base_width") for preset in presets}
    assert found == {None, 64}
    assert "`base_width` is 64 in all" in (DOCS / "parametrizations.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("file", "same"),
    [("experiments/staircase.py", True), ("observables.py", False), ("models.py", False)],
)
def test_an_edit_of_measure_and_figure_trains_nothing_anew(own, file, same):
    def identities():
        planning._source.cache_clear()
        job = planning.expand(SHORT, {})[0]
        return job.id, planning.sources(job.config, "")

    before = identities()
    edited = own / "my_project" / file
    edited.write_text(f"{edited.read_text()}# a comment\n", encoding="utf-8")
    assert (identities() == before) is same


@pytest.mark.usefixtures("own")
def test_a_model_with_its_own_target_takes_the_place_of_the_preset_where_that_is_null():
    own = "model: {{_target_: my_project.models.gated, width: 40}}\n"
    text = "# @package _global_\ndefaults:\n{}" + own
    folder = Path("conf/experiment")
    (folder / "merged.yaml").write_text(text.format("  - _self_\n"))
    (folder / "alone.yaml").write_text(text.format("  - override /model: null\n"))
    assert "depth" in config.compose(["experiment=merged"]).model
    assert config.compose(["experiment=alone"]).model == {
        "_target_": "my_project.models.gated",
        "width": 40,
    }


def test_claims_cite_the_jobs_and_seeds_of_rows_that_are_of_several():
    rows = pd.DataFrame([{"jobs": ["a", "b"], "seeds": [0, 1], "ratio": 0.5}])
    missing = pd.DataFrame({"job": [], "seed": []})  # as where every job has a run
    (claim,) = claims.parse(
        [
            {
                "claim": "c",
                "quantity": "ratio",
                "interval": [0, 1],
                "source": "s",
                "expected": "holds",
            }
        ]
    )
    line = claims.judge(claim, pd.concat([rows, missing], ignore_index=True))
    assert (line["jobs"], line["seeds"]) == (["a", "b"], [0, 1])
