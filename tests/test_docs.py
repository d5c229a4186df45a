"""The documentation: what is made by code is what the code makes, and what is listed is whole."""

import re
import runpy
from pathlib import Path

import pytest

from lmech import catalogue, reproducing

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
