"""The command line, from the words to the files."""

import importlib.metadata
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

import lmech
from lmech.cli import main

RUN = [
    "dataset=chebyshev",
    "observables=[loss,sharpness]",
    "model.width=6",
    "steps=20",
    "logger=none",
]


def only(folder):
    (sweep,) = folder.glob("outputs/*/*")
    return sweep


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("reproduce", "list", "collect", "measure", "verify", "-m", "exit codes"):
        assert command in text


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lmech {importlib.metadata.version('lmech')}\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["reprodce", "edge_of_stability"], "did you mean 'reproduce'"),
        (["reproduce", "edge_of_stabilty"], "did you mean 'edge_of_stability'"),
        (["reproduce", "edge_of_stability", "--scale", "papr"], "did you mean 'paper'"),
        (["reproduce"], "reproduce what?"),
        (["reproduce", "grokking", "--all"], "takes grokking or --all, not both"),
        (["reproduce", "--all", "--scale", "papr"], "no experiment has it; did you mean 'paper'"),
        (["plan", "reproduce", "--all"], "takes one experiment, not --all"),
        (["list", "modl"], "did you mean 'model'"),
        (["list", "model", "steps=5"], "steps=5 goes with `lmech list keys`"),
        (["parametrization.base_width=16"], "is a key of parametrization=completep, depth_mup"),
        (["optimizer.learning_rate=0.1,0.2"], "write lmech -m"),
        (["optimizer.learning_rat=0.1"], "did you mean 'optimizer.learning_rate'"),
        (["collect", "nowhere"], "no results at nowhere"),
        (["measure", "nowhere", "observables=[trace]"], "no results at nowhere"),
        (["measure", "nowhere", "observables=[trase]"], "did you mean 'trace'"),
        (
            ["measure", "nowhere", "observables=[trace]", "steps=5"],
            "steps is fixed by the manifest",
        ),
        (
            ["measure", "nowhere", "observables.trace.samples=5"],
            "is missing, as in observables=[ntk,trace]",
        ),
        (["measure", "nowhere", "observables=[trace]", "--steps", "first"], "write last, 0,100"),
        ([*RUN, "observables=[loss,accuracy]"], "leave accuracy out"),
        (
            [*RUN, "model.width=1", "model.depth=0"],
            "observables.sharpness: k=4 eigenpairs are asked of",
        ),
        (["-m", *RUN, "model=glob(*"], "model=glob(*"),
        ([*RUN, "name=../x"], "name=../x"),
        ([*RUN, "batch_size=21"], "there are 20 training examples"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_written(words, hint, elsewhere, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert hint in error
    assert error.count("\n") == 1
    assert not list(elsewhere.iterdir())


def test_one_run_leaves_the_files_of_the_contract(elsewhere):
    assert main(RUN) == 0
    sweep = only(elsewhere)
    (line,) = (sweep / "manifest.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert {"id", "overrides", "group", "batch", "execution"} <= entry.keys()
    job = sweep / entry["id"]
    config = yaml.safe_load((job / "config.yaml").read_text())
    assert config["model"]["width"] == 6
    metrics = pd.read_parquet(job / "metrics.parquet")
    assert metrics["step"].tolist() == list(range(21))
    assert metrics["sharpness"].notna().sum() == 2
    result = json.loads((job / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("done", 20)
    assert result["final"]["train_loss"] == metrics["train_loss"].iloc[-1]
    assert result["observables"].keys() == config["observables"].keys()
    for key in ("lmech", "packages", "device", "threads", "xla_flags", "commit"):
        assert key in result["provenance"]
    with np.load(job / "weights" / "20.npz", allow_pickle=False) as weights:
        assert weights["hidden_1/kernel"].shape == (1, 6)
    summary = json.loads((sweep / "summary.json").read_text())
    programs = summary["compilations"] + summary["cached_compilations"]
    assert (summary["done"], programs) == (1, 1)
    assert {"wall", "compile", "run"} == summary["seconds"].keys()
    assert (sweep / "figure.png").stat().st_size > 1000
    html = (sweep / "report.html").read_text()
    assert "<svg" in html
    assert "http-equiv" not in html
    assert 'src="http' not in html


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_and_a_new_observable_runs_it(elsewhere, capsys):
    main(RUN)
    before = (only(elsewhere) / "summary.json").read_bytes()
    capsys.readouterr()
    assert main(RUN) == 0
    assert "1 skipped" in capsys.readouterr().out
    assert (only(elsewhere) / "summary.json").read_bytes() == before
    assert main([*RUN, "observables.sharpness.k=2"]) == 0
    assert "1 done" in capsys.readouterr().out


def test_a_sweep_collects_into_one_frame(elsewhere):
    assert main(["-m", *RUN, "seed=0,1", "optimizer.learning_rate=0.1,0.2"]) == 0
    frame = lmech.collect(elsewhere / "outputs")
    assert len(frame) == 4 * 21
    assert frame.groupby(["seed", "optimizer.learning_rate"]).size().tolist() == [21] * 4
    assert {"sweep", "job", "step", "train_loss", "sharpness"} <= set(frame.columns)
    assert main(["collect", "outputs", "--to", "all.parquet"]) == 0
    assert len(pd.read_parquet("all.parquet")) == len(frame)


@pytest.mark.slow
def test_a_diverged_run_is_a_result_and_not_a_failure(elsewhere):
    assert main(["-m", *RUN, "optimizer.learning_rate=0.1,1e9", "steps=60"]) == 0
    results = [json.loads(path.read_text()) for path in only(elsewhere).glob("*/result.json")]
    assert sorted(result["status"] for result in results) == ["diverged", "done"]
    diverged = next(result for result in results if result["status"] == "diverged")
    assert 0 < diverged["nonfinite_at"] < 60


@pytest.mark.slow
def test_a_batch_that_raises_fails_alone_with_its_traceback(elsewhere, monkeypatch, capsys):
    from lmech import engine

    train = engine.train

    def breaks(program, *rest, **more):
        if program.batch_size is not None:
            raise RuntimeError("the lamp is broken")
        return train(program, *rest, **more)

    monkeypatch.setattr(engine, "train", breaks)
    assert main(["-m", *RUN, "batch_size=null,5"]) == 1
    sweep = only(elsewhere)
    (trace,) = sweep.glob("*/error.txt")
    assert "the lamp is broken" in trace.read_text()
    assert "the lamp is broken" in capsys.readouterr().out
    statuses = [json.loads(path.read_text())["status"] for path in sweep.glob("*/result.json")]
    assert sorted(statuses) == ["done", "failed"]
    monkeypatch.setattr(engine, "train", train)
    again = ["-m", *RUN, "batch_size=null,5"]
    assert main(again) == 1
    told = capsys.readouterr().out
    assert "RuntimeError: the lamp is broken (rerun=failed tries again)" in told
    assert "1 failed, 1 skipped" in told
    assert main([*again, "rerun=failed"]) == 0
    assert not list(sweep.glob("*/error.txt"))


def test_final_values_are_those_of_the_table(elsewhere):
    assert main(["-m", *RUN, "observables.sharpness.every=4", "steps=10,30"]) == 0
    for path in only(elsewhere).glob("*/result.json"):
        result = json.loads(path.read_text())
        last = pd.read_parquet(path.parent / "metrics.parquet").ffill().iloc[-1]
        for name in ("train_loss", "sharpness", "test_loss"):
            assert result["final"][name] == last[name]


def test_a_loss_that_is_not_finite_at_the_last_weights_is_divergence(elsewhere):
    assert main([*RUN, "observables=[loss]", "optimizer.learning_rate=1e30", "steps=1"]) == 0
    (path,) = only(elsewhere).glob("*/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], result["nonfinite_at"]) == ("diverged", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_a_log_accounts_for_every_job_and_step(capsys):
    sweep = ["-m", *RUN[:-1], "optimizer.learning_rate=0.1,1e9", "batch_size=null,5"]
    assert main(sweep) == 0
    lines = capsys.readouterr().out.splitlines()
    for number in (1, 2):
        about = [line for line in lines if line.startswith(f"batch {number}/2 × 2: ")]
        assert "begins, 20 steps" in about[0]
        assert "1 done, 1 diverged" in about[-1]
    assert any(line.startswith("sweep: 2 done, 2 diverged, 100 % of 80 steps") for line in lines)


def test_a_broken_logger_costs_no_number_and_no_other_logger(elsewhere, capsys):
    (elsewhere / "wire.py").write_text(
        "from contextlib import contextmanager\n"
        "@contextmanager\ndef follow(folder):\n"
        "    def show(progress):\n        raise RuntimeError('the wire is cut')\n"
        "    yield show\n"
        "def broken():\n    return follow\n"
    )
    (elsewhere / "pyproject.toml").write_text("[tool.lmech]\n")
    (elsewhere / "conf" / "logger").mkdir(parents=True)
    text = "cut:\n  _target_: wire.broken\n"
    (elsewhere / "conf" / "logger" / "cut.yaml").write_text(text)
    assert main([*RUN, "logger=[cut,console]"]) == 0
    said, wrong = capsys.readouterr()
    assert "the logger cut stopped: RuntimeError: the wire is cut (wire.py, line 5)" in wrong
    assert wrong.count("\n") == 1
    assert "sweep: 1 done" in said


def test_a_failed_rerun_keeps_the_finished_result(elsewhere, monkeypatch):
    from lmech import engine

    assert main([*RUN, "observables=[loss]"]) == 0
    (path,) = only(elsewhere).glob("*/result.json")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "train", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no")))
        assert main(RUN) == 1
    assert path.read_bytes() == before
    assert (path.parent / "error.txt").is_file()


def test_an_observable_that_failed_can_be_left_out(elsewhere, monkeypatch):
    from lmech import engine

    train = engine.train

    def breaks(program, *rest, **more):
        if "sharpness" in program.observables:
            raise RuntimeError("the lamp is broken")
        return train(program, *rest, **more)

    monkeypatch.setattr(engine, "train", breaks)
    assert main([*RUN, "observables=[loss,sharpness]"]) == 1
    assert main([*RUN, "observables=[loss]", "rerun=failed"]) == 0
    (path,) = only(elsewhere).glob("*/result.json")
    assert json.loads(path.read_text())["status"] == "done"


def test_a_rerun_for_another_observable_drops_no_column(elsewhere):
    assert main([*RUN, "observables=[sharpness]"]) == 0
    assert main([*RUN, "observables=[loss]"]) == 0
    (path,) = only(elsewhere).glob("*/metrics.parquet")
    assert {"sharpness", "train_loss"} <= set(pd.read_parquet(path).columns)


@pytest.mark.usefixtures("elsewhere")
def test_a_swept_number_of_steps_is_a_column():
    assert main(["-m", *RUN, "steps=3,5"]) == 0
    assert lmech.collect("outputs").groupby("steps")["step"].max().to_dict() == {3: 3, 5: 5}


def test_an_optimizer_that_cannot_work_is_known_before_anything_is_written(elsewhere, capsys):
    assert main([*RUN, "optimizer._target_=optax.lbfgs"]) == 2
    assert not list(elsewhere.iterdir())
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_verify_prints_the_table_and_fails_on_a_mismatch(monkeypatch, capsys):
    from lmech import verifying

    rows = verifying.compare()
    monkeypatch.setattr(verifying, "compare", lambda: rows)
    assert main(["verify"]) == 0
    assert "64 of 64 agree" in capsys.readouterr().out
    wrong = [rows[0]._replace(ours=rows[0].ours + 1e-6), *rows[1:]]
    monkeypatch.setattr(verifying, "compare", lambda: wrong)
    assert main(["verify"]) == 1


def test_list_shows_every_group_and_every_key(capsys):
    assert main(["list"]) == 0
    assert "edge_of_stability" in capsys.readouterr().out
    assert main(["list", "keys"]) == 0
    assert "optimizer.learning_rate=0.1" in capsys.readouterr().out
    assert main(["list", "keys", "dataset=teacher_student"]) == 0
    assert "dataset.dimension=20" in capsys.readouterr().out


def test_the_users_own_folders_called_conf_and_experiments_shadow_nothing(elsewhere):
    for name in ("conf", "experiments"):
        (elsewhere / name).mkdir()
        (elsewhere / name / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    (elsewhere / "conf" / "config.yaml").write_text("steps: none\n")
    assert main(RUN) == 0
    shutil.rmtree(elsewhere / "conf")


def test_a_users_module_shadows_none_in_the_processes_beside(elsewhere, capsys):
    (elsewhere / "queue.py").write_text("raise RuntimeError('the wrong one')\n")
    assert main([*RUN[:-1], "logger=tensorboard"]) == 0
    assert "stopped" not in capsys.readouterr().err
    assert list(only(elsewhere).glob("tensorboard/*/events*"))


def test_all_experiments_run_in_turn_and_end_in_one_table(monkeypatch, capsys, tmp_path):
    from lmech import reproducing

    def judged(name, verdict):
        return {
            "claim": f"{name} in [0, 1]",
            "measured": 0.5,
            "predicted": None,
            "interval": [0, 1],
            "values": [0.5],
            "unit": "",
            "verdict": verdict,
            "expected": "holds",
        }

    def reproduce(name, scale, overrides, command):
        assert (scale, overrides) == ("default", ["seed=7"])
        assert command == f"lmech reproduce {name} seed=7"
        if name == "broken":
            raise RuntimeError("it broke")
        return reproducing.Outcome(tmp_path, {"done": 1}, {}, [judged(name, verdicts[name])])

    monkeypatch.setattr(reproducing, "reproduce", reproduce)
    verdicts = {"first": "holds", "broken": "", "last": "fails"}
    minutes = {"first": 0.5, "broken": None, "last": 2.5}
    monkeypatch.setattr(reproducing, "having", lambda _: minutes)
    assert main(["reproduce", "--all", "seed=7"]) == 1
    out = capsys.readouterr().out
    assert "first in [0, 1]" in out
    assert "last in [0, 1]" in out
    assert "failed: broken: " in out
    assert "it broke" in out
    told = "plan:   3 experiments, 3 min on 2 quiet CPU cores, 1 of them not measured\n"
    assert out.startswith(told)
    assert "last (3/3, 2.5 min)" in out
    assert "3 experiments: 2 claims, 1 as expected, 1 NOT" in out
    verdicts = {"first": "holds", "second": "holds"}
    minutes = dict.fromkeys(verdicts)
    monkeypatch.setattr(reproducing, "having", lambda _: minutes)
    assert main(["reproduce", "--all", "seed=7"]) == 0


def test_experiments_are_known_by_the_scales_that_they_have():
    from lmech import reproducing

    every, paper = reproducing.having("default"), reproducing.having("paper")
    assert set(paper) < set(every)
    assert min(every.values()) > 0  # each default scale has been measured
    assert sum(every.values()) < 90
    assert "edge_of_stability" in paper
