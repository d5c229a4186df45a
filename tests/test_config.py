"""Every wrong key, option or value stops with one line that says what to write instead."""

import pytest

from lmech import catalogue, config, pairs, planning, sweeps, validation
from lmech.values import ConfigError

# What the user wrote, and what the message must contain.
MUTATIONS = [
    ("optimizer.learning_rat=0.1", "'optimizer.learning_rate'"),
    ("optimizer.lr=0.1", "unknown key 'optimizer.lr'"),
    ("learning_rate=0.1", "'optimizer.learning_rate'"),
    ("optimzer=adam", "'optimizer'"),
    ("optimizer=adamm", "'adam'"),
    ("optimizer=GD", "one of adagrad"),
    ("optimizer.learning_rate=fast", "optimizer.learning_rate=fast"),
    ("optimizer.learning_rate=-0.1", "greater than or equal to 0"),
    ("optimizer.learning_rate=nan", "finite"),
    ("optimizer.learning_rate=inf", "finite"),
    ("optimizer.learning_rate=", "optimizer.learning_rate"),
    ("model=mpl", "'mlp'"),
    ("model.widht=32", "'model.width'"),
    ("model.width=0", "greater than or equal to 1"),
    ("model.width=1.5", "model.width=1.5: input should be a valid integer"),
    ("model.depth=-1", "greater than or equal to 0"),
    ("model.activation=tahn", "'tanh'"),
    ("model.bias=maybe", "model.bias=maybe"),
    ("dataset=mnistt", "'mnist'"),
    ("dataset.train_size=0", "greater than or equal to 1"),
    ("dataset.train_size=99999", "leaves no test image"),
    ("dataset.standardise=pixel", "'dataset.standardize'"),
    ("dataset.standardize=pixels", "'pixel'"),
    ("loss=msee", "'mse'"),
    ("steps=ten", "steps=ten: input should be a valid integer"),
    ("steps=0", "greater than or equal to 1"),
    ("step=100", "'steps'"),
    ("seed=-1", "greater than or equal to 0"),
    ("seed=one", "valid integer"),
    ("seeds.inits=1", "'seeds.init'"),
    ("batch_size=0", "greater than or equal to 1"),
    ("batch_repeats=0", "greater than or equal to 1"),
    ("batch_repeats=8", "set batch_size"),
    ("batchsize=10", "'batch_size'"),
    ("precision=float16", "precision is one of float32, float64"),
    ("precision.dtype=double", "'float32' or 'float64'"),
    ("parametrization=standard", "one of completep"),
    ("schedule=cosin", "'cosine'"),
    ("schedule.warmup=-5", "greater than or equal to 0"),
    ("observables=[loss,sharpnes]", "'sharpness'"),
    ("observables.sharpness.evry=10", "'observables.sharpness.every'"),
    ("observables.sharpness.every=0", "greater than or equal to 1"),
    ("observables.sharpness.k=-1", "greater than or equal to 1"),
    ("stop.train_los=0.1", "'stop.train_loss'"),
    ("stop.train_accuracy=1.5", "less than or equal to 1"),
    ("execution.mode=pmap", "'map'"),
    ("model._target_=lmech.models.mlp.mpl", "model._target_=lmech.models.mlp.mpl"),
    ("optimizer.nestrov=true", "'optimizer.nesterov'"),
    ("logger=consol", "'console'"),
    ("experiment=edge_of_stabilty", "'edge_of_stability'"),
    ("model=[mlp]", "no such option"),
    ("model.width", "write key=value"),
    ("stop=0.1", "stop is a section; set one of stop.train_loss"),
    ("+model.width=3", "'+model.width=3': keys are neither added nor removed"),
    ("~model", "neither added nor removed"),
    ("steps=[1", "steps=[1"),
]


@pytest.mark.parametrize(("text", "expected"), MUTATIONS, ids=[text for text, _ in MUTATIONS])
def test_a_mutated_override_is_one_line_with_the_right_hint(text, expected):
    with pytest.raises(ConfigError) as error:
        planning.expand(*sweeps.split([text]))
    message = str(error.value)
    assert expected in message
    assert "\n" not in message
    assert "+" not in message or text.startswith("+")


def test_the_default_config_is_valid():
    assert config.resolve(config.compose([]))["optimizer"]["learning_rate"] == 0.1


@pytest.mark.slow
def test_every_option_of_every_group_composes_and_is_described():
    for group, options in config.groups().items():
        for option in options:
            choice = f"{group}=[{option}]" if group == "observables" else f"{group}={option}"
            if group == config.CLUSTER:  # no job's
                assert config.cluster([choice])
            elif group == config.COMPARISON:
                name, node = config.comparison([choice])
                assert pairs.parse({name: node})
            else:
                assert config.resolve(config.compose([choice]))
            assert catalogue.describe(group, option)


def test_integers_become_floats_where_the_parameter_is_one():
    resolved = config.resolve(config.compose(["optimizer.learning_rate=1"]))
    assert isinstance(resolved["optimizer"]["learning_rate"], float)


def test_a_parameter_that_the_preset_leaves_out_is_a_key_all_the_same():
    resolved = config.resolve(config.compose(["optimizer.momentum=0.5"]))
    assert resolved["optimizer"]["momentum"] == 0.5
    resolved = config.resolve(config.compose(["optimizer._target_=optax.lion", "optimizer.b1=0.8"]))
    assert resolved["optimizer"]["b1"] == 0.8
    (job,) = planning.expand(["dataset=chebyshev"], {"optimizer.momentum": [0.25]})
    assert job.config["optimizer"]["momentum"] == 0.25


@pytest.mark.parametrize("text", ["observables=[]", "observables=['loss']", "observables=loss"])
def test_a_list_of_options_may_be_empty_quoted_or_one(text):
    (job,) = planning.expand([text, "dataset=chebyshev"], {})
    assert ("train_loss" in job.config["observables"]) == ("loss" in text)


def test_a_preset_key_that_another_target_does_not_take_goes():
    target = "model._target_=flax.linen.Dense"
    composed = config.compose([target, "model.features=10"])
    assert dict(composed.model) == {"_target_": "flax.linen.Dense", "features": 10}


def test_a_stop_rule_without_its_observable_is_refused():
    with pytest.raises(ConfigError, match=r"needs the observable train_accuracy"):
        planning.expand(["stop.train_accuracy=0.9", "observables=[loss]"], {})


def test_a_key_that_a_yaml_file_brings_and_nothing_reads_is_refused():
    plain = config.plain(config.compose([]))
    with pytest.raises(ConfigError, match=r"unknown key 'stepz'; did you mean 'steps'"):
        validation.validated({**plain, "stepz": 3})


def test_an_observable_that_the_user_chose_is_there_though_the_experiment_leaves_it_out():
    words = ["experiment=central_flow", "observables=[loss,sharpness]"]
    chosen = config.resolve(config.compose(words))["observables"]
    assert {"train_loss", "test_loss", "sharpness"} <= set(chosen)
    assert all("_target_" in node for node in chosen.values())
