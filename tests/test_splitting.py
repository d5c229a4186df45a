"""Input keys leave the programs' text; what splits a sweep, or bakes a value in, is named."""

import pytest

from lmech import building, config, modelling, planning, splitting, values
from lmech.cli import main

TINY = [
    *("dataset=chebyshev", "dataset.train_size=6", "model.width=2", "model.depth=1", "steps=6"),
    *("observables=[loss]", "observables.test_loss.every=3"),
]
FEW = ("gd", "cosine", "sp")  # of each kind one without `make test-all`
PRESETS = [
    pytest.param(group, preset, marks=() if preset in FEW else pytest.mark.slow)
    for group in ("optimizer", "schedule", "parametrization")
    for preset in config.groups()[group]
]
OTHERS = [
    ["batch_size=2", "data_fraction=0.5"],
    ["label_noise=0.2", "data_fraction=0.5", "optimizer=momentum"],
    ["dataset=digits", "dataset.train_size=60", "label_noise=0.2"],
]


def expanded(*overrides, **sweep):
    return planning.expand([*TINY, *overrides], sweep)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("group", "preset"), PRESETS)
def test_another_value_of_a_presets_inputs_leaves_every_programs_text_and_the_key(group, preset):
    """Its own keys one by one, all other inputs at once."""
    jobs = expanded(f"{group}={preset}", "batch_size=2")
    first = jobs[0].config
    variants = splitting.variants(jobs)
    assert set(variants) == set(planning.input_keys(first))
    rest = first
    # Scales of updates that the optimizer does not describe are refused: they have no other value.
    described = modelling.build_optimizer(first).growth is not None
    kept = (group,) if described else (group, "output_scale", "parametrization")
    for key, variant in variants.items():
        if not key.startswith(kept):
            rest = values.with_leaf(rest, key, values.select(variant, key))
    own = {key: variant for key, variant in variants.items() if key.startswith(group)}
    assert own
    whole = building.extent([first, *variants.values()], building.load_data(first))
    reference = splitting.texts(first, whole)
    assert {"start", "train_chunk", "measure_test_loss"} < set(reference)
    for key, variant in {**own, "the rest": rest}.items():
        assert planning.program_key(variant) == planning.program_key(first), key
        assert splitting.texts(variant, whole) == reference, key


@pytest.mark.slow
@pytest.mark.parametrize("overrides", OTHERS, ids=" ".join)
def test_every_input_key_on_its_own_leaves_the_text(overrides):
    jobs = expanded(*overrides)
    keys = planning.input_keys(jobs[0].config)
    named = {text.partition("=")[0] for text in overrides if "label" in text or "fraction" in text}
    assert {"seed", "seeds.subset", "steps", "stop.train_loss", *named} < set(keys)
    assert {planning.program_key(c) for c in splitting.variants(jobs).values()} == {
        planning.program_key(jobs[0].config)
    }
    tried, found = splitting.changes(jobs)
    assert set(tried) == set(keys)
    assert found == {}


@pytest.mark.parametrize("key", ["label_noise", "data_fraction"])
def test_null_or_a_number_splits_and_two_numbers_do_not(key):
    jobs = expanded(**{key: [None, 0.25, 0.5]})
    assert [len(group) for group in planning.group(jobs)] == [1, 2]
    assert key in planning.input_keys(jobs[1].config)
    assert key not in planning.input_keys(jobs[0].config)
    assert splitting.static_keys(jobs) == f"static keys: {key} (2 values): 2 programs"


def test_a_sweeps_own_values_are_the_ones_compared():
    jobs = expanded(**{"optimizer.learning_rate": [0.1, 0.7], "schedule": ["constant", "cosine"]})
    variants = splitting.variants(jobs)
    assert variants["optimizer.learning_rate"]["optimizer"]["learning_rate"] == 0.7
    assert variants["schedule"]["schedule"]["_target_"] == "lmech.schedules.cosine"


@pytest.mark.slow
def test_static_keys_are_named_with_their_number_of_values(capsys, elsewhere):
    words = [*TINY[:5], "model.width=2,3", "seed=0,1", "logger=none", "observables=[]"]
    assert main(["plan", "--verify", "-m", *words]) == 0
    told = capsys.readouterr().out
    assert "static keys: model.width (2 values): 2 programs" in told
    tried = splitting.variants(planning.expand([*TINY[:5], "logger=none", "observables=[]"], {}))
    assert f"verify: {len(tried)} keys of 2 programs leave the text unchanged" in told
    assert not list(elsewhere.iterdir())


def test_a_group_option_that_brings_another_key_is_a_static_key():
    jobs = expanded(optimizer=["gd", "sgd"])
    assert splitting.static_keys(jobs) == "static keys: optimizer (2 values): 2 programs"


MINE = """
import jax
import optax
from lmech.parametrization import Scales


def branching(learning_rate: float, sharp: float = 0.5, gentle: float = 0.5):
    return optax.sgd(learning_rate * (gentle if sharp > 0.4 else 1))


def lopsided(power: float = 1.0):
    def scales(model):
        ones = jax.tree.map(lambda _: 1.0, model.shapes)
        pairs = jax.tree.map(lambda _: [1.0, 1.0], model.shapes)
        return Scales(ones if power == 1.0 else pairs, ones, ones)
    return scales


def careless(learning_rate: float):
    raise TypeError("always")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)


@pytest.mark.slow
@pytest.mark.usefixtures("mine", "elsewhere")
@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["optimizer._target_=mine.branching", "optimizer.sharp=0.3"], "optimizer.sharp"),
        (["parametrization._target_=mine.lopsided", "parametrization.power=1"],
         "parametrization.power"),
    ],
)  # fmt: skip
def test_a_factory_that_bakes_a_value_in_is_named_with_its_key(overrides, key, capsys):
    assert main(["plan", "--verify", *TINY, *overrides]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verify:")]
    assert len(lines) == 1
    assert lines[0].startswith(f"verify: {key} ")


@pytest.mark.usefixtures("mine", "elsewhere")
def test_what_fails_whatever_its_inputs_blames_no_key(capsys):
    assert main(["plan", "--verify", *TINY, "optimizer._target_=mine.careless"]) == 2
    told = capsys.readouterr()
    assert "always" in told.err
    assert "verify:" not in told.out
