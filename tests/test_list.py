"""What `lmech list` says is what the sources say, without an import of them."""

import inspect
import json
import os
import re
import shlex
from datetime import datetime

import pytest
from hydra.utils import get_method

from lmech import catalogue, config, definitions, signatures
from lmech.cli import main

PRESETS = sorted({target for target, _ in signatures.presets()})


def listed(capsys, *words):
    assert main(["list", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("target", PRESETS)
def test_a_target_read_as_text_is_the_one_that_python_imports(target):
    function, found = get_method(target), definitions.find(target)
    assert found.doc == inspect.cleandoc(inspect.getdoc(function))
    parameters = inspect.signature(function).parameters
    assert list(found.parameters) == list(parameters)
    for name, parameter in parameters.items():
        written = found.parameters[name].default
        assert (written is None) == (parameter.default is inspect.Parameter.empty), name


@pytest.mark.parametrize(
    ("target", "name", "text"),
    [
        ("lmech.models.mlp.mlp", "depth", "int ≥ 0"),
        ("lmech.models.mlp.mlp", "norm_group", "int ≥ 2 | null"),
        ("lmech.models.mlp.mlp", "init", "uniform_fan_in | normal_fan_in | gpt2"),
        ("lmech.datasets.clusters.xor_clusters", "flips", "float in [0, 0.5)"),
        ("lmech.losses.cross_entropy", "precision", "float32 | float64 | null"),
        ("lmech.datasets.polynomials.multi_index", "degrees", "list of int ≥ 1 | null"),
    ],
)
def test_types_are_told_by_what_their_aliases_stand_for(target, name, text):
    assert definitions.find(target).parameters[name].kind.text == text


def test_arguments_are_told_by_their_first_sentence_whatever_the_indent():
    doc = "F.\n\nArgs:\n  a: One thing,\n    on two lines. And more.\n  b: Another.\n"
    told = definitions._arguments(f"{doc}\nReturns:\n  c: no.")
    assert told == {"a": "One thing, on two lines", "b": "Another"}


def test_what_is_not_there_is_not_found():
    for target in ("lmech.models.mlp.nothing", "lmech.nowhere.mlp", "nowhere_at_all.x", "mlp"):
        assert definitions.find(target) is None


@pytest.mark.parametrize("group", config.groups())
def test_every_group_is_found_in_the_singular_and_the_plural(group, capsys):
    plural = {"loss": "losses", "observables": "observables"}.get(group, f"{group}s")
    for word in {group, plural, "observable" if group == "observables" else group}:
        out = listed(capsys, word)
        assert all(option in out for option in config.groups()[group])


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group, found in config.groups().items() for option in found],
)
def test_every_option_has_a_page_with_its_line_and_its_keys(group, option, capsys):
    out = listed(capsys, group, option)
    assert out.startswith(f"{option}: {catalogue.describe(group, option)}\n")
    if group not in ("experiment", "sweep"):
        node = catalogue.read(group, option)
        keys = {key for key, _ in catalogue.leaves(node) if not key.endswith("_target_")}
        assert keys <= set(re.findall(r"^([\w.]+) ", out, re.M))
    assert out.splitlines()[-1].startswith("lmech ")


def test_the_line_that_uses_an_option_composes(capsys):
    used = []
    for words in (["models", "cnn"], ["optimizers", "sgd"], ["observables", "trace"]):
        used += shlex.split(listed(capsys, *words).splitlines()[-1])[1:]
    config.compose(used)


def test_a_preset_without_a_comment_is_told_by_its_function(own):
    file = own / "conf" / "model" / "gated.yaml"
    file.write_text("_target_: my_project.models.gated\nwidth: 32\n", encoding="utf-8")
    first = "One layer of gated linear units; lmech gives ``outputs``, what the data ask for."
    assert catalogue.describe("model", "gated") == first
    assert [row.key for row in catalogue.rows("model", "gated")] == ["model.width"]


def test_a_model_page_has_types_defaults_and_what_they_are(capsys):
    lines = listed(capsys, "models", "resnet").splitlines()
    (row,) = [re.split(r"  +", line) for line in lines if line.startswith("model.width")]
    assert row == ["model.width", "16", "int ≥ 1", "channels of the first stage"]


def test_an_optimizer_page_has_what_the_preset_leaves_out(capsys):
    (row,) = [row for row in catalogue.rows("optimizer", "adam") if row.key.endswith("nesterov")]
    assert (row.default, row.kind) == ("false", "bool")
    (rate,) = [row for row in catalogue.rows("optimizer", "gd") if row.key.endswith("_rate")]
    assert rate.kind == "float ≥ 0"
    assert "optimizer.nesterov" in listed(capsys, "optimizer", "adam")


def judge(folder, experiment, scale, claims, when):
    folder.mkdir(parents=True)
    (folder / "claims.json").write_text(json.dumps(claims))
    (folder / "request.json").write_text(json.dumps({"experiment": experiment, "scale": scale}))
    os.utime(folder / "claims.json", (when, when))


def claim(verdict, expected):
    return {"claim": "c", "verdict": verdict, "expected": expected, "measured": 1.5}


def test_experiments_come_with_their_paper_headline_and_last_verdict(elsewhere, capsys):
    claims = [claim("holds", "holds"), claim("fails", "fails"), claim("fails", "open")]
    first, second = (datetime(2026, 3, day, 12).timestamp() for day in (1, 2))
    outputs = elsewhere / "outputs"
    judge(outputs / "catapult" / "aa", "catapult", "default", [claim("fails", "holds")], first)
    judge(outputs / "another" / "bb", "catapult", "paper", claims, second)
    lines = {line.split()[0]: line for line in listed(capsys, "experiments").splitlines()}
    assert set(config.groups()["experiment"]) < set(lines)
    assert "Beyond ηλ₀ = 2 the loss rises" in lines["catapult"]
    assert "Lewkowycz et al. 2020, arXiv:2003.02218" in lines["catapult"]
    assert lines["catapult"].endswith("  2 as expected, 1 open, 2026-03-02 (paper)")
    assert lines["grokking"].endswith("  -")


def test_a_verdict_against_the_claim_counts_as_not():
    last = catalogue.Standing(None, None, "default", [claim("fails", "holds")] * 2)
    assert last.told == "2 not"


@pytest.mark.usefixtures("elsewhere")
def test_an_experiments_page_has_its_claims(capsys):
    out = listed(capsys, "experiment", "edge_of_stability")
    assert re.search(r"scales: default \(\d+ s on 2 CPU cores\), paper", out)
    for one in catalogue.experiment("edge_of_stability").claims:
        assert one["claim"] in out


@pytest.mark.parametrize("width", [40, 80, 160])
def test_on_a_terminal_of_any_width_no_line_is_longer(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    for words in (["experiments"], ["models"], ["models", "mlp"]):
        lines = re.sub(r"\x1b\[[\d;]*m", "", listed(capsys, *words)).splitlines()
        told = [line for line in lines if not line.startswith(("  file", "  code", "      ", "lm"))]
        assert max(map(len, told[1:])) <= width
        assert len(told) > 5


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["models", "mlq"], "no model 'mlq'; did you mean 'mlp'?"),
        (["models", "mlp", "cnn"], "takes one option"),
        (["modells"], "no group 'modells'; did you mean 'model'?"),
    ],
)
def test_a_mistake_is_one_line(words, hint, capsys):
    assert main(["list", *words]) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1
