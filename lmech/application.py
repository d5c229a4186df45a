"""lmech as a Hydra application: its task, and what its sweeper and launcher do with it.

``lmech -m`` is ``hydra/sweeper=lmech`` without Hydra's start. A command line with a word for Hydra
(``hydra/launcher=joblib``, ``hydra.sweeper.n_trials=20``) comes here; other sweepers and launchers
then call ``task``, once a job.
"""

import logging
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, env_override
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lmech import config as configs
from lmech import hints, launching, paths, planning, project, reproducing, sweeps
from lmech.catalogue import groups
from lmech.disk import read_table
from lmech.planning import Job
from lmech.reproducing import Outcome
from lmech.values import Config, ConfigError


class FailedError(RuntimeError):
    """Runs failed; their tracebacks are in their folders."""


def main(words: Sequence[str], multirun: bool) -> int:
    """Start Hydra with these overrides; returns the exit code. Raises ConfigError."""
    configs.tell_hydra()
    start = hydra.main(
        config_path=str(paths.conf().resolve()), config_name="config", version_base="1.3"
    )
    try:
        ready = _ready(words, multirun)
        # Hydra then leaves exceptions to us, rather than print them and exit.
        with env_override({"HYDRA_FULL_ERROR": "1"}), _command_line(ready), _plain_messages():
            start(task)()
    except FailedError as error:
        print(f"lmech: {error}", file=sys.stderr)
        return 1
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error
    return 0


@contextmanager
def _command_line(words: Sequence[str]) -> Iterator[None]:
    """The words that Hydra reads."""
    before = sys.argv
    sys.argv = ["lmech", *words]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _plain_messages() -> Iterator[None]:
    """What Hydra's sweepers and launchers say, as it is.

    Hydra's own way, a logging configuration, would close the handlers of every other library.
    """
    handler = logging.StreamHandler(sys.stdout)
    loggers = [logging.getLogger(name) for name in ("hydra", "hydra_plugins")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _one_line(error: Exception) -> str:
    """Hydra's first line, and what there is to choose from where it says so."""
    text = str(error).strip()
    _, found, rest = text.partition("Available options in ")
    options = rest.partition("\n\n")[0].partition("Config search path")[0].split()
    told = f"; there are {', '.join(options[1:])}" if found else ""
    missing = "Could not find 'hydra/" in text
    return text.splitlines()[0] + told + (f" ({OTHERS})" if missing else "")


OTHERS = "joblib, submitit and optuna come with pip install 'lmech[sweepers]'"


def _ready(words: Sequence[str], multirun: bool) -> list[str]:
    """The words as Hydra reads them, ours checked. Raises ConfigError."""
    hydras = [word for word in words if launching.is_hydras(word)]
    own = [word for word in words if word not in hydras]
    swept = {word: texts for word in own if (texts := sweeps.strings(word)) is not None}
    plain = [word for word in own if word not in swept]
    if swept and not multirun:
        raise ConfigError(
            f"{_key(next(iter(swept)))} has several values: write lmech -m for a sweep"
        )
    firsts = [f"{_key(word)}={texts[0]}" for word, texts in swept.items() if texts]
    chosen = [*plain, *(word for word in firsts if configs.decides(_key(word)))]
    configs.resolve(configs.compose(chosen))
    listed = [
        f"{_key(word)}={','.join(swept[word])}" if sweeps.is_space(_value(word)) else word
        for word in own
    ]
    fixed = f"{FIXED}=[{','.join(map(_key, plain))}]"
    mode = ["--multirun"] * multirun
    return [*mode, fixed, *_launched(hydras), *configs.spelled(listed, chosen)]


FIXED = "hydra.job.config.override_dirname.exclude_keys"
"""Where Hydra keeps the keys that name no job; we put those with a single value there."""


def _launched(hydras: list[str]) -> list[str]:
    """With Hydra's own sweeper, which is the one that uses it, where only a launcher is named."""
    named = {_key(word) for word in hydras}
    needed = "hydra/launcher" in named and "hydra/sweeper" not in named
    return [*hydras, "hydra/sweeper=basic"] if needed else hydras


def _key(word: str) -> str:
    return word.partition("=")[0]


def _value(word: str) -> str:
    return word.partition("=")[2]


def task(config: DictConfig) -> float | None:
    """Train one job as ``lmech KEY=VALUE …`` does; returns its ``objective``.

    That is the last recorded value of the column that ``config.objective`` names, inf where it is
    not a number (a run that diverged: sweepers minimise, and some refuse nan), None where it
    names none. Raises ConfigError, or FailedError if the run failed.
    """
    project.join()  # a launcher may have started this process
    hydras = HydraConfig.get() if HydraConfig.initialized() else None
    overrides = _own(hydras.overrides.task) if hydras else []
    resolved = configs.resolve(configs.without_strangers(config, overrides))
    shown = planning.setting(overrides)
    if hydras:
        shown = {key: value for key, value in shown.items() if key not in _fixed(hydras)}
    job = planning.job_of(resolved, shown)
    outcome = _train([job], overrides)
    failed = _failure(outcome, job)
    if failed is not None:
        raise failed
    return objective(outcome.folder, job)


def _fixed(hydras: HydraConf) -> Collection[str]:
    return hydras.job.config.override_dirname.exclude_keys


def _own(overrides: Sequence[str]) -> list[str]:
    """Ours of the overrides of a job, as ``lmech`` reads them."""
    return [word.lstrip("+") for word in overrides if not launching.is_hydras(word)]


def _train(jobs: Sequence[Job], words: Sequence[str]) -> Outcome:
    for job in jobs:
        _check_objective(job.config)
    outcome = reproducing.run(jobs, launching.command(words), draw=len(jobs) > 1)
    launching.close(outcome)
    return outcome


def _failure(outcome: Outcome, job: Job) -> FailedError | None:
    folder = outcome.folder / job.id
    if job.id not in outcome.failures:
        if (folder / "metrics.parquet").is_file():
            return None
        return FailedError(f"{folder}: it has not been trained")
    return FailedError(f"{outcome.folder / job.id}: {outcome.failures[job.id]}")


def _check_objective(config: Config) -> None:
    """Raise ConfigError for a column that no observable of the config has."""
    column, names = config["objective"], [*config["observables"], "batch_loss"]
    if column is None or any(column == name or column.startswith(f"{name}_") for name in names):
        return
    raise ConfigError(
        f"objective={column} is not recorded{hints.nearest(column, names)} "
        f"({', '.join(names)}; null for none)"
    )


def objective(folder: Path, job: Job) -> float | None:
    """The job's objective (see ``task``) from its files. Raises ConfigError."""
    column = job.config["objective"]
    if column is None:
        return None
    table = read_table(folder / job.id / "metrics.parquet")
    if column not in table.column_names:
        hint = hints.nearest(column, table.column_names)
        raise ConfigError(f"objective={column} is not recorded{hint}")
    value = table.column(column).drop_null()[-1].as_py()
    if isinstance(value, list):
        raise ConfigError(f"objective={column} is a list of values a step; name a single one")
    return math.inf if math.isnan(value) else float(value)


def sweep(arguments: Sequence[str]) -> None:
    """What ``lmech -m`` does with these overrides. Raises FailedError if a run failed."""
    if launching.run(_own(arguments), multirun=True):
        raise FailedError("not every run ended well")


def launch(
    context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Train the jobs as one sweep; their returns in order, numbered from ``first``.

    A job that is there twice is trained once. Raises ConfigError before anything is written.
    """
    jobs = planning.each([_own(overrides) for overrides in job_overrides], _fixed(config.hydra))
    named = enumerate(zip(jobs, job_overrides, strict=True), first)
    composed = [_of_job(config, number, *pair) for number, pair in named]
    for own in composed:
        context.callbacks.on_job_start(config=own, task_function=task)
    words = [*config.hydra.overrides.hydra, *_own(config.hydra.overrides.task)]
    outcome = _train(_distinct(jobs), ["-m", *words])
    returns = [_return(own, job, outcome) for own, job in zip(composed, jobs, strict=True)]
    for own, returned in zip(composed, returns, strict=True):
        context.callbacks.on_job_end(config=own, job_return=returned)
    return returns


def _distinct(jobs: Sequence[Job]) -> list[Job]:
    """Equal jobs once. Raises ConfigError where one training is to be looked at in two ways."""
    found: dict[str, Job] = {}
    for job in jobs:
        same = found.setdefault(job.id, job)
        if planning.whole_id(same) != planning.whole_id(job):
            raise ConfigError(f"two jobs train the same: {same.overrides} and {job.overrides}")
    return list(found.values())


def _of_job(config: DictConfig, number: int, job: Job, overrides: Sequence[str]) -> DictConfig:
    """A sweep's config as that of one of its jobs. (Composing it anew takes Hydra 75 ms.)"""
    own = config.copy()
    with read_write(own), open_dict(own):
        own.update(job.config)
        own.hydra.overrides.task = list(overrides)
        values = planning.setting(_own(overrides))
        own.hydra.runtime.choices.update({k: v for k, v in values.items() if k in groups()})
        own.hydra.runtime.output_dir = str(Path(own.hydra.sweep.dir).absolute())
        name = ",".join(f"{key}={value}" for key, value in sorted(job.overrides.items()))
        own.hydra.job.update(id=str(number), num=number, override_dirname=name)
    return own


def _return(config: DictConfig, job: Job, outcome: Outcome) -> JobReturn:
    """What Hydra's own launchers return of a job."""
    returned = JobReturn(
        overrides=list(config.hydra.overrides.task),
        cfg=OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]),
        hydra_cfg=OmegaConf.masked_copy(config, "hydra"),
        working_dir=str(Path.cwd()),
        task_name=JobRuntime.instance().get("name"),
    )
    failed = _failure(outcome, job)
    returned.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    returned.return_value = failed or objective(outcome.folder, job)
    return returned
