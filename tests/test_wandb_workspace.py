"""The workspace that a script makes of a sweep's folder; nothing is sent to anybody."""

import runpy
import warnings
from pathlib import Path

import pytest
import sweep_folders

with warnings.catch_warnings():  # the package's own, at its import
    warnings.filterwarnings("ignore", message="Pydantic V1 style", category=DeprecationWarning)
    SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "wandb_workspace.py"))


def test_a_workspace_has_what_the_sweep_recorded_and_swept(tmp_path):
    sweep_folders.write(tmp_path / "run" / "abc")
    made = SCRIPT["workspace"]("somebody", "lmech", tmp_path / "run" / "abc")
    curves, swept, verdict = made.sections
    names = [panel.y for panel in curves.panels]
    assert names == [["train_loss"], ["sharpness"]]
    (panel,) = swept.panels
    assert (panel.x.name, panel.y.name) == ("optimizer.learning_rate", "train_loss")
    assert panel.log_x
    assert verdict.panels[0].media_keys == ["figure"]
    sent = made._to_model().model_dump()["spec"]["section"]["run_sets"][0]
    (only,) = sent["filters"]["filters"]
    assert (only["key"]["name"], only["value"]) == ("group", "abc")
    assert [key["name"] for key in sent["grouping"]] == ["optimizer.value.learning_rate"]


def test_a_sweep_without_results_has_none(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "overrides": {}}\n')
    with pytest.raises(ValueError, match="no run has a result"):
        SCRIPT["workspace"]("somebody", "lmech", tmp_path)
