"""A wheel in an empty environment, away from the checkout."""

import zipfile

import pytest

PROGRAM = """
import lmech, lmech.paths
from lmech.cli import main
assert "site-packages" in lmech.__file__, lmech.__file__
assert "site-packages" in str(lmech.paths.conf())
raise SystemExit(main(["dataset=chebyshev", "observables=[loss]", "steps=3", "logger=none"])
    or main(["-m", "dataset=chebyshev", "observables=[loss]", "steps=3", "logger=none",
        "seed=0,1", "hydra/sweeper=basic"])
    or main(["list", "experiment"]) or main(["verify"]))
"""


@pytest.mark.slow
def test_conf_and_experiments_travel_inside_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("conf/config.yaml", "experiments/edge_of_stability/__init__.py"):
        assert f"lmech/{name}" in names
    assert "lmech/golden/chebyshev.json" in names
    pages = ("report.html.j2", "parts.html.j2", "atlas.html.j2", "report.css", "report.js")
    assert {f"lmech/templates/{page}" for page in pages} <= set(names)
    assert "lmech/templates/project/conf/experiment/small_steps.yaml" in names
    assert [name for name in names if "plugins" in name] == ["hydra_plugins/lmech/__init__.py"]
    assert {name.split("/")[0] for name in names} == {
        "lmech",
        "hydra_plugins",
        f"lmech-{wheel.name.split('-')[1]}.dist-info",
    }


@pytest.mark.slow
def test_the_wheel_runs_from_any_directory(installed, tmp_path):
    here = tmp_path / "anywhere"
    (here / "experiments").mkdir(parents=True)
    (here / "conf").mkdir()
    (here / "experiments" / "__init__.py").write_text("raise RuntimeError\n")
    done = installed(here, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "edge_of_stability" in done.stdout
    assert "64 of 64 agree" in done.stdout
