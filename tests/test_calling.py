"""lmech.run, sweep and reproduce: the commands' results, from words and Python's values."""

import json
import math
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmech
from lmech import calling, config, planning
from lmech.calling import written
from lmech.cli import main
from lmech.values import ConfigError

ROOT = Path(__file__).parents[1]
WORDS = ["dataset=chebyshev", "observables=[loss]", "logger=none"]
SMALL = {"model.width": 6, "steps": 20}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(values)
def test_a_value_is_read_back_as_it_was_written(value):
    (parsed,) = config.parse([f"key={written(value)}"])
    assert parsed.value() == value
    assert type(parsed.value()) is type(value)


def test_numpys_values_and_ranges_are_pythons():
    assert written(np.float32(0.5)) == "0.5"
    assert written(np.arange(2)) == written(range(2)) == written((0, 1)) == "[0,1]"
    assert written({"a": None}) == "{a:null}"
    assert math.isnan(config.parse([f"key={written(math.nan)}"])[0].value())
    with pytest.raises(ConfigError, match="no number, text, list"):
        written(object())


def words(*given, several=True, **keys):
    return list(calling._words(given, keys, several))


def test_lists_are_what_a_sweep_ranges_over_and_a_value_of_a_run():
    keys = {"optimizer.learning_rate": np.array([0.1, 0.25]), "seed": range(2)}
    assert words("model=mlp", keys, steps=5) == [
        *("model=mlp", "optimizer.learning_rate=0.1,0.25", "seed=0,1", "steps=5")
    ]
    assert words(snapshots=[0, 10], several=False) == ["snapshots=[0,10]"]
    assert words(snapshots=[[0, 10]]) == ["snapshots=[0,10]"]
    assert words(observables=["loss", "ntk"]) == ["observables=[loss,ntk]"]
    with pytest.raises(ConfigError, match="a sweep needs a value at least"):
        words(seed=[])
    with pytest.raises(ConfigError, match="write words, 'steps=500', or a dict"):
        words(5)


@pytest.mark.usefixtures("elsewhere")
def test_a_run_is_the_one_of_the_command_line():
    assert main([*WORDS, "model.width=6", "steps=20"]) == 0
    result = lmech.run(*WORDS, SMALL)
    assert result.counts["skipped"] == 1
    (run,) = result.runs
    assert run.config["model"]["width"] == 6
    assert result.collect(["train_loss"], "last")["step"].tolist() == [20]
    assert repr(result) == f"<1 skipped: {result.folder}>"
    assert result.figure._repr_png_().startswith(b"\x89PNG")
    assert result.report.is_file()
    assert len(result.claims) == 0
    assert result.folder.name in result._repr_html_()
    assert "<img" in result._repr_html_()


@pytest.mark.usefixtures("elsewhere")
def test_a_sweep_is_the_one_of_the_command_line():
    result = lmech.sweep(*WORDS, SMALL, {"optimizer.learning_rate": [0.1, 0.2]}, seed=range(2))
    assert len(result.runs) == 4
    line = ["-m", *WORDS, "model.width=6", "steps=20", "optimizer.learning_rate=0.1,0.2"]
    assert planning.folder(planning.multirun([*line[1:], "seed=0,1"])).name == result.folder.name
    request = json.loads((result.folder / "request.json").read_text())
    assert request["command"].startswith("lmech -m dataset=chebyshev")


@pytest.mark.usefixtures("elsewhere")
def test_a_job_that_fails_is_told_and_shown(monkeypatch, capsys):
    from lmech import engine

    def breaks(*_, **__):
        raise RuntimeError("the <lamp> is broken")

    monkeypatch.setattr(engine, "train", breaks)
    result = lmech.run(*WORDS, SMALL)
    assert "the <lamp> is broken" in capsys.readouterr().err
    assert list(result.failures.values()) == ["RuntimeError: the <lamp> is broken"]
    assert "the &lt;lamp&gt; is broken" in result._repr_html_()
    with pytest.raises(FileNotFoundError, match="no run of it has a result"):
        _ = result.figure


@pytest.mark.usefixtures("own")
def test_an_experiment_comes_with_its_claims():
    result = lmech.reproduce("staircase", {"logger": "none"}, steps=40, seed=[0])
    judged = json.loads((result.folder / "claims.json").read_text())
    assert result.claims["verdict"].tolist() == [one["verdict"] for one in judged]
    assert judged[0]["claim"] in result._repr_html_()
    assert f"{len(judged)} claims, " in repr(result)


@pytest.mark.usefixtures("elsewhere")
def test_a_mistake_is_a_config_error_that_a_notebook_shows_in_one_line():
    with pytest.raises(ConfigError, match="did you mean 'model.width'") as caught:
        lmech.run("model.widht=4")
    assert caught.value._render_traceback_() == [f"ConfigError: {caught.value}"]
    with pytest.raises(ConfigError, match=r"write lmech -m|lmech\.sweep"):
        lmech.run("seed=0,1")
    with pytest.raises(ConfigError, match="no experiment 'edge_of_stabilty'"):
        lmech.reproduce("edge_of_stabilty")
    assert not list(Path().iterdir())


@pytest.mark.usefixtures("elsewhere")
def test_what_is_interrupted_goes_on_from_its_last_state(monkeypatch):
    from lmech.loggers import console

    steps = []

    def interrupting():
        def show(progress):
            steps.append(progress.step)
            if progress.event == "runs" and 0 < progress.step < 40 and len(steps) < 6:
                raise KeyboardInterrupt

        from contextlib import nullcontext

        return nullcontext(show)

    own = {"execution.save_every": 0.0, "execution.chunk": 5, "model.width": 6}
    whole = lmech.run("dataset=chebyshev", "observables=[loss]", own, steps=40, output="whole")
    monkeypatch.setattr(console, "_plain", lambda *_: interrupting())
    with pytest.raises(KeyboardInterrupt):
        lmech.run("dataset=chebyshev", "observables=[loss]", own, steps=40)
    first, steps[:] = steps[-1], [0] * 6
    result = lmech.run("dataset=chebyshev", "observables=[loss]", own, steps=40)
    assert result.counts["done"] == 1
    assert min(step for step in steps[6:] if step) > first
    (run,), (expected,) = result.runs, whole.runs
    assert run.metrics.equals(expected.metrics)


def test_import_is_light():
    heavy = ("jax", "pandas", "hydra", "numpy", "matplotlib", "IPython")
    code = f"import sys, lmech; dir(lmech); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n"


def kernel(cells, folder):
    """The outputs of cells that a notebook's kernel ran."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    meta = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=300, allow_errors=True, resources=meta)
    client.execute()
    return [cell.outputs for cell in notebook.cells]
