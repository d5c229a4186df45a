"""lmech.run, sweep and reproduce: the commands' results, from words and Python's values."""

import json
import math
import re
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmech
from lmech import calling, config, planning, progress
from lmech.calling import written
from lmech.cli import main
from lmech.loggers import console
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
@settings(max_examples=50, deadline=None)
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


def test_data_that_changed_between_two_calls_are_read_again(elsewhere):
    (elsewhere / "table.py").write_text(
        "import numpy as np\n"
        "from lmech.datasets import Data, Examples\n\n\n"
        "def mine():\n"
        "    x = np.load('x.npy')\n"
        "    split = Examples(x, x.copy())\n"
        "    return Data(split, split)\n"
    )
    words = [*WORDS, "dataset._target_=table.mine"]
    folders = []
    for value in (1.0, 2.0):
        np.save("x.npy", np.full((5, 1), value))
        found = lmech.run(*words, SMALL)
        assert found.counts["done"] == 1
        folders.append(found.folder)
    assert folders[0] != folders[1]


@pytest.mark.usefixtures("elsewhere")
def test_a_job_that_fails_is_told_and_shown(monkeypatch, capsys):
    from lmech import engine

    def breaks(*_, **__):
        raise RuntimeError("the <lamp> is broken")

    monkeypatch.setattr(engine, "train", breaks)
    result = lmech.run(*WORDS, SMALL)
    assert "the <lamp> is broken" in capsys.readouterr().err
    (why,) = result.failures.values()
    assert why.startswith("RuntimeError: the <lamp> is broken")
    assert "the &lt;lamp&gt; is broken" in result._repr_html_()
    with pytest.raises(FileNotFoundError, match="no run of it has a result"):
        _ = result.figure


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_an_experiment_comes_with_its_claims():
    small = {"model.width": [4], "parametrization": ["sp"]}
    result = lmech.reproduce("staircase", "logger=none", small, steps=3, seed=[0])
    judged = json.loads((result.folder / "claims.json").read_text())
    assert result.claims["verdict"].tolist() == [one["verdict"] for one in judged]
    assert judged[0]["claim"] in result._repr_html_()
    assert f"{len(judged)} claims, " in repr(result)


@pytest.mark.usefixtures("elsewhere")
def test_a_mistake_is_a_config_error_that_a_notebook_shows_in_one_line():
    with pytest.raises(ConfigError, match=r"did you mean 'model\.width'") as caught:
        lmech.run("model.widht=4")
    assert caught.value._render_traceback_() == [f"ConfigError: {caught.value}"]
    with pytest.raises(ConfigError, match=r"write lmech -m|lmech\.sweep"):
        lmech.run("seed=0,1")
    with pytest.raises(ConfigError, match="no experiment 'edge_of_stabilty'"):
        lmech.reproduce("edge_of_stabilty")
    assert not list(Path().iterdir())


def follower(show):
    """A logger of one function."""
    return lambda *_: nullcontext(show)


@pytest.mark.usefixtures("elsewhere")
def test_what_is_interrupted_goes_on_from_its_last_state(monkeypatch):
    own = {"execution.save_every": 0.0, "execution.chunk": 5, "model.width": 6, "steps": 40}
    setting = ["dataset=chebyshev", "observables=[loss]", own]
    whole = lmech.run(*setting, output="whole")
    steps = []

    def interrupt(progress):
        if progress.step >= 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(console, "_plain", follower(interrupt))
    with pytest.raises(KeyboardInterrupt):
        lmech.run(*setting)
    monkeypatch.setattr(console, "_plain", follower(lambda progress: steps.append(progress.step)))
    result = lmech.run(*setting)
    assert result.counts["done"] == 1
    assert min(step for step in steps if step) > 10  # not from the start, whose first is 4
    (run,), (expected,) = result.runs, whole.runs
    assert run.metrics.equals(expected.metrics)


def test_progress_in_a_notebook_is_one_output_that_ends_as_its_last_line(monkeypatch):
    shown, now = [], [0.0]

    class Handle:
        def update(self, bundle, raw):
            assert raw
            shown.append(bundle)

    monkeypatch.setattr("IPython.display.display", lambda *_, **__: Handle())
    tally = progress.Tally([{"job": 100}], clock=lambda: 1.0)
    with console._notebook(0.2, lambda: now[0]) as show:
        show(tally.begins(0))
        for step, now[0] in ((10, 0.3), (20, 0.4), (50, 0.6)):
            show(tally.reaches(["job"], step, [{"train_loss": 0.5}]))
    texts = [bundle["text/plain"] for bundle in shown]
    assert [re.search(r"step \d+|begins|sweep: ", text)[0] for text in texts] == [
        *("begins", "step 10", "step 50", "sweep: ")
    ]
    assert '<progress value="50" max="100"></progress> sweep: 1 running' in shown[2]["text/html"]
    assert "text/html" not in shown[-1]


def test_import_is_light():
    heavy = ("jax", "pandas", "hydra", "numpy", "matplotlib", "IPython")
    code = f"import sys, lmech; dir(lmech); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_in_a_kernel_progress_is_one_output_and_a_mistake_one_line(tmp_path):
    cells = [
        "import lmech\nresult = lmech.run('dataset=chebyshev', 'observables=[loss]', steps=300)",
        "result",
        "lmech.run('model.widht=4')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    meta = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, allow_errors=True, resources=meta).execute()
    (bar,), (shown,), (error,) = (cell.outputs for cell in notebook.cells)
    assert bar.data["text/plain"].startswith("sweep: 1 done, 100 % of 300 steps")
    assert "<img" in shown.data["text/html"]
    assert "\n".join(error.traceback) == (
        "ConfigError: unknown key 'model.widht'; did you mean 'model.width'?"
    )


def told(notebook):
    """What the cells print and show as text, but for how long it took."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "error" not in {output.output_type for output in outputs}
    return [
        output["text"] if output.output_type == "stream" else output.data["text/plain"]
        for output in outputs
        if output.output_type != "display_data"
    ]


NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_the_notebook_of_the_docs_is_small_and_was_executed():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 200 * 1024
    assert all(cell.outputs for cell in notebook.cells[3:] if cell.cell_type == "code")
    assert len(told(notebook)) == 3


@pytest.mark.slow
def test_the_notebook_of_the_docs_runs_and_says_the_same():
    script = runpy.run_path(str(ROOT / "scripts" / "notebook.py"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for here, there in zip(told(script["executed"](notebook)), told(notebook), strict=True):
        number = r"\d+(?:\.\d+)?"
        assert re.sub(number, "0", here) == re.sub(number, "0", there)
        # At the edge the iterates are chaotic: another machine's rounding moves the extremes.
        found, expected = ([float(n) for n in re.findall(number, text)] for text in (here, there))
        assert found == pytest.approx(expected, abs=0.06)
