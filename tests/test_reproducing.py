"""Experiments as YAML and module: what is missing is known before anything runs."""

import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from lmech import config, reproducing, signatures
from lmech.claims import parse
from lmech.values import ConfigError

NODE = {"name": "toy", "module": "toy_module", "sweep": {"seed": [0]}, "claims": []}


@pytest.mark.parametrize("key", ["name", "module", "sweep", "claims"])
def test_an_experiment_without_one_of_its_parts_says_which(key):
    node = {k: v for k, v in NODE.items() if k != key}
    with pytest.raises(ConfigError, match=rf"toy.yaml: experiment.{key} is missing"):
        reproducing._checked("toy", node)


def test_a_yaml_without_an_experiment_section_is_named():
    with pytest.raises(ConfigError, match=r"toy\.yaml: experiment: there is none"):
        reproducing._checked("toy", None)


def test_a_module_that_is_not_there_or_does_not_measure_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="toy_module"):
        reproducing._checked("toy", NODE)
    (tmp_path / "toy_module.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"no function measure"):
        reproducing._checked("toy", NODE)


class AtOnce:
    """A thread that is through when it has started."""

    def __init__(self, target):
        self.start = target


def test_the_host_gets_ready_to_draw_once_and_only_when_a_batch_trains(monkeypatch):
    done, shown = [], []
    monkeypatch.setattr(reproducing, "Thread", AtOnce)
    monkeypatch.setattr(reproducing, "_import_what_draws", lambda: done.append("imports"))
    monkeypatch.setattr(signatures, "remember_presets", lambda: done.append("presets"))
    show = reproducing._beside(shown.append)
    events = [SimpleNamespace(event=event) for event in ("begins", "runs", "runs", "ends")]
    show(events[0])
    assert not done
    for event in events[1:]:
        show(event)
        assert done == ["imports", "presets"]
    assert shown == events


BASE = {"claim": "c", "quantity": "q", "interval": [0, 2], "source": "s", "expected": "holds"}


def toy(figure, claims, folder, monkeypatch):
    """An experiment with one done job and one that failed, and the body of its ``figure``."""
    from lmech import collecting

    jobs = pd.DataFrame(
        {"job": ["a", "b"], "model.width": [4, 5], "status": ["done", "failed"], "ended_at": [9, 0]}
    )
    monkeypatch.setattr(collecting, "read_jobs", lambda _: jobs)
    run = collecting.Run("a", {}, {}, {"status": "done"}, pd.DataFrame())
    monkeypatch.setattr(collecting, "read_runs", lambda _: [run])
    monkeypatch.setattr(reproducing, "_draw", lambda *_, **__: None)
    (folder / "toy_measure.py").write_text(
        '"""Toy."""\nimport pandas as pd\n'
        "def measure(runs):\n"
        "    return pd.DataFrame([{'job': r.job, 'model.width': 4, 'q': 1.0} for r in runs])\n"
        f"def figure(runs, measurements):\n    {figure}\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "toy_measure", raising=False)
    return reproducing.Experiment("toy", "toy_measure", "", [], {}, parse(claims))


def test_a_failed_job_leaves_its_claim_undetermined(tmp_path, monkeypatch):
    three = [BASE, {**BASE, "where": {"model.width": 4}}, {**BASE, "where": {"model.width": 5}}]
    experiment = toy("return None", three, tmp_path, monkeypatch)
    judged = reproducing._conclude(experiment, tmp_path, "lmech")
    assert [claim["verdict"] for claim in judged] == ["undetermined", "holds", "undetermined"]


def test_verdicts_are_written_although_the_figure_fails(tmp_path, monkeypatch):
    experiment = toy("raise ValueError('all values are <= 0')", [BASE], tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="all values"):
        reproducing._conclude(experiment, tmp_path, "lmech")
    (claim,) = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert claim["verdict"] == "undetermined"


def test_every_shipped_experiment_loads():
    for name in config.groups()["experiment"]:
        assert reproducing.load(name, "default", []).claims
