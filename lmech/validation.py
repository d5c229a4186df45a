"""Whether a composed config says what its parameters take, and goes together."""

from typing import Any

from lmech import catalogue, values
from lmech.hints import nearest
from lmech.values import KEYS, Config, ConfigError, Positive

NOT_OF_A_JOB = ("sweep", "experiment")
# Sections that are one call each; the others hold one call an entry, and several options at once.
CALLS = ("model", "dataset", "loss", "optimizer", "schedule", "parametrization")
OPTIONAL_CALLS = ("rate_unit",)  # or null
SEVERAL = ("observables", "logger")


def validated(config: Config) -> Config:
    """The config with every value checked and of its parameter's type (ints become floats)."""
    _known(config)
    result = dict(config)
    for key, kind in KEYS.items():
        section, _, leaf = key.rpartition(".")
        if section:
            result[section] = {
                **result[section],
                leaf: values.check(key, config[section][leaf], kind),
            }
        else:
            result[key] = values.check(key, config[key], kind)
    for name in CALLS:
        result[name] = values.call(name, config[name])
    for name in OPTIONAL_CALLS:
        result[name] = None if config[name] is None else values.call(name, config[name])
    for group, entry in (("observables", _observable), ("logger", _logger)):
        result[group] = {
            name: entry(name, node)
            for name, node in config[group].items()
            if node is not None  # null leaves out what a preset has
        }
    consistent(result)
    return result


def _known(config: Config) -> None:
    """Raise ConfigError for a key that nothing reads (a YAML file may bring one)."""
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    top = {key for key in KEYS if "." not in key} | sections
    top |= {*CALLS, *OPTIONAL_CALLS, *SEVERAL, *NOT_OF_A_JOB}
    present = set(config)
    for section in sections & present:
        present |= {f"{section}.{leaf}" for leaf in config[section]}
    for key in sorted(present - top - set(KEYS)):
        raise ConfigError(f"unknown key '{key}'{nearest(key, [*top, *KEYS])}")


def _observable(name: str, node: Config) -> Config:
    path = f"observables.{name}"
    _check_chosen("observables", name, node)
    every = values.check(f"{path}.every", node.get("every"), Positive)
    rest = {key: value for key, value in node.items() if key != "every"}
    return {**values.call(path, rest), "every": every}


def _logger(name: str, node: Config) -> Config:
    _check_chosen("logger", name, node)
    return values.call(f"logger.{name}", node)


def _check_chosen(group: str, name: str, node: Config) -> None:
    """Raise ConfigError for an entry of which only keys are there."""
    if "_target_" not in node:
        presets = catalogue.presets_with(group, name)
        cure = f"add {presets[0]} to {group}=[…]" if presets else "give it one"
        only = f"{group}.{name} has no _target_, only {', '.join(node)}"
        raise ConfigError(f"{only}: {cure}, or drop it")


def consistent(config: Config) -> None:
    """Raise ConfigError for values that are right each, and wrong together."""
    for column, threshold in config["stop"].items():
        if threshold is not None and column not in config["observables"]:
            raise ConfigError(
                f"stop.{column}={threshold} needs the observable {column}, which is not recorded; "
                "add its group to observables=[…]"
            )
    if config["batch_repeats"] > 1 and config["batch_size"] is None:
        raise ConfigError(
            f"batch_repeats={config['batch_repeats']} is about minibatches, and with "
            "batch_size=null there are none: set batch_size"
        )
    _tasks(config)
    shared, several = (config["execution"][key] for key in ("share", "processes"))
    if several and (shared != "examples" or config["execution"]["devices"] is not None):
        raise ConfigError(
            f"execution.processes={several} makes one run of {several} processes and all their "
            "devices: set execution.share=examples, and leave execution.devices at null"
        )
    if config["rate_unit"] and config["parametrization"].get("weight_decay") == "independent":
        raise ConfigError(
            "parametrization.weight_decay=independent takes the decay times the rate as given, and "
            "with rate_unit the rate is known at step 0 only: choose another weight_decay"
        )
    if "learning_rate" not in config["optimizer"]:
        raise ConfigError("optimizer.learning_rate is missing: schedules act on it")


def _tasks(config: Config) -> None:
    """Raise ConfigError for keys about a run's tasks that do not go with the others."""
    for key in ("task_order", "replay"):
        if config[key] is not None and config["task_steps"] is None:
            raise ConfigError(f"{key} is about a run's tasks: set task_steps, the steps on each")
    if config["replay"] is not None and config["batch_size"] is None:
        raise ConfigError("replay is a part of each minibatch: set batch_size")
    if config["task_steps"] is not None and config["data_fraction"] is not None:
        raise ConfigError(
            "with task_steps all training examples of a task count: data_fraction=null"
        )


def checked(config: Config, key: str, value: Any) -> Any:
    """A value as its key's kind."""
    return values.argument(key, value, values.kind_of(config, key))
