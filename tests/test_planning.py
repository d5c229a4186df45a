"""Jobs, their identities and their groups."""

import sys

import pytest

from lmech import planning, sweeps, values
from lmech.values import ConfigError

FAST = ["dataset=chebyshev", "observables=[loss]"]


def ids(*overrides, sweep=None):
    return [job.id for job in planning.expand([*FAST, *overrides], sweep or {})]


def test_a_sweep_is_every_combination_first_key_slowest():
    jobs = planning.expand(FAST, {"seed": [0, 1], "optimizer.learning_rate": [0.1, 0.2]})
    assert [tuple(job.overrides.values()) for job in jobs] == [
        (0, 0.1),
        (0, 0.2),
        (1, 0.1),
        (1, 0.2),
    ]
    assert [job.config["seed"] for job in jobs] == [0, 0, 1, 1]
    assert len({job.id for job in jobs}) == 4


def test_command_line_sweeps_follow_hydras_grammar():
    plain, swept = sweeps.split(["seed=range(3)", "optimizer.learning_rate=0.1,0.2", "steps=5"])
    assert plain == ["steps=5"]
    assert swept == {"seed": [0, 1, 2], "optimizer.learning_rate": [0.1, 0.2]}


def test_options_of_a_group_can_be_swept():
    jobs = planning.expand(FAST, {"optimizer": ["gd", "adam"]})
    assert [job.config["optimizer"]["_target_"] for job in jobs] == ["optax.sgd", "optax.adam"]


@pytest.mark.parametrize(
    "same",
    [
        "logger=none",
        "observables.train_loss.every=7",
        "output=there",
        "name=x",
        "execution.chunk=3",
    ],
)
def test_what_cannot_change_the_training_leaves_the_id(same):
    assert ids(same) == ids()


@pytest.mark.parametrize(
    "other",
    ["seed=1", "seeds.init=3", "steps=7", "optimizer.learning_rate=0.2", "model.width=3",
     "dataset.degree=4", "precision=float64", "loss=cross_entropy", "schedule=cosine"],
)  # fmt: skip
def test_what_can_change_the_training_changes_the_id(other):
    assert ids(other) != ids()


def test_minibatches_in_a_row_are_of_the_id_and_an_input():
    fed = [*FAST, "batch_size=2"]
    once, twice = planning.expand(fed, {"batch_repeats": [1, 2]})
    assert once.id != twice.id
    assert planning.program_key(once.config) == planning.program_key(twice.config)
    assert "batch_repeats" not in planning.identity(once.config)["science"]


def test_an_observables_cadence_changes_its_own_identity_alone():
    (a,) = planning.expand(FAST, {})
    (b,) = planning.expand([*FAST, "observables.test_loss.every=7"], {})
    before, after = planning.observable_ids(a.config), planning.observable_ids(b.config)
    assert {name for name in before if before[name] != after[name]} == {"test_loss"}


def test_a_stop_rule_is_the_one_observable_that_it_reads():
    rule = "stop.train_loss=0.1"
    assert ids(rule) != ids()
    assert ids(rule, "observables.test_loss.every=7") == ids(rule)
    assert ids(rule, "observables.train_loss.every=7") != ids(rule)


def test_the_probes_seed_is_the_observables_alone():
    (a,) = planning.expand(FAST, {})
    (b,) = planning.expand([*FAST, "seeds.probes=7"], {})
    assert planning.observable_ids(a.config) != planning.observable_ids(b.config)


def test_presets_of_one_target_with_other_keys_are_other_programs():
    jobs = planning.expand(FAST, {"optimizer": ["gd", "momentum"]})
    assert len(planning.group(jobs)) == 2


def test_the_source_of_a_re_exported_function_is_the_file_that_defines_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pk").mkdir()
    (tmp_path / "pk" / "__init__.py").write_text("from pk.inner import scaled\n")
    found = []
    for constant in ("1.0", "2.0"):
        (tmp_path / "pk" / "inner.py").write_text(
            f"def scaled():\n    return lambda f, y: {constant} * (f - y).sum(axis=-1) ** 2\n"
        )
        for name in ("pk", "pk.inner"):
            sys.modules.pop(name, None)
        planning._source.cache_clear()
        found += ids("loss._target_=pk.scaled")
    assert found[0] != found[1]


def test_the_source_of_a_users_code_enters_the_id(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for constant in ("1.0", "2.0"):
        (tmp_path / "mine.py").write_text(
            "from lmech.losses import mse\n"
            f"def scaled():\n    loss = mse()\n    return lambda f, y: {constant} * loss(f, y)\n"
        )
        sys.modules.pop("mine", None)
        planning._source.cache_clear()
        found += ids("loss._target_=mine.scaled")
    assert found[0] != found[1]


def test_a_call_inside_a_list_enters_the_id_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "lmech.models.mlp.mlp", "blocks": [{"_target_": "own_block.block"}]}
    found = []
    for constant in ("1.0", "2.0"):
        (tmp_path / "own_block.py").write_text(f"def block():\n    return {constant}\n")
        planning.forget()
        found.append(planning.sources(node, "model"))
    assert [[target for target, _ in pairs] for pairs in found] == [
        ["lmech.models.mlp.mlp", "own_block.block"]
    ] * 2
    assert found[0][1] != found[1][1]


def test_a_call_inside_a_list_is_checked():
    with pytest.raises(ConfigError, match=r"unknown key 'model\.blocks\.1\.typo'"):
        values.argument("model.blocks", [1, {"_target_": "lmech.losses.mse", "typo": 1}], list)


def test_jobs_that_differ_in_inputs_share_a_program_and_widths_do_not():
    inputs = planning.expand(FAST, {"seed": [0, 1], "optimizer.learning_rate": [0.1, 0.2]})
    assert len(planning.group(inputs)) == 1
    assert len(planning.group(planning.expand(FAST, {"schedule": ["cosine", "wsd"]}))) == 1
    assert len(planning.group(planning.expand(FAST, {"model.width": [4, 8], "seed": [0, 1]}))) == 2


def test_a_sweep_has_the_same_identity_in_any_order():
    jobs = planning.expand(FAST, {"seed": [0, 1, 2]})
    assert planning.sweep_id(jobs) == planning.sweep_id(jobs[::-1])


def test_two_equal_jobs_are_an_error():
    with pytest.raises(ConfigError, match="the same"):
        planning.expand(FAST, {"seed": [1, 1]})


def test_an_unknown_swept_key_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer.learning_rate'"):
        planning.expand(FAST, {"optimizer.learning_rte": [0.1]})


def test_missing_data_is_one_line_that_says_what_goes_where(tmp_path, monkeypatch):
    monkeypatch.setenv("LMECH_DATA", str(tmp_path))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(
        "pooch.retrieve", lambda *_, **__: (_ for _ in ()).throw(OSError("offline"))
    )
    with pytest.raises(ConfigError) as error:
        planning.expand(["dataset=mnist"], {})
    message = str(error.value)
    assert "train-images-idx3-ubyte.gz" in message
    assert str(tmp_path / "mnist") in message
    assert "\n" not in message
