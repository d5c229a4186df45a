"""The benches' own arithmetic and files; no assertion about any time."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmech import checkpoints, training
from lmech.numerics.precision import numerics
from scripts import bench
from scripts.bench import __main__ as command
from scripts.bench import fc, fc_loop, gpu, original, scaling, sweeps, tables, timing
from scripts.bench.asked import Asked, Missing, need, wanted
from scripts.bench.tables import Ratio, Table, Target

ROOT = Path(__file__).parents[1]
TORCH = {"curvature_peers", "spectra"}
ABOUT = {name: bench.about(name) for name in bench.TABLES}
PART = Table(
    "a step",
    ("loop", "wall ms", "over lmech's"),
    [["lmech", 12.3456, None], ["a | b", "skipped: pip install b", Ratio(2.0, 1.5, 1234.5)]],
    "How to read it.",
    (Target("fast", 0.9, "≥", 1.0, "the GEMM"), Target("small", 0.9, "≤", 1.0, "no matter")),
    ("python peer.py",),
)


def told(parts, start=None, end=None):
    start = start or tables.Usage(100.0, 50.0, 10.0, 0.2)
    end = end or tables.Usage(200.0, 150.0, 110.0, 1.5)
    return tables.document("steps", parts, start, end, "python -m scripts.bench steps")


def test_a_document_is_the_same_after_json():
    document = told([PART])
    assert list(tables.markdown(json.loads(json.dumps(document)))) == list(
        tables.markdown(document)
    )
    ((first, second),) = [part["rows"] for part in document["parts"]]
    assert first == ["lmech", 12.3456, None]
    assert second[2] == {"median": 2.0, "low": 1.5, "high": 1234.5}
    assert [target["met"] for target in document["parts"][0]["targets"]] == [False, True]


def test_a_document_says_where_and_when():
    document = told([PART])
    assert {"processor", "cores", "memory GiB", "python"} <= document["machine"].keys()
    assert {"jax", "jaxlib", "numpy"} <= document["versions"].keys()
    assert document["date"].endswith("UTC")
    assert document["commit"]
    assert document["seconds"] == 100.0
    assert document["load"]["others"] == 0.0  # the machine's 100 s are this process's


def test_others_are_what_this_process_did_not_use(monkeypatch):
    monkeypatch.setattr(tables.os, "cpu_count", lambda: 2)
    start = tables.Usage(0.0, 0.0, 0.0, 0.0)
    assert tables.others(start, tables.Usage(10.0, 15.0, 10.0, 0.0)) == 0.25
    assert tables.others(start, tables.Usage(10.0, 9.0, 10.0, 0.0)) == 0.0  # rounded clocks


def test_the_clocks_of_the_machine_hold_this_process():
    before = tables.usage()
    np.linalg.norm(np.ones((2000, 2000)))
    after = tables.usage()
    assert after.wall > before.wall
    assert after.busy >= before.busy
    assert tables.others(before, after) >= 0


def test_markdown_shows_cells_targets_and_load():
    lines = list(tables.markdown(told([PART])))
    assert "| lmech | 12.3 |  |" in lines
    assert r"| a \| b | skipped: pip install b | 2 (1.5–1,234) |" in lines
    assert "- fast: 0.9, target ≥ 1: **not met**: the GEMM" in lines
    assert "- small: 0.9, target ≤ 1: met" in lines
    assert "    python peer.py" in lines
    assert not any("under load" in line for line in lines)
    loaded = told([PART], end=tables.Usage(200.0, 1e4, 110.0, 9.0))
    assert any("Measured under load" in line for line in tables.markdown(loaded))


def test_a_target_that_is_no_number_is_not_met():
    assert not Target("x", math.nan, "≥", 1.0).met
    assert not Target("x", math.nan, "≤", 1.0).met
    assert Target("x", 1.0, "≥", 1.0).met
    assert Target("x", 1.0, "≤", 1.0).met


def test_the_docs_page_is_what_its_files_say():
    docs = ROOT / "docs"
    read = [json.loads(file.read_text("utf-8")) for file in sorted(docs.glob("bench/*.json"))]
    assert (docs / "bench.md").read_text("utf-8") == tables.page(read, ABOUT)


def test_a_page_has_a_table_of_every_machine_under_one_heading():
    one, other = told([PART]), told([PART])
    other["machine"] = {**other["machine"], "processor": "A first one"}
    page = tables.page([one, other], {"steps": "A step's ``time``."})
    assert "\n## steps\n\nA step's `time`.\n" in page
    assert page.count("## steps\n") == 1
    assert page.count("### a step\n") == 2
    assert page.index("A first one, ") < page.index(f"{one['machine']['processor']}, ")
    assert "| [steps](#steps) | A first one | a step: fast | 0.9 | ≥ 1 | **not met** |" in page


def test_a_value_that_rounds_to_its_target_shows_why_it_is_missed():
    missed = Target("slow", Ratio(1.3041, 0.9, 1.4), "≤", 1.3)
    page = tables.page([told([PART._replace(targets=(missed,))])], {"steps": ""})
    assert "| a step: slow | 1.304 (0.9–1.4) | ≤ 1.3 | **not met** |" in page


def test_files_and_page_are_of_the_same_document(tmp_path, capsys, monkeypatch):
    file, text = tables.write(told([PART]), tmp_path)
    read = json.loads(file.read_text(encoding="utf-8"))
    assert text.read_text(encoding="utf-8") == "\n".join(tables.markdown(read)) + "\n"
    monkeypatch.setattr(sys, "argv", ["bench", "--page", str(file)])
    command.main()
    page = capsys.readouterr().out
    assert page == tables.page([read], ABOUT)
    assert "that are not on this page: products, original, " in page
    assert "not on this page" not in tables.page([read], {"steps": "A step."})
    assert " | a step: fast | 0.9 | ≥ 1 | **not met** |" in page
    assert " | a step: small | 0.9 | ≤ 1 | met |" in page


def test_what_a_table_says_of_its_command_has_no_folder_of_this_machine():
    asked = Asked(repetitions=3, out=Path("/here/out"), peers=Path("/here"), keep=Path("/here"))
    assert command._told(asked) == ["--repetitions=3"]
    assert command._told(Asked()) == []


class Clock:
    """Times as listed, wall and half of it CPU."""

    def __init__(self, *durations):
        self.marks = [0.0]
        for duration in durations:
            self.marks += [self.marks[-1], self.marks[-1] + duration]
        self.marks = iter(self.marks[1:])

    def __call__(self):
        mark = next(self.marks)
        return mark, mark / 2


def test_ratios_are_of_neighbours_in_turns():
    calls = []
    names = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    # The machine slows down tenfold: each pair's ratio does not see it.
    timed = timing.turns(names, 3, Clock(1, 2, 10, 30, 100, 400))
    assert calls == ["a", "b"] * 4  # one to warm up
    np.testing.assert_allclose(timed.seconds["a"][:, 0], [1, 10, 100])
    wall, cpu = timed.ratio("b", "a")
    assert wall == cpu == Ratio(3.0, 2.0, 4.0)
    assert timed.ratio("b", "a", 0.5)[0] == Ratio(1.5, 1.0, 2.0)
    assert timed.middle("a") == (10.0, 5.0)


def test_a_processes_time_is_its_childrens_and_its_failure_is_told(tmp_path):
    wall, cpu = timing.process([sys.executable, "-c", "sum(range(10**6))"], tmp_path)
    assert wall > 0
    assert cpu > 0
    with pytest.raises(RuntimeError, match="no such thing"):
        timing.process([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


def test_operations_of_a_step_are_counted_as_by_hand():
    # Of 2 examples, 3-4-5: two products for the first layer, three for the second.
    assert fc.flops(2, (3, 4, 5)) == 2 * 2 * (2 * 12 + 3 * 20)


def test_the_hand_written_loop_is_of_one_precision_wherever_it_runs():
    x = np.zeros((6, 4))
    with numerics():  # with float64 allowed, as the tables run
        run, arguments = fc_loop.scan(x, np.zeros(6, int), 3)
        assert "f64" not in run.lower(*arguments).as_text()


def test_what_is_not_installed_is_said():
    with pytest.raises(Missing, match="pip install some-thing"):
        need("no_such_module", "some-thing")
    assert wanted("no_such_module") is None
    assert need("json", "json") is json


def test_a_table_that_needs_something_is_skipped_and_one_that_fails_is_kept(
    tmp_path, monkeypatch, capsys
):
    def measure(name, _):
        yield PART
        if name == "steps":
            raise Missing("pip install x")
        raise ValueError("broken")

    monkeypatch.setattr(command, "measure", measure)
    asked = Asked(out=tmp_path)
    assert command.one("steps", asked) == 0
    assert command.one("products", asked) == 1
    kept, note = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))["parts"]
    assert kept["title"] == PART.title
    assert note["note"] == "skipped: pip install x"
    _, failed = json.loads((tmp_path / "products.json").read_text(encoding="utf-8"))["parts"]
    assert failed["note"] == "failed: ValueError: broken"
    command.one("steps", asked._replace(quick=True))
    quick = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))["parts"][0]
    assert quick["targets"] == []
    assert "mean nothing" in quick["note"]
    capsys.readouterr()


def test_options_survive_the_way_to_a_process_of_their_own():
    words = ["--quick", "--repetitions", "3", "--out", "a b", "steps", "ntk"]
    found = command.arguments(words)
    again = command.arguments([*found.tables, *command.options(found)])
    assert vars(again) == vars(found)
    assert found.tables == ["steps", "ntk"]


def test_an_unknown_table_is_refused_and_the_known_ones_told(capsys):
    with pytest.raises(SystemExit):
        command.arguments(["no_table"])
    assert "there are steps, " in capsys.readouterr().err


def test_help_lists_every_table():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(f"  {name}" in done.stdout for name in bench.TABLES)


@pytest.mark.parametrize("name", bench.TABLES)
def test_every_table_has_a_module_that_says_what_it_measures(name):
    module = ROOT / "scripts" / "bench" / f"{name}.py"
    assert module.exists()
    assert len(bench.about(name)) > 100
    if name in TORCH and wanted("torch") is None:
        with pytest.raises(Missing, match="pip install torch"):
            __import__(f"scripts.bench.{name}")
    else:
        assert callable(__import__(f"scripts.bench.{name}", fromlist=["measure"]).measure)


def test_every_module_of_the_package_is_a_table_or_known():
    modules = {path.stem for path in (ROOT / "scripts" / "bench").glob("*.py")}
    parts = {"__init__", "__main__", "asked", "tables", "timing", "fc", "cpu"}
    peers = {"fc_loop", "mup_loop", "grokking_loop", "ntk_peer"}
    assert modules == set(bench.TABLES) | parts | peers


@pytest.mark.slow
def test_a_cheap_table_runs(tmp_path):
    wide = "import sys; sys.argv[1:] = ['steps', '--quick', '--repetitions=1', '--out', '.']; "
    script = wide + "import runpy; runpy.run_module('scripts.bench', run_name='__main__')"
    timing.process([sys.executable, "-c", script], tmp_path)
    document = json.loads((tmp_path / "steps.json").read_text(encoding="utf-8"))
    steps, peak = document["parts"]
    labels = [row[0] for row in steps["rows"]]
    assert labels[0] == "lmech"
    assert labels[1].startswith("hand-written jit(scan), JAX")
    assert all(row[1] > 0 for row in peak["rows"])
    assert (tmp_path / "steps.md").exists()


def test_what_writing_takes_is_timed(tmp_path, monkeypatch):
    for module, name in ((checkpoints, "write"), (training, "_write_ended")):
        monkeypatch.setattr(module, name, getattr(module, name))  # it is put back after the test
    (tmp_path / "writing").mkdir()
    shares = sweeps.writing(tmp_path, Asked(quick=True))
    assert shares.keys() == {"states", "metrics and results"}
    assert 0 < shares["metrics and results"] < 1


def test_the_originals_costs_are_read_off_its_printed_lines():
    def at(*lines):
        return [(line, wall, 2 * wall) for line, wall in lines]

    costs = original.read(
        at(
            *(("output directory: x", 0.0), ("eigenvalues:  tensor([2., 1.])", 9.0)),
            *(("0\t0.5\t0.1", 10.0), ("1\t0.5\t0.1", 13.0), ("2\t0.5\t0.1", 15.0)),
            *(("eigenvalues:  tensor([2., 1.])", 47.0), ("3\t0.5\t0.1", 47.0)),
            ("4\t0.5\t0.1", 49.0),
        )
    )
    np.testing.assert_allclose(costs.step, [2, 4])  # step 1 warms up
    np.testing.assert_allclose(costs.measurement, [30, 60])  # 32 less a step
    np.testing.assert_allclose(costs.demo, [9050 * 2 + 91 * 30, 2 * (9050 * 2 + 91 * 30)])


def test_a_slope_is_the_exponent_of_the_larger_half():
    points = [(size, Ratio(size**1.5, 0.0, 9e9)) for size in (8, 16, 32, 64)]
    flat = [(1, Ratio(5.0, 5.0, 5.0)), (2, Ratio(5.0, 5.0, 5.0)), *points[1:]]
    assert scaling.slope(points) == pytest.approx(1.5)
    assert scaling.slope(flat[1:]) == pytest.approx(1.5)


def test_one_more_observable_costs_what_a_step_takes_longer_times_the_steps_between():
    points = [
        (n, Ratio(ms, ms - 0.1, ms + 0.1)) for n, ms in ((1, 2.0), (2, 2.5), (3, 6.5), (4, 6.6))
    ]
    told = scaling.added("observables", {"digits": points})
    assert [row[0] for row in told.rows] == list(scaling.OBSERVABLES[:4])
    assert [row[2] for row in told.rows] == [None, 5.0, 40.0, None]


def test_a_figure_is_drawn_from_the_tables(tmp_path):
    sized = scaling.sized("members", {"map": [(n, Ratio(n, n, 2.0 * n)) for n in (1, 2, 4)]})
    points = [(n, Ratio(ms, ms, ms)) for n, ms in ((1, 2.0), (2, 2.5))]
    told = scaling.added("observables", {"digits": points})
    scaling.figure([sized, sized, sized, told], tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_gpu_the_table_says_that_nothing_was_measured():
    (table,) = gpu.measure(Asked())
    assert "Not measured: no GPU at hand" in table.note
    assert not table.rows


@pytest.mark.slow
def test_the_gpus_script_runs_dry(tmp_path):
    words = "['gpu', '--dry', '--repetitions=1', '--out', '.']"
    script = f"import runpy, sys; sys.argv[1:] = {words}; "
    script += "runpy.run_module('scripts.bench', run_name='__main__')"
    timing.process([sys.executable, "-c", script], tmp_path, JAX_PLATFORMS="cpu")
    parts = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert parts[0]["title"] == "from command to result"
    assert len(parts) == 6
    assert not any("failed" in part["note"] for part in parts)
