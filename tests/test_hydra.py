"""Hydra's sweepers and launchers with our task, and ours with Hydra."""

import json
import math
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from lmech import application, config, engine, paths, planning
from lmech.cli import main
from lmech.values import ConfigError

# SQLAlchemy's, of the optuna that hydra-optuna-sweeper needs.
pytestmark = pytest.mark.filterwarnings("ignore:Deprecated API features detected")

RUN = ["dataset=chebyshev", "observables=[loss]", "model.width=6", "steps=20", "logger=none"]


def launcher(words, heard=None):
    """The launcher that the words choose, set up as Hydra does."""

    def hear(name, config, **rest):
        if heard is not None:
            heard.append((name, config.hydra.job.num, *rest))

    callbacks = SimpleNamespace(
        **{name: partial(hear, name) for name in ("on_job_start", "on_job_end")}
    )
    with initialize_config_dir(str(paths.conf().resolve()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        composed = hydra.compose_config("config", [*RUN, *words], RunMode.MULTIRUN)
        return Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=callbacks),
            task_function=application.task,
            config=composed,
        )


def results(folder):
    """Finished jobs below a folder: job id → its folder."""
    return {path.parent.name: path.parent for path in folder.rglob("result.json")}


def losses(folder):
    """Job id → last training loss."""
    finals = {
        job: json.loads((at / "result.json").read_text()) for job, at in results(folder).items()
    }
    return {job: result["final"]["train_loss"] for job, result in finals.items()}


def break_minibatches(monkeypatch):
    train = engine.train

    def breaks(program, *rest, **more):
        if program.batch_size is not None:
            raise RuntimeError("the lamp is broken")
        return train(program, *rest, **more)

    monkeypatch.setattr(engine, "train", breaks)


def launched(*jobs):
    """What our launcher returns of jobs with these words."""
    return launcher([]).launch([[*RUN, *words] for words in jobs], initial_job_idx=0)


INTERLEAVED = [
    [*RUN, f"batch_size={size}", f"seed={seed}"] for seed in (0, 1) for size in ("null", 5)
]


def test_the_launcher_returns_in_order_jobs_of_two_programs_interleaved(elsewhere):
    heard = []
    returns = launcher([], heard).launch(INTERLEAVED, initial_job_idx=3)
    assert [list(job.overrides) for job in returns] == INTERLEAVED
    assert [(job.cfg.batch_size, job.cfg.seed) for job in returns] == [
        (None, 0),
        (5, 0),
        (None, 1),
        (5, 1),
    ]
    assert {job.status for job in returns} == {JobStatus.COMPLETED}
    assert [job.hydra_cfg.hydra.job.num for job in returns] == [3, 4, 5, 6]
    assert {job.working_dir for job in returns} == {str(elsewhere)}
    found = losses(elsewhere)
    expected = [found[planning.each([words])[0].id] for words in INTERLEAVED]
    assert [job.return_value for job in returns] == expected
    assert len(set(expected)) == 4
    (summary,) = elsewhere.rglob("summary.json")
    told = json.loads(summary.read_text())
    assert told["compilations"] + told["cached_compilations"] == 2
    assert heard == [("on_job_start", n, "task_function") for n in (3, 4, 5, 6)] + [
        ("on_job_end", n, "job_return") for n in (3, 4, 5, 6)
    ]


def test_one_failing_job_among_several_fails_alone(elsewhere, monkeypatch, capsys):
    break_minibatches(monkeypatch)
    returns = launcher([]).launch(INTERLEAVED[:3], initial_job_idx=0)
    done, failed = JobStatus.COMPLETED, JobStatus.FAILED
    assert [job.status for job in returns] == [done, failed, done]
    assert all(math.isfinite(returns[place].return_value) for place in (0, 2))
    with pytest.raises(application.FailedError, match="the lamp is broken"):
        _ = returns[1].return_value
    assert "batch_size=5" in capsys.readouterr().err
    (trace,) = elsewhere.rglob("error.txt")
    assert "the lamp is broken" in trace.read_text()


def test_a_job_that_is_there_twice_is_trained_once_and_returned_twice(elsewhere):
    returns = launcher([]).launch([INTERLEAVED[0]] * 2, initial_job_idx=0)
    assert returns[0].return_value == returns[1].return_value
    assert len(results(elsewhere)) == 1
    with pytest.raises(ConfigError, match="two jobs train the same"):
        launched(*([f"observables.test_loss.every={every}"] for every in (5, 7)))


@pytest.mark.usefixtures("elsewhere")
def test_our_launcher_returns_what_hydras_own_does():
    jobs = [[*RUN, "schedule=cosine", f"seed={seed}"] for seed in (0, 1)]
    ours = launcher([]).launch(jobs, initial_job_idx=1)
    theirs = launcher(["hydra/launcher=basic"]).launch(jobs, initial_job_idx=1)
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("overrides", "status", "return_value", "working_dir", "task_name"):
            assert getattr(mine, name) == getattr(other, name), name
        assert OmegaConf.to_container(mine.cfg) == config.resolve(other.cfg)
        a, b = mine.hydra_cfg.hydra, other.hydra_cfg.hydra
        assert a.overrides.task == b.overrides.task
        assert (a.job.num, a.job.override_dirname) == (b.job.num, b.job.override_dirname)
        assert a.runtime.output_dir == b.runtime.output_dir
        assert a.runtime.choices.schedule == b.runtime.choices.schedule == "cosine"


SWEEP = [*RUN, "seed=0,1", "optimizer.learning_rate=geomspace(0.1,0.4,2)"]


@pytest.mark.parametrize("word", ["hydra/sweeper=lmech", "hydra.verbose=false"])
def test_our_sweeper_is_the_fast_path(word, elsewhere, capsys):
    assert main(["-m", *SWEEP]) == 0
    before = sorted(elsewhere.rglob("*"))
    capsys.readouterr()
    assert main(["-m", word, *SWEEP]) == 0
    assert "4 skipped" in capsys.readouterr().out
    assert sorted(elsewhere.rglob("*")) == before


def test_hydras_sweeper_and_launcher_give_the_same_bytes_and_no_folders_of_their_own(elsewhere):
    words = [*SWEEP, "optimizer.momentum=0.5"]  # a key that the preset leaves out
    assert main(["-m", *words, "name=ours"]) == 0
    hydras = ["hydra/sweeper=basic", "hydra/launcher=basic"]
    assert main(["-m", *hydras, *words, "name=theirs"]) == 0
    ours, theirs = (results(elsewhere / "outputs" / name) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for job, folder in ours.items():
        for name in ("metrics.parquet", "weights/20.npz"):
            assert (folder / name).read_bytes() == (theirs[job] / name).read_bytes()
    others = [path.name for path in (elsewhere / "outputs" / "theirs").iterdir()]
    assert set(others) - {folder.parent.name for folder in theirs.values()} == {"multirun.yaml"}
    assert [path.name for path in elsewhere.iterdir()] == ["outputs"]
    (line,) = (next(iter(theirs.values())).parent / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["overrides"].keys() == {"seed", "optimizer.learning_rate"}


@pytest.mark.usefixtures("elsewhere")
def test_a_user_target_reaches_the_task_without_the_presets_keys():
    words = ["schedule._target_=lmech.schedules.constant", "schedule=cosine"]
    assert main([*RUN, *words, "hydra.verbose=false"]) == main([*RUN, *words]) == 0


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["-m", "hydra/launcher=joblib", "seeed=0,1"], "did you mean 'seed'"),
        (["-m", "hydra/sweeper=optuna", "steps=interval(1,x)"], "steps=interval(1,x)"),
        (["-m", "hydra/sweeper=optuna", "optimizer.rat=interval(0,1)"], "unknown key"),
        (
            ["-m", "hydra/sweeper=optuna", "seed=a", "microbatch=choice(1,2)"],
            "seed=a: input should",
        ),
        (["-m", "hydra/launcher=nowhere", "seed=0,1"], "there are basic, "),
        (["-m", "hydra/launcher=nowhere", "seed=0,1"], "pip install 'lmech[sweepers]'"),
        (["-m", "hydra.launcher.jobs=2", "seed=0,1"], "hydra.launcher.jobs"),
        (["hydra/launcher=basic", "seed=0,1"], "write lmech -m"),
        (["-m", "seed=interval(0,1)"], "hydra/sweeper=optuna"),
        (["-m", "hydra/sweeper=lmech", "hydra/launcher=basic"], "write hydra/sweeper=basic"),
        (["-m", "hydra/sweeper=basic", "objective=train_los"], "did you mean 'train_loss'"),
        (["-m", "hydra/sweeper=basic", "seed=0,-1"], "seed=-1: input should"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_trained(words, hint, elsewhere, capsys):
    assert main([*words, *RUN]) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1
    assert not list(elsewhere.rglob("manifest.jsonl"))


@pytest.mark.parametrize("sweeper", ["lmech", "basic"])
def test_a_failed_job_exits_with_1(sweeper, elsewhere, monkeypatch, capsys):
    break_minibatches(monkeypatch)
    assert main(["-m", f"hydra/sweeper={sweeper}", *RUN, "batch_size=null,5"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert list(elsewhere.rglob("error.txt"))


def test_the_objective_is_the_last_recorded_value(elsewhere):
    (found,) = launched(["objective=test_loss"])
    (table,) = elsewhere.rglob("metrics.parquet")
    assert found.return_value == pd.read_parquet(table)["test_loss"].dropna().iloc[-1]


@pytest.mark.usefixtures("elsewhere")
def test_the_objective_of_a_diverged_run_is_inf_and_none_where_it_is_null():
    diverged, none = launched(["optimizer.learning_rate=1e9", "steps=60"], ["objective=null"])
    assert diverged.return_value == math.inf
    assert none.return_value is None


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("column", "why"),
    [
        ("train_los", r"did you mean 'train_loss'\? \(train_loss, test_loss, batch_loss"),
        ("train_loss_there", "objective=train_loss_there is not recorded"),
        ("sharpness_eigenvalues", "is a list of values"),
    ],
)
def test_an_objective_that_is_no_number_of_a_step_is_an_error(column, why):
    also = ["observables=[loss,sharpness]"] if "sharpness" in column else []
    with pytest.raises(ConfigError, match=why):
        launched([*also, f"objective={column}"])


def test_inside_another_hydra_application_our_config_is_ours(tmp_path):
    (tmp_path / "config.yaml").write_text("theirs: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config._composed.cache_clear()
        assert config.compose(["seed=3"]).seed == 3
        assert compose("config").theirs == 1


APPLICATION = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def mine(config):
    print("it ran")
mine()
"""


@pytest.mark.parametrize("plugin", ["hydra/launcher", "hydra/sweeper"])
def test_another_applications_task_is_refused_in_a_line(plugin, tmp_path):
    (tmp_path / "app.py").write_text(APPLICATION)
    command = [sys.executable, "app.py", "-m", f"{plugin}=lmech", "+a=1,2"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "it ran" not in done.stdout
    first, *rest = done.stderr.strip().splitlines()
    assert first.startswith(f"{plugin}=lmech was asked to run __main__.mine")
    assert rest == [
        "",
        "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.",
    ]


def test_hydra_finds_the_plugins_without_importing_lmech(tmp_path):
    program = (
        "import sys; from hydra.core.plugins import Plugins\n"
        "names = {found.__name__ for found in Plugins.instance().discover()}\n"
        "assert {'LmechSweeper', 'LmechLauncher'} <= names, names\n"
        "assert not {'lmech', 'jax', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


@pytest.fixture
def compile_cache(monkeypatch):
    """Workers share the tests' cache of compiled programs."""
    import jax

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.mark.slow
@pytest.mark.usefixtures("compile_cache")
@pytest.mark.parametrize(
    "words",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local"],
    ],
)
def test_other_launchers_train_our_jobs_in_processes_of_their_own(words, elsewhere):
    pytest.importorskip(f"hydra_plugins.hydra_{words[0].partition('=')[2].split('_')[0]}_launcher")
    assert main(["-m", *words, *RUN, "seed=0,1"]) == 0
    theirs = results(elsewhere)
    assert main(["-m", *RUN, "seed=0,1", "name=ours"]) == 0
    ours = results(elsewhere / "outputs" / "ours")
    assert ours.keys() == theirs.keys()
    for job, folder in theirs.items():
        assert (folder / "metrics.parquet").read_bytes() == (
            ours[job] / "metrics.parquet"
        ).read_bytes()


@pytest.mark.slow
def test_a_search_asks_in_batches_and_its_best_is_the_best_on_disk(elsewhere):
    pytest.importorskip("optuna")
    trials = ["hydra.sweeper.n_trials=8", "hydra.sweeper.n_jobs=4", "hydra.sweeper.sampler.seed=0"]
    rate = "optimizer.learning_rate=tag(log, interval(1e-3, 1e3))"  # some diverge
    assert main(["-m", "hydra/sweeper=optuna", *trials, *RUN, rate]) == 0
    sizes = [len(path.read_text().splitlines()) for path in elsewhere.rglob("manifest.jsonl")]
    assert sizes == [4, 4]
    found = losses(elsewhere)
    assert len(found) == 8
    assert None in found.values()
    best = yaml.safe_load((elsewhere / "outputs/run/optimization_results.yaml").read_text())
    assert best["best_value"] == min(loss for loss in found.values() if loss is not None)
    (job,) = planning.each([[*RUN, *(f"{k}={v}" for k, v in best["best_params"].items())]])
    assert found[job.id] == best["best_value"]
