"""A researcher's own folder: found, searched first, importable; nothing in lmech is edited."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir

from lmech import application, config, planning, project, reproducing, starting, validation
from lmech.cli import main
from lmech.values import ConfigError

HERE = Path(__file__).parent
OWN = {
    "model": "gated",
    "dataset": "staircase",
    "loss": "log_cosh",
    "optimizer": "decayed_momentum",
    "schedule": "restarts",
    "parametrization": "halfway",
    "observables": "participation",
    "comparison": "cosine",
    "logger": "diary",
    "experiment": "staircase",
}
IN_CODE = ("parametrization", "spectral")
SHORT = ["experiment=staircase", "steps=3", "model.width=4", "logger=none"]


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def refusal(words, capsys):
    """The one line that says what is wrong."""
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def spaced(line):
    """With one space where there are several."""
    return " ".join(line.split())


def listed(words, capsys):
    assert main(["list", *words]) == 0
    return capsys.readouterr().out.splitlines()


# ------------------------------------------------------------------------ found, and searched first


@pytest.mark.usefixtures("own")
def test_list_has_one_of_each_kind_and_says_that_it_is_the_projects(capsys):
    for group, option in OWN.items():
        lines = listed([group], capsys)
        own = [line.split()[1] for line in lines if line.startswith("*")]
        assert own == [option, *([IN_CODE[1]] if group == IN_CODE[0] else []), "of"]
        assert len(lines) > 3
    assert "* of the project user_project: " in lines[-1]


def test_without_a_project_nothing_is_marked(elsewhere, capsys):
    assert not any(line.startswith("*") for line in listed([], capsys))
    assert OWN["model"] not in config.groups()["model"]
    assert elsewhere == Path.cwd()


def test_all_kinds_compose_into_one_job(own):
    others = ("observables", "comparison")
    chosen = {group: option for group, option in OWN.items() if group not in others}
    words = [f"{group}={option}" for group, option in chosen.items()]
    job = planning.expand(words, {})[0]
    targets = {
        section: job.config[section]["_target_"]
        for section in chosen
        if section in validation.CALLS
    }
    assert targets == {
        "model": "my_project.models.gated",
        "dataset": "my_project.datasets.staircase",
        "loss": "my_project.losses.log_cosh",
        "optimizer": "my_project.optimizers.decayed_momentum",
        "schedule": "my_project.schedules.restarts",
        "parametrization": "lmech.parametrization.abc",
    }
    assert job.config["observables"]["participation"]["every"] == 10
    assert own.name == "user_project"


@pytest.mark.slow
def test_a_logger_of_ones_own_is_one_of_several(own, capsys):
    assert main([*SHORT[:-1], "logger=[console,diary]", "steps=1"]) == 0
    assert "sweep: 1 done" in capsys.readouterr().out
    (found,) = own.glob("outputs/*/*/diary.txt")
    assert found.read_text() == "batch 0: {'done': 1}\n"


def test_the_projects_option_comes_before_the_packages_of_that_name(own, capsys):
    write(own / "conf/model/mlp.yaml", "# Mine.\n_target_: my_project.models.gated\nwidth: 5\n")
    assert config.compose(["model=mlp"]).model == {
        "_target_": "my_project.models.gated",
        "width": 5,
    }
    assert "* mlp Mine." in map(spaced, listed(["model"], capsys))


def test_a_project_is_found_from_any_folder_below_and_the_nearest_counts(own, monkeypatch):
    below = own / "notes" / "today"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert project.current() == project.Project(own, own / "conf")
    write(below / "pyproject.toml", '[tool.lmech]\nconf = "settings"\n')
    write(below / "deeper/keep", "")
    (below / "settings").mkdir()
    monkeypatch.chdir(below / "deeper")
    assert project.current() == project.Project(below, below / "settings")


@pytest.mark.parametrize("text", [None, "", '[tool.ruff]\n[project]\nname = "lmech"\n'])
def test_a_foreign_conf_in_the_working_directory_changes_nothing(elsewhere, monkeypatch, text):
    before = config.groups(), config.compose([])
    write(elsewhere / "theirs/conf/config.yaml", "steps: 7\n")
    write(elsewhere / "theirs/conf/model/mlp.yaml", "width: 5\n")
    if text is not None:
        write(elsewhere / "theirs/pyproject.toml", text)
    monkeypatch.chdir(elsewhere / "theirs")
    config._composed.cache_clear()
    assert (config.groups(), config.compose([])) == before


def test_a_config_dir_on_the_line_is_the_project_of_that_command_alone(own, monkeypatch, capsys):
    monkeypatch.chdir(own.parent)
    here = listed(["model", "--config-dir", "user_project/conf"], capsys)
    assert here == listed(["--config-dir=user_project/conf", "model"], capsys)
    assert "* gated A layer of gated linear units." in map(spaced, here)
    assert f"{project.FLAG} {own / 'conf'}" in "".join(_command(own))
    assert project.current() is None
    assert not any(line.startswith("*") for line in listed(["model"], capsys))


def _command(own):
    with project.at(own / "conf"):
        from lmech import launching

        return launching.command(["plan", "steps=3"])


def test_an_experiments_defaults_may_name_groups_of_the_projects_own(own):
    write(own / "conf/common/short.yaml", "# @package _global_\nsteps: 9\n")
    text = "# @package _global_\ndefaults:\n  - /common: short\nname: brief\n"
    write(own / "conf/experiment/brief.yaml", text)
    assert config.compose(["experiment=brief"]).steps == 9
    assert "common" not in config.groups()


def test_only_searches_for_our_primary_config_see_the_project(own):
    write(own.parent / "theirs/config.yaml", "defaults: [{model: small}]\n")
    write(own.parent / "theirs/model/small.yaml", "size: 1\n")
    write(own / "conf/model/small.yaml", "size: 2\n")
    config.compose([])  # Hydra has been told
    with initialize_config_dir(str(own.parent / "theirs"), version_base="1.3"):
        assert compose("config").model.size == 1


# ------------------------------------------------------------------------------------- mistakes


def test_a_primary_config_of_the_projects_own_is_refused(own, capsys):
    write(own / "conf/config.yaml", "steps: 7\n")
    said = refusal(["plan"], capsys)
    assert said.startswith("lmech: conf/config.yaml: a project has config groups only")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.lmech]\nconfs = 'x'\n", "tool.lmech.confs is unknown; did you mean 'conf'?"),
        ("[tool.lmech]\nconf = 'x'\n", "tool.lmech.conf=x: no such folder"),
        ("[tool]\nlmech = 3\n", "tool.lmech=3: it is a table, as in [tool.lmech]"),
        ("[tool.lmech\n", "line 1"),
    ],
)
def test_a_table_that_cannot_be_is_one_line(elsewhere, capsys, text, said):
    write(elsewhere / "pyproject.toml", text)
    (elsewhere / "conf").mkdir()
    line = refusal(["list"], capsys)
    assert str(elsewhere / "pyproject.toml") in line
    assert said in line


def test_a_folder_that_was_meant_as_a_group_is_refused(own, capsys):
    write(own / "conf/models/mine.yaml", "width: 5\n")
    said = refusal(["list"], capsys)
    assert said == "lmech: conf/models: no group of that name; did you mean 'model'?\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "--config-dir"], "--config-dir needs a folder"),
        (["--config-dir", "here"], "--config-dir goes with a command"),
        (["list", "--config-dir", "nowhere"], "nowhere: no such folder"),
    ],
)
@pytest.mark.usefixtures("elsewhere")
def test_a_flag_without_its_folder_is_one_line(words, said, capsys):
    assert said in refusal(words, capsys)


def test_what_is_wrong_in_an_experiment_is_said_with_the_projects_file(own, monkeypatch, capsys):
    file = own / "conf/experiment/staircase.yaml"
    file.write_text(file.read_text().replace("experiments.staircase", "experiments.stairs"))
    said = (
        "conf/experiment/staircase.yaml: experiment.module=my_project.experiments.stairs: No module"
    )
    assert refusal(["reproduce", "staircase"], capsys).startswith(f"lmech: {said}")
    monkeypatch.chdir(own.parent)
    words = ["reproduce", "staircase", "--config-dir", "user_project/conf"]
    assert refusal(words, capsys).startswith(f"lmech: user_project/{said}")


def test_a_file_that_is_no_yaml_is_named_with_its_line(own, capsys):
    write(own / "conf/experiment/broken.yaml", "# @package _global_\nsteps: [1\nname: x\n")
    said = refusal(["reproduce", "broken"], capsys)
    assert said.startswith("lmech: conf/experiment/broken.yaml, line 3: expected ',' or ']'")


@pytest.mark.usefixtures("elsewhere")
def test_a_module_that_is_missing_says_where_a_projects_are_found(capsys):
    said = refusal(["model._target_=their_project.models.gated"], capsys)
    assert "No module named 'their_project'" in said
    assert "--config-dir DIR" in said
    assert "pyproject.toml" in refusal(["reproduce", "staircase"], capsys)


# ----------------------------------------------------------------------------- what enters an id


def test_what_a_module_imports_of_the_project_is_a_part_of_its_source(own):
    package = own / "my_project"
    write(package / "deep/rates.py", "from ..extra import factor\n")
    write(package / "deep/__init__.py", "")
    write(package / "extra.py", "import numpy, lmech.losses\nfactor = 1\n")
    write(package / "other.py", "factor = 1\n")
    file = package / "losses.py"
    assert project.imported(file) == [file]
    write(file, f"from my_project.deep import rates\n{file.read_text()}")
    found = {str(part.relative_to(own)) for part in project.imported(file)}
    inner = {"deep/__init__.py", "deep/rates.py", "extra.py", "__init__.py", "losses.py"}
    assert found == {f"my_project/{name}" for name in inner}


@pytest.mark.parametrize(("changed", "same"), [("extra", False), ("other", True)])
def test_a_change_of_what_is_imported_makes_another_job(own, changed, same):
    for name in ("extra", "other"):
        write(own / f"my_project/{name}.py", "factor = 1.0\n")
    file = own / "my_project/losses.py"
    write(file, file.read_text() + "\nfrom my_project import extra  # noqa\n")
    before = planning.expand(SHORT, {})[0].id
    write(own / f"my_project/{changed}.py", "factor = 2.0\n")
    planning._source.cache_clear()
    assert (planning.expand(SHORT, {})[0].id == before) is same


# ------------------------------------------------------------------------------------- it runs


def test_the_threshold_that_the_project_declares_is_where_its_optimizer_diverges(own):
    from my_project.optimizers import decayed_momentum

    arguments = {"learning_rate": 0.3, "momentum": 0.6, "weight_decay": 0.4}
    threshold = float(decayed_momentum.stability(arguments, None, 1.0).threshold)
    assert threshold == pytest.approx(3.2 / 0.3 - 0.4)
    ends = []
    for curvature in (0.99 * threshold, 1.01 * threshold):
        transformation = decayed_momentum(**arguments)
        w, state = np.float64(1.0), transformation.init(np.float64(1.0))
        for _ in range(400):
            update, state = transformation.update(curvature * w, state, w)
            w += np.float64(update)
        ends.append(abs(w))
    assert ends[0] < 1 < ends[1]
    assert own.is_dir()


def test_a_run_records_the_projects_observable_and_where_the_project_was(own):
    assert main([*SHORT, "parametrization=halfway", "observables=[participation]"]) == 0
    (found,) = own.glob("outputs/*/*/*/result.json")
    result = json.loads(found.read_text())
    assert 0 < result["final"]["participation"] <= 1
    assert result["provenance"]["project"]["name"] == "user_project"


@pytest.mark.slow
def test_the_projects_schedule_and_comparison_do_what_they_say(own):
    words = ["steps=8", "schedule=restarts", "schedule.cycles=2", "seed=0,1"]
    assert main(["-m", *SHORT, *words]) == 0
    from my_project.schedules import restarts

    factors = restarts(2)(np.arange(8), 8)
    np.testing.assert_allclose(factors[:4], (1 + np.cos(np.pi * np.arange(4) / 4)) / 2)
    np.testing.assert_array_equal(factors[4:], factors[:4])
    assert main(["compare", "outputs", "comparison=cosine"]) == 0
    (found,) = own.glob("outputs/*/*/comparisons/cosine.parquet")
    cosine = pq.read_table(found).column("cosine").to_numpy()
    assert len(cosine) == 2  # of sp and of halfway
    assert ((cosine > 0) & (cosine < 1)).all()


def test_hydras_own_sweeper_finds_the_project_too(own, monkeypatch):
    seen = []
    monkeypatch.setattr(
        application,
        "_train",
        lambda jobs, _: seen.append(jobs) or reproducing.Outcome(own, {}, {}, []),
    )
    monkeypatch.setattr(application, "_failure", lambda *_: None)
    monkeypatch.setattr(application, "objective", lambda *_: 0.0)
    words = [*SHORT, "parametrization=sp,halfway", "hydra/sweeper=basic"]
    assert main(["-m", *words]) == 0
    ((first, second),) = seen
    assert [job.config["model"]["_target_"] for job in (first, second)] == [
        "my_project.models.gated"
    ] * 2
    assert second.config["parametrization"]["base_width"] == 16


# ------------------------------------------------------------------------------------ lmech init


def test_init_writes_a_project_whose_experiment_can_be_planned(elsewhere, monkeypatch, capsys):
    assert main(["init", "first_steps"]) == 0
    assert "cd first_steps && lmech reproduce small_steps" in capsys.readouterr().out
    folder = elsewhere / "first_steps"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "pyproject.toml",
        "README.md",
        ".gitignore",
        "conf/experiment/small_steps.yaml",
        "first_steps/__init__.py",
        "first_steps/small_steps.py",
    }
    assert not any("$name" in (folder / name).read_text() for name in files)
    monkeypatch.chdir(folder)
    project.join()
    experiment = reproducing.load(starting.EXPERIMENT, "default", [])
    jobs = planning.expand(experiment.overrides, experiment.sweep)
    assert len(jobs) == 6
    assert len(planning.group(jobs)) == 1
    assert "* small_steps" in "\n".join(listed(["experiment"], capsys))
    commands = re.findall(r"^    (lmech .*?)  +#", (folder / "README.md").read_text(), re.M)
    assert commands == ["lmech reproduce small_steps", "lmech list"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-project", "Python can import no module of that name"),
        ("3d", "Python can import no module of that name"),
        ("class", "Python can import no module of that name"),
        ("numpy", "a module of that name is there already"),
        ("lmech", "a module of that name is there already"),
        ("full", "it is there already, and not empty"),
        ("a_file", "it is there already, and not empty"),
    ],
)
def test_init_refuses_a_name_or_a_folder_that_cannot_be(elsewhere, capsys, name, said):
    write(elsewhere / "full/notes.txt", "mine")
    write(elsewhere / "a_file", "mine")
    before = sorted(elsewhere.rglob("*"))
    assert said in refusal(["init", name], capsys)
    assert sorted(elsewhere.rglob("*")) == before


def test_init_takes_an_empty_folder(elsewhere):
    (elsewhere / "empty").mkdir()
    starting.write(elsewhere / "empty")
    assert (elsewhere / "empty/empty/small_steps.py").is_file()
    with pytest.raises(ConfigError, match="not empty"):
        starting.write(elsewhere / "empty")


# ------------------------------------------------------------------- what the documentation says


def test_the_files_of_the_documentation_are_the_projects_and_short():
    text = (HERE.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```", text, re.M | re.S)
    files = {
        str(p.relative_to(HERE / "user_project")): p for p in (HERE / "user_project").rglob("*")
    }
    assert len(shown) == text.count("```") / 2 == 22
    for name, block in shown:
        assert block == files[name].read_text(encoding="utf-8"), name
    for group, option in [*OWN.items(), IN_CODE]:
        own = [
            block
            for name, block in shown
            if name.endswith((f"{group}/{option}.yaml", f"{group}s.py"))
        ]
        own += [block for name, block in shown if name.endswith(f"{group}s/{option}.py")]
        assert own
        assert sum(block.count("\n") for block in own) < 40


# ------------------------------------------------------------------------------ from a wheel


@pytest.mark.slow
def test_a_project_runs_with_an_installed_lmech(installed, own):
    def lmech(*words, here=own):
        return installed(here, "-m", "lmech", *words)

    assert "* gated" in lmech("list").stdout
    planned = lmech("plan", "-m", "experiment=staircase")
    assert "jobs:   8, of which 0 finished; 2 programs to compile" in planned.stdout
    done = lmech("reproduce", "staircase", "seed=0")
    assert done.returncode == 0, done.stdout + done.stderr
    for sweeper in ([], ["hydra/launcher=joblib"]):
        swept = lmech(
            "-m", *SHORT, f"seed=1,{2 + len(sweeper)}", "parametrization=halfway", *sweeper
        )
        assert swept.returncode == 0, swept.stdout + swept.stderr
    away = own.parent / "away"
    away.mkdir()
    asked = [str(own / "outputs"), "observables=[trace]"]
    lost = lmech("measure", *asked, here=away)
    assert lost.returncode == 1
    assert "No module named 'my_project' (a project's modules are found where" in lost.stdout
    resumed = lmech("resume", str(next(own.glob("outputs/staircase/*"))), here=away)
    assert resumed.returncode == 2
    assert resumed.stderr.count("\n") == 1
    found = lmech("measure", *asked, "--config-dir", str(own / "conf"), here=away)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_what_init_writes_runs_at_once_with_an_installed_lmech(installed, elsewhere):
    assert installed(elsewhere, "-m", "lmech", "init", "my_first").returncode == 0
    done = installed(elsewhere / "my_first", "-m", "lmech", "reproduce", "small_steps")
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = json.loads(next(elsewhere.rglob("claims.json")).read_text())
    assert [claim["verdict"] for claim in verdicts] == ["holds", "holds", "fails"]
    listed = installed(elsewhere / "my_first", "-m", "lmech", "list", "experiment").stdout
    assert "* small_steps" in listed
