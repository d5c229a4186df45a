"""The documentation: what is made by code is what the code makes, and what is listed is whole."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

import lmech
from lmech import catalogue, claims, reproducing
from lmech.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GALLERY = runpy.run_path(str(ROOT / "scripts" / "gallery.py"))
EXPERIMENTS = sorted(path.parent.name for path in ROOT.glob("experiments/*/README.md"))

TABLE = """
## Default

| claim | measured | interval | verdict (expected) |
| --- | --- | --- | --- |
| a | 1 | ≤ 2 | holds (holds) |
| the norm \\|w\\| | **3** | ≤ 2 | **fails** (holds): one run |
| the same | 3 | ≤ 2 | (the same claim) |
| control | 3 | ≤ 2 | fails (fails) |

| width | 16 |
| --- | --- |
| fails (holds) | 2 |

## Paper

    lmech reproduce tried --scale paper

| claim | measured | interval | verdict (expected) |
| --- | --- | --- | --- |
| b | 1 | ≤ 2 | **fails (open: why)** |
"""


# ------------------------------------------------------------------- the gallery


def test_the_gallery_is_what_the_experiments_pages_say():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert page == GALLERY["page"](), "make it anew: python scripts/gallery.py"


def test_the_gallery_has_every_experiment_and_its_figure():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", page, re.M) == EXPERIMENTS
    assert catalogue.groups()["experiment"] == EXPERIMENTS
    figures = re.findall(r"\]\((figures/[\w.]+)\)", page)
    assert len(figures) == len(EXPERIMENTS)
    assert {figure for figure in figures if not (DOCS / figure).is_file()} == set()


def test_claims_are_counted_by_what_was_expected_of_them():
    found = GALLERY["lines"](TABLE, "tried")
    assert [(one.scale, one.kind) for one in found] == [
        ("default", "as expected"),
        ("default", "not"),
        ("default", "as expected"),
        ("paper", "open"),
    ]
    assert GALLERY["standing"](found) == [
        "- Default: 2 as expected, 1 not.",
        "  - Not as expected: the norm \\|w\\|. Measured 3, interval ≤ 2.",
        "- `--scale paper`: 1 open.",
    ]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_experiments_page_has_a_claim_of_another_kind_than_its_yaml(name):
    readme = (ROOT / "experiments" / name / "README.md").read_text(encoding="utf-8")
    for scale in {line.scale for line in GALLERY["lines"](readme, name)}:
        told = [line.expected for line in GALLERY["lines"](readme, name) if line.scale == scale]
        claims = reproducing.load(name, scale, []).claims
        expected = [claim.expected.removesuffix("s") for claim in claims]
        # A row may tell of several claims, and one claim may take several rows.
        assert set(told) <= set(expected), scale


# ------------------------------------------------------------------- pages that list what there is


def presets_told(heading, end):
    """The presets in the first cells of a table of docs/observables.md."""
    text = (DOCS / "observables.md").read_text(encoding="utf-8")
    table = text.partition(heading)[2].partition(end)[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for cell in rows for name in re.findall(r"`(\w+)`", cell)]


@pytest.mark.parametrize(
    ("heading", "end"),
    [("# Observables", "## Formulas"), ("## Formulas and sources", "Of sequences")],
)
def test_every_observable_is_told_once_with_its_cost_and_once_with_its_source(heading, end):
    assert sorted(presets_told(heading, end)) == catalogue.groups()["observables"]


def test_every_parametrization_is_told():
    text = (DOCS / "parametrizations.md").read_text(encoding="utf-8")
    groups = catalogue.groups()["parametrization"]
    assert {name for name in groups if f"`{name}`" not in text} == set()


def test_every_key_of_the_cluster_is_told():
    text = (DOCS / "clusters.md").read_text(encoding="utf-8")
    keys = set(catalogue.read("cluster", "slurm")["cluster"]) - {"_target_"}
    assert {key for key in keys if f"`{key}`" not in text} == set()


# ------------------------------------------------------------------- the files on the disk


def table_of_keys(section):
    """The keys in the first cells of a section's table in docs/disk.md."""
    text = (DOCS / "disk.md").read_text(encoding="utf-8").partition(section)[2]
    rows = text.partition("| --- | --- |")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)`", rows, re.M))


def test_the_files_of_a_run_are_those_that_are_told(elsewhere):
    words = ["dataset.train_size=20", "model.width=4", "steps=2", "logger=none"]
    assert main(["-m", *words, "seed=0,1"]) == 0
    (sweep,) = elsewhere.glob("outputs/run/*")
    text = (DOCS / "disk.md").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in (sweep / "manifest.jsonl").read_text().splitlines()]
    assert set(entries[0]) == table_of_keys("## The manifest")
    jobs = {entry["id"] for entry in entries}
    for file in sweep.rglob("*"):
        name = "<step>.npz" if file.parent.name == "weights" else file.name
        assert name in jobs or name in text, name
    result = json.loads((sweep / entries[0]["id"] / "result.json").read_text())
    assert table_of_keys("**`result.json`**") - set(result) == {"measured"}
    assert set(result) <= table_of_keys("**`result.json`**")


def test_what_is_told_of_claims_json_is_what_a_verdict_says():
    claim = claims.Claim("c", "q", (0, 1), "theory", "holds")
    verdict = claims.judge(claim, pd.DataFrame({"job": ["a"], "seed": [0], "q": [0.5]}))
    text = (DOCS / "disk.md").read_text(encoding="utf-8").partition("## Verdicts")[2]
    assert {key for key in verdict if f"`{key}`" not in text} == set()


# ------------------------------------------------------------------- what stands beside the docs


def test_the_citation_file_is_whole_and_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    known = {"cff-version", "message", "title", "type", "authors", "version", "license"}
    known |= {"abstract", "keywords", "repository-code", "url", "date-released", "doi"}
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() <= known
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert str(cited["version"]) == stated["version"] == lmech.__version__
    assert cited["license"] == stated["license"]
    people = [set(author) for author in cited["authors"]]
    assert people
    assert all({"name"} <= one or {"family-names", "given-names"} <= one for one in people)
    assert all(isinstance(word, str) for word in cited["keywords"])


def test_every_page_is_in_the_contents_of_the_site():
    contents = (DOCS / "contents.rst").read_text(encoding="utf-8")
    listed = set(re.findall(r"^   (?:.* <)?(/?[\w*/]+)>?$", contents, re.M))
    pages = {path.stem for path in [*DOCS.glob("*.md"), *DOCS.glob("*.rst")]} - {"contents"}
    top = {f"/{path.stem}" for path in ROOT.glob("*.md")}
    assert listed == pages | top | {"/experiments/*/README"}


LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("experiments/*/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    relative = [link for link in LINK.findall(text) if "://" not in link]
    assert {link for link in relative if not (page.parent / link).exists()} == set()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    words = ["-q", "-E", "-W", "--keep-going", "-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()
    for name in ("docs/index", "docs/gallery", "docs/api", "README", "experiments/catapult/README"):
        assert (tmp_path / f"{name}.html").is_file()
