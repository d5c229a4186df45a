"""Reports from the disk: what they say, what they leave out, and that no text breaks a page."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sweep_folders
from matplotlib.figure import Figure

from lmech import claims, report, reproducing
from lmech.cli import main
from lmech.disk import read_json, write_json
from lmech.report import curves, setting

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \"'&amp; <!-- {{ 7*7 }}"


class Page(HTMLParser):
    """Elements, their texts and attributes, as a browser tells them apart."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.scripts, self._open = [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open = (tag, dict(attributes))
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_data(self, data):
        if self._open and self._open[0] == "script" and data:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        self.texts.append(data)

    def handle_endtag(self, _):
        self._open = None

    def data(self):
        return [json.loads(text) for about, text in self.scripts if "type" in about]


@pytest.fixture
def sweep(tmp_path):
    return sweep_folders.write(tmp_path / "outputs" / "run" / "abc")


def html_of(*sweeps, interactive=True):
    folder = sweeps[0].parent
    sections = [reproducing.redrawn(sweep) for sweep in sweeps]
    return report.write(folder / "r.html", sections, interactive).read_text(encoding="utf-8")


# Thinning


@pytest.mark.parametrize("most", [10, 41, 200])
def test_a_thinned_curve_keeps_its_ends_and_its_spikes_and_is_short(most):
    values = np.sin(np.arange(5000) / 700)
    values[1234], values[3210] = 9.0, -7.0
    kept = curves.thin(values, most)
    assert len(kept) <= most
    assert {0, 1234, 3210, 4999} <= set(kept)
    assert (np.diff(kept) > 0).all()


def test_a_short_curve_is_whole():
    np.testing.assert_array_equal(curves.thin(np.arange(50.0), 50), np.arange(50))


def test_a_gap_stays_open_however_short_and_however_many_points_there_are():
    values = np.ones(5000)
    values[2500] = np.nan
    kept = curves.thin(values, 40)
    assert 2500 in kept
    assert len(kept) <= 40
    assert curves.thin(np.full(100, np.nan), 10).size <= 10


def test_what_was_not_measured_is_no_point_and_what_is_not_finite_is_a_gap(tmp_path):
    column = pa.array([1.0, None, np.nan, np.inf, 2.0])
    whole = pa.array([1, 2, None, 4, 5])
    table = pa.table({"step": range(5), "x": column, "n": whole, "text": list("abcde")})
    pq.write_table(table, tmp_path / "m.parquet")
    found = curves.read(tmp_path / "m.parquet")
    assert found.keys() == {"x", "n"}
    assert curves.columns(tmp_path / "m.parquet") == 2
    np.testing.assert_array_equal(found["x"][0], [0, 2, 3, 4])
    np.testing.assert_array_equal(found["x"][1], [1, np.nan, np.nan, 2])
    np.testing.assert_array_equal(found["n"][0], [0, 1, 3, 4])


@pytest.mark.parametrize(("jobs", "columns"), [(1, 1), (64, 9), (630, 12), (5000, 30), (3, 200000)])
def test_a_file_has_room_for_no_more_than_its_budget(jobs, columns):
    room = curves.share(jobs, columns)
    assert 1 <= room.jobs <= jobs
    assert curves.FEWEST <= room.points <= curves.MOST
    assert room.jobs == 1 or room.points * room.jobs * columns <= curves.BUDGET


def test_jobs_that_are_left_out_are_counted_and_spread_over_the_sweep(sweep):
    files = {job.id: job.folder / "metrics.parquet" for job in report.jobs_of(sweep)}
    keys = {job: {"seed": 0} for job in files}
    found = curves.payload(files, keys, curves.Share(points=40, jobs=2))
    assert [job["id"] for job in found["jobs"]] == [min(files), max(files)]
    assert found["left_out"] == 2
    assert found["thinned"] == 4  # loss and accuracy of both, of 301 points
    assert found["columns"].keys() == {"sharpness", "train_accuracy", "train_loss"}
    (first, second) = found["columns"]["sharpness"]
    assert first[0] == second[0]  # the same steps are there once
    assert found["steps"][first[0]] == list(range(0, 301, 25))
    assert max(found["columns"]["train_loss"][0][1]) == 3.5


def test_numbers_of_a_page_have_six_digits_and_gaps_are_null(tmp_path):
    table = pa.table({"step": [0, 1, 2], "x": [1 / 3, np.nan, 1e-30 / 3]})
    pq.write_table(table, tmp_path / "m.parquet")
    found = curves.payload({"j": tmp_path / "m.parquet"}, {"j": {}}, curves.Share(100, 1))
    assert found["columns"]["x"] == [[0, [0.333333, None, 3.33333e-31]]]


# The setting


def test_the_setting_says_what_is_common_and_marks_what_was_swept():
    configs = [sweep_folders.config(seed, rate) for seed in (0, 1) for rate in (0.1, 0.4)]
    told = dict(setting.rows(configs))
    texts = {name: [phrase.text for phrase in row] for name, row in told.items()}
    assert texts["data"] == ["digits", "train size 1500"]
    assert texts["model"] == ["mlp", "width 8", "no bias"]
    assert texts["steps"] == ["300", "each on the whole training set"]
    assert texts["measured"] == ["train_loss every step", "sharpness every 25"]
    assert told["optimizer"][1] == ("learning rate 0.1, 0.4", True)
    assert told["seeds"] == [("0, 1", True)]
    assert ("model.width", "8") in setting.common(configs)
    assert "optimizer.learning_rate" not in dict(setting.common(configs))


def test_the_setting_of_several_models_has_a_row_for_each():
    other = {**sweep_folders.CONFIG, "model": {"_target_": "my.own.net", "size": 3}}
    unusual = {**other, "batch_size": 16, "replacement": True, "clip_norm": 1.0}
    rows = setting.rows([sweep_folders.CONFIG, other, unusual])
    models = [[phrase.text for phrase in row] for name, row in rows if name == "model"]
    assert models == [
        ["mlp", "width 8", "no bias", "in 1 of 3 jobs"],
        ["net", "size 3", "in 2 of 3 jobs"],
    ]
    told = {name: [phrase.text for phrase in row] for name, row in rows}
    assert told["steps"] == ["300", "minibatches of none, 16", "with replacement"]
    assert told["also"] == ["clip norm none, 1"]


def test_many_values_are_a_range_and_no_digit_of_a_config_is_lost():
    assert setting.several([0.1, 0.015625]) == "0.1, 0.015625"
    assert setting.several(list(range(42))) == "0 to 41 (42 values)"
    assert setting.several(list("abcdefgh")) == "a, b, c, d, e, f, … (8 values)"


# The page


def test_a_report_shows_the_figure_the_claims_the_setting_and_the_command(sweep):
    section = reproducing.redrawn(sweep)._replace(claims=[sweep_folders.CLAIM], paper="A paper")
    html = report.write(sweep / "r.html", [section]).read_text(encoding="utf-8")
    page = Page(html)
    text = " ".join(" ".join(page.texts).split())
    for told in (
        "run a title",
        "A paper",
        "lmech reproduce it",
        "c0ffee",
        "1 as expected",
        "≥ 0.5",
    ):
        assert told in text
    assert [tag for tag, _ in page.elements].count("h1") == 1
    assert sum(tag == "svg" for tag, _ in page.elements) == 1
    heads = [about for tag, about in page.elements if tag == "th"]
    assert all("scope" in about for about in heads)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [
        about for tag, about in page.elements if tag == "meta"
    ]
    (data,) = page.data()
    assert [job["keys"] for job in data["jobs"]] == [
        {"seed": seed, "optimizer.learning_rate": rate} for seed in (0, 1) for rate in (0.1, 0.4)
    ]
    targets = {about["href"][1:] for tag, about in page.elements if tag == "a"}
    assert targets <= {about.get("id") for _, about in page.elements}
    assert targets  # the claim's values lead to the jobs


def test_a_page_loads_nothing_from_anywhere(sweep):
    page = Page(html_of(sweep))
    links = [about.get(key, "") for _, about in page.elements for key in ("src", "href")]
    assert {link for link in links if not link.startswith(("#", "data:,")) and link} == set()


def test_several_sweeps_are_sections_with_ids_of_their_own(sweep, tmp_path):
    other = sweep_folders.write(tmp_path / "outputs" / "run" / "def")
    page = Page(html_of(sweep, other))
    ids = [about["id"] for _, about in page.elements if "id" in about]
    assert len(ids) == len(set(ids))
    assert len(page.data()) == 2
    drawn = [about for _, about in page.elements if "xlink:href" in about]
    assert {about["xlink:href"][1:] for about in drawn} <= set(ids)
    assert [tag for tag, _ in page.elements].count("h1") == 1


def test_the_report_that_a_sweep_leaves_has_no_script_of_megabytes(sweep):
    html = html_of(sweep, interactive=False)
    assert len(html) < 500_000
    assert Page(html).data() == []
    assert "<svg" in html


@pytest.mark.filterwarnings("ignore:constrained_layout")  # a legend of such words has no room
def test_no_text_of_a_users_breaks_the_page(tmp_path):
    folder = tmp_path / "outputs" / "run" / "abc"
    sweep_folders.write(folder, title=HOSTILE)
    entries = sweep_folders.entries(folder)
    for number, entry in enumerate(entries):
        entry["overrides"] = {HOSTILE: f"{HOSTILE}{number}"}
        entry["config"]["model"][HOSTILE] = HOSTILE
    sweep_folders.rewrite(folder, entries)
    (folder / "job001" / "error.txt").write_text(f"Traceback\nValueError: {HOSTILE}")
    claim = dict.fromkeys(("claim", "unit", "source", "quantity"), HOSTILE)
    claim = {**sweep_folders.CLAIM, **claim, "where": {HOSTILE: [HOSTILE]}}
    section = reproducing.redrawn(folder)
    about = dict.fromkeys(("name", "headline", "paper", "command", "scale"), HOSTILE)
    hostile = section._replace(**about, claims=[claim], notes=[HOSTILE])
    html = report.write(folder / "r.html", [hostile]).read_text(encoding="utf-8")
    page = Page(html)
    kinds = [tag for tag, _ in page.elements]
    assert kinds.count("script") == 3  # data, plotly, ours
    assert "img" not in kinds
    assert not any(key.startswith("on") for _, own in page.elements for key in own)
    assert "49" not in "".join(page.texts[:3])
    (data,) = page.data()
    assert [job["keys"] for job in data["jobs"]] == [{HOSTILE: f"{HOSTILE}{n}"} for n in range(4)]
    assert sum(HOSTILE in text for text in page.texts) >= 8
    assert kinds.count("html") == kinds.count("body") == 1


def test_what_a_reader_must_know_is_told_first(sweep):
    failed = sweep / "job001"
    (failed / "error.txt").write_text("Traceback\nRuntimeError: the lamp is broken\n")
    result = read_json(sweep / "job101" / "result.json")
    record = {**sweep_folders.RECORD, "commit": "beef"}
    record["resumed"] = {"step": 120, "changed": {"threads": [2, 4]}}
    write_json(sweep / "job101" / "result.json", {**result, "provenance": record})
    for name in ("metrics.parquet", "result.json"):
        (sweep / "job104" / name).unlink()
    summary = read_json(sweep / "summary.json")
    summary["provenance"]["dirty"] = True
    write_json(sweep / "summary.json", summary)
    told = report.views([reproducing.redrawn(sweep)], interactive=False)[0]["warnings"]
    expected = [
        "1 of 4 jobs have not run",
        "job job001 failed: RuntimeError: the lamp is broken",
        "job job101 was resumed from step 120 with another threads",
        "the sources differed from commit c0ffee",
        "jobs of different commit: c0ffee, beef",
    ]
    assert len(told) == len(expected)
    assert all(line.startswith(start) for line, start in zip(told, expected, strict=True)), told


# Drawn anew


def toy(folder, monkeypatch, body="'q': 1.0"):
    (folder / "toy_report.py").write_text(
        '"""A toy."""\nimport pandas as pd\nfrom matplotlib.figure import Figure\n'
        f"def measure(runs):\n    return pd.DataFrame([{{'job': r.job, {body}}} for r in runs])\n"
        "def figure(runs, measurements):\n    return Figure()\n"
    )
    monkeypatch.syspath_prepend(folder)
    base = {"claim": "it holds", "quantity": "q", "interval": [0, 2], "source": "s"}
    parsed = claims.parse([{**base, "expected": "holds"}])
    made = reproducing.Experiment("toy", "toy_report", "A paper", [], [], parsed)
    monkeypatch.setattr(reproducing, "load", lambda *_: made)


def files_of(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_experiment_is_measured_and_judged_anew_and_its_folder_stays(tmp_path, monkeypatch):
    folder = tmp_path / "outputs" / "toy" / "abc"
    sweep_folders.write(folder, experiment="toy", claims=[sweep_folders.CLAIM])
    toy(tmp_path, monkeypatch, "'q': 5.0")
    before = files_of(folder)
    section = reproducing.redrawn(folder)
    assert files_of(folder) == before
    assert (section.headline, section.paper) == ("A toy.", "A paper")
    assert isinstance(section.figure, Figure)
    assert [claim["verdict"] for claim in section.claims] == ["fails"]
    assert section.notes == ["claim 'it holds': fails (5) now, holds (1) when recorded"]


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ({}, []),
        ({"measured": 1.0 + 1e-9}, []),
        ({"measured": 1.01}, ["claim 'it holds': holds (1) now, holds (1.01) when recorded"]),
        ({"measured": None}, ["claim 'it holds': holds (1) now, holds (–) when recorded"]),
        ({"claim": "another"}, ["the claims are today's; when recorded there were others"]),
    ],
)
def test_a_number_that_is_not_the_recorded_one_is_told(tmp_path, monkeypatch, then, told):
    folder = tmp_path / "outputs" / "toy" / "abc"
    claim = {**sweep_folders.CLAIM, **then}
    sweep_folders.write(folder, experiment="toy", claims=[claim])
    toy(tmp_path, monkeypatch, "'q': 1.0")
    assert reproducing.redrawn(folder).notes == told


def test_what_cannot_be_measured_today_is_shown_as_it_was_recorded(tmp_path, monkeypatch):
    folder = tmp_path / "outputs" / "toy" / "abc"
    sweep_folders.write(folder, experiment="toy", claims=[sweep_folders.CLAIM])
    toy(tmp_path, monkeypatch, "'q': r.column('nobody')")
    section = reproducing.redrawn(folder)
    assert section.claims == [sweep_folders.CLAIM]
    assert isinstance(section.figure, Figure)
    (note,) = section.notes
    assert "nobody" in note
    assert "as recorded" in note


# The commands


def test_report_needs_no_jax_and_redraws_a_shipped_experiment(tmp_path):
    jobs = [(seed, rate) for seed in (10, 11) for rate in (0.1, 0.2)]
    folder = tmp_path / "outputs" / "edge_of_stability" / "abc"
    sweep_folders.write(folder, experiment="edge_of_stability", jobs=jobs)
    program = (
        "import sys; from lmech.cli import main; code = main(['report', 'outputs']);"
        "assert not {'jax', 'plotly'} & sys.modules.keys(); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report: report.html (4.9 MB)" in done.stdout
    text = " ".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts)
    assert "Gradient descent sharpens until" in text
    assert "second half, mean sharpness is at 2/η" in text


def test_an_atlas_is_a_folder_whose_links_lead_to_its_files(elsewhere):
    root = elsewhere / "outputs"
    for name in ("run", "index", "a b", "a+b", "unfinished"):
        sweep_folders.write(root / name / "abc")
    sweep_folders.write(root / "run" / "def")
    for file in (root / "unfinished").glob("*/*/*"):
        file.unlink()
    (root / "unfinished" / "abc" / "summary.json").unlink()
    assert main(["atlas"]) == 0
    site = elsewhere / "site"
    pages = sorted(path.name for path in (site / "experiments").iterdir())
    assert pages == ["a-b-2.html", "a-b.html", "index.html", "run.html", "unfinished.html"]
    for path in site.rglob("*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        links = [
            about[key] for _, about in page.elements for key in ("href", "src") if key in about
        ]
        files = [link for link in links if not link.startswith(("#", "data:"))]
        assert all((path.parent / link).is_file() for link in files), files
    front = (site / "index.html").read_text(encoding="utf-8")
    assert len(re.findall("<li>", front)) == 5
    assert len(re.findall("<img", front)) == 4
    run = (site / "experiments" / "run.html").read_text(encoding="utf-8")
    assert "2 sweeps" in run
    assert len(run) < 1_000_000  # plotly.js is beside it
    assert (site / "plotly.min.js").stat().st_size > 1_000_000


def test_a_note_is_printed_and_the_exit_code_says_so(elsewhere, capsys, monkeypatch):
    folder = elsewhere / "outputs" / "toy" / "abc"
    sweep_folders.write(folder, experiment="toy", claims=[sweep_folders.CLAIM])
    toy(elsewhere, monkeypatch, "'q': 5.0")
    assert main(["report", "outputs", str(folder), "--to", "x/y.html"]) == 1
    told = capsys.readouterr().out
    assert "sweeps: 1\n" in told
    assert "fails (5) now, holds (1) when recorded" in told
    assert (elsewhere / "x" / "y.html").is_file()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["report", "nowhere"], "no results at nowhere"),
        (["report", "nowhere", "--to", "x.pdf"], "ends in .html"),
        (["atlas"], "no results at outputs"),
    ],
)
def test_a_mistake_is_one_line(words, hint, capsys):
    assert main(words) == 2
    assert hint in capsys.readouterr().err
