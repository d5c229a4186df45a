"""Experiments as YAML and module: what is missing is known before anything runs."""

import pandas as pd
import pytest

from lmech import config, reproducing
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


def test_a_failed_job_leaves_its_claim_undetermined(tmp_path, monkeypatch):
    from lmech import claims, collecting

    jobs = pd.DataFrame(
        {"job": ["a", "b"], "model.width": [4, 5], "status": ["done", "failed"], "ended_at": [9, 0]}
    )
    monkeypatch.setattr(collecting, "read_jobs", lambda _: jobs)
    run = collecting.Run("a", {}, {}, {"status": "done"}, pd.DataFrame())
    monkeypatch.setattr(collecting, "read_runs", lambda _: [run])
    monkeypatch.setattr(reproducing, "_draw", lambda *_, **__: None)
    (tmp_path / "toy_measure.py").write_text(
        '"""Toy."""\nimport pandas as pd\n'
        "def measure(runs):\n"
        "    return pd.DataFrame([{'job': r.job, 'model.width': 4, 'q': 1.0} for r in runs])\n"
        "def figure(runs, measurements):\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    base = {"claim": "c", "quantity": "q", "interval": [0, 2], "source": "s", "expected": "holds"}
    three = claims.parse(
        [base, {**base, "where": {"model.width": 4}}, {**base, "where": {"model.width": 5}}]
    )
    experiment = reproducing.Experiment("toy", "toy_measure", "", [], {}, three)
    judged = reproducing._conclude(experiment, tmp_path, "lmech")
    assert [claim["verdict"] for claim in judged] == ["undetermined", "holds", "undetermined"]


def test_every_shipped_experiment_loads():
    for name in config.groups()["experiment"]:
        assert reproducing.load(name, "default", []).claims
