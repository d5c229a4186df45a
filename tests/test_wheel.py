"""A wheel in an empty environment, away from the checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_conf_and_experiments_travel_inside_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("conf/config.yaml", "experiments/edge_of_stability/__init__.py"):
        assert f"lmech/{name}" in names
    assert "lmech/golden/chebyshev.json" in names
    assert "lmech/templates/report.html.j2" in names
    assert [name for name in names if "plugins" in name] == ["hydra_plugins/lmech/__init__.py"]
    assert {name.split("/")[0] for name in names} == {
        "lmech",
        "hydra_plugins",
        f"lmech-{wheel.name.split('-')[1]}.dist-info",
    }


@pytest.mark.slow
def test_the_wheel_runs_from_any_directory(wheel, tmp_path):
    """In an environment of its own that borrows the dependencies, so that no index is needed."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    here = tmp_path / "anywhere"
    (here / "experiments").mkdir(parents=True)
    (here / "conf").mkdir()
    (here / "experiments" / "__init__.py").write_text("raise RuntimeError\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "-c", PROGRAM]
    done = subprocess.run(
        command, check=False, cwd=here, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "edge_of_stability" in done.stdout
    assert "64 of 64 agree" in done.stdout
